"""What the command lines of the experiments share: the model's flags, and errors as messages."""

import logging
import sys
from collections.abc import Callable, Sequence

from absl import app, flags

from sinkjax.checkpoint import DTYPES
from sinkjax.errors import InputError

flags.disclaim_key_flags()  # so that --help of a script shows what is defined here for it


def define_model_flags() -> tuple[flags.FlagHolder[str], flags.FlagHolder, flags.FlagHolder[str]]:
    """Defines --model, --revision and --dtype as flags of the calling script."""
    return (
        flags.DEFINE_string(
            "model",
            "smollm2-135m",
            "The model: smollm2-135m (fetched once, 98 MB), a folder with config.json and "
            "safetensors, a .gguf file, a folder written by experiments.convert, or a Hub id such "
            "as meta-llama/Llama-3.2-1B.",
        ),
        flags.DEFINE_string("revision", None, "Branch, tag or commit, where --model is a Hub id."),
        flags.DEFINE_enum("dtype", "float32", DTYPES, "Of the parameters, whatever is stored."),
    )


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Parses the flags, runs `main(argv)` and exits with the status that it returns.

    What the user can mend ends as a message with one line a problem and exit status 1; the
    library's log goes to stderr.
    """

    def guarded(argv: Sequence[str]) -> int | None:
        if argv[1:]:
            raise app.UsageError(f"{' '.join(argv[1:])!r} is no flag; flags begin with --")
        _show_log()
        try:
            return main(argv)
        except InputError as error:
            print(*(f"error: {problem}" for problem in error.problems), sep="\n", file=sys.stderr)
            return 1

    app.run(guarded)


def _show_log() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("sinkjax")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
