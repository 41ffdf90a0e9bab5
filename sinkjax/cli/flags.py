"""What the command lines of the experiments share: the model's flags, and errors as messages."""

import contextlib
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType, ModuleType
from typing import NoReturn, TypeVar

from absl import app, flags
from absl import logging as absl_logging

import sinkjax
from sinkjax import shipped
from sinkjax.checkpoint.load import DTYPES
from sinkjax.errors import InputError, Problem, about, each
from sinkjax.masks.paths import Path, parse_paths
from sinkjax.models.shapes import SHAPES
from sinkjax.programs.options import ATTENTION, DEFAULT_ATTENTION
from sinkjax.programs.targets import WITHOUT_TPU
from sinkjax.studies import subject

Item = TypeVar("Item")

flags.disclaim_key_flags()  # so that --help of a script shows what is defined here for it


def define_model_flags(*, many: bool = False, shapes: bool = False) -> None:
    """Defines --model, --revision and --dtype for the calling script.

    Args:
      many: whether --model takes several models, with commas between them.
      shapes: whether it takes `shape:NAME`, which has no tokenizer and no trained weights.
    """
    (flags.DEFINE_list if many else flags.DEFINE_string)(
        "model",
        "smollm2-135m",
        ("The models, with commas between them, each" if many else "The model:")
        + " smollm2-135m (fetched once, 93 MB), a folder with config.json and safetensors, a .gguf "
        "file, a folder that `sinkjax convert` wrote, or a Hub id such as "
        "meta-llama/Llama-3.2-1B."
        + (
            " Or, without weights to fetch, shape:NAME or shape:FOLDER, which has a config.json; "
            f"names are {', '.join(SHAPES)}."
            if shapes
            else ""
        ),
    )
    flags.DEFINE_string("revision", None, "Branch, tag or commit, where --model is a Hub id.")
    flags.DEFINE_enum("dtype", "float32", DTYPES, "Of the parameters, whatever is stored.")


def define_attention_flag() -> None:
    """Defines --attention for the calling script."""
    flags.DEFINE_enum(
        "attention",
        DEFAULT_ATTENTION,
        ATTENTION,
        "What computes a prompt's attention: xla anywhere; splash, a kernel for TPUs; pallas, one "
        "for NVIDIA GPUs; auto, the platform's kernel for each prompt length that it can compute, "
        "and xla for others.",
    )


def attention() -> str:
    """The value of --attention."""
    return flags.FLAGS.attention


def model() -> str:
    """The one model that --model names."""
    return flags.FLAGS.model


def models() -> list[str]:
    """The models that --model names, of a script that takes many."""
    if not flags.FLAGS.model:
        raise InputError(Problem("model", "", "name at least one model"))
    return flags.FLAGS.model


def revision() -> str | None:
    """The value of --revision."""
    return flags.FLAGS.revision


def is_shape(name: str) -> bool:
    """Whether a model's name stands for a shape, without weights and tokenizer."""
    return name.startswith(subject.SHAPE)


def load_config(name: str) -> sinkjax.LlamaConfig:
    """A model's config; of `shape:...`, from the table of shapes or a folder's config.json."""
    if is_shape(name):
        return subject.shape_config(name, revision())
    return sinkjax.load_config(name, revision=revision())


def load_model(name: str, *, seed: int = 0) -> sinkjax.Llama:
    """A model as --revision and --dtype say; of `shape:...`, with random weights of this seed."""
    return subject.load_model(name, revision=revision(), dtype=flags.FLAGS.dtype, seed=seed)


def numbers(flag: str, texts: Iterable[str], kind: type[Item]) -> list[Item]:
    """The values of a flag that is a list of numbers.

    Args:
      flag: its name, for messages.
      texts: its value.
      kind: int or float.

    Raises:
      InputError: listing all that are none.
    """

    def number(text: str) -> Item:
        try:
            return kind(text)
        except ValueError as error:
            wanted = "whole number" if kind is int else "number"
            raise InputError(
                Problem(flag, text, f"no {wanted}; give {wanted}s with commas between them")
            ) from error

    return each(texts, number)


def paths(flag: str, text: str) -> tuple[Path, ...]:
    """The value of a flag that is a list of paths which heads can be masked with.

    Raises:
      InputError: listing all that are none.
    """
    with about(flag):
        return parse_paths(text, ("window", "sink"))


def as_flag(problem: Problem) -> str:
    """A problem as a script says it, with its field's flag."""
    return str(problem) if problem.field is None else f"--{problem}"


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
      renamed: flags of earlier versions, by name, and what each is called now.
    """

    def guarded(arguments: list[str]) -> int | None:
        _show_log()
        if os.environ.get("TPU_SKIP_MDS_QUERY") == "1":  # as JAX sets it where it finds no TPU
            os.environ.update({**WITHOUT_TPU, **os.environ})
        try:
            if arguments[1:]:
                raise InputError(f"{' '.join(arguments[1:])} is no flag; flags begin with --")
            return main()
        except InputError as error:
            print(
                *(f"error: {as_flag(problem)}" for problem in error.problems),
                sep="\n",
                file=sys.stderr,
            )
            return 1

    app.define_help_flags()
    for name, short in [("help", "h"), ("helpshort", "?")]:  # absl's exit with status 1
        flags.DEFINE_flag(_Help(name, short, script or sys.modules["__main__"]))
    parse = functools.partial(_parse, renamed)
    app.run(guarded, _with_shipped_files(sys.argv), flags_parser=parse)


def _parse(renamed: Mapping[str, str], arguments: list[str]) -> list[str]:
    """Parses flags; one that is unknown or has no such value ends the process with a message."""
    try:
        return flags.FLAGS(arguments)
    except flags.UnrecognizedFlagError as error:
        now = renamed.get(error.flagname.split("=")[0])
        message = f"--{error.flagname} is called --{now} now" if now else str(error)
    except flags.Error as error:
        message = str(error)
    print(f"error: {message}; --help shows all flags", file=sys.stderr)
    sys.exit(1)


def _with_shipped_files(arguments: list[str]) -> list[str]:
    """The arguments, in which --flagfile may name a file that ships."""

    def path(match: re.Match[str]) -> str:
        file = shipped.find(match[2], suffix=".flags")
        if not file.expanduser().is_file():
            names = ", ".join(shipped.names("", ".flags"))
            sys.exit(
                f"error: --flagfile={file}: there is no such file; those that ship are {names}"
            )
        return f"{match[1]}{file}"

    # Of two arguments or of one.
    joined = re.sub(r"(?<=\0)(--?flagfile[=\0])([^\0]+)", path, "\0".join(arguments))
    return joined.split("\0")


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
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("sinkjax")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
