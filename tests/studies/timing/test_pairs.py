"""Pairing, order and intervals, on clocks that are made up; and real work against itself."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkjax.studies.resampling import resample_counts
from sinkjax.studies.timing.pairs import Call, _resampled_medians, interleave, ratio, summary

pytestmark = pytest.mark.quick


class MadeUpClock:
    """A clock that only calls move."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def call(self, name, seconds, prepare=0.0):
        def run():
            self.calls.append(name)
            self.now += seconds() if callable(seconds) else seconds

        def before():
            self.now += prepare

        return Call(run, before)

    def __call__(self):
        return self.now


def test_every_sample_is_kept_and_neither_warm_up_nor_preparation_is_one():
    clock = MadeUpClock()
    lengths = itertools.count(1)
    calls = {
        "a": clock.call("a", lambda: float(next(lengths)), prepare=100.0),
        "b": clock.call("b", 0.5),
    }
    samples = interleave(calls, rounds=4, warmup=2, clock=clock)
    assert samples["a"].warmup == [1, 2]
    assert samples["a"].seconds == [3, 4, 5, 6]
    assert samples["b"].seconds == [0.5] * 4
    assert all(len(each.cpu_seconds) == 4 for each in samples.values())


@pytest.mark.parametrize("seed", range(3))
def test_of_any_two_calls_each_goes_first_as_often(seed):
    clock = MadeUpClock()
    calls = {name: clock.call(name, 1.0) for name in "abcd"}
    interleave(calls, rounds=6, warmup=0, seed=seed, clock=clock)
    rounds = [clock.calls[start : start + 4] for start in range(0, 24, 4)]
    assert all(sorted(order) == list("abcd") for order in rounds)
    assert len({tuple(order) for order in rounds}) > 2
    for name, other in itertools.combinations("abcd", 2):
        assert sum(order.index(name) < order.index(other) for order in rounds) == 3


def test_a_machine_that_slows_down_changes_no_ratio():
    """Twofold work under a speed that falls by half over the run, by rounds."""
    clock = MadeUpClock()
    speeds = np.repeat(np.linspace(1.0, 2.0, 10), 2)
    numbers = {"once": itertools.count(), "twice": itertools.count()}

    def work(name, amount):
        return clock.call(name, lambda: amount * speeds[2 * next(numbers[name])])

    samples = interleave(
        {"once": work("once", 1.0), "twice": work("twice", 2.0)}, rounds=10, warmup=0, clock=clock
    )
    once, twice = samples["once"].seconds, samples["twice"].seconds
    assert ratio(twice, once) == pytest.approx({"value": 2, "low": 2, "high": 2, "level": 0.95})
    assert np.median(twice[:5]) / np.median(once[5:]) < 1.5  # as it would be without pairs


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=9))
@settings(max_examples=20, deadline=None)
def test_resampled_medians_are_those_of_the_resamples(values):
    ordered = np.sort(values)
    medians = _resampled_medians(ordered, seed=1)
    counts = resample_counts(len(values), 1)[::50].astype(int)
    wanted = [np.median(np.repeat(ordered, row)) for row in counts]
    np.testing.assert_allclose(medians[::50], wanted, rtol=1e-12)


@pytest.mark.parametrize("rounds", [5, 7, 15, 30])
def test_the_same_twice_has_an_interval_with_1_as_often_as_it_says(rounds):
    """Samples with drift and long tails, as those of a shared machine."""
    rng = np.random.default_rng(0)
    held, tries = 0, 200
    for _ in range(tries):
        speed = np.exp(np.cumsum(rng.normal(0, 0.05, rounds)))
        noise = 1 + rng.pareto(3, (2, rounds)) / 10
        interval = ratio(*(speed * noise))
        held += interval["low"] <= 1 <= interval["high"]
    assert held / tries > (0.92 if rounds > 5 else 0.9)  # of five, the whole range has 0.94


def test_what_is_no_pair_is_refused():
    with pytest.raises(ValueError, match="3 rounds by 2"):
        ratio([1.0, 2.0, 3.0], [1.0, 2.0])


def test_the_summary_of_known_samples():
    summarized = summary([4.0, 1.0, 2.0, 3.0, 10.0])
    assert summarized == {"median": 3.0, "least": 1.0, "most": 10.0, "spread": pytest.approx(2 / 3)}


def test_real_work_against_itself_and_against_twice_as_much():
    x = np.random.default_rng(0).normal(size=200_000)

    def sorting(times):
        return Call(lambda: [np.sort(x) for _ in range(times)])

    calls = {"baseline": sorting(1), "again": sorting(1), "twice": sorting(2)}
    for seed in range(3):  # an interval of 95% misses once in twenty times
        samples = interleave(calls, rounds=16, warmup=1, seed=seed)
        seconds = {name: each.seconds for name, each in samples.items()}
        again = ratio(seconds["again"], seconds["baseline"])
        if again["low"] <= 1 <= again["high"]:
            break
    assert again["low"] <= 1 <= again["high"]
    assert ratio(seconds["twice"], seconds["baseline"])["value"] > 1
    # Other work on the machine takes turns with this, but no part in its CPU time.
    cpu = {name: each.cpu_seconds for name, each in samples.items()}
    assert 1 < ratio(cpu["twice"], cpu["baseline"])["low"] < 4


def test_waiting_for_others_is_outside_of_the_clock():
    start = time.perf_counter()
    samples = interleave({"nothing": Call(lambda: None)}, rounds=4, warmup=1, settle=0.05)
    assert time.perf_counter() - start > 5 * 0.05
    assert min(samples["nothing"].seconds) < 0.05
