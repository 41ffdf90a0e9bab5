"""Intervals from few excerpts, on the KLs of real ones."""

import numpy as np
import pytest
from scripts import load_script

from sinkjax.studies.resampling import FEWEST


@pytest.fixture(scope="module")
def benchmark():
    return load_script("benchmarks.coverage")


@pytest.fixture(scope="module")
def measured(benchmark):
    return {name: values.astype(np.float64) for name, values in np.load(benchmark.FILE).items()}


def test_there_are_excerpts_enough_of_two_texts(measured):
    assert len({name.split(",")[0] for name in measured}) == 2
    assert {name.split(", ")[1] for name in measured} == {"mean", "late", "generated"}
    assert min(map(len, measured.values())) >= 75


def test_of_the_fewest_excerpts_intervals_cover_93_percent(benchmark, measured):
    """Late KLs, the most skewed; the plain percentiles of as many do not."""
    for name in (name for name in measured if name.endswith(", late")):
        covered = benchmark.coverage(measured[name], FEWEST, runs=3000)
        assert covered["the project's"] >= 0.93
        assert covered["percentiles"] < 0.90


def test_a_known_distribution_is_covered_as_books_say(benchmark):
    """Student's t is exact for normal values."""
    values = np.random.default_rng(0).normal(5, 1, 20_000)
    covered = benchmark.coverage(values, 8, runs=3000)
    assert covered["Student's t"] == pytest.approx(0.95, abs=0.012)
    assert covered["percentiles"] < covered["BCa"] + 0.02 < covered["the project's"]
