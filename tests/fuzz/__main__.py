"""Damages files of every format that is read, and says what became of each input.

  python -m tests.fuzz --inputs=5000 --seed=0

Prints the table of docs/reliability.md, and to stderr, as it is found, what is at fault: a wrong
acceptance, an error that is not clear, a traceback, a hang, memory, a crash. The status is 1 if
anything is. Inputs at fault are kept in --kept.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from tests.fuzz.formats import FORMATS  # noqa: E402
from tests.fuzz.worker import FINE, Outcome  # noqa: E402

_STARTING = 300  # seconds until a worker has its files, at most
_FAULTS = {
    "wrong": "Wrong",
    "unclear": "Unclear",
    "traceback": "Tracebacks",
    "hang": "Hangs",
    "memory": "Memory",
    "crash": "Crashes",
}
_KINDS = {
    "error": "Clear errors",
    "same": "Accepted, same values",
    "other": "Accepted, other values",
}


class Worker:
    """A process that reads inputs, begun anew where one has killed it."""

    def __init__(self, arguments: Sequence[str], seconds: float):
        """Begins no process yet.

        Args:
          arguments: of Python, for a process that answers as `worker` does.
          seconds: that reading one input may take.
        """
        paths = [str(ROOT), str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")]
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "JAX_PLATFORMS": "cpu",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        self._arguments, self._seconds = arguments, seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, number: int) -> Outcome:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, *self._arguments],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,  # so that `select` sees all that has not been read
            )
            if self._answer(_STARTING) != "null":
                raise RuntimeError(f"a worker did not start: {' '.join(self._arguments)}")
        self._process.stdin.write(f"{number}\n".encode())
        mutation = json.loads(self._answer(_STARTING) or "null")
        answer = self._answer(self._seconds)
        if answer:
            return Outcome(**json.loads(answer))
        self.close()
        if answer is None:
            return Outcome("hang", f"no end after {self._seconds:g} s", mutation)
        return Outcome("crash", "the process ended", mutation)

    def _answer(self, seconds: float) -> str | None:
        """The next line; empty where the process has ended, None where it takes longer."""
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return None
        return self._process.stdout.readline().decode().strip()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def fuzz(
    numbers: Iterable[int],
    seed: int,
    names: Sequence[str],
    kept: pathlib.Path,
    processes: int = 2,
    seconds: float = 10.0,
) -> list[tuple[int, Outcome]]:
    """What became of the inputs with these numbers.

    Args:
      names: of formats; input i is of format i modulo their count.
      kept: a folder for inputs at fault.
      seconds: that reading one may take.
    """
    waiting, lock = iter(numbers), threading.Lock()
    outcomes: list[tuple[int, Outcome]] = []

    def work(_: int) -> None:
        with tempfile.TemporaryDirectory(prefix="sinkjax-fuzz-") as root:
            arguments = ["-m", "tests.fuzz.worker", root, str(kept), str(seed), *names]
            worker = Worker(arguments, seconds)
            while True:
                with lock:
                    number = next(waiting, None)
                if number is None:
                    return worker.close()
                outcome = worker(number)
                outcomes.append((number, outcome))
                if outcome.kind not in FINE:
                    told = f"{names[number % len(names)]}: {outcome.kind}: {outcome.text}"
                    print(
                        f"input-{number}, {outcome.mutation}, {told}", file=sys.stderr, flush=True
                    )

    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        list(pool.map(work, range(processes)))
    return sorted(outcomes)


def table(outcomes: Iterable[tuple[int, Outcome]], names: Sequence[str]) -> str:
    """Counts by format, as Markdown."""
    of_format = collections.defaultdict(list)
    for number, outcome in outcomes:
        of_format[names[number % len(names)]].append(outcome)
        of_format["all"].append(outcome)
    columns = {**_KINDS, **_FAULTS}
    lines = [
        ["Format", "Inputs", *columns.values(), "Most memory added, MiB"],
        ["---", *["---:"] * (len(columns) + 2)],
    ]
    for name in (*names, "all"):
        counts = collections.Counter(outcome.kind for outcome in of_format[name])
        memory = max((outcome.memory for outcome in of_format[name]), default=0)
        row = [len(of_format[name]), *(counts[kind] for kind in columns), memory >> 20]
        lines.append([name, *map(str, row)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=5000, help="How many.")
    parser.add_argument("--seed", type=int, default=0, help="Of the damage.")
    parser.add_argument("--formats", default=",".join(FORMATS), help="Some of the formats.")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="That read.")
    parser.add_argument("--seconds", type=float, default=20.0, help="That one input may take.")
    parser.add_argument("--kept", default="/tmp/sinkjax-fuzz", help="Folder for inputs at fault.")
    options = parser.parse_args()
    names = options.formats.split(",")
    kept = pathlib.Path(options.kept)
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    outcomes = fuzz(
        range(options.inputs), options.seed, names, kept, options.processes, options.seconds
    )
    print(table(outcomes, names))
    return any(outcome.kind in _FAULTS for _, outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
