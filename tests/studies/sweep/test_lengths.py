"""What holds at every length and where things change most, against slow counting."""

import itertools

import numpy as np
import pytest
from counting import cell, lengths_of, sink_arrays, slow_interval, slow_rates, slow_resampled
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkjax.studies.resampling import RESAMPLES, resample_counts
from sinkjax.studies.sweep.lengths import summarize_lengths

pytestmark = pytest.mark.quick


@settings(deadline=None, max_examples=40)
@given(data=st.data(), count=st.integers(1, 4), min_share=st.sampled_from([0.3, 0.5, 0.9, 1.0]))
def test_lengths_equal_counting(data, count, min_share):
    shape = data.draw(st.tuples(st.integers(2, 4), st.integers(1, 3), st.integers(1, 3)))
    by_length = [data.draw(sink_arrays(st.just(shape))) for _ in range(count)]
    result = lengths_of(by_length, min_share=min_share)
    num_prompts, num_layers, num_heads = shape

    least = [
        [
            [
                min(z[:, layer, head].mean() for z in by_length[: upto + 1])
                for head in range(shape[2])
            ]
            for layer in range(shape[1])
        ]
        for upto in range(count)
    ]
    consistent = result["consistent"]
    assert consistent["min_share"] == min_share
    assert consistent["min_share_per_head"] == least[-1]
    assert consistent["heads"] == [
        [layer, head]
        for layer in range(num_layers)
        for head in range(num_heads)
        if least[-1][layer][head] >= min_share
    ]
    assert consistent["count_up_to"] == [
        sum(share >= min_share for row in shares for share in row) for shares in least
    ]

    weights = resample_counts(num_prompts, 0)
    series = {"share_change": lambda z: z.mean()}
    if num_layers > 1:
        series["lift_change"] = lambda z: slow_rates(z, 0)["lift"]
    else:
        assert "undefined" in result["lift_change"]
    for name, function in series.items():
        values = [function(z) for z in by_length]
        resampled = [slow_resampled(z, weights, function) for z in by_length]
        assert_change(result[name], values, list(zip(*resampled, strict=True)))


def assert_change(change, values, resampled):
    """A Change against one from values at lengths 2, 4, 8, ... and their resamples [R][length]."""

    def steps_of(row):
        return [
            None if a is None or b is None else round(float(b - a), 12)
            for a, b in itertools.pairwise(row)
        ]

    steps = steps_of(values)
    kept = [index for index, step in enumerate(steps) if step is not None]
    if not any(steps[index] for index in kept):
        assert set(change) == {"undefined"}
        return
    by_resample = [steps_of(row) for row in resampled]
    votes = [
        max(kept, key=lambda index, row=row: abs(row[index] or 0))
        for row in by_resample
        if any(row[index] for index in kept)
    ]
    assert [(step["from"], step["to"]) for step in change["steps"]] == [
        (2 ** (index + 1), 2 ** (index + 2)) for index in kept
    ]
    for step, index in zip(change["steps"], kept, strict=True):
        assert step["change"]["value"] == pytest.approx(steps[index], abs=1e-9)
        assert step["support"] == pytest.approx(votes.count(index) / RESAMPLES)
        column = [row[index] for row in by_resample]
        if column.count(None) <= RESAMPLES / 2:
            interval = step["change"]["low"], step["change"]["high"]
            assert interval == pytest.approx(slow_interval(column), abs=1e-9)
        else:
            assert step["change"]["low"] is None
    largest = max(kept, key=lambda index: abs(steps[index]))
    assert change["from"] == 2 ** (largest + 1)
    assert change["to"] == 2 * change["from"]
    assert change["change"]["value"] == pytest.approx(steps[largest], abs=1e-9)
    assert change["per_doubling"] == change["change"]["value"]


def test_support_says_how_sure_the_largest_step_is():
    rng = np.random.default_rng(5)
    clear = [rng.random((50, 4, 8)) < chance for chance in (0.7, 0.65, 0.2, 0.15)]
    keys = list("abcd")
    change = lengths_of(clear, keys=keys)["share_change"]
    assert (change["from"], change["to"]) == (4, 8)
    assert change["support"] > 0.999
    assert change["change"]["high"] < -0.3
    flat = [rng.random((50, 4, 8)) < 0.4 for _ in range(4)]
    change = lengths_of(flat, keys=keys)["share_change"]
    assert change["support"] < 0.95
    assert sum(step["support"] for step in change["steps"]) == pytest.approx(1)


def test_change_per_doubling():
    by_length = [np.ones((3, 2, 2), bool), np.zeros((3, 2, 2), bool)]
    change = lengths_of(by_length, lengths=[8, 64])["share_change"]
    assert (change["from"], change["to"]) == (8, 64)
    assert change["change"]["value"] == -1
    assert change["per_doubling"] == pytest.approx(-1 / 3)


def test_lengths_of_the_same_prompts_are_resampled_together():
    """The share varies much between prompts and falls by 1/8 in each of them."""
    rng = np.random.default_rng(6)
    counts = rng.integers(1, 9, size=40)
    before = np.arange(8) < counts[:, None, None]
    after = np.arange(8) < counts[:, None, None] - 1
    together = lengths_of([before, after])["share_change"]["change"]
    assert together["low"] == pytest.approx(-1 / 8)
    assert together["high"] == pytest.approx(-1 / 8)
    apart = lengths_of([before, after], keys=["one", "other"])["share_change"]["change"]
    assert apart["value"] == together["value"]
    assert apart["high"] - apart["low"] > 0.1


def test_cells_and_lengths_of_the_same_prompts_share_their_resamples():
    """From all sinks, the same in every resample, to others: the change varies as the cell does."""
    sinks = np.random.default_rng(7).random((30, 3, 4)) < 0.4
    share = cell(sinks)["sinks"]["share"]
    change = lengths_of([np.ones_like(sinks), sinks])["share_change"]["change"]
    assert change["low"] == pytest.approx(share["low"] - 1)
    assert change["high"] == pytest.approx(share["high"] - 1)


def test_lift_steps_without_a_lift_are_left_out():
    some = np.random.default_rng(8).random((10, 3, 4)) < 0.5
    other = np.random.default_rng(9).random((10, 3, 4)) < 0.5
    none = some.copy()
    none[:, 0] = False
    change = lengths_of([some, none, other, some])["lift_change"]
    assert [(step["from"], step["to"]) for step in change["steps"]] == [(8, 16)]
    assert change["support"] > 0.99
    reason = lengths_of([some, none, other])["lift_change"]["undefined"]
    assert reason.endswith("at 4 tokens layer 0 has no sink head in any of the 10 prompts")


def test_changes_that_do_not_exist():
    sinks = np.random.default_rng(10).random((10, 3, 4)) < 0.5
    single = lengths_of([sinks])
    for name in ("share_change", "lift_change"):
        assert single[name] == {"undefined": "one length only (2 tokens): there is no step"}
    same = lengths_of([sinks, sinks])
    assert same["share_change"] == {
        "undefined": "the share of sinks is the same at all of these lengths"
    }


def test_one_prompt_at_a_length_gives_neither_interval_nor_support():
    rng = np.random.default_rng(11)
    by_length = [rng.random((count, 3, 4)) < 0.5 for count in (9, 9, 1)]
    change = lengths_of(by_length, keys=["a", "a", "b"])["share_change"]
    assert [step["support"] for step in change["steps"]] == [None, None]
    assert change["steps"][0]["change"]["low"] is not None
    assert change["steps"][1]["change"]["low"] is None
    assert "a sample of one" in change["steps"][1]["change"]["note"]


@pytest.mark.parametrize("shape", [(3, 4), (0, 3, 4)])
def test_scores_of_no_prompts_are_refused(shape):
    with pytest.raises(ValueError, match="prompts, layers, heads"):
        summarize_lengths([2], [np.ones(shape, np.float32)], ["a"], "mean", 0.9, 0, 0.9)
