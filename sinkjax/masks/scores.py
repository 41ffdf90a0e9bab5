"""Sink scores: what makes a head a sink, and which heads their scores choose.

Scores are of P prompts or, of one prompt or averaged over prompts, without that axis. All functions
raise ValueError for scores of another shape or not finite, and for K that does not divide N. With
`num_kv_heads` (K; None for heads one by one) whole key/value groups are chosen or left, for only
those free the keys, values and cache that they share. Equal scores are broken by (layer, head), the
first head first.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from sinkjax.errors import InputError, Problem, check_array, number, whole
from sinkjax.masks.definitions import BY_NAME, check_definition

Scores = Float[np.ndarray, "*P L N"]


def is_sink(
    scores: Float[np.ndarray, "*any"], definition: str, threshold: float
) -> Bool[np.ndarray, "*any"]:
    """Returns which heads are sinks: those whose score is strictly above the threshold.

    The threshold is an attention share. Scores of the definition `log_odds` are held against its
    log-odds, ln(τ / (1 - τ)).

    Raises:
      ValueError: for a threshold outside (0, 1), or an unknown definition.
    """
    check_definition(definition)
    if not 0 < number(threshold) < 1:
        raise ValueError(f"threshold is {threshold}; it has to lie between 0 and 1, both excluded")
    scores = np.asarray(scores)
    # In the scores' own precision: float32(0.3) is above the float64 0.3, and no sink at 0.3.
    return scores > scores.dtype.type(BY_NAME[definition].limit(threshold))


def sink_shares(
    scores_by_length: Sequence[Float[np.ndarray, "*_ L N"]], definition: str, threshold: float
) -> Float[np.ndarray, "L N"]:
    """Returns the least share of prompts, over the lengths, in which each head is a sink.

    Raises:
      ValueError: for no length, or L or N that differ. Also as `is_sink`.
    """
    by_length = [_with_prompts(scores) for scores in scores_by_length]
    if len({scores.shape[1:] for scores in by_length}) != 1:
        shapes = [scores.shape for scores in by_length]
        raise ValueError(f"scores have shapes {shapes}; one or more of equal L and N are needed")
    return np.min(
        [is_sink(scores, definition, threshold).mean(axis=0) for scores in by_length], axis=0
    )


def consistent(
    shares: Float[np.ndarray, "L N"], min_share: float = 0.9, num_kv_heads: int | None = None
) -> Bool[np.ndarray, "L N"]:
    """Returns the heads whose `sink_shares` are `min_share` or more; with K, in whole groups.

    Raises:
      ValueError: for a min_share outside (0, 1].
    """
    if not 0 < number(min_share) <= 1:
        raise ValueError(f"min_share is {min_share}; it has to be above 0 and at most 1")
    chosen = checked(check_array("shares", shares)[None], "shares")[0] >= min_share
    if num_kv_heads is None:
        return chosen
    size = group_size(chosen.shape[1], num_kv_heads)
    return np.repeat(chosen.reshape(len(chosen), -1, size).all(axis=-1), size, axis=1)


def ranks(scores: Scores, num_kv_heads: int | None = None) -> Int[np.ndarray, "L N"]:
    """Returns the rank of every head by its mean score over prompts, 0 for the highest.

    With K groups are ranked, each by its lowest head, and all heads of a group have its rank: a
    group is no better to take out than its worst head.
    """
    means = _with_prompts(scores).mean(axis=0, dtype=np.float64)
    num_layers, num_heads = means.shape
    size = 1 if num_kv_heads is None else group_size(num_heads, num_kv_heads)
    units = means.reshape(num_layers, -1, size).min(axis=-1)
    places = np.empty(units.size, int)
    places[np.argsort(-units, axis=None, kind="stable")] = np.arange(units.size)
    return np.repeat(places.reshape(units.shape), size, axis=1)


def checked(values: np.ndarray, name: str) -> Float[np.ndarray, "P L N"]:
    """Returns the values, or raises ValueError where they are not finite [P, L, N]."""
    values = np.asarray(values)
    if values.ndim != 3 or not values.size:
        raise ValueError(f"{name} have shape {values.shape}; [prompts, layers, heads] is needed")
    if values.dtype.kind in "bcmMOSU":
        raise ValueError(f"{name} are {values.dtype}; real numbers are needed")
    if not np.isfinite(values).all():
        where = np.argwhere(~np.isfinite(values))[0].tolist()
        raise ValueError(
            f"{name} are not all finite; the first is at [prompt, layer, head] {where}"
        )
    return values


def group_size(num_heads: int, num_kv_heads: int) -> int:
    """Returns G, or raises InputError where K does not divide N."""
    kv_heads = whole(num_kv_heads) or 0
    if kv_heads < 1 or num_heads % kv_heads:
        text = f"so many key/value heads do not divide {num_heads} query heads"
        raise InputError(Problem("num_kv_heads", num_kv_heads, text))
    return num_heads // kv_heads


def _with_prompts(scores: Scores) -> Float[np.ndarray, "P L N"]:
    scores = check_array("scores", scores)
    return checked(scores[None] if scores.ndim == 2 else scores, "scores")
