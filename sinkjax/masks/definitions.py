"""The definitions of the sink score: how much of a head's attention falls on an early key.

Each is said once, here, with a_i the attention of query i on key c (the first token, unless asked
otherwise) and T the prompt's length: the measurement, choices, flags, figures and pages read it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

from sinkjax.errors import is_one_of

Array = Any
"""NumPy's, or JAX's, which may be traced."""


@dataclasses.dataclass(frozen=True)
class KeyAttention:
    """The attention of every query on early keys.

    Attributes:
      share: a_i of C keys, [P, N, T, C].
      log_odds: ln(a_i / (1 - a_i)), alike.
      lengths: T of each prompt, [P].
      key_positions: c of each key, [C].
      tail: queries that `tail` averages over.
    """

    share: Array
    log_odds: Array
    lengths: Array
    key_positions: Array
    tail: int

    @property
    def xp(self) -> ModuleType:
        """The module whose arrays these are, `numpy` or `jax.numpy`."""
        return self.share.__array_namespace__()

    @functools.cached_property
    def query(self) -> Array:
        """Returns i, [1, 1, T, 1]."""
        return self.xp.arange(self.share.shape[2], dtype=self.xp.int32)[None, None, :, None]

    @functools.cached_property
    def length(self) -> Array:
        """Returns T, [P, 1, 1, 1]."""
        return self.lengths[:, None, None, None]

    @functools.cached_property
    def key(self) -> Array:
        """Returns c, [1, 1, 1, C]."""
        return self.key_positions[None, None, None, :]

    @functools.cached_property
    def later(self) -> Array:
        """Returns which queries come after the key, [P, 1, T, C]."""
        return (self.query > self.key) & (self.query < self.length)

    @functools.cached_property
    def from_key(self) -> Array:
        """Returns which queries see the key, its own among them, [P, 1, T, C]."""
        return (self.query >= self.key) & (self.query < self.length)

    def mean(self, values: Array, queries: Array) -> Array:
        """Returns the mean over some queries, [P, N, C]; NaN where there are none."""
        where = self.xp.broadcast_to(queries, values.shape)
        return self.xp.mean(values, axis=2, where=where)

    def least(self) -> Array:
        """Returns the least share of the later queries, [P, N, C]; NaN where there are none."""
        where = self.xp.broadcast_to(self.later, self.share.shape)
        least = self.xp.min(self.share, axis=2, initial=1.0, where=where)
        return self.xp.where(self.later.any(axis=2), least, self.xp.nan)

    def last(self) -> Array:
        """Returns the share of the last query, [P, N, C]."""
        shape = (*self.share.shape[:2], 1, self.share.shape[3])
        last = self.xp.broadcast_to(self.length - 1, shape)
        return self.xp.take_along_axis(self.share, last, axis=2)[:, :, 0]

    def above_uniform(self) -> Array:
        """Returns the share less that of a query that gives all its keys the same."""
        return self.share - 1.0 / (self.query + 1).astype(self.share.dtype)


@dataclasses.dataclass(frozen=True)
class Definition:
    """One definition of the sink score.

    Attributes:
      score: of attention, [P, N, C].
      formula: its line on a page, where {tail} stands for that number of queries.
      queries: a few words on whose attention it is, above a figure.
      unit: of its scores.
      range: its least and its greatest score; None for log-odds, which have none.
    """

    score: Callable[[KeyAttention], Array]
    formula: str
    queries: str
    unit: str = "attention share"
    range: tuple[int, int] | None = (0, 1)

    def limit(self, threshold: float) -> float:
        """Returns the score that a threshold, which is an attention share, stands for."""
        return math.log(threshold / (1 - threshold)) if self.range is None else threshold


BY_NAME: dict[str, Definition] = {
    "mean": Definition(
        lambda of: of.mean(of.share, of.from_key),
        "mean of aᵢ over i ≥ c: the column mean from the diagonal down of Gu et al., “When "
        "attention sink emerges in language models” (ICLR 2025). For the first token it counts the "
        "first query, which can attend to nothing else.",
        "all queries, the first one too",
    ),
    "mean_excl_first": Definition(
        lambda of: of.mean(of.share, of.later),
        "mean of aᵢ over i > c.",
        "all queries but the first",
    ),
    "last": Definition(KeyAttention.last, "aᵢ of i = T - 1.", "the last query alone"),
    "tail": Definition(
        lambda of: of.mean(of.share, of.later & (of.query >= of.length - of.tail)),
        "mean of aᵢ over the last {tail} queries, of those with i > c.",
        "the last queries",
    ),
    "min": Definition(
        KeyAttention.least, "the least aᵢ over i > c.", "the query that attends least"
    ),
    "log_odds": Definition(
        lambda of: of.mean(of.log_odds, of.later),
        "mean of ln(aᵢ / (1 - aᵢ)) over i > c, in nats.",
        "ln(a / (1 - a)), all but the first",
        unit="nats",
        range=None,
    ),
    "excess": Definition(
        lambda of: of.mean(of.above_uniform(), of.later),
        "mean of aᵢ - 1/(i+1) over i > c: what uniform attention would give taken off.",
        "above uniform attention",
        unit="attention share above uniform",
        range=(-1, 1),
    ),
}
"""All definitions. Kept scores lie in this order: a new one comes last."""

DEFINITIONS = tuple(BY_NAME)
"""The names of all definitions."""


def check_definition(definition: str) -> None:
    """Raises ValueError for a definition that there is not."""
    if not is_one_of(definition, DEFINITIONS):
        raise ValueError(
            f"definition {definition!r} is unknown; known are {', '.join(DEFINITIONS)}"
        )
