"""The command `sinkjax NAME`, which in a checkout is `python -m experiments.NAME` as well."""

import ast
import importlib
import importlib.util
import sys
from typing import NoReturn

import sinkjax
from sinkjax.cli.stop import stoppable

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
    with stoppable():
        flags = importlib.import_module("sinkjax.cli.flags")  # --help needs nothing of it
        command = importlib.import_module(f"sinkjax.cli.{name}")  # which defines its flags
        flags.run(command.main, command)


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
