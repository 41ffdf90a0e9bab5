"""The text form of a mask's heads.

It names, for each layer, the paths of its heads from head 0 on, equal neighbours with their number
in front and equal layers together:

  L0-1: 9f | L2: 4s(first) 5w(4,128) | L3: 7f c(0,7) s(mean)

f is `full`, c(layer,head) `copy`, w(sinks,recent) `window`, s(fill) `sink`. It may be broken into
lines wherever it has a space.
"""

import itertools
import re
from collections.abc import Sequence

from sinkjax.errors import MOST_FOUND, InputError
from sinkjax.masks.paths import Path, parse_path, quoted, short

MOST_HEADS = 1_000_000
"""The most heads of a mask, which checks look at one by one."""

TOO_MANY = f"the mask has more than {MOST_HEADS:,} heads: give one that was made for a model"

_PART = re.compile(r"L(?P<first>\d{1,4})(?:-(?P<last>\d{1,4}))?: (?P<runs>\S+(?: \S+)*)")
_RUN = re.compile(r"(?P<count>[1-9]\d{0,3})?(?P<path>\D\S*)")


def read_heads(text: str, length: int | None) -> tuple[tuple[Path, ...], ...]:
    """Returns the paths of each layer's heads.

    Args:
      text: of all layers. Its windows may grow with a length, as in `w(4,32+L/16)`.
      length: L, in tokens, of those that do.

    Raises:
      InputError: listing all that cannot be read.
    """
    layers: list[tuple[Path, ...]] = []
    problems: list[str] = []
    num_heads = 0
    for given in text.split("|"):
        if len(problems) > MOST_FOUND:
            break
        part = " ".join(given.split())  # a long text may be broken into lines
        match = _PART.fullmatch(part)
        if match is None:
            problems.append(
                f"{quoted(part)} is no layer's heads: write it as in 'L0: 4f 5s(first)'"
            )
            continue
        first, last = int(match["first"]), int(match["last"] or match["first"])
        if first != len(layers) or last < first:
            problems.append(f"{quoted(part)} comes where L{len(layers)} has to begin")
        heads = []
        for run in match["runs"].split(" "):
            try:
                heads += _read_run(run, length)
            except InputError as error:
                problems.append(f"{quoted(part)}: {error}")
                if len(problems) > MOST_FOUND:
                    break
            if num_heads + len(heads) > MOST_HEADS:
                raise InputError(TOO_MANY)
        num_heads += len(heads)
        layers[first:] = [tuple(heads)] * (last - first + 1)
    if problems:
        raise InputError(*problems)
    return tuple(layers)


def write_heads(layers: Sequence[Sequence[Path]]) -> str:
    """Returns the text that `read_heads` reads so."""
    parts, first = [], 0
    for heads, equal in itertools.groupby(layers):
        last = first + len(list(equal)) - 1
        counted = ((len(list(run)), path) for path, run in itertools.groupby(heads))
        runs = [f"{count if count > 1 else ''}{short(path)}" for count, path in counted]
        name = f"L{first}" if first == last else f"L{first}-{last}"
        parts.append(f"{name}: {' '.join(runs)}")
        first = last + 1
    return " | ".join(parts)


def _read_run(text: str, length: int | None) -> list[Path]:
    """Equal heads from their text; InputError for what is none."""
    match = _RUN.fullmatch(text)
    if match is None:
        raise InputError(
            f"{quoted(text)} is no run of heads: write a path, with their number in front"
        )
    try:
        return [parse_path(match["path"], length=length)] * int(match["count"] or 1)
    except InputError as error:
        raise InputError(f"{quoted(text)} is no run of heads: {error}") from error
