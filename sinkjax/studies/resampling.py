"""The bootstrap over prompts, and values with their intervals.

Prompts are what was drawn, so prompts are what is resampled: but for KLs, an interval is the
percentile bootstrap over whole prompts (Efron & Tibshirani, "An Introduction to the Bootstrap",
1993, chapter 13). All quantities are ratios of counts that add up over prompts, so a resample is a
row of whole weights and all resamples of a quantity are one matrix product, exact in float64.
The `seed` of what summarizes is that of its resamples.

Excerpts, on which masks are judged, are few: the percentiles of eight cover 80 to 89% where they
say 95%. So theirs are expanded (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015,
section 4.1.2), those of KLs follow from how these are distributed (`estimate_kl`), and of fewer
than eight there is no interval. `python -m benchmarks.coverage` shows what each way covers. Nor is
there one where all excerpts say the same, as of thirty answers none of which is lost: they cannot
tell how rare others are.

A value that does not exist is NaN in this package and never outside it: there it is None beside the
reason in words.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.special

LEVEL = 0.95
RESAMPLES = 2000
FEWEST = 8
"""Excerpts from which on there is an interval: of fewer none covers what it says."""

INTERVALS = {"level": f"{LEVEL:.0%}", "resamples": f"{RESAMPLES:,}"}
"""What pages explain intervals with."""
FEW_PROMPTS = f"of fewer than {FEWEST} prompts intervals are too narrow"
"""What tables say of plain percentiles of few prompts."""

_INTERVAL = f"In brackets: the {LEVEL:.0%} interval over excerpts; in parentheses"
EXCERPTS_NOTE = f"{_INTERVAL}, of fewer than {FEWEST} excerpts: the least and the most."
DRAWS_NOTE = f"{_INTERVAL}: the least and the most of several draws, or of few excerpts."
"""What tables say of estimates over excerpts, and of those where controls are drawn as well."""

_TAIL = (1 - LEVEL) / 2
_KL_TAIL = 0.02  # in its place, of `estimate_kl`
_BLOCK = 1 << 22  # counts that are drawn and multiplied at once: tens of megabytes
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


def resample_counts(num_prompts: int, seed: int) -> np.ndarray:
    """How often each prompt is drawn in each bootstrap resample.

    Args:
      num_prompts: P.
      seed: not negative.

    Returns:
      float64 [R, P], whole numbers; every row is multinomial and sums to P.
    """
    return np.concatenate(list(_drawn(num_prompts, seed, 0)), dtype=np.float64)


class Resamples:
    """`resample_counts` of any number of prompts, held in as few bytes as the counts need.

    Of a byte a count, 100,000 prompts take 0.2 GB, where float64 takes 1.6. Draws of different
    streams are independent; of one, for equal P and seed, equal.
    """

    def __init__(self, num_prompts: int, seed: int, stream: int = 0):
        drawn = _drawn(num_prompts, seed, stream)
        self._blocks = [counts.astype(np.min_scalar_type(counts.max())) for counts in drawn]

    def __len__(self) -> int:
        return RESAMPLES

    def __matmul__(self, values: np.ndarray) -> np.ndarray:
        """The sums over prompts in every resample, float64 [R, ...], of values [P, ...]."""
        return np.concatenate([block.astype(np.float64) @ values for block in self._blocks])


def _drawn(num_prompts: int, seed: int, stream: int) -> Iterator[np.ndarray]:
    """The resamples' counts, int [rows, P], in blocks: the same draws however large those are."""
    rng = np.random.default_rng((_RESAMPLING, stream, seed))
    most = max(1, _BLOCK // num_prompts)
    for start in range(0, RESAMPLES, most):
        rows = min(most, RESAMPLES - start)
        drawn = rng.integers(num_prompts, size=(rows, num_prompts))
        drawn += num_prompts * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)


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


def estimate_excerpts(
    value: float,
    resampled: np.ndarray,
    count: int,
    each: np.ndarray | None = None,
    fewest: int = FEWEST,
) -> dict[str, Any]:
    """A value over excerpts with its bootstrap interval, as records hold it.

    Args:
      value, resampled: of all, and float64 [R] of the resamples.
      count: W excerpts; of fewer than `fewest` there is no interval.
      each: float64 [W], the value of each. Of few excerpts they stand in an interval's place; of
        equal ones there is none. None where a single excerpt has none.
    """
    return _without_interval(value, count, each, fewest) or {
        "value": float(value),
        **interval(resampled, expanded_tail(count, count - 3)),
    }


def estimate_kl(values: np.ndarray) -> dict[str, Any]:
    """The mean of KLs, an estimate.

    A few excerpts cost many times what others do, and eight seldom hold one of these: intervals
    from resampling eight excerpts of code cover 86%. Such values are near to lognormal. So this is
    Cox's interval of a lognormal's mean (Zhou and Gao, "Confidence intervals for the log-normal
    mean", Statistics in Medicine 16, 1997) as factors of the mean itself: it covers 93% at least of
    each shipped text, from eight excerpts on. To that end its tails are those of 96%, Student's t
    has n - 3 degrees of freedom, as in `expanded_tail`, and where KLs near zero spread the
    logarithms, the spread is at most a little more than what mean and deviation make of it. In
    prompts of a few tokens a handful of a hundred excerpts may make up most of the mean, which is
    more than a lognormal's tail: so the error is at least the mean's own, from the deviation.

    Args:
      values: [W, ...]; W are the excerpts.
    """
    count = len(values)
    each = values.reshape(count, -1).mean(axis=1, dtype=np.float64)
    value = each.mean()
    if without := _without_interval(value, count, each):
        return without
    if value <= 0:
        note = "of excerpts without any, but for rounding: no interval"
        return {"value": float(value), "low": None, "high": None, "note": note}
    relative = np.square(each.std(ddof=1) / value)
    spread = np.log1p(relative) * (1 + 8 / count)
    if each.min() > 0:
        spread = min(spread, np.log(each).var(ddof=1))
    error = math.sqrt(max(spread / count + spread**2 / (2 * (count - 1)), relative / count))
    factor = math.exp(-scipy.special.stdtrit(count - 3, _KL_TAIL) * error)
    ends = {"low": float(value / factor), "high": float(value * factor)}
    return {"value": float(value), **ends, "level": LEVEL}


def _without_interval(
    value: float, count: int, each: np.ndarray | None, fewest: int = FEWEST
) -> dict[str, Any] | None:
    """What stands in an interval's place where there is none, as of `estimate_excerpts`."""
    without = {"value": float(value), "low": None, "high": None}
    if count >= fewest:
        if each is None or (each != each[0]).any():
            return None
        return {**without, "note": f"the same in all {count} excerpts: no interval"}
    if count == 1:
        return {**without, "note": "a sample of one: no interval"}
    if each is None:
        return {**without, "note": f"a sample of {count}, fewer than {fewest}: no interval"}
    return {**without, "each": each.tolist()}


def estimate_mean(
    values: np.ndarray,
    weights: np.ndarray,
    function: Callable[[Any], Any] = lambda mean: mean,
    fewest: int = FEWEST,
) -> dict[str, Any]:
    """A function of the mean of values, an estimate.

    Args:
      values: [P, ...]; P are the excerpts that are resampled.
      weights: `resample_counts` of them, float64 [R, P].
      function: of the mean, and of means [R].
      fewest: excerpts that an interval needs.
    """
    count = len(values)
    each = values.reshape(count, -1).mean(axis=1, dtype=np.float64)
    resampled = function(weights @ each / count)
    value = float(function(each.mean()))
    return estimate_excerpts(value, resampled, count, function(each), fewest)


def estimate_change(
    baseline: np.ndarray, candidate: np.ndarray, weights: np.ndarray
) -> dict[str, Any]:
    """Estimates of the means of two float64 [W] and of their paired difference."""
    by_model = {"baseline": baseline, "candidate": candidate, "change": candidate - baseline}
    return {name: estimate_mean(values, weights) for name, values in by_model.items()}


def expanded_tail(count: int, freedom: int | None = None) -> float:
    """The share of resamples of `count` beyond each end of an interval that covers `LEVEL`.

    That of a normal distribution beyond what Student's t and a mean's own √(n / (n - 1)) say.

    Args:
      freedom: degrees of it; None for n - 1, those of normal values. What differs between excerpts
        is skewed, and the spread of few of them is told too small, less so with n - 3.
    """
    if count == 1:
        return 0.0
    quantile = scipy.special.stdtrit(freedom or count - 1, _TAIL)
    return float(scipy.special.ndtr(math.sqrt(count / (count - 1)) * quantile))


def interval(values: np.ndarray, tail: float = _TAIL) -> dict[str, float]:
    """The values, [any number], but for a share at each end."""
    low, high = np.quantile(values, [tail, 1 - tail])
    return {"low": float(low), "high": float(high), "level": LEVEL}
