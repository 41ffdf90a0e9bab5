"""The command `sinkjax NAME`, which in a checkout is `python -m experiments.NAME` as well."""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import NamedTuple

import sinkjax
from sinkjax.cli.commands import COMMANDS, STUDIES, TOOLS
from sinkjax.errors import printable
from sinkjax.interrupts import stoppable


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
    print(
        f"error: {printable(name)} is no command; there are {', '.join(COMMANDS)}", file=sys.stderr
    )
    return 1


def run(name: str) -> None:
    """Runs a command with the flags that the process was given, and exits."""
    flags = importlib.import_module("sinkjax.cli.flags")  # --help needs nothing of it
    command = load_command(name)
    # A study goes on with what its folder holds.
    with stoppable("; the same command goes on" if name in STUDIES else ""):
        flags.run(command.main, command.module, command.renamed)


class Command(NamedTuple):
    """A command with its flags defined.

    Attributes:
      module: whose docstring and flags are its help.
      main: what it does; its result is the process's status.
      renamed: flags of earlier versions, by name, and what each is called now.
    """

    module: ModuleType
    main: Callable[[], int | None]
    renamed: Mapping[str, str]


def load_command(name: str) -> Command:
    """Defines the flags of a command."""
    module = importlib.import_module(_module(name))
    settings = importlib.import_module("sinkjax.cli.settings")
    kind = getattr(module, {**STUDIES, **TOOLS}[name])
    if name in STUDIES:
        main = importlib.import_module("sinkjax.cli.study").define_study(kind)
    else:
        settings.define_settings(kind, module_name=module.__name__)
        main = lambda: settings.read_settings(kind).run()  # noqa: E731
    if not hasattr(kind, "mesh"):
        return Command(module, main, kind.renamed)
    processes = importlib.import_module("sinkjax.cli.processes").Processes
    settings.define_settings(processes, module_name=module.__name__)

    def joined() -> int | None:
        return settings.read_settings(processes).run(main)

    return Command(module, joined, kind.renamed)


def _module(name: str) -> str:
    return f"sinkjax.studies.{name}.study" if name in STUDIES else f"sinkjax.cli.{name}"


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
    source = importlib.util.find_spec(_module(name)).loader.get_source(None)
    return ast.get_docstring(ast.parse(source)).splitlines()[0]
