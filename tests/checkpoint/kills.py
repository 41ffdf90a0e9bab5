"""Conversions and fetches that are killed at random moments leave nothing that is read wrongly.

Real processes and SIGKILL, too long for the suite, which has shorter ones of its own:

  python -m pytest -n 0 tests/checkpoint/kills.py

KILLS=50 kills as often, SEED=1 at other moments. Studies: tests/studies/kills.py.
"""

import contextlib
import hashlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from scripts import ROOT

import sinkjax
from sinkjax.errors import InputError
from sinkjax.files import PARTIAL
from tests.checkpoint import test_registry

KILLS, SEED = int(os.environ.get("KILLS", "15")), int(os.environ.get("SEED", "0"))


def killed_until_it_ends(
    start: Callable[[], subprocess.Popen], took: float, chance: random.Random, check: Callable
) -> int:
    """Starts a process until one of them ends by itself; how many were killed before it.

    Args:
      took: seconds that one takes that is not killed.
      check: called after each that was killed; whether that had ended all but its process.
    """
    kills = 0
    while True:
        process = start()
        try:
            # Most of the time goes into beginning: files are written in the rest.
            assert process.wait(took * chance.uniform(0.4, 1.1)) == 0
            return kills
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            if check():
                return kills


def timed(start: Callable[[], subprocess.Popen]) -> float:
    began = time.monotonic()
    assert start().wait() == 0
    return time.monotonic() - began


def run_kills(
    start: Callable[[], subprocess.Popen], name: str, check: Callable, ended: Callable
) -> None:
    """Kills `KILLS` times and more; `ended` is called when a process has ended, and clears up."""
    start().wait()  # what is compiled and cached is so now
    ended()
    took, chance = timed(start), random.Random(f"{name} {SEED}")
    ended()
    kills = runs = 0
    while kills < KILLS:
        kills += killed_until_it_ends(start, took, chance, check)
        runs += 1
        ended()
    print(f"\n{name}: {kills} kills in {runs} runs of {took:.1f} s")


@pytest.mark.parametrize("format", ["orbax", "safetensors"])
def test_a_killed_conversion_is_told_and_goes_on(format, tiny, tmp_path):
    model, output = sinkjax.load(tiny), tmp_path / "output"
    digest = sinkjax.model_digest(model)
    tokens = sinkjax.tokenizer_digest(sinkjax.load_tokenizer(tiny))
    contents = []

    def start() -> subprocess.Popen:
        arguments = [f"--model={tiny}", f"--output_dir={output}", f"--format={format}"]
        command = [sys.executable, "-m", "experiments.convert", *arguments, "--dtype=float32"]
        with (tmp_path / "log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )

    def check() -> bool:
        with contextlib.suppress(InputError):
            assert sinkjax.model_digest(sinkjax.load(output)) == digest
            return not (output / PARTIAL).exists()
        return False

    def ended() -> None:
        assert sinkjax.model_digest(sinkjax.load(output)) == digest
        assert sinkjax.tokenizer_digest(sinkjax.load_tokenizer(output)) == tokens
        contents.append(
            {
                path.name: path.is_dir() or path.read_bytes()
                for path in output.iterdir()
                if path.name != "sinkjax.json"  # hashes alone, which are checked above
            }
        )
        assert contents[-1] == contents[0]
        shutil.rmtree(output)

    run_kills(start, f"convert --format={format}", check, ended)


def test_a_killed_fetch_goes_on(tmp_path, monkeypatch):
    content = random.Random(0).randbytes(20_000_000)
    test_registry.write_wheel(tmp_path / "index", content)
    cache = tmp_path / "cache" / test_registry.NAME
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("SINKJAX_CACHE", str(tmp_path / "cache"))
    its = [str(len(content)), hashlib.sha256(content).hexdigest(), ""]
    command = [sys.executable, "-c", test_registry.FETCH, *its]

    def start() -> subprocess.Popen:
        with (tmp_path / "log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )

    def models() -> list[pathlib.Path]:
        return list(cache.glob("*.gguf"))

    def check() -> bool:
        assert all(path.read_bytes() == content for path in models())
        return False

    def ended() -> None:
        assert {path.name for path in cache.iterdir()} == {models()[0].name, ".lock"}
        check()
        shutil.rmtree(cache)

    run_kills(start, "fetch", check, ended)
