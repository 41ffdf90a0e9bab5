"""Choices of heads against slow counting, and against the records that a sweep writes."""

import itertools
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from masks import counts_per_layer, is_part, masks

from sinkjax import Copy, Full, Sink, SinkMask, Window
from sinkjax.masks.choose import random_control
from sinkjax.masks.scores import consistent, sink_shares
from sinkjax.studies.results import identity
from sinkjax.studies.sweep.lengths import summarize_lengths

pytestmark = pytest.mark.quick

PATH = Window(1, 4)
L, N, K = 3, 6, 2
SIZE = N // K

several = settings(deadline=None, max_examples=50)
# Few values, so that ties and scores that equal the threshold are common.
levels = st.sampled_from([0.0, 0.5, 0.89, 0.9, 0.91, 1.0])
scores_of_one_length = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.just(L), st.just(N)),
    elements=levels.map(np.float32),
)
shares = st.sampled_from([0.2, 0.5, 0.6, 0.75, 0.9, 1.0])


def chosen_heads(mask):
    return [tuple(head) for head in np.argwhere(mask.masked)]


def of_whole_groups(heads):
    """Those of the heads whose group is all among them."""
    return [
        (layer, head)
        for layer, head in heads
        if all((layer, other) in heads for other in range(N) if other // SIZE == head // SIZE)
    ]


def holds(scores, layer, head, min_share):
    column = scores[:, layer, head]
    return sum(score > np.float32(0.9) for score in column) / len(column) >= min_share


def consistent_mask(by_length, min_share=0.9, num_kv_heads=None):
    shares = sink_shares(by_length, "mean", 0.9)
    return SinkMask.where(consistent(shares, min_share, num_kv_heads), PATH)


def lengths_record(scores_by_length, min_share):
    """The record that a sweep over these lengths writes, through JSON."""
    lengths = [2**exponent for exponent in range(1, len(scores_by_length) + 1)]
    result = summarize_lengths(
        lengths, scores_by_length, lengths, "mean", 0.9, seed=0, min_share=min_share
    )
    fields = {"kind": "lengths", "lengths": lengths, "definition": "mean", "threshold": 0.9}
    return json.loads(json.dumps({"id": identity(fields), **fields, "result": result}))


# Threshold and consistency


@several
@given(st.lists(scores_of_one_length, min_size=1, max_size=3), shares, st.booleans())
def test_consistent_heads_are_sinks_in_enough_prompts_at_every_length(
    by_length, min_share, grouped
):
    mask = consistent_mask(by_length, min_share, K if grouped else None)
    heads = [
        (layer, head)
        for layer in range(L)
        for head in range(N)
        if all(holds(scores, layer, head, min_share) for scores in by_length)
    ]
    assert chosen_heads(mask) == (of_whole_groups(heads) if grouped else heads)
    assert mask == SinkMask.where(mask.masked, PATH)


@settings(deadline=None, max_examples=20)
@given(st.lists(scores_of_one_length, min_size=1, max_size=3), shares, shares, st.booleans())
def test_a_sweeps_record_has_the_consistent_heads_of_the_scores_behind_it(
    by_length, own, other, grouped
):
    record = lengths_record(by_length, own)["result"]["consistent"]
    named = [tuple(head) for head in record["heads"]]
    assert chosen_heads(consistent_mask(by_length, own)) == named
    groups = K if grouped else None
    again = consistent(np.array(record["min_share_per_head"]), other, groups)
    assert SinkMask.where(again, PATH) == consistent_mask(by_length, other, groups)


@pytest.mark.parametrize(
    ("definition", "threshold", "above", "not_above"),
    [
        ("mean", 0.9, np.nextafter(np.float32(0.9), np.float32(1)), np.float32(0.9)),
        ("mean", 0.3, np.nextafter(np.float32(0.3), np.float32(1)), np.float32(0.3)),
        ("log_odds", 0.9, np.float32(math.log(9) + 1e-3), np.float32(math.log(9))),
        ("log_odds", 0.9, np.float32(3.0), np.float32(0.95)),
    ],
)
def test_the_threshold_is_strict_and_in_the_definitions_own_terms(
    definition, threshold, above, not_above
):
    scores = jnp.array([[[above, not_above]]])
    mask = SinkMask.from_scores(scores, threshold=threshold, path=Sink(), definition=definition)
    assert mask.heads == ((Sink(), Full()),)


def test_scores_without_prompts_are_those_of_one_prompt():
    scores = np.linspace(0.8, 1, L * N, dtype=np.float32).reshape(L, N)
    for options in ({"threshold": 0.9}, {"threshold": 0.9, "num_kv_heads": K}):
        mask = SinkMask.from_scores(scores, path=PATH, **options)
        assert mask == SinkMask.from_scores(scores[None], path=PATH, **options)
    assert mask.masked.any()


# Quantile


@several
@given(scores_of_one_length, st.floats(0, 1), st.booleans())
def test_a_quantile_takes_the_highest_scores_and_of_equal_ones_the_first(scores, quantile, grouped):
    mask = SinkMask.from_quantile(
        scores, quantile=quantile, path=PATH, num_kv_heads=K if grouped else None
    )
    size = SIZE if grouped else 1
    means = {
        (layer, group): min(
            math.fsum(scores[:, layer, head].tolist()) / len(scores)
            for head in range(group * size, (group + 1) * size)
        )
        for layer in range(L)
        for group in range(N // size)
    }
    best = sorted(means, key=lambda at: (-round(means[at], 9), at))
    best = best[: round((1 - quantile) * len(means))]
    assert chosen_heads(mask) == sorted(
        (layer, head) for layer, group in best for head in range(group * size, (group + 1) * size)
    )


def test_quantiles_are_nested_from_none_to_all():
    scores = np.random.default_rng(0).normal(size=(4, L, N))
    nested = [
        SinkMask.from_quantile(scores, quantile=quantile, path=PATH)
        for quantile in np.linspace(1, 0, 10)
    ]
    assert not nested[0].masked.any()
    assert nested[-1].masked.all()
    for smaller, larger in itertools.pairwise(nested):
        assert is_part(smaller, larger)


# Control


@several
@given(masks(L, N, K), st.integers(0, 2**32), st.booleans())
def test_a_control_has_the_same_paths_in_every_layer(mask, seed, grouped):
    groups = K if grouped else None
    control = random_control(mask, seed=seed, num_kv_heads=groups)
    assert control == random_control(mask, seed=seed, num_kv_heads=groups)
    assert counts_per_layer(control) == counts_per_layer(mask)
    if grouped:
        assert control.group_counts(K) == mask.group_counts(K)
    for mine, drawn in zip(mask.heads, control.heads, strict=True):
        assert sorted(str(path) for path in mine if not isinstance(path, Copy)) == sorted(
            str(path) for path in drawn if not isinstance(path, Copy)
        )
        copied = [
            sorted(str(of.heads[path.layer][path.head]) for path in layer if isinstance(path, Copy))
            for of, layer in ((mask, mine), (control, drawn))
        ]
        assert copied[0] == copied[1]


def test_a_controls_copies_follow_the_heads_that_they_copy():
    mask = SinkMask.from_text("L0: w(0,1) w(0,2) w(0,3) w(0,4) | L1: c(0,0) c(0,1) c(0,2) c(0,3)")
    for seed in range(5):
        control = random_control(mask, seed=seed)
        copied = {control.heads[0][path.head] for path in control.heads[1]}
        assert copied == set(mask.heads[0])


def test_a_control_draws_every_head_equally_often():
    mask = SinkMask.from_text("L0: 2s(first) 6f | L1: 4f 4s(zero)")
    draws = 2000
    counts = sum(random_control(mask, seed=seed).masked.astype(int) for seed in range(draws))
    # Binomial: five standard deviations.
    for layer, share in enumerate((2 / 8, 4 / 8)):
        spread = 5 * math.sqrt(draws * share * (1 - share))
        assert np.abs(counts[layer] - draws * share).max() < spread


def test_controls_move_whole_groups():
    mask = SinkMask.from_text("L0: s(first) s(zero) s(mean) 9f")
    drawn = {random_control(mask, seed=seed, num_kv_heads=4) for seed in range(50)}
    assert {str(control) for control in drawn} == {
        "L0: s(first) s(zero) s(mean) 9f",
        "L0: 3f s(first) s(zero) s(mean) 6f",
        "L0: 6f s(first) s(zero) s(mean) 3f",
        "L0: 9f s(first) s(zero) s(mean)",
    }


# Refusals

SCORES = np.full((2, L, N), 0.95, np.float32)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SinkMask.from_scores(SCORES, path=PATH, threshold=1.0), "threshold is 1.0"),
        (lambda: SinkMask.from_scores(SCORES, path=PATH, threshold=0), "threshold is 0"),
        (
            lambda: SinkMask.from_scores(SCORES, path=PATH, threshold=0.9, min_share=0),
            "min_share is 0",
        ),
        (
            lambda: SinkMask.from_scores(SCORES, path=PATH, threshold=0.9, min_share=2),
            "min_share is 2",
        ),
        (lambda: SinkMask.from_scores(SCORES[0, 0], path=PATH, threshold=0.9), "have shape"),
        (lambda: SinkMask.from_scores(SCORES * np.nan, path=PATH, threshold=0.9), "not all finite"),
        (lambda: SinkMask.from_scores(SCORES, path=PATH, threshold=0.9, num_kv_heads=4), "divide"),
        (lambda: consistent_mask([]), "shapes"),
        (lambda: consistent_mask([SCORES, SCORES[:, 1:]]), "shapes"),
        (lambda: SinkMask.from_quantile(SCORES, path=PATH, quantile=1.1), "quantile is 1.1"),
        (
            lambda: SinkMask.from_quantile(SCORES, path=PATH, quantile=float("nan")),
            "quantile is nan",
        ),
        (lambda: SinkMask.from_quantile(SCORES, path=PATH, quantile=0.5, num_kv_heads=5), "divide"),
        (
            lambda: SinkMask.from_scores(SCORES, path=Copy(0, 0), threshold=0.9),
            "only heads of earlier",
        ),
        (lambda: random_control(SinkMask([[Full()]]), seed=-1), "non-negative"),
        (lambda: random_control(SinkMask([[Full()]]), seed=0, num_kv_heads=2), "divide"),
    ],
)
def test_what_cannot_be_chosen_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
