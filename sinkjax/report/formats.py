"""How the report writes numbers. Nothing else in it turns a number into text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sinkjax.masks.definitions import BY_NAME

UNDEFINED = "undefined"

score = "{:.3f}".format
"""A sink score, or a mean of such: `0.157`."""

brier = "{:.4f}".format
"""A Brier score: `0.0472`."""

signed = "{:+.2f}".format
"""A difference of two lifts: `+0.31`."""

count = "{:,.0f}".format
"""A number of things: `1,024`."""

mean_count = "{:,.1f}".format
"""A number of things, averaged over prompts: `128.3`."""

seconds = "{:.1f} s".format
"""A duration: `4.6 s`."""


class Footnotes:
    """What the marks in a table's cells stand for: each text once, in the order of first use."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def mark(self, text: str) -> str:
        """`(a)` for the first text, `(b)` for the second, after `(z)` `(aa)`."""
        if text not in self._texts:
            self._texts.append(text)
        return _letters(self._texts.index(text))

    def lines(self) -> tuple[str, ...]:
        """One line for each mark."""
        return tuple(f"{_letters(index)} {text}" for index, text in enumerate(self._texts))


def percent(share: float, digits: int = 1) -> str:
    """`47.3%`; what would be rounded to none, but is some, is `<0.1%`."""
    text = f"{100 * share:.{digits}f}%"
    return f"<{10**-digits:g}%" if share > 0 and float(text[:-1]) == 0 else text


def points(change: float) -> str:
    """A difference of two shares in percentage points: `-25.1`."""
    return f"{100 * change:+.1f}"


def ratio(value: float) -> str:
    """A lift or a correlation: `1.02`."""
    return f"{value:.2f}" if abs(value) >= 0.005 else "0.00"  # never -0.00


def nats(value: float) -> str:
    """A KL or an NLL: `0.0123`; what would be rounded to none, but is some, is `<0.0001`."""
    return "<0.0001" if 0 < value < 0.00005 else f"{value:.4f}"


def signed_nats(value: float) -> str:
    """A difference of two NLLs or Brier scores: `+0.0123`."""
    return f"{round(value, 4) + 0.0:+.4f}"  # never -0.0000


def relative(value: float) -> str:
    """A change, as a share of what changed: `+1.25%`."""
    return f"{round(100 * value, 2) + 0.0:+.2f}%"


def span(first: int, last: int) -> str:
    """`128 to 255`."""
    return count(first) if first == last else f"{count(first)} to {count(last)}"


def masked(heads: Mapping[str, int]) -> str:
    """`117/270`: the masked heads of all, from how many take each kind of path."""
    total = sum(heads.values())
    return f"{count(total - heads['full'])}/{count(total)}"


def scaled(value: float) -> str:
    """A large number of things, to four digits: `134.5 M`."""
    return _scaled(value, ("", " k", " M", " G", " T", " P"))


def size(value: float) -> str:
    """A number of bytes, to four digits: `538.1 MB`."""
    return _scaled(value, (" B", " kB", " MB", " GB", " TB"))


def head(layer: int, number: int) -> str:
    """`L3H5`: head 5 of layer 3, both from 0."""
    return f"L{layer}H{number}"


def shortened(name: str, most: int = 44) -> str:
    """A name that fits where it stands, on one line: its middle goes first."""
    name = " ".join(name.split())
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most // 2 - 1) :]}"


def lengths(values: Sequence[int]) -> str:
    """`6 from 2 to 64`."""
    if len(values) == 1:
        return f"{count(values[0])} only"
    return f"{len(values)} from {count(values[0])} to {count(values[-1])}"


def bos(policy: str, added: bool) -> str:
    """`BOS: never`; where the policy alone does not say, whether the tokenizer adds one."""
    if policy != "tokenizer":
        return f"BOS: {policy}"
    return "BOS: the tokenizer's" if added else "BOS: none (the tokenizer adds none)"


def criterion(definition: str, threshold: float) -> str:
    """When a head is a sink: `mean > 0.9`."""
    limit = "logit " if BY_NAME[definition].range is None else ""
    return f"{definition} > {limit}{threshold:g}"


def key(position: int) -> str:
    """The token that the scores are about."""
    return f"token {position}" if position else "the first token"


def estimate(value: Mapping[str, Any], show: Callable[[float], str], notes: Footnotes) -> str:
    """A value of a record with its interval: `47.3% [45.1, 49.5]`.

    Of too few prompts for one, with the least and the most: `47.3% (45.1 to 49.5)`.

    Args:
      value: as records hold it: a value with or without an interval, or None with the reason.
      show: writes one number.
      notes: takes the reason why the value, or its interval, is not there.
    """
    text = point(value, show, notes)
    if value.get("low") is not None:
        low, high = (show(value[side]).removesuffix("%") for side in ("low", "high"))
        return f"{text} [{low}, {high}]"
    if each := value.get("each"):
        least, most = (show(end(each)).removesuffix("%") for end in (min, max))
        return f"{text} ({least} to {most})"
    return f"{text} {notes.mark(value['note'])}" if value.get("note") else text


def spread(value: Mapping[str, Any], show: Callable[[float], str], notes: Footnotes) -> str:
    """The interval of a record's value alone: `[0.94, 1.06]`."""
    if value["value"] is None:
        return point(value, show, notes)
    return f"[{show(value['low'])}, {show(value['high'])}]"


def point(value: Mapping[str, Any], show: Callable[[float], str], notes: Footnotes) -> str:
    """The value of a record alone, without its interval."""
    if value["value"] is None:
        return f"{UNDEFINED} {notes.mark(value['undefined'])}"
    return show(value["value"])


def _scaled(value: float, units: Sequence[str]) -> str:
    """A number with the largest unit of which it has one at least."""
    power = 0
    while abs(value) >= 999.95 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    digits = 4 - len(str(int(abs(value)))) if power else 0
    return f"{value:.{digits}f}{units[power]}"


def _letters(index: int) -> str:
    letters = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return f"({letters})"
