"""One cell's statistics against slow counting, and against data whose truth is known."""

import itertools
import math

import numpy as np
import pytest
from counting import (
    THRESHOLD,
    cell,
    pairs_of,
    sink_arrays,
    slow_interval,
    slow_rates,
    slow_resampled,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkjax.masks.scores import is_sink
from sinkjax.studies.resampling import LEVEL, RESAMPLES, Resamples, resample_counts
from sinkjax.studies.sweep.cell import summarize_cell
from sinkjax.studies.sweep.conditional import num_renumberings, renumberings
from sinkjax.studies.sweep.lengths import summarize_lengths

pytestmark = pytest.mark.quick

RATES = ("given_sink", "given_not", "base_rate", "lift", "phi")


def assert_estimate(estimate, value, resampled, num_prompts):
    if value is None:
        assert estimate["value"] is None
        assert estimate["undefined"]
        return
    assert estimate["value"] == pytest.approx(value, abs=1e-12)
    missing = sum(value is None for value in resampled)
    if num_prompts == 1 or missing > RESAMPLES / 2:
        assert estimate["low"] is None
        assert estimate["high"] is None
        assert estimate["note"]
    else:
        assert (estimate["low"], estimate["high"]) == pytest.approx(slow_interval(resampled))
        assert estimate["level"] == LEVEL


@pytest.mark.parametrize(
    ("definition", "threshold", "score", "expected"),
    [
        ("mean", 0.9, 0.9, False),
        ("mean", 0.3, 0.3, False),  # float32(0.3) > 0.3
        ("mean", 0.3, np.nextafter(np.float32(0.3), np.float32(1)), True),
        ("excess", 0.3, -0.1, False),
        ("log_odds", 0.5, 0.0, False),
        ("log_odds", 0.5, 1e-6, True),
        ("log_odds", 0.9, math.log(9), False),
        ("log_odds", 0.9, 2.198, True),
        ("log_odds", 0.1, -2.19, True),
        ("log_odds", 0.1, -2.2, False),
    ],
)
def test_is_sink_is_strict_and_in_the_units_of_its_definition(
    definition, threshold, score, expected
):
    sinks = is_sink(np.full((2, 3, 4), score, np.float32), definition, threshold)
    assert sinks.dtype == bool
    assert sinks.shape == (2, 3, 4)
    assert (sinks == expected).all()


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.5, 2.0, math.nan])
def test_threshold_outside_the_unit_interval_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold"):
        is_sink(np.zeros((1, 1, 1), np.float32), "mean", threshold)


def test_resample_counts_are_multinomial():
    counts = resample_counts(50, seed=3)
    assert counts.shape == (RESAMPLES, 50)
    assert (counts.sum(axis=1) == 50).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(50), abs=5 / math.sqrt(RESAMPLES))
    assert counts.var() == pytest.approx(1 - 1 / 50, rel=0.02)


def test_resample_counts_follow_seed_and_stream():
    base = resample_counts(20, seed=1)
    np.testing.assert_array_equal(base, resample_counts(20, seed=1))
    for other in (resample_counts(20, seed=2), Resamples(20, seed=1, stream=1) @ np.eye(20)):
        correlation = np.corrcoef(base.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 0.03


@settings(deadline=None, max_examples=40)
@given(sinks=sink_arrays(), seed=st.integers(0, 3))
def test_cell_equals_counting(sinks, seed):
    num_prompts, num_layers, num_heads = sinks.shape
    result = cell(sinks, seed)
    weights = resample_counts(num_prompts, seed)

    counts = slow_resampled(sinks, weights, lambda z: int(z.sum()) / num_prompts)
    count = int(sinks.sum()) / num_prompts
    assert_estimate(result["sinks"]["count"], count, counts, num_prompts)
    shares = [count / (num_layers * num_heads) for count in counts]
    share = count / (num_layers * num_heads)
    assert_estimate(result["sinks"]["share"], share, shares, num_prompts)
    for layer in range(num_layers):
        of_layer = [bool(z) for prompt in sinks for z in prompt[layer]]
        assert result["per_layer"][layer] == pytest.approx(sum(of_layer) / len(of_layer))
        for head in range(num_heads):
            of_head = [bool(prompt[layer, head]) for prompt in sinks]
            assert result["per_head"][layer][head] == pytest.approx(sum(of_head) / num_prompts)

    assert [c["source_layer"] for c in result["conditional"]] == list(range(num_layers - 1))
    for layer, conditional in enumerate(result["conditional"]):
        assert conditional["n"] == sum(bool(z) for prompt in sinks for z in prompt[layer])
        assert conditional["pairs"] == sum(source for source, _ in pairs_of(sinks, layer))
        expected = slow_rates(sinks, layer)
        resampled = slow_resampled(sinks, weights, lambda z, layer=layer: slow_rates(z, layer))
        for name in RATES:
            values = [rates[name] for rates in resampled]
            assert_estimate(conditional[name], expected[name], values, num_prompts)

    lifts = [(slow_rates(sinks, layer)["lift"], -layer) for layer in range(num_layers - 1)]
    defined = [pair for pair in lifts if pair[0] is not None]
    best = result["best_source"]
    if not defined:
        assert best["layer"] is None
        assert best["undefined"]
        assert best["lift"]["value"] is best["shuffled_best_lift"]["value"] is None
    else:
        top = max(lift for lift, _ in defined)
        lowest = min(-layer for lift, layer in defined if lift == pytest.approx(top, rel=1e-12))
        assert best["layer"] == lowest
        assert best["lift"] == result["conditional"][lowest]["lift"]
        assert "undefined" not in best


GROUPS = [
    *([range(heads)] for heads in (1, 2, 3, 4)),  # one key/value head
    *([[head] for head in range(heads)] for heads in (2, 3, 4)),  # one for each head
    [(0, 1), (2, 3)],
    [(0, 1, 2), (3, 4, 5)],
    [(0, 1), (2, 3), (4, 5)],
]
"""Heads by the key/value head that they share."""


def orders_within(groups):
    """All permutations of the heads under which every group is found whole in some place."""
    heads, whole = list(itertools.chain(*groups)), {frozenset(group) for group in groups}
    return [
        order
        for order in itertools.permutations(heads)
        if {frozenset(order[head] for head in group) for group in groups} == whole
    ]


@settings(deadline=None, max_examples=20)
@given(groups=st.sampled_from(GROUPS), seed=st.integers(0, 9))
def test_every_renumbering_keeps_groups_together_and_all_are_drawn(groups, seed):
    num_heads = sum(map(len, groups))
    drawn = renumberings(np.random.default_rng(seed), num_heads, len(groups))
    assert {tuple(order) for order in drawn.tolist()} == set(orders_within(groups))
    assert len(orders_within(groups)) == num_renumberings(num_heads, len(groups))


def test_one_key_value_head_and_one_for_each_head_have_the_same_control():
    sinks = np.random.default_rng(0).random((20, 4, 6)) < 0.4
    assert cell(sinks, num_kv_heads=1) == cell(sinks, num_kv_heads=6) != cell(sinks, num_kv_heads=2)


def test_layers_whose_sinks_fill_the_same_group_by_chance_are_not_linked():
    """Of 84 places of three sinks each layer has the same: one of 3 where groups stay whole."""
    sinks = np.zeros((30, 2, 9), bool)
    sinks[:, :, 6:] = True
    for groups, beyond in ((9, True), (3, False)):
        result = cell(sinks, num_kv_heads=groups)
        later = result["later_layers"]
        for layer in (*result["conditional"], *later["layers"]):
            assert (layer["lift"]["value"] > layer["shuffled"]["lift"]["high"]) == beyond
        for best in (result["best_source"], later["best"]):
            assert (best["lift"]["value"] > best["shuffled_best_lift"]["high"]) == beyond


@settings(deadline=None, max_examples=40)
@given(groups=st.sampled_from(GROUPS), data=st.data())
def test_shuffled_control_is_that_of_all_permutations_that_keep_groups_together(groups, data):
    """Against every such permutation of the source layer's heads: mean and range."""
    num_heads = sum(map(len, groups))
    shape = st.tuples(st.integers(1, 3), st.integers(2, 4), st.just(num_heads))
    sinks = data.draw(sink_arrays(shape))
    orders = orders_within(groups)
    for layer, conditional in enumerate(cell(sinks, num_kv_heads=len(groups))["conditional"]):
        exact = {"given_sink": [], "lift": []}
        for order in orders:
            renumbered = sinks.copy()
            renumbered[:, layer] = sinks[:, layer, list(order)]
            rates = slow_rates(renumbered, layer)
            for name, values in exact.items():
                values.append(rates[name])
        for name, values in exact.items():
            control = conditional["shuffled"][name]
            if values[0] is None:
                assert control["value"] is None
                assert control["undefined"] == conditional[name]["undefined"]
                continue
            error = 5 * np.std(values) / math.sqrt(1000) + 1e-12
            assert control["value"] == pytest.approx(np.mean(values), abs=error)
            assert min(values) - 1e-12 <= control["low"] <= control["high"] <= max(values) + 1e-12


@settings(deadline=None, max_examples=20)
@given(sinks=sink_arrays(st.tuples(st.integers(1, 4), st.integers(2, 5), st.integers(1, 4))))
def test_each_later_layer_is_layer_0_with_that_layer_alone(sinks):
    later_layers = cell(sinks)["later_layers"]
    lifts = {}
    for layer, later in enumerate(later_layers["layers"], start=1):
        alone = cell(sinks[:, [0, layer]])["conditional"][0]
        assert later["layer"] == layer
        assert later["given_sink"] == alone["given_sink"]
        assert later["base_rate"] == alone["base_rate"]
        if alone["lift"]["value"] is not None:
            lifts[layer] = alone["lift"]
            assert later["lift"] == alone["lift"]
            assert later["shuffled"]["lift"] == alone["shuffled"]["lift"]
            continue
        which = 0 if not sinks[:, 0].any() else layer
        for nothing in (later["lift"], later["shuffled"]["lift"]):
            assert nothing["value"] is None
            assert nothing["undefined"].startswith(f"layer {which} has no sink head in ")
    best = later_layers["best"]
    if not lifts:
        assert best["layer"] is best["lift"]["value"] is best["shuffled_best_lift"]["value"] is None
        assert best["lift"]["undefined"]
        return
    assert best["layer"] == max(lifts, key=lambda layer: lifts[layer]["value"])
    assert best["lift"] == lifts[best["layer"]]


def test_a_link_to_layer_1_alone_is_seen_where_the_pooled_lift_hides_it():
    pooled = alone = 0
    for trial in range(20):
        sinks = persistent_sinks(np.random.default_rng(trial), num_layers=30, num_heads=9)
        sinks[:, 1] = sinks[:, 0]
        result = cell(sinks, seed=trial)
        lift, shuffled = (result["conditional"][0][name] for name in ("lift", "shuffled"))
        pooled += lift["value"] > shuffled["lift"]["high"]
        later = result["later_layers"]
        first = later["layers"][0]
        alone += first["lift"]["value"] > first["shuffled"]["lift"]["high"]
        assert later["best"]["lift"]["value"] >= first["lift"]["value"]
    assert alone >= 16 > 2 * pooled


def test_reasons_for_what_is_undefined():
    sinks = np.zeros((100, 4, 3), bool)
    sinks[:, 1] = True
    sinks[::2, 2, 0] = True
    layers = cell(sinks)["conditional"]
    none = "layer 0 has no sink head in any of the 100 prompts"
    for name in ("given_sink", "lift", "phi"):
        assert layers[0][name] == {"value": None, "undefined": none}
    assert layers[0]["shuffled"]["lift"] == {"value": None, "undefined": none}
    assert layers[0]["given_not"]["value"] == pytest.approx(350 / 900)
    every = "every head of layer 1 is a sink in all of the 100 prompts"
    assert layers[1]["given_not"] == layers[1]["phi"] == {"value": None, "undefined": every}
    assert layers[1]["lift"]["value"] == 1
    later = "no layer after layer 2 has a sink head in any of the 100 prompts"
    assert layers[2]["lift"] == layers[2]["phi"] == {"value": None, "undefined": later}
    assert layers[2]["given_sink"]["value"] == 0
    assert layers[2]["base_rate"] == {"value": 0.0, "low": 0.0, "high": 0.0, "level": LEVEL}


@pytest.mark.parametrize(
    ("sink_layers", "reason"),
    [
        ([], "no head of any layer is a sink in any prompt"),
        ([1], "layer 1 alone has sink heads"),
        ([3], "layer 3 alone has sink heads"),
    ],
)
def test_reason_for_no_best_source(sink_layers, reason):
    sinks = np.zeros((1, 4, 2), bool)
    sinks[:, sink_layers] = True
    best = cell(sinks)["best_source"]
    assert best["layer"] is None
    assert best["undefined"] == best["lift"]["undefined"] == reason


def test_one_layer_has_no_conditional():
    result = cell(np.ones((3, 1, 2), bool))
    assert result["conditional"] == []
    assert "one layer" in result["best_source"]["undefined"]
    assert result["later_layers"]["layers"] == []


def test_one_prompt_has_no_interval_but_a_shuffled_control():
    sinks = np.zeros((1, 3, 4), bool)
    sinks[0, 0, :2] = sinks[0, 1, 1:3] = sinks[0, 2, 0] = True
    result = cell(sinks)
    conditional = result["conditional"][0]
    assert conditional["given_sink"] == {
        "value": 0.5,
        "low": None,
        "high": None,
        "note": "a sample of one: no interval",
    }
    assert result["sinks"]["count"]["low"] is None
    assert conditional["shuffled"]["lift"]["low"] < conditional["shuffled"]["lift"]["high"]


def test_interval_is_withheld_where_most_resamples_have_no_value():
    """Layer 0's only sink is in one of 3 prompts, which 8 of 27 resamples lack; of 1 in 2, 1/4."""
    sinks = np.zeros((40, 2, 2), bool)
    sinks[:, 1] = True
    sinks[0, 0, 0] = True  # missing in (39/40)^40 = 36% of resamples
    assert cell(sinks)["conditional"][0]["lift"]["low"] == 1.0
    # phi needs, in one resample, three single prompts: (1 - 1/e)^2 of resamples have both.
    sinks = np.zeros((40, 2, 1), bool)
    sinks[0, 0] = sinks[1, 1] = True
    phi = cell(sinks)["conditional"][0]["phi"]
    assert phi["low"] is None
    assert phi["note"].startswith("undefined in ")
    assert phi["value"] == pytest.approx(np.corrcoef(*sinks[:, :, 0].T.astype(float))[0, 1])


def study_sinks(both, later):
    """16 layers of 32 heads, 19 sinks in layer 0, so many pairs of sinks and later sinks."""
    sinks = np.zeros((1, 16, 32), bool)
    sinks[0, 0, :19] = True
    given = np.zeros((15, 19), bool)
    given.flat[:both] = True
    others = np.zeros((15, 13), bool)
    others.flat[: later - both] = True
    sinks[0, 1:] = np.concatenate([given, others], axis=1)
    return sinks


def test_founding_study_short_prompt():
    """366 sinks, 74.04% of the pairs of 19 layer-0 sinks: no more than the base rate gives."""
    result = cell(study_sinks(both=211, later=366 - 19))
    assert result["sinks"]["count"]["value"] == 366
    assert round(100 * result["sinks"]["share"]["value"], 2) == 71.48
    conditional = result["conditional"][0]
    assert (conditional["n"], conditional["pairs"]) == (19, 285)
    assert round(100 * conditional["given_sink"]["value"], 2) == 74.04
    assert round(100 * conditional["given_not"]["value"], 1) == 69.7
    assert round(100 * conditional["base_rate"]["value"], 1) == 72.3
    assert round(conditional["lift"]["value"], 2) == 1.02
    assert abs(conditional["phi"]["value"]) < 0.05
    assert conditional["shuffled"]["lift"]["low"] < conditional["lift"]["value"]


def test_founding_study_long_prompt_rests_on_one_head():
    sinks = np.zeros((1, 16, 32), bool)
    sinks[0, 0, 5] = True
    sinks[0, [1, 4, 9, 15], 5] = True
    sinks[0, 1:].reshape(-1, 32)[:, 8:24].flat[: 117 - 5] = True
    result = cell(sinks)
    assert result["sinks"]["count"]["value"] == 117
    assert round(100 * result["sinks"]["share"]["value"], 2) == 22.85
    assert (result["conditional"][0]["n"], result["conditional"][0]["pairs"]) == (1, 15)
    assert round(100 * result["conditional"][0]["given_sink"]["value"], 2) == 26.67


def test_cell_is_deterministic_and_follows_the_seed():
    sinks = np.random.default_rng(0).random((20, 4, 6)) < 0.4
    assert cell(sinks, seed=5) == cell(sinks, seed=5)
    assert cell(sinks, seed=5) != cell(sinks, seed=6)


def test_means_of_what_was_measured():
    rng = np.random.default_rng(0)
    scores, norms = rng.normal(size=(2, 7, 3, 5)).astype(np.float32)
    result = summarize_cell(scores, norms, "log_odds", THRESHOLD, 0, 5)
    np.testing.assert_allclose(result["mean_score"], scores.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(result["output_norm"], norms.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_measurements_that_are_not_finite_are_refused(bad):
    scores = np.zeros((2, 3, 4), np.float32)
    scores[1, 2, 3] = bad
    with pytest.raises(ValueError, match=r"scores.*\[1, 2, 3\]"):
        summarize_cell(scores, np.ones_like(scores), "mean", 0.9, 0, 4)
    with pytest.raises(ValueError, match=r"output_norm.*\[1, 2, 3\]"):
        summarize_cell(np.ones_like(scores), scores, "mean", 0.9, 0, 4)
    with pytest.raises(ValueError, match=r"scores.*\[1, 2, 3\]"):
        summarize_lengths([2], [scores], ["a"], "mean", 0.9, 0, 0.9)


def correlated_sinks(rng, num_prompts, drift=0.0):
    """Sinks whose chance is the prompt's own: heads within a prompt go together.

    Layer 1's heads are sinks at the prompt's chance p, uniform in [0.1, 0.7]; layer 0's at p too.
    So P(sink) = 0.4, P(later | source) = E[p²] / E[p] = 0.19 / 0.4.
    """
    chance = rng.uniform(0.1, 0.7, size=(num_prompts, 1, 1)) + drift
    return rng.random((num_prompts, 2, 8)) < chance


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Were heads, and not prompts, resampled, the share's interval would cover about 70%."""
    rng = np.random.default_rng(1)
    truth = {"share": 0.4, "given_sink": 0.19 / 0.4, "lift": 0.19 / 0.16}
    covered = dict.fromkeys(truth, 0)
    trials = 200
    for trial in range(trials):
        result = cell(correlated_sinks(rng, 60), seed=trial)
        estimates = {"share": result["sinks"]["share"], **result["conditional"][0]}
        for name, value in truth.items():
            covered[name] += estimates[name]["low"] <= value <= estimates[name]["high"]
    for name, count in covered.items():
        assert 0.88 <= count / trials <= 0.99, name


def persistent_sinks(rng, num_layers=4, num_heads=24, num_prompts=30, shared=0.0, alike=1):
    """Heads of a fixed identity: a sink in nearly every prompt, or in nearly none.

    A share of the heads have the same identity in every layer; all others are drawn apart, so many
    neighbours at once.
    """
    identity = np.repeat(rng.random((num_layers, num_heads // alike)) < 0.4, alike, axis=1)
    identity[:, : round(shared * num_heads)] = identity[0, : round(shared * num_heads)]
    noise = rng.random((num_prompts, num_layers, num_heads)) < 0.05
    return identity ^ noise


@pytest.mark.parametrize("alike", [1, 3])
def test_shuffled_control_does_not_take_chance_agreement_of_persistent_heads_for_more(alike):
    """Layers drawn apart: a permutation for each prompt would find most of these significant, and,
    where the heads of a group are alike, one of single heads a good part."""
    rng = np.random.default_rng(2)
    outside = best_outside = 0
    trials = 100
    for trial in range(trials):
        sinks = persistent_sinks(rng, alike=alike)
        result = cell(sinks, seed=trial, num_kv_heads=sinks.shape[2] // alike)
        lift, control = (result["conditional"][0][name] for name in ("lift", "shuffled"))
        outside += not control["lift"]["low"] <= lift["value"] <= control["lift"]["high"]
        best = result["best_source"]
        best_outside += best["lift"]["value"] > best["shuffled_best_lift"]["high"]
    assert outside <= 0.12 * trials  # 5% expected
    assert best_outside <= 0.09 * trials  # 2.5% expected


@pytest.mark.parametrize("num_kv_heads", [3, 24])
def test_shuffled_control_finds_a_planted_index_correlation(num_kv_heads):
    rng = np.random.default_rng(3)
    for trial in range(20):
        sinks = persistent_sinks(rng, shared=0.8)
        result = cell(sinks, seed=trial, num_kv_heads=num_kv_heads)
        conditional = result["conditional"][0]
        assert conditional["lift"]["value"] > conditional["shuffled"]["lift"]["high"]
        assert conditional["shuffled"]["lift"]["value"] == pytest.approx(1, abs=0.03)
        best = result["best_source"]
        assert best["lift"]["value"] > best["shuffled_best_lift"]["high"]


def test_best_source_is_judged_against_the_best_of_as_many():
    """The greatest lift of 9 layers drawn apart is above a single layer's control far too often."""
    rng = np.random.default_rng(4)
    single = best = 0
    for trial in range(60):
        sinks = persistent_sinks(rng, num_layers=10, num_heads=12, num_prompts=5)
        result = cell(sinks, seed=trial)
        value = result["best_source"]["lift"]["value"]
        layer = result["best_source"]["layer"]
        single += value > result["conditional"][layer]["shuffled"]["lift"]["high"]
        best += value > result["best_source"]["shuffled_best_lift"]["high"]
    assert best <= 6
    assert single > best
