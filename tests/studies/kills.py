"""Studies that are killed at random moments end with the records of one that was not.

Real processes and SIGKILL, too long for the suite, which has shorter ones of its own:

  python -m pytest -n 0 tests/studies/kills.py

KILLS=50 kills as often, SEED=1 at other moments.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from scripts import ROOT

from sinkjax.studies.results import read_records

KILLS, SEED = int(os.environ.get("KILLS", "15")), int(os.environ.get("SEED", "0"))

SETTINGS = {
    "sweep": ["--lengths=2,4,8,16,32", "--num_prompts=4", "--thresholds=0.3,0.9"],
    "search": [
        "--lengths=24",
        "--kl_budget=0.3",
        "--paths=sink(mean),window(1,4)",
        "--rank_excerpts=2",
        "--hold_excerpts=3",
        "--judge_excerpts=4",
        "--growth_rounds=3",
        "--tries=3",
    ],
    "quality": [
        "--lengths=2,24,40",
        "--num_excerpts=3",
        "--continuation_tokens=4",
        "--mask=L0: 2s(first) 4f | L1: 3s(zero) 3w(1,4)",
    ],
    "timing": [
        "--mask=L0-1: 6w(1,4)",
        "--lengths=8,16",
        "--generated=3",
        "--rounds=3",
        "--warmup=1",
        "--steps_per_call=2",
    ],
}


def start(study, model, folder, log):
    command = [sys.executable, "-m", f"experiments.{study}", f"--model={model}"]
    more = [*SETTINGS[study], f"--output_dir={folder}"]
    return subprocess.Popen([*command, *more], cwd=ROOT, stdout=log, stderr=log)


def finish(study, model, folder, log):
    assert start(study, model, folder, log).wait() == 0, log.name


def whole_lines(folder):
    path = folder / "records.jsonl"
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


@pytest.mark.parametrize("study", SETTINGS)
def test_kills_at_random_moments_lose_and_change_nothing(study, tiny, tmp_path):
    chance = random.Random(f"{study} {SEED}")
    with (tmp_path / "log").open("wb") as log:
        finish(study, tiny, tmp_path / "whole", log)
        specification, wanted = read_records(tmp_path / "whole")
        took = _time_of(study, tiny, tmp_path / "timed", log)
        kills = runs = 0
        while kills < KILLS:
            folder, lines = tmp_path / f"killed{runs}", []
            runs += 1
            ended = False
            while not ended:
                process = start(study, tiny, folder, log)
                try:
                    # Most of the time goes into beginning: the folder is written in the rest.
                    ended = process.wait(took * chance.uniform(0.3, 1.1)) == 0
                    assert ended, tmp_path / "log"
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    kills += 1
                now = whole_lines(folder)
                assert (
                    now[: len(lines)] == lines
                )  # but for the last, whose digest was not there yet
                lines = now[: max(len(lines), len(now) - 1)]
            finish(study, tiny, folder, log)  # what is there is not made again
            assert whole_lines(folder)[: len(lines)] == lines
            assert read_records(folder)[0] == specification
            assert _compared(study, read_records(folder)[1]) == _compared(study, wanted)
            assert (folder / "report.html").exists()
    print(f"\n{study}: {kills} kills in {runs} runs of {len(wanted)} records, {took:.1f} s each")


def _time_of(study, model, folder, log):
    began = time.monotonic()
    finish(study, model, folder, log)
    return time.monotonic() - began


def _compared(study, records):
    """What is the same in every run: all but what a clock gave."""
    timed = {"result", "environment"} if study == "timing" else set()
    return [{name: value for name, value in r.items() if name not in timed} for r in records]
