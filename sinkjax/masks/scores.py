"""Sink scores: what makes a head a sink."""

import math

import numpy as np


def is_sink(scores: np.ndarray, definition: str, threshold: float) -> np.ndarray:
    """Which heads are sinks: those whose score is strictly above the threshold.

    Args:
      scores: float, any shape, under `definition`.
      definition: the name of the scores' definition.
      threshold: an attention share, within (0, 1). Scores of the definition `log_odds` are held
        against its log-odds, ln(τ / (1 - τ)).

    Returns:
      bool, of the shape of `scores`.

    Raises:
      ValueError: for a threshold outside (0, 1).
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is {threshold}; it has to lie between 0 and 1, both excluded")
    scores = np.asarray(scores)
    limit = math.log(threshold / (1 - threshold)) if definition == "log_odds" else threshold
    # In the scores' own precision: float32(0.3) is above the float64 0.3, and no sink at 0.3.
    return scores > scores.dtype.type(limit)


def checked(values: np.ndarray, name: str) -> np.ndarray:
    """The values as an array, or ValueError where they are not finite [P, L, N]."""
    values = np.asarray(values)
    if values.ndim != 3 or not values.size:
        raise ValueError(f"{name} have shape {values.shape}; [prompts, layers, heads] is needed")
    if not np.isfinite(values).all():
        where = np.argwhere(~np.isfinite(values))[0].tolist()
        raise ValueError(
            f"{name} are not all finite; the first is at [prompt, layer, head] {where}"
        )
    return values
