"""Resamples held in blocks: the same draws, and the same sums."""

import numpy as np
import pytest

from sinkjax.studies import resampling
from sinkjax.studies.resampling import (
    RESAMPLES,
    Resamples,
    estimate_kl,
    estimate_mean,
    resample_counts,
)

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("block", [1, 7 * 51 + 5, 1 << 22])
def test_draws_are_those_of_one_call_in_blocks_of_any_size(block, monkeypatch):
    monkeypatch.setattr(resampling, "_BLOCK", block)
    prompts, seed = 51, 3
    drawn = np.random.default_rng((1, 0, seed)).integers(prompts, size=(RESAMPLES, prompts))
    expected = np.array([np.bincount(row, minlength=prompts) for row in drawn])
    counts = resample_counts(prompts, seed)
    assert counts.dtype == np.float64
    np.testing.assert_array_equal(counts, expected)
    resamples = Resamples(prompts, seed)
    assert len(resamples) == RESAMPLES
    values = np.arange(3.0 * prompts).reshape(prompts, 3)  # whole: their sums are exact
    np.testing.assert_array_equal(resamples @ values, expected @ values)
    np.testing.assert_array_equal(resamples @ values[:, 0], expected @ values[:, 0])
    assert sum(held.nbytes for held in resamples._blocks) == expected.size


def test_equal_excerpts_have_no_interval():
    """Thirty answers none of which is lost do not say that none of any is."""
    weights = resample_counts(30, 0)
    same = "the same in all 30 excerpts: no interval"
    assert estimate_mean(np.ones(30), weights) == {
        "value": 1.0,
        "low": None,
        "high": None,
        "note": same,
    }
    one_lost = estimate_mean(np.arange(30) > 0, weights)
    assert one_lost["low"] < one_lost["value"] < one_lost["high"] == 1


def test_a_kl_has_the_interval_of_a_lognormals_mean():
    """By the published formula, of eight values whose logarithms' mean and deviation are known."""
    logs = np.array([-3, -2, -1, 0, 0, 1, 2, 3]) / 2
    spread = logs.var(ddof=1)
    estimate = estimate_kl(np.exp(logs)[:, None])
    half = 2.756509 * np.sqrt(spread / 8 + spread**2 / 14)  # t of 98% and 5 degrees of freedom
    assert estimate["value"] == pytest.approx(np.exp(logs).mean())
    assert estimate["low"] == pytest.approx(estimate["value"] * np.exp(-half))
    assert estimate["high"] == pytest.approx(estimate["value"] * np.exp(half))


def test_one_excerpt_in_a_hundred_that_is_most_of_the_mean_widens_its_interval():
    """Of a tail that no lognormal has the deviation knows more than the logarithms."""
    values = np.geomspace(0.001, 0.002, 100)
    values[50] = 1.0
    estimate = estimate_kl(values)
    relative = np.std(values, ddof=1) / np.mean(values) / 10
    assert relative > 0.8
    assert estimate["high"] == pytest.approx(values.mean() * np.exp(2.081734 * relative))
    assert estimate["low"] == pytest.approx(values.mean() * np.exp(-2.081734 * relative))


def test_kls_near_zero_do_not_widen_an_interval_without_end():
    """What mean and deviation say bounds the logarithms' spread; zeros and rounding are allowed."""
    values = np.linspace(0.01, 0.02, 200)
    tight = estimate_kl(values)
    for least in (1e-12, 0.0, -1e-9):
        values[0] = least
        estimate = estimate_kl(values)
        assert estimate["low"] == pytest.approx(tight["low"], rel=0.02)
        assert estimate["high"] == pytest.approx(tight["high"], rel=0.02)
    nothing = estimate_kl(np.array([-1e-9, 0, 0, 0, 0, 0, 0, 0]))
    assert nothing["low"] is None
    assert "rounding" in nothing["note"]
