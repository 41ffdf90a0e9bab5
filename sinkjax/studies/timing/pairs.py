"""Interleaved samples of several calls, and ratios of what was timed side by side.

A shared machine changes speed from one second to the next, so nothing timed alone can be compared.
Here every round times every call once, in an order that is drawn anew for two rounds and reversed
in the second, such that none is always after the same one. A ratio is the median over rounds of the
ratio within a round, its interval the bootstrap over rounds (`sinkjax.studies.resampling`).
"""

import dataclasses
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.errors import naming
from sinkjax.studies.resampling import expanded_tail, interval, resample_counts

Clock = Callable[[], float]


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """Something to be timed.

    Attributes:
      run: does it; returns when the device is done (`jax.block_until_ready`), not before.
      prepare: called before each run, outside of the clock.
      check: called after each run with what it gave, outside of the clock.
    """

    run: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None
    check: Callable[[Any], None] = lambda result: None


@dataclasses.dataclass(frozen=True)
class Samples:
    """One call's, a round each, in seconds.

    Attributes:
      seconds: by the clock.
      cpu_seconds: that all threads of this process spent in them.
      warmup: by the clock, of the runs before the first round.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)
    warmup: list[float] = dataclasses.field(default_factory=list)


def interleave(
    calls: Mapping[str, Call],
    *,
    rounds: int,
    warmup: int,
    seed: int = 0,
    settle: float = 0.0,
    clock: Clock = time.perf_counter,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, Samples]:
    """Times calls by turns.

    Args:
      rounds: in each, every call is timed once.
      warmup: runs of each call before the first round, kept apart.
      seed: of the order.
      settle: seconds to wait before each run, for threads of another one that wait by spinning.

    Returns:
      of each call, by name.
    """
    samples = {name: Samples() for name in calls}
    was_enabled = gc.isenabled()
    gc.disable()  # a collection belongs to nobody's time
    try:
        for name, call in calls.items():
            for _ in range(warmup):
                with naming(name):
                    samples[name].warmup.append(_once(call, settle, clock)[0])
        for order in _orders(list(calls), rounds, seed):
            for name in order:
                with naming(name):
                    seconds, cpu_seconds = _once(calls[name], settle, clock)
                samples[name].seconds.append(seconds)
                samples[name].cpu_seconds.append(cpu_seconds)
            on_round()
    finally:
        if was_enabled:
            gc.enable()
    return samples


def ratio(seconds: Sequence[float], by: Sequence[float], seed: int = 0) -> dict[str, float]:
    """How many times as long as something else it took.

    Args:
      seconds, by: [rounds], of the same rounds.

    Returns:
      `value`, the median of the rounds' ratios; `low`, `high` and `level` of its interval.

    Raises:
      ValueError: for different numbers of rounds.
    """
    pairs = np.asarray(seconds, np.float64), np.asarray(by, np.float64)
    if pairs[0].shape != pairs[1].shape:
        raise ValueError(f"{len(seconds)} rounds by {len(by)}; pairs are of the same rounds")
    ratios = np.sort(pairs[0] / pairs[1])
    ends = interval(_resampled_medians(ratios, seed), expanded_tail(ratios.size))
    return {"value": float(np.median(ratios)), **ends}


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median, least and most, and the spread: the middle half's width over the median."""
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    return {
        "median": float(median),
        "least": float(np.min(seconds)),
        "most": float(np.max(seconds)),
        "spread": float((high - low) / median),
    }


def _once(call: Call, settle: float, clock: Clock) -> tuple[float, float]:
    """Seconds of one run, by the clock and of all threads."""
    call.prepare()
    if settle:
        time.sleep(settle)
    cpu_start, start = time.process_time(), clock()
    result = call.run()
    end, cpu_end = clock(), time.process_time()
    call.check(result)
    del result  # giving memory back belongs to nobody's time
    return end - start, cpu_end - cpu_start


def _orders(names: Sequence[str], rounds: int, seed: int) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    orders: list[list[str]] = []
    while len(orders) < rounds:
        order = [names[index] for index in rng.permutation(len(names))]
        orders += [order, order[::-1]]
    return orders[:rounds]


def _resampled_medians(ordered: np.ndarray, seed: int) -> np.ndarray:
    """The median of each resample of ascending values [n]: float64 [resamples]."""
    drawn = resample_counts(ordered.size, seed).cumsum(axis=1)  # values up to each one
    half = ordered.size / 2
    lower, upper = (drawn >= half).argmax(axis=1), (drawn > half).argmax(axis=1)
    return (ordered[lower] + ordered[upper]) / 2
