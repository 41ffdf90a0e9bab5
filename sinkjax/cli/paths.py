"""Reads the paths that flags name."""

import re
from collections.abc import Sequence

from sinkjax.cli import flags as cli
from sinkjax.errors import InputError
from sinkjax.masks.mask import FILLS, Path, Sink, Window


def read_paths(flag: str, value: str) -> tuple[Path, ...]:
    """The paths of a flag such as `sink(mean),window(4,128)`.

    Raises:
      InputError: listing all that are none.
    """
    texts = [text for text in re.split(r",(?![^(]*\))", value) if text]
    return tuple(cli.each(texts, lambda text: _read_path(flag, text)))


def shown(paths: Sequence[Path]) -> str:
    """What `read_paths` reads."""
    return ",".join(map(str, paths))


def _read_path(flag: str, text: str) -> Path:
    match re.split(r"[(),]", text):
        case ["sink", fill, ""] if fill in FILLS:
            return Sink(fill)
        case ["window", sinks, recent, ""] if sinks.isdecimal() and recent.isdecimal():
            if int(recent) > 0:
                return Window(int(sinks), int(recent))
    raise InputError(
        f"--{flag}: {text!r} is no path to choose: write window(sinks,recent), such as "
        f"window(4,128), or sink(fill) with one of {', '.join(FILLS)}, with commas between them"
    )
