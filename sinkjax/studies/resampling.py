"""The bootstrap over prompts, and values with their intervals.

Prompts are what was drawn, so prompts are what is resampled: every interval is the percentile
bootstrap over whole prompts (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter
13). All quantities are ratios of counts that add up over prompts, so a resample is a row of whole
weights and all resamples of a quantity are one matrix product, exact in float64.

A value that does not exist is NaN in this package and never outside it: there it is None beside the
reason in words.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000

_QUANTILES = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
_RESAMPLING = 1  # tells these draws from others of the same seed


class Resampled(NamedTuple):
    """A quantity as observed and in every resample.

    Attributes:
      value: NaN where it is undefined.
      resampled: float64 [R].
      undefined: why, where the value is NaN.
    """

    value: float
    resampled: np.ndarray
    undefined: str = ""


def resample_counts(num_prompts: int, seed: int, stream: int = 0) -> np.ndarray:
    """How often each prompt is drawn in each bootstrap resample.

    Args:
      num_prompts: P.
      seed: not negative.
      stream: draws of different streams are independent; of one, for equal P and seed, equal.

    Returns:
      float64 [R, P], whole numbers; every row is multinomial and sums to P.
    """
    rng = np.random.default_rng((_RESAMPLING, stream, seed))
    drawn = rng.integers(num_prompts, size=(RESAMPLES, num_prompts))
    drawn += num_prompts * np.arange(RESAMPLES)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=drawn.size)
    return counts.reshape(drawn.shape).astype(np.float64)


def estimate(
    value: float, resampled: np.ndarray, num_prompts: int, undefined: str = ""
) -> dict[str, Any]:
    """A value with its bootstrap interval, as records hold it.

    Args:
      value: NaN where it is undefined.
      resampled: float64 [R], NaN in the resamples where it is undefined: they are left out, and if
        they are more than half, there is no interval.
      num_prompts: P; of a single prompt there is no interval.
      undefined: why, where the value is NaN.
    """
    if np.isnan(value):
        return {"value": None, "undefined": undefined}
    defined = resampled[~np.isnan(resampled)]
    if num_prompts == 1:
        note = "a sample of one: no interval"
    elif 2 * defined.size < resampled.size:
        missing = f"{resampled.size - defined.size} of {resampled.size}"
        note = f"undefined in {missing} resamples: no interval"
    else:
        return {"value": float(value), **interval(defined)}
    return {"value": float(value), "low": None, "high": None, "note": note}


def estimate_mean(
    values: np.ndarray,
    weights: np.ndarray,
    function: Callable[[Any], Any] = lambda mean: mean,
) -> dict[str, Any]:
    """A function of the mean of values, an estimate.

    Args:
      values: [P, ...]; P are the prompts, or excerpts, that are resampled.
      weights: `resample_counts` of them, float64 [R, P].
      function: of the mean, and of means [R].
    """
    count = len(values)
    each = values.reshape(count, -1).mean(axis=1, dtype=np.float64)
    return estimate(float(function(each.mean())), function(weights @ each / count), count)


def interval(values: np.ndarray) -> dict[str, float]:
    """The middle `LEVEL` of the values, [any number]."""
    low, high = np.quantile(values, _QUANTILES)
    return {"low": float(low), "high": float(high), "level": LEVEL}
