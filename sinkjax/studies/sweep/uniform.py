"""What attention spread evenly over all keys scores: the yardstick that moves with the length."""

import math
from collections.abc import Sequence

import numpy as np

from sinkjax.masks.definitions import BY_NAME, KeyAttention
from sinkjax.report import formats
from sinkjax.report.table import Table


def uniform_score(definition: str, length: int, key_position: int = 0, tail: int = 16) -> float:
    """The score of a head in which query i gives each of its i + 1 keys the same attention.

    Args:
      definition: one of `sinkjax.DEFINITIONS`.
      length: T, at least `key_position` + 2.
      key_position: the key that the score is about.
      tail: queries that the definition `tail` averages over.
    """
    keys = np.arange(1.0, length + 1)[None, None, :, None]  # that a query sees
    with np.errstate(divide="ignore"):  # of the first one, which sees one key
        log_odds = -np.log(keys - 1)
    lengths, positions = np.array([length]), np.array([key_position])
    attention = KeyAttention(1 / keys, log_odds, lengths, positions, tail)
    return BY_NAME[definition].score(attention).item()


def excess_from(
    scores: np.ndarray, definition: str, length: int, key_position: int = 0
) -> np.ndarray:
    """`excess` computed from another definition's scores, which is exact.

    Args:
      scores: any shape, under `definition`.
      definition: `mean_excl_first`, or `mean` of the first token, whose own query gives it all.
      length: T.
      key_position: the key that the scores are about; 0 for `mean`.
    """
    if definition == "mean":
        scores = (length * scores - 1) / (length - 1)
    return scores - uniform_score("mean_excl_first", length, key_position)


def demands_table(lengths: Sequence[int], threshold: float) -> Table:
    """What a threshold on the first token's attention asks of a head at each length."""
    margin = math.log(threshold / (1 - threshold))
    return Table(
        title=f"What {threshold:g} asks of a head",
        columns=(
            "tokens",
            "uniform head, mean",
            "uniform head, mean_excl_first",
            f"mean over later queries for mean > {threshold:g}",
            f"nats above equal keys for last > {threshold:g}",
        ),
        rows=tuple(
            (
                formats.count(length),
                formats.score(uniform_score("mean", length)),
                formats.score(uniform_score("mean_excl_first", length)),
                formats.score(max((length * threshold - 1) / (length - 1), 0.0)),
                formats.ratio(margin + math.log(length - 1)),
            )
            for length in lengths
        ),
        notes=(
            "Arithmetic, not measured. The fourth column is what the queries after the first must "
            "give the first token on average, because the first query gives it 1 in any case. The "
            "last column is by how much the last query's logit on the first token must exceed "
            "those of the other keys, were they all equal.",
        ),
    )
