"""How one head attends, and the one grammar in which a user writes it.

  full  copy(layer,head)  window(sinks,recent)  sink(fill)

Each word may be its first letter alone, as in the text of whole masks: `w(4,128)` is
`window(4,128)`.

Where a length L is known, `window(4,32+L/16)` is a window that grows with it: `window(4,64)` at 512
tokens, `window(4,160)` at 2,048. A path itself is always of one length.

A path's `acts_from` is the first position at which a head's output can differ from that of `full`;
None where none does. Position 0 attends to itself alone, whatever the path.
"""

import dataclasses
import re
import reprlib
from collections.abc import Collection
from typing import ClassVar, Literal, get_args

from sinkjax.errors import InputError, check_whole, each, is_one_of, whole

FILLS = ("first", "zero", "mean")

_MOST = 10**9  # positions and sums of two numbers are int32 in a program


@dataclasses.dataclass(frozen=True)
class Full:
    """Causal attention over all earlier positions."""

    kind: ClassVar[str] = "full"
    written: ClassVar[str] = "full"
    acts_from: ClassVar[int | None] = None

    def __str__(self) -> str:
        return "full"


@dataclasses.dataclass(frozen=True)
class Copy:
    """The attention pattern of an earlier layer's head, applied to this head's own values.

    Attributes:
      layer: l', before the copying head's layer.
      head: n', whose own path is `full` or `window`.

    Raises:
      ValueError: for a negative number. TypeError: for one that is not whole.
    """

    layer: int
    head: int
    kind: ClassVar[str] = "copy"
    written: ClassVar[str] = "copy(layer,head)"
    acts_from: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        _whole(self, layer=0, head=0)

    def __str__(self) -> str:
        return f"copy({self.layer},{self.head})"


@dataclasses.dataclass(frozen=True)
class Window:
    """Softmax over s < sinks and t - recent < s <= t only.

    Attributes:
      sinks: c, first tokens that every query sees.
      recent: w, last tokens that a query sees, itself among them.
      within: in a layer that has a window of the model's own, its size W: of the first tokens too
        a query sees only those with s > t - W. Never in a mask: `native` puts it there.

    Raises:
      ValueError: for sinks below 0, recent below 1, or either above 1,000,000,000. TypeError: for a
        number that is not whole.
    """

    sinks: int
    recent: int
    within: int | None = None
    kind: ClassVar[str] = "window"
    written: ClassVar[str] = "window(sinks,recent)"

    def __post_init__(self) -> None:
        _whole(self, sinks=0, recent=1)
        if self.within is not None:
            _whole(self, within=1)

    @property
    def acts_from(self) -> int | None:
        """The first position with an earlier token that the window leaves out."""
        return self.sinks + self.recent

    def __str__(self) -> str:
        return f"window({self.sinks},{self.recent})"


@dataclasses.dataclass(frozen=True)
class Sink:
    """No attention: v_0 at the first position, the fill at all later ones.

    Attributes:
      fill: `first` v_0, `zero` 0, `mean` the calibrated mean of the head's output.

    Raises:
      ValueError: for another fill.
    """

    fill: Literal["first", "zero", "mean"] = "first"
    kind: ClassVar[str] = "sink"
    written: ClassVar[str] = f"sink(fill) with one of {', '.join(FILLS)}"
    acts_from: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        if not is_one_of(self.fill, FILLS):
            raise ValueError(f"fill is {self.fill!r}; it has to be one of {', '.join(FILLS)}")

    def __str__(self) -> str:
        return f"sink({self.fill})"


Path = Full | Copy | Window | Sink
_WRITTEN = {path.kind: path.written for path in get_args(Path)}
KINDS = tuple(_WRITTEN)


def native(path: Full | Window, window: int | None) -> Full | Window:
    """Returns what a head on a path sees in a layer whose own window has so many tokens.

    It is the intersection of both: `full` is the layer's window. None for a layer without one.
    """
    if window is None:
        return path
    if isinstance(path, Full) or path.recent >= window:
        return Window(0, window)
    return Window(path.sinks, path.recent, window if path.sinks else None)


def reach(path: Full | Window, length: int) -> Full | Window:
    """Returns the path of no more than so many tokens: `full` where a window leaves nothing out.

    First tokens, which a window of the model's own can leave out, are then at most T - w.
    """
    if isinstance(path, Full) or path.sinks + path.recent < length:
        return path
    is_cut = path.within is not None and path.within < length
    sinks = min(path.sinks, length - path.recent)
    return dataclasses.replace(path, sinks=sinks) if is_cut and sinks > 0 else Full()


_PATH = re.compile(r"(?P<kind>\w+)(?:\((?P<values>[\w+/]{1,30}(?:,[\w+/]{1,30})*)\))?", re.ASCII)
_GROWING = re.compile(r"(?:(?P<least>\d+)\+)?L/(?P<each>[1-9]\d*)", re.ASCII)


def parse_path(text: str, kinds: Collection[str] = KINDS, length: int | None = None) -> Path:
    """Reads a path; `str` writes its long form and `short` its short one.

    Args:
      text: of either form.
      kinds: that are allowed, of `KINDS`.
      length: L, in tokens, of windows that grow with it; their share of it is rounded down. None
        where there is no single one.

    Raises:
      InputError: for text that is no path, or one of another kind, or that grows with a length
        where there is none.
    """
    match = _PATH.fullmatch(text)
    values = match["values"].split(",") if match and match["values"] else []
    path: Path | None = None
    try:
        match [match and match["kind"], *values]:
            case ["full" | "f"]:
                path = Full()
            case ["copy" | "c", layer, head] if layer.isdigit() and head.isdigit():
                path = Copy(int(layer), int(head))
            case ["window" | "w", sinks, recent] if sinks.isdigit() and recent.isdigit():
                path = Window(int(sinks), int(recent))
            case ["window" | "w", sinks, recent] if sinks.isdigit() and (
                growing := _GROWING.fullmatch(recent)
            ):
                if length is None:
                    raise ValueError(
                        "it grows with a length, and there is none here: give a number of tokens, "
                        "or put the mask into a plan, whose stages have lengths"
                    )
                grown = check_whole("length", length, 1) // int(growing["each"])
                path = Window(int(sinks), int(growing["least"] or 0) + grown)
            case ["sink" | "s", fill]:
                path = Sink(fill)
    except ValueError as error:
        raise InputError(f"{quoted(text)} is no path: {error}") from error
    if path is None or path.kind not in kinds:
        which = "no path" if path is None else f"a {path.kind}, which has no place here"
        raise InputError(
            f"{quoted(text)} is {which}: write {', '.join(_WRITTEN[kind] for kind in kinds)}; the "
            "words may be their first letters"
        )
    return path


def parse_paths(text: str, kinds: Collection[str] = KINDS) -> tuple[Path, ...]:
    """Reads paths with commas between them, such as `sink(mean),w(4,128)`.

    Raises:
      InputError: listing all that are none, or of another kind.
    """
    parts = re.split(r",(?![^(]*\))", text) if text else ()
    return tuple(each(parts, lambda part: parse_path(part, kinds)))


def quoted(text: str) -> str:
    """Returns a text as messages show it: what is long is cut."""
    shortened = reprlib.Repr()
    shortened.maxstring = 100
    return shortened.repr(text)


def short(path: Path) -> str:
    """Returns the path's short form."""
    return path.kind[0] + str(path).removeprefix(path.kind)


def _whole(path: Copy | Window, **least: int) -> None:
    """Makes fields Python ints, so that equal paths hash and print alike, and checks them."""
    for name, minimum in least.items():
        value = whole(given := getattr(path, name))
        if value is None:
            raise TypeError(f"{name} of {path.kind} is {given!r}; a whole number is needed")
        if not minimum <= value <= _MOST:
            raise ValueError(
                f"{name} of {path.kind} is {value}; it has to be at least {minimum} and at most "
                f"{_MOST}"
            )
        object.__setattr__(path, name, value)
