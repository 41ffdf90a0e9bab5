"""The command `sinkjax NAME`, which in a checkout is `python -m experiments.NAME` as well."""

import ast
import contextlib
import importlib
import importlib.util
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from absl import flags

import sinkjax

COMMANDS = (
    "sweep",
    "predict",
    "copies",
    "search",
    "frontier",
    "gates",
    "repair",
    "quality",
    "timing",
    "mask",
    "inspect",
    "generate",
    "convert",
)
"""Each is a module of sinkjax.cli: its docstring is its help, its `main` is what it does."""


def main() -> int:
    """Runs what the arguments of the process name; the installed command."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        sys.argv[:2] = [f"sinkjax {name}"]
        run(name)
    if name in ("--help", "-h", "--helpshort"):
        print(_help())
        return 0
    if name == "--version":
        print(f"sinkjax {sinkjax.__version__}")
        return 0
    print(f"error: {name} is no command; there are {', '.join(COMMANDS)}", file=sys.stderr)
    return 1


def run(name: str) -> NoReturn:
    """Runs a command with the flags that the process was given, and exits."""
    with _stoppable():
        cli = importlib.import_module("sinkjax.cli.flags")  # --help needs nothing of it
        command = importlib.import_module(f"sinkjax.cli.{name}")  # which defines its flags
        cli.run(command.main, command)


class _Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Ends the process in one line on Ctrl-C and SIGTERM, with the status that shells have."""

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise _Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt as stop:
        number = signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT
        # A study goes on with what its folder holds; nothing else has that flag.
        goes_on = "; the same command goes on" if "output_dir" in flags.FLAGS else ""
        print(f"stopped{goes_on}", file=sys.stderr)
        sys.exit(128 + number)


def _help() -> str:
    """All commands, a line each."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "sinkjax COMMAND --flags...; sinkjax COMMAND --help tells more; sinkjax --version",
            "",
            *(f"  {name:{width}}  {_summary(name)}" for name in COMMANDS),
        ]
    )


def _summary(name: str) -> str:
    """The first line of a command's docstring, read without importing what it needs."""
    source = importlib.util.find_spec(f"sinkjax.cli.{name}").loader.get_source(None)
    return ast.get_docstring(ast.parse(source)).splitlines()[0]
