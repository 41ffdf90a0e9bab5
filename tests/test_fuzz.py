"""A short run of the fuzzer, and that it sees what it is there to see."""

import pathlib
import random

import pytest

from sinkjax.errors import InputError
from tests.fuzz import worker
from tests.fuzz.__main__ import Worker, table
from tests.fuzz.formats import FORMATS, Format
from tests.fuzz.mutations import fresh, mutate
from tests.fuzz.worker import FINE, Outcome, read_damaged

INPUTS = 5  # of each format; `python -m tests.fuzz` has as many as one likes
SLOW = ("GGUF", "chat", "checkpoint", "report")  # of which there are 2


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_refused_clearly_or_read_rightly(name, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    its = FORMATS[name](base)
    fresh(base, tmp_path / "copy")
    original = its.read(tmp_path / "copy")
    for number in range(2 if name.startswith(SLOW) else INPUTS):
        chance = random.Random(f"{name} {number}")
        damaged, file = tmp_path / f"input-{number}", chance.choice(its.damaged)
        fresh(base, damaged)
        how = f"{mutate(chance, damaged / file)} of {file}"
        outcome = read_damaged(its, damaged, original, how)
        assert outcome.kind in FINE, (number, outcome)


def fault(read, tmp_path: pathlib.Path, **more) -> str:
    (tmp_path / "file").write_text("content")
    return read_damaged(Format(("file",), read, **more), tmp_path, "right", "none").kind


def refuse(*problems: str):
    def read(folder: pathlib.Path) -> None:
        raise InputError(*problems)

    return read


def test_every_fault_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "MOST_MEMORY", 16 << 20)
    assert fault(lambda folder: "right", tmp_path) == "same"
    assert fault(lambda folder: "wrong", tmp_path) == "wrong"
    assert fault(lambda folder: "other", tmp_path, expected=lambda *_: "other") == "other"
    assert fault(lambda folder: "other", tmp_path, expected=lambda *_: 1 / 0) == "wrong"
    assert fault(lambda folder: {}["key"], tmp_path) == "traceback"
    assert fault(lambda folder: bytearray(64 << 20), tmp_path) == "memory"
    assert fault(refuse("file: it is damaged"), tmp_path) == "error"
    unclear = [(), ("",), ("no name",)]
    assert {fault(refuse(*problems), tmp_path) for problems in unclear} == {"unclear"}


@pytest.mark.parametrize(("then", "kind"), [("time.sleep(60)", "hang"), ("exit()", "crash")])
def test_what_never_ends_and_what_ends_the_process_are_seen(then, kind):
    code = "import time; print('null'); input(); print('\"how\"', flush=True); "
    reads = Worker(["-uc", code + then], seconds=0.5)
    assert reads(0) == (kind, reads(0).text, "how", 0)


def test_the_table_counts_by_format():
    outcomes = [(0, Outcome("error")), (1, Outcome("hang")), (2, Outcome("error", memory=3 << 20))]
    lines = table(outcomes, ["a", "b"]).splitlines()
    assert lines[2] == "| a | 2 | 2 | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 3 |"
    assert lines[3] == "| b | 1 | 0 | 0 | 0 | 0 | 0 | 0 | 1 | 0 | 0 | 0 |"
    assert lines[4].startswith("| all | 3 | 2 | 0 | 0 |")
