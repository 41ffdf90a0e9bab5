"""Intervals from few excerpts, on the KLs of real ones."""

import numpy as np
import pytest
from scripts import load_script

from sinkjax.studies import texts
from sinkjax.studies.resampling import FEWEST


@pytest.fixture(scope="module")
def benchmark():
    return load_script("benchmarks.coverage")


@pytest.fixture(scope="module")
def measured(benchmark):
    return {name: values.astype(np.float64) for name, values in np.load(benchmark.FILE).items()}


def test_there_are_excerpts_enough_of_every_shipped_text(measured):
    parts = ("mean", "late", "generated")
    assert set(measured) == {f"{text}, {part}" for text in texts.SHIPPED for part in parts}
    assert min(map(len, measured.values())) >= 200


@pytest.mark.parametrize("count", [FEWEST, 16, 32, 200])
def test_intervals_cover_93_percent_of_every_text(benchmark, measured, count):
    """The plain percentiles of few do not."""
    for name, values in measured.items():
        covered = benchmark.coverage(values, count, runs=3000)
        assert covered["the project's"] >= 0.93, name
        assert count > FEWEST or covered["percentiles"] < 0.90, name


def test_a_known_distribution_is_covered_as_books_say(benchmark):
    """Student's t is exact for normal values."""
    values = np.random.default_rng(0).normal(5, 1, 20_000)
    covered = benchmark.coverage(values, 8, runs=3000)
    assert covered["Student's t"] == pytest.approx(0.95, abs=0.012)
    assert covered["percentiles"] < covered["BCa"] + 0.02 < covered["the project's"]
