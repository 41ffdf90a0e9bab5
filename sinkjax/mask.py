"""Which path every head takes: a static value, known when JAX traces.

A mask is never an array that a program reads: it decides which program there is.
"""

import dataclasses
from typing import Literal

FILLS = ("first", "zero", "mean")


@dataclasses.dataclass(frozen=True)
class Full:
    """Causal attention over all earlier positions."""


@dataclasses.dataclass(frozen=True)
class Copy:
    """The attention pattern of an earlier layer's head, applied to this head's own values.

    Attributes:
      layer: l', before the copying head's layer.
      head: n', whose own path is `full` or `window`.
    """

    layer: int
    head: int


@dataclasses.dataclass(frozen=True)
class Window:
    """Softmax over s < sinks and t - recent < s <= t only.

    Attributes:
      sinks: c, first tokens that every query sees.
      recent: w, last tokens that a query sees, itself among them.
    """

    sinks: int
    recent: int


@dataclasses.dataclass(frozen=True)
class Sink:
    """No attention: v_0 at the first position, the fill at all later ones.

    Attributes:
      fill: `first` v_0, `zero` 0, `mean` the calibrated mean of the head's output.
    """

    fill: Literal["first", "zero", "mean"] = "first"


Path = Full | Copy | Window | Sink


@dataclasses.dataclass(frozen=True)
class SinkMask:
    """The path of every head.

    Attributes:
      heads: one tuple a layer, one path a query head.
    """

    heads: tuple[tuple[Path, ...], ...]
