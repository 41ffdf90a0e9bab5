"""How good predicted probabilities are: ranking, sharpness, calibration. Pure numpy.

Prompts are what was drawn, so every interval is from resampling prompts
(`sinkjax.studies.resampling`). All measures here are ratios of sums over prompts, or over pairs
of prompts, so a resample weighs what each prompt, or pair, contributed.

Axes: P prompts, M what is predicted of each of them, R resamples.
"""

from typing import Any

import numpy as np

from sinkjax.studies.resampling import Resampled, estimate, estimate_mean, resample_counts

BINS = 10
"""The number of bins of the reliability table, of equal width."""


def score_predictions(
    probabilities: np.ndarray, outcomes: np.ndarray, *, seed: int
) -> dict[str, Any]:
    """All that records say of one predictor.

    Args:
      probabilities: float [P, M] within [0, 1].
      outcomes: bool [P, M].

    Returns:
      of plain Python values, each an estimate with its interval unless said otherwise:
      `auc`, over all pairs of a positive and a negative, the share in which the positive scores
      higher, a tie counting half: the area under the ROC curve (Hanley and McNeil 1982, "The
      meaning and use of the area under a ROC curve"); `auc_within`, over pairs of one column alone:
      one half for whatever says the same of every prompt; `brier`, the mean squared error
      (Brier 1950); `calibration_error`, the mean distance of predicted and observed shares over
      bins of probability, weighed by what is in them; `reliability`, one entry a bin that holds
      anything: `low`, `high` and `count`, numbers, the mean `predicted`, a number, and `observed`.
    """
    weights = resample_counts(len(outcomes), seed)
    same = "every head is a sink" if outcomes.all() else "no head is a sink"
    varies = "no head is a sink in some prompts only"
    return {
        "auc": _pairs_estimate(*_pooled_pairs(probabilities, outcomes), weights, same),
        "auc_within": _pairs_estimate(*_pairs_within(probabilities, outcomes), weights, varies),
        "brier": estimate_mean(np.square(probabilities - outcomes), weights),
        **_calibration(probabilities, outcomes, weights),
    }


def compare_brier(
    probabilities: np.ndarray, others: np.ndarray, outcomes: np.ndarray, *, seed: int
) -> dict[str, Any]:
    """The Brier score of one predictor less that of another, an estimate: below 0, it is better.

    Args:
      probabilities, others: float [P, M] within [0, 1], of the same heads of the same prompts.
      outcomes: bool [P, M].
    """
    change = np.square(probabilities - outcomes) - np.square(others - outcomes)
    return estimate_mean(change, resample_counts(len(change), seed))


def operate(
    probabilities: np.ndarray,
    static: np.ndarray,
    outcomes: np.ndarray,
    *,
    limit: float,
    seed: int,
) -> dict[str, Any]:
    """What comes of taking out the heads whose probability is at least `limit`.

    Args:
      probabilities: float [P, C, M] within [0, 1], of M heads in each of C cells of every prompt.
      static: float [C, M], by which a static mask, the same for every prompt, ranks heads in each
        cell. It takes out as many as the predictor does in that cell on average.
      outcomes: bool [P, C, M].
      limit: within [0, 1].

    Returns:
      `limit`, a number; estimates of `share`, of all heads that are taken out, `found`, of the
      sinks, and `wrong`, of those taken out the ones that are no sinks; `static_wrong` and
      `change`, `wrong` less that; `masks`, a number: how many different masks the predictor asks
      for in a cell, as a share of the prompts, the mean over cells.
    """
    prompts, cells, heads = outcomes.shape
    chosen = probabilities >= limit
    fixed = np.zeros((cells, heads), bool)
    for cell, size in enumerate(np.rint(chosen.sum(axis=2).mean(axis=0)).astype(int)):
        fixed[cell, np.argsort(-static[cell], kind="stable")[:size]] = True
    fixed = np.broadcast_to(fixed, outcomes.shape)
    weights = resample_counts(prompts, seed)

    def ratio(of: np.ndarray, to: np.ndarray, undefined: str) -> Resampled:
        counts = (array.sum(axis=(1, 2)).astype(np.float64) for array in (of, to))
        return _ratio(*counts, weights, undefined)

    nothing = "no head is taken out"
    wrong = ratio(chosen & ~outcomes, chosen, nothing)
    static_wrong = ratio(fixed & ~outcomes, fixed, nothing)
    values = {
        "share": ratio(chosen, np.ones_like(chosen), ""),
        "found": ratio(chosen & outcomes, outcomes, "no head is a sink"),
        "wrong": wrong,
        "static_wrong": static_wrong,
        "change": Resampled(
            wrong.value - static_wrong.value, wrong.resampled - static_wrong.resampled, nothing
        ),
    }
    different = [len(np.unique(chosen[:, cell], axis=0)) for cell in range(cells)]
    return {
        "limit": float(limit),
        **{name: _recorded(value, prompts) for name, value in values.items()},
        "masks": float(np.mean(different) / prompts),
    }


def _calibration(
    probabilities: np.ndarray, outcomes: np.ndarray, weights: np.ndarray
) -> dict[str, Any]:
    """`calibration_error` and `reliability`."""
    prompts, size = probabilities.shape
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    bins += BINS * np.arange(prompts)[:, None]

    def by_bin(values: np.ndarray) -> np.ndarray:
        """Sums of [P, M], float64 [P, BINS]."""
        sums = np.bincount(bins.ravel(), weights=values.ravel(), minlength=BINS * prompts)
        return sums.reshape(prompts, BINS)

    counts, predicted = by_bin(np.ones(bins.shape)), by_bin(probabilities)
    observed = by_bin(outcomes)
    distance = Resampled(
        float(np.abs(predicted.sum(axis=0) - observed.sum(axis=0)).sum() / outcomes.size),
        np.abs(weights @ predicted - weights @ observed).sum(axis=1) / (prompts * size),
    )
    table = []
    for index in np.flatnonzero(counts.sum(axis=0)):
        total = counts[:, index].sum()
        share = _ratio(observed[:, index], counts[:, index], weights)
        table.append(
            {
                "low": float(index / BINS),
                "high": float((index + 1) / BINS),
                "count": int(total),
                "predicted": float(predicted[:, index].sum() / total),
                "observed": _recorded(share, prompts),
            }
        )
    return {"calibration_error": _recorded(distance, prompts), "reliability": table}


def _pooled_pairs(scores: np.ndarray, outcomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts by prompts the pairs of a positive of one and a negative of the other.

    Returns:
      of those the ones in which the positive scores higher, a tie counting half, and all: float64
      [P, P] each, [p, q] with positives of p and negatives of q.
    """
    prompts = len(outcomes)
    wins = np.zeros((prompts, prompts))
    owner = np.broadcast_to(np.arange(prompts)[:, None], outcomes.shape)[outcomes]
    positives = scores[outcomes]
    for q in range(prompts):
        negatives = np.sort(scores[q][~outcomes[q]])
        below = np.searchsorted(negatives, positives, side="left")
        not_above = np.searchsorted(negatives, positives, side="right")
        wins[:, q] = np.bincount(owner, (below + not_above) / 2, minlength=prompts)
    each = outcomes.sum(axis=1).astype(np.float64)
    return wins, np.outer(each, outcomes.shape[1] - each)


def _pairs_within(scores: np.ndarray, outcomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts what `_pooled_pairs` does, of pairs in one column alone."""
    prompts = len(outcomes)
    wins, pairs = np.zeros((prompts, prompts)), np.zeros((prompts, prompts))
    for p in range(prompts):
        pair = outcomes[p] & ~outcomes  # [P, M]
        above = (scores[p] > scores) + 0.5 * (scores[p] == scores)
        wins[p] = np.sum(above, axis=1, where=pair)
        pairs[p] = pair.sum(axis=1)
    return wins, pairs


def _pairs_estimate(
    wins: np.ndarray, pairs: np.ndarray, weights: np.ndarray, undefined: str
) -> dict[str, Any]:
    """Σ wins / Σ pairs, of two float64 [P, P]: a pair of prompts counts as often as both do."""
    with np.errstate(invalid="ignore"):  # all that is undefined is 0 / 0
        value = float(np.float64(wins.sum()) / pairs.sum())
        resampled = ((weights @ wins) * weights).sum(axis=1) / ((weights @ pairs) * weights).sum(
            axis=1
        )
    return _recorded(Resampled(value, resampled, undefined), len(wins))


def _ratio(
    numerator: np.ndarray, denominator: np.ndarray, weights: np.ndarray, undefined: str = ""
) -> Resampled:
    """Σ numerator / Σ denominator, of two float64 [P]."""
    with np.errstate(invalid="ignore"):  # all that is undefined is 0 / 0
        value = float(np.float64(numerator.sum()) / denominator.sum())
        return Resampled(value, (weights @ numerator) / (weights @ denominator), undefined)


def _recorded(value: Resampled, prompts: int) -> dict[str, Any]:
    return estimate(value.value, value.resampled, prompts, value.undefined)
