"""Runs a script: parses its flags, shows its help, and says its errors in a line each."""

import contextlib
import dataclasses
import functools
import io
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType, ModuleType
from typing import NoReturn

import jax
from absl import app, flags
from absl import logging as absl_logging

from sinkjax import shipped
from sinkjax.errors import InputError, Problem, about, clipped, first_line, printable
from sinkjax.files import read_file, user_path
from sinkjax.programs.executable import is_out_of_memory
from sinkjax.programs.targets import WITHOUT_TPU

_SHOWN = 200  # characters of an argument in a message


def as_flag(problem: Problem, renamed: Mapping[str, str] = MappingProxyType({})) -> str:
    """A problem as a script says it, with the flag of its field, which may have the older name."""
    if problem.field is None:
        return str(problem)
    return f"--{dataclasses.replace(problem, field=renamed.get(problem.field, problem.field))}"


def run(
    main: Callable[[], int | None],
    script: ModuleType | None = None,
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> NoReturn:
    """Parses the flags, runs `main()` and exits with the status that it returns.

    What the user can mend ends as a message with one line a problem and exit status 1. Of logs,
    stderr shows the library's, and other packages' warnings; --verbosity=0 shows all.

    Args:
      main: of the script.
      script: the module whose docstring and flags --help shows; by default the process's own.
      renamed: flags of earlier versions, by name, and what each is called now, or why it is gone.
    """

    failed = functools.partial(_failed, renamed=renamed)

    def guarded(arguments: list[str]) -> int | None:
        if isinstance(sys.stdout, io.TextIOWrapper):  # of an encoding that lacks what is to come
            sys.stdout.reconfigure(errors="backslashreplace")
        _show_log()
        if os.environ.get("TPU_SKIP_MDS_QUERY") == "1":  # as JAX sets it where it finds no TPU
            os.environ.update({**WITHOUT_TPU, **os.environ})
        # Where there is no PyTorch, transformers says so to everyone who imports it.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        try:
            if arguments[1:]:
                raise InputError(f"{' '.join(arguments[1:])} is no flag; flags begin with --")
            return main()
        except InputError as error:
            return failed(error)
        except OSError as error:  # of a name too long, a folder that none may enter
            where = "" if error.filename is None else f"{error.filename}: "
            return failed(InputError(f"{where}{error.strerror or error}"))
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            said = f" ({first_line(error)})" if str(error) else ""
            advice = "ask for fewer rows or shorter texts, or divide the model over more devices"
            return failed(InputError(f"memory does not suffice{said}; {advice}"))
        except (AssertionError, RuntimeError):
            if problem := _no_devices():
                return failed(InputError(problem))
            raise

    app.define_help_flags()
    for name, short in [("help", "h"), ("helpshort", "?")]:  # absl's exit with status 1
        flags.DEFINE_flag(_Help(name, short, script or sys.modules["__main__"]))
    parse = functools.partial(_parse, renamed)
    try:
        arguments = list(_expanded(sys.argv))
    except InputError as error:
        sys.exit(failed(error))
    for name, last in _given_again(sys.argv).items():
        shown = printable(f"--{name} is given more than once; {last} is taken, the last")
        print(f"warning: {clipped(shown)}", file=sys.stderr)
    app.run(guarded, arguments, flags_parser=parse)


def _no_devices() -> str | None:
    """What is wrong with the devices that JAX_PLATFORMS names; None where they are there."""
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # the former without a text, for cuda
        said = f": {first_line(error)}" if str(error) else ""
        return f"JAX finds no devices of JAX_PLATFORMS{said}; unset it, or install what they need"
    return None


def _failed(error: InputError, renamed: Mapping[str, str] = MappingProxyType({})) -> int:
    """Says what is wrong, a line a problem; the process's status."""
    for line in error.lines(functools.partial(as_flag, renamed=renamed)):
        print(f"error: {line}", file=sys.stderr)
    return 1


def _parse(renamed: Mapping[str, str], arguments: list[str]) -> list[str]:
    """Parses flags; one that is unknown or has no such value ends the process with a message."""
    try:
        return flags.FLAGS(arguments)
    except flags.UnrecognizedFlagError as error:
        message = str(error)
        if now := renamed.get(error.flagname.split("=")[0]):
            said = f"gone: {now}" if " " in now else f"called --{now} now"
            message = f"--{error.flagname} is {said}"
    except flags.Error as error:
        message = str(error)
    print(f"error: {clipped(printable(message))}; --help shows all flags", file=sys.stderr)
    sys.exit(1)


def _given_again(arguments: Iterable[str]) -> dict[str, str]:
    """The last value, which is taken, of each flag that is given several, by its name.

    The command line's own alone: what takes the place of a flag file's is meant to.
    """
    given: dict[str, list[str]] = {}
    for argument in arguments:
        match = re.fullmatch("--?([^=]+)=(.*)", argument, re.DOTALL)
        if match is not None and match[1] in flags.FLAGS:
            given.setdefault(match[1], []).append(match[2])
    return {
        name: values[-1]
        for name, values in given.items()
        if len(set(values)) > 1 and not isinstance(flags.FLAGS[name], flags.MultiFlag)
    }


def _expanded(arguments: Iterable[str], within: tuple[pathlib.Path, ...] = ()) -> Iterator[str]:
    """The arguments, with its lines in place of each --flagfile, which may name one that ships.

    Where a path begins with ~, that is the home folder. The arguments are from the flag files
    `within`, the innermost last.

    Raises:
      InputError: for a flag file that cannot be read or includes itself, and an argument that is
        no text.
    """
    given = iter(arguments)
    for argument in given:
        match = re.fullmatch(r"--?flagfile(?:[= ](.*))?", argument, re.DOTALL)
        if match is not None:
            name = next(given, "") if match[1] is None else match[1]
            yield from _expanded(*_lines(name, within))
        elif re.search("[\0\ud800-\udfff]", argument):
            raise InputError(
                f"{argument[:_SHOWN]!r} holds a NUL character or bytes that are not UTF-8; flags "
                "take text alone, so rename such a file"
            )
        elif re.match("--?prompt=", argument):  # what is no path
            yield argument
        else:  # no shell does it behind a =, and a folder named ~ would be made
            yield re.sub("(?<=[=,])~(?=/|,|$)", lambda _: os.path.expanduser("~"), argument)


def _lines(
    name: str, within: tuple[pathlib.Path, ...]
) -> tuple[list[str], tuple[pathlib.Path, ...]]:
    """The arguments in a flag file, and the flag files that they are from."""
    with about("flagfile", name[:_SHOWN]):
        file = user_path(shipped.find(name, suffix=".flags"))
        try:
            content = read_file(file).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            if "\0" not in name and not os.path.exists(file):  # of no name is too long
                names = ", ".join(shipped.names("", ".flags"))
                raise InputError(f"there is no such file; those that ship are {names}") from error
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise InputError(f"it cannot be read ({reason}); give a file of flags") from error
        if file.resolve() in within:
            raise InputError("it includes itself; take that line out")
    lines = (line.strip() for line in re.split("\r\n?|\n", content))
    return [line for line in lines if line and not line.startswith(("#", "//"))], (
        *within,
        file.resolve(),
    )


class _Help(flags.BooleanFlag):
    """A flag that shows a script's docstring and flags, and ends the process."""

    def __init__(self, name: str, short_name: str, script: ModuleType):
        super().__init__(name, False, "show this help", short_name, allow_override=True)
        self._script = script

    def parse(self, argument: str | bool | None) -> None:
        super().parse(argument)
        if self.value:
            text = self._script.__doc__ or ""
            if not sys.argv[0].startswith("sinkjax "):  # by a checkout's script
                text = re.sub("^  sinkjax ", "  python -m experiments.", text, flags=re.MULTILINE)
            with contextlib.suppress(BrokenPipeError):  # as under `| head`
                print(text, flags.FLAGS.module_help(self._script), sep="\n", flush=True)
            sys.exit(0)


def _show_log() -> None:
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)  # absl's own is all that Orbax and JAX say
    handler = logging.StreamHandler()
    handler.format = lambda record: printable(record.getMessage())  # which may quote a file's name
    logger = logging.getLogger("sinkjax")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
