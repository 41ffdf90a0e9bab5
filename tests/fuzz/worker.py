"""Reads damaged inputs, one after the other, in a process of its own that may be killed.

  python -m tests.fuzz.worker FOLDER KEPT SEED NAME...

It writes the valid files of the formats named to FOLDER, reads them, says "null", and then reads
numbers from stdin. Input i is of format i modulo their count, damaged as i and the seed decide. For
each it writes two lines of JSON: how the input is damaged, and once it is read `Outcome`'s fields.
Inputs at fault stay in KEPT/input-i.
"""

import json
import logging
import os
import pathlib
import random
import resource
import shutil
import sys
import tempfile
import warnings
from typing import Any, NamedTuple

from sinkjax.errors import InputError
from tests.fuzz.formats import Format, formats
from tests.fuzz.mutations import fresh, mutate

MOST_MEMORY = 512 << 20
"""Bytes that reading one input may add; what asks for four times as much is refused them."""

FINE = ("error", "same", "other")

_MOST_LINES, _MOST_CHARACTERS = 25, 10_000


class Outcome(NamedTuple):
    """What became of one input.

    Attributes:
      kind: "error" (clear), "same" and "other" (values, as they should be); or a fault: "wrong",
        "unclear", "traceback", "memory", "hang", "crash".
      text: what was said or is wrong.
      mutation: how it was damaged.
      memory: bytes that reading it added at its peak.
    """

    kind: str
    text: str = ""
    mutation: str = ""
    memory: int = 0


def judge(its: Format, folder: pathlib.Path, original: Any) -> tuple[str, str]:
    """The kind of outcome, and its text, of a folder with a damaged file."""
    try:
        value = its.read(folder)
    except InputError as error:
        complaint = _complaint(error, folder)
        return (
            ("unclear", f"{complaint}: {str(error)[:300]!r}")
            if complaint
            else ("error", str(error)[:300])
        )
    except MemoryError as error:
        return "memory", repr(error)
    except BaseException as error:  # a panic of Rust, too
        place = error.__traceback__
        while place.tb_next is not None:
            place = place.tb_next
        where = f"{pathlib.Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}"
        return "traceback", f"{type(error).__name__}: {str(error)[:200]!r} in {where}"
    try:
        expected = its.expected(folder, original)
    except Exception as error:
        if value == original:
            return "same", "damage that changes nothing"
        return (
            "wrong",
            f"accepted, though another reader says {type(error).__name__}: {str(error)[:200]!r}",
        )
    if value != expected:
        return "wrong", f"other values than another reader's: {_difference(value, expected)}"
    return ("same" if value == original else "other"), ""


def _complaint(error: InputError, folder: pathlib.Path) -> str | None:
    """What is not clear in an error; None if nothing."""
    lines = error.lines()
    if not lines or not all(line.strip() and line.isprintable() for line in lines):
        return "empty, or not of printable lines"
    if len(lines) > _MOST_LINES or sum(map(len, lines)) > _MOST_CHARACTERS:
        return f"{len(lines)} lines of {sum(map(len, lines))} characters"
    names = [folder.name, *(path.name for path in folder.iterdir()), "--"]
    return None if any(name in str(error) for name in names) else "names no file and no setting"


def _difference(value: Any, expected: Any, at: str = "") -> str:
    if isinstance(value, dict) and isinstance(expected, dict):
        for key in value | expected:
            if value.get(key) != expected.get(key):
                return _difference(value.get(key), expected.get(key), f"{at}.{key}")
    if isinstance(value, list) and isinstance(expected, list) and len(value) == len(expected):
        for number, (a, b) in enumerate(zip(value, expected, strict=True)):
            if a != b:
                return _difference(a, b, f"{at}[{number}]")
    return f"{at} is {str(value)[:80]!r}, not {str(expected)[:80]!r}"


def _memory(field: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def read_damaged(its: Format, folder: pathlib.Path, original: Any, mutation: str) -> Outcome:
    """What becomes of a folder with a damaged file, and the memory that it takes."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory("VmRSS")
    kind, text = judge(its, folder, original)
    memory = max(0, _memory("VmHWM") - before)
    if memory > MOST_MEMORY:
        kind, text = "memory", f"{memory >> 20} MiB; {kind}: {text}"
    return Outcome(kind, text, mutation, memory)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)  # for what libraries say
    os.dup2(nowhere, 1)
    warnings.simplefilter("ignore")
    logging.disable()
    root, kept = map(pathlib.Path, sys.argv[1:3])
    seed, names = sys.argv[3], tuple(sys.argv[4:])
    folder = pathlib.Path(tempfile.mkdtemp(dir=root))
    ready = []
    for number, (name, its) in enumerate(formats(folder, names)):
        copy = folder / "copy"
        fresh(folder / f"{number}", copy)
        original = its.read(copy)
        assert judge(its, copy, original)[0] == "same", name
        ready.append((its, folder / f"{number}", original))
    os.dup2(nowhere, 2)
    limit = _memory("VmSize") + 4 * MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(json.dumps(None), file=answers)
    for line in sys.stdin:
        its, base, original = ready[int(line) % len(ready)]
        chance = random.Random(f"{seed} {int(line)}")
        damaged, name = kept / f"input-{int(line)}", chance.choice(its.damaged)
        fresh(base, damaged)
        mutation = f"{mutate(chance, damaged / name)} of {name}"
        print(json.dumps(mutation), file=answers)
        outcome = read_damaged(its, damaged, original, mutation)
        if outcome.kind in FINE:
            shutil.rmtree(damaged)
        print(json.dumps(outcome._asdict()), file=answers)


if __name__ == "__main__":
    main()
