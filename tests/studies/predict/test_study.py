"""Predicting sinks: measures against brute force, fits against what they should find, no leaks."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkjax.studies.predict.logistic import Examples, fit, fit_penalty
from sinkjax.studies.predict.metrics import compare_brier, operate, score_predictions
from sinkjax.studies.predict.predictor import PREDICTORS, HeldOut, predict_sinks
from sinkjax.studies.predict.tables import verdict
from sinkjax.studies.resampling import resample_counts

pytestmark = pytest.mark.quick


def brute_auc(scores, outcomes):
    positives, negatives = scores[outcomes][:, None], scores[~outcomes]
    wins = (positives > negatives) + 0.5 * (positives == negatives)
    return wins.mean() if wins.size else np.nan


# Few values, so that there are many ties.
arrays = st.integers(2, 5).flatmap(
    lambda rows: st.tuples(
        st.lists(
            st.lists(st.sampled_from([0, 0.25, 0.5, 1]), min_size=4, max_size=4),
            min_size=rows,
            max_size=rows,
        ),
        st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=rows, max_size=rows),
    )
)


@given(arrays)
@settings(max_examples=60, deadline=None)
def test_auc_is_the_share_of_pairs_in_order(drawn):
    scores, outcomes = map(np.array, drawn)
    expected = brute_auc(scores.ravel(), outcomes.ravel())
    estimates = score_predictions(scores, outcomes, seed=0)
    value = estimates["auc"]["value"]
    np.testing.assert_allclose(np.nan if value is None else value, expected, equal_nan=True)
    if value is None:
        assert "head is a sink" in estimates["auc"]["undefined"]
    within = [
        (brute_auc(s, o), o.sum() * (~o).sum()) for s, o in zip(scores.T, outcomes.T, strict=True)
    ]
    pairs = sum(count for _, count in within)
    value = estimates["auc_within"]["value"]
    assert (value is None) == (pairs == 0)
    if pairs:
        expected = sum(auc * count for auc, count in within if count) / pairs
        np.testing.assert_allclose(value, expected)
    np.testing.assert_allclose(estimates["brier"]["value"], np.mean((scores - outcomes) ** 2))


def test_intervals_are_those_of_resampled_prompts():
    rng = np.random.default_rng(0)
    p, outcomes = rng.random((6, 40)).round(1), rng.random((6, 40)) < 0.4
    auc = score_predictions(p, outcomes, seed=3)["auc"]
    drawn = resample_counts(6, 3)[:200].astype(int)
    by_hand = [brute_auc(np.repeat(p, w, axis=0), np.repeat(outcomes, w, axis=0)) for w in drawn]
    low, high = np.quantile(by_hand, [0.1, 0.9])
    assert auc["low"] < low < auc["value"] < high < auc["high"]
    # One prompt alone has no interval.
    single = score_predictions(p[:1], outcomes[:1], seed=3)
    assert single["brier"]["low"] is None


def test_calibration_by_hand():
    p = np.array([[0.05, 0.05, 0.95, 1.0]])
    outcomes = np.array([[False, True, True, True]])
    estimates = score_predictions(p, outcomes, seed=0)
    low, high = estimates["reliability"]
    assert (low["low"], low["count"], low["observed"]["value"]) == (0, 2, 0.5)
    assert (high["low"], high["count"], high["observed"]["value"]) == (0.9, 2, 1)
    np.testing.assert_allclose(high["predicted"], 0.975)
    np.testing.assert_allclose(estimates["calibration_error"]["value"], (0.9 + 0.05) / 4)


def test_the_better_of_two_predictors_has_the_lower_brier_score():
    outcomes = np.random.default_rng(0).random((9, 50)) < 0.5
    off = np.linspace(0.05, 0.15, 9)[:, None]
    good, bad = np.abs(outcomes - off), np.full(outcomes.shape, 0.5)
    difference = compare_brier(good, bad, outcomes, seed=0)
    np.testing.assert_allclose(difference["value"], np.square(off).mean() - 0.25)
    assert difference["high"] < 0


def test_acting_by_hand():
    outcomes = np.array([[[1, 1, 0, 0]], [[1, 0, 1, 0]]], bool)
    p = np.array([[[0.9, 0.9, 0.1, 0.1]], [[0.9, 0.1, 0.9, 0.9]]])
    static = np.array([[0.9, 0.8, 0.7, 0.1]])
    estimates = operate(p, static, outcomes, limit=0.5, seed=0)
    assert estimates["share"]["value"] == 5 / 8
    assert estimates["found"]["value"] == 1
    assert estimates["wrong"]["value"] == 1 / 5
    assert estimates["static_wrong"]["value"] == 1 / 4  # two heads, the nearest whole number to 2.5
    assert estimates["masks"] == 1
    nothing = operate(p, static, outcomes, limit=1.0, seed=0)
    assert nothing["wrong"]["value"] is None
    assert nothing["share"]["value"] == 0


def made(prompts=48, lengths=(2, 4, 8), seed=0):
    """Scores of which layer 0's tell all: of heads 1.0 and 2.1 its head 1 does, and the length."""
    rng = np.random.default_rng(seed)
    scores = {}
    for length in lengths:
        drawn = rng.random((prompts, 3, 2)).astype(np.float32)
        signal = 1 - drawn[:, 0, 1] - 0.1 * np.log2(length)
        drawn[:, 1, 0] = np.clip(signal + 0.4, 0, 1)
        drawn[:, 2, 1] = drawn[:, 1, 0]
        drawn[:, 1, 1] = drawn[:, 2, 0] = drawn[:, 0, 0]
        scores[length] = drawn
    return scores, {n: rng.integers(0, 5, prompts) for n in lengths}


def examples_of(scores, first_tokens, threshold=0.6):
    lengths = list(scores)
    count = len(scores[lengths[0]])
    stacked = np.concatenate([scores[n] for n in lengths])
    return Examples(
        stacked,
        stacked > np.float32(threshold),
        np.repeat(lengths, count),
        np.concatenate([first_tokens[n] for n in lengths]),
        np.tile(np.arange(count), len(lengths)),
    )


def test_a_fit_finds_what_decides_and_its_gradient_vanishes():
    examples = examples_of(*made())
    fitted = fit(examples, ("head", "length", "layer_0", "previous"), 1.0)
    weights = fitted.weights["layer_0"]
    assert abs(weights[0, 0, 1]) > 4 * abs(weights[0, 0, 0])
    assert weights[0, 0, 1] < 0
    assert fitted.weights["length"][0, 0] < 0
    # At the optimum the errors of each head sum to penalty times its weight.
    errors = (fitted.probabilities(examples) - examples.outcomes).sum(axis=0)
    np.testing.assert_allclose(errors, -fitted.weights["head"], atol=2e-2)
    np.testing.assert_allclose(errors.sum(), 0, atol=2e-2)


def test_first_tokens_that_one_prompt_has_are_as_if_unknown():
    scores, tokens = made(prompts=8)
    tokens = {n: np.array([3, 3, 3, 4, 4, 5, 6, 7]) for n in tokens}
    examples = examples_of(scores, tokens)
    fitted = fit(examples, ("head", "first_token"), 1.0)
    assert fitted.first_tokens.tolist() == [3, 4, -1, -1, -1]
    other = dataclasses.replace(examples, first_tokens=np.full(len(examples), 99))
    single = dataclasses.replace(examples, first_tokens=np.full(len(examples), 7))
    np.testing.assert_array_equal(fitted.probabilities(other), fitted.probabilities(single))


def test_a_strong_prior_is_chosen_where_scores_are_noise():
    scores, tokens = made()
    rng = np.random.default_rng(1)
    noise = {n: rng.random(array.shape).astype(np.float32) for n, array in scores.items()}
    penalties = (0.1, 100.0)
    features = ("head", "length", "layer_0", "previous")
    chosen = fit_penalty(examples_of(noise, tokens), features, seed=0, penalties=penalties)
    assert chosen.penalty == 100.0
    chosen = fit_penalty(examples_of(scores, tokens), features, seed=0, penalties=penalties)
    assert chosen.penalty == 0.1


SETTINGS = HeldOut(lengths=(4,), share=0.5)
RULE = {"definition": "mean", "threshold": 0.6}


@pytest.fixture(scope="module")
def predicted():
    return predict_sinks(*made(), SETTINGS, **RULE)


def test_what_scores_tell_is_found_and_what_they_do_not_is_not(predicted):
    for split in ("prompts_held_out", "lengths_held_out"):
        predictors = predicted[split]["predictors"]
        assert list(predictors) == list(PREDICTORS)
        assert predictors["all"]["auc_within"]["value"] > 0.9
        assert predictors["all"]["over_rate"]["high"] < 0
        for name in ("rate", "rate_at_length"):
            np.testing.assert_allclose(predictors[name]["auc_within"]["value"], 0.5)
        assert predictors["shuffled"]["auc_within"]["low"] < 0.6
        assert predictors["random"]["auc"]["low"] < 0.5 < predictors["random"]["auc"]["high"]
    assert predicted["prompts"] == {"fitted": 24, "held_out": 24}
    assert [(e["length"], e["held_out"]) for e in predicted["by_length"]] == [
        (2, False),
        (4, True),
        (8, False),
    ]


def test_nothing_of_held_out_prompts_or_lengths_enters_a_fit(predicted, monkeypatch):
    """Held-out examples replaced by others: every fit stays bit for bit what it was."""
    from sinkjax.studies.predict import predictor as run

    def fits_of(scores, tokens):
        seen = []
        whole = run.fit_penalty

        def kept(examples, features, *, seed):
            seen.append(whole(examples, features, seed=seed))
            return seen[-1]

        monkeypatch.setattr(run, "fit_penalty", kept)
        rates = []
        rate = run._rate
        monkeypatch.setattr(run, "_rate", lambda o: rates.append(rate(o)) or rates[-1])
        predict_sinks(scores, tokens, SETTINGS, **RULE)
        monkeypatch.undo()
        return seen, rates

    scores, tokens = made()
    held_out = run.held_out_prompts(48, SETTINGS)
    other_scores = {n: array.copy() for n, array in scores.items()}
    other_tokens = {n: array.copy() for n, array in tokens.items()}
    for n in scores:
        rows = slice(None) if n == 4 else held_out
        other_scores[n][rows] = 1 - other_scores[n][rows]
        other_tokens[n][rows] = 4
    (fits, rates), (others, other_rates) = (
        fits_of(scores, tokens),
        fits_of(other_scores, other_tokens),
    )
    assert len(fits) == 4
    for fitted, other in zip(fits, others, strict=True):
        assert fitted.penalty == other.penalty
        np.testing.assert_array_equal(fitted.first_tokens, other.first_tokens)
        for name, array in fitted.weights.items():
            np.testing.assert_array_equal(array, other.weights[name])
        for name, (mean, deviation) in fitted.scaling.items():
            np.testing.assert_array_equal(mean, other.scaling[name][0])
            np.testing.assert_array_equal(deviation, other.scaling[name][1])
    for rate, other in zip(rates, other_rates, strict=True):
        np.testing.assert_array_equal(rate, other)


def acting(wrong, static, high, masks):
    values = {"wrong": wrong, "static_wrong": static}
    return {
        "limit": 0.9,
        **{name: {"value": value} for name, value in values.items()},
        "change": {"value": None if None in (wrong, static) else wrong - static, "high": high},
        "masks": masks,
    }


@pytest.mark.parametrize(
    ("wrong", "static", "high", "masks", "accurate", "good"),
    [
        (0.02, 0.3, -0.2, 0.05, True, True),
        (0.02, 0.3, -0.2, 0.8, True, False),  # a program for nearly every prompt
        (0.02, 0.02, 0.01, 0.05, False, False),  # no better than what needs no prediction
        (0.2, 0.4, -0.1, 0.05, False, False),  # better, and wrong too often
        (None, None, None, 0.05, False, False),
        (0.02, None, None, 0.05, False, False),  # nothing to hold it against
    ],
)
def test_a_prediction_is_acted_on_only_where_it_is_right_and_beats_a_static_mask(
    wrong, static, high, masks, accurate, good
):
    text = verdict({"lengths_held_out": {"acting": [acting(wrong, static, high, masks)]}})
    assert f"Good enough to act on: {'yes' if good else 'no'}." in text
    assert ("Accurate enough: no" in text) == (not accurate)
