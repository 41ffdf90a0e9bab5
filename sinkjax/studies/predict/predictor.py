"""How well sinks are predicted from what is known before they are measured.

Prompts and lengths are both held out: a model is fitted to some prompts at some lengths, and judged
on the other prompts alone, at lengths that it saw and at lengths that it did not. A held-out prompt
enters nothing that is fitted at any length, for a prompt at one length is the beginning of itself
at another.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.masks.scores import checked, is_sink
from sinkjax.studies.predict.logistic import Examples, fit_penalty
from sinkjax.studies.predict.metrics import compare_brier, operate, score_predictions

MODELS: dict[str, tuple[str, ...]] = {
    "all": ("head", "length", "first_token", "layer_0", "previous"),
    "no_scores": ("head", "length", "first_token"),
    "same_index": ("same_index",),
}
"""The logistic models by name: the features of each."""

PREDICTORS = (*MODELS, "rate_at_length", "rate", "shuffled", "random")
"""The logistic models and, to hold them against, each head's share of sinks among the fitted
prompts at the length (between fitted lengths interpolated in log2, beyond them the nearest one's),
and at all lengths together; `all` fitted and judged with first tokens and scores that are another
prompt's of the same length; a number drawn at random."""

LIMITS = (0.5, 0.9)
"""Probabilities from which on a head would be taken out."""

_SPLITTING, _SHUFFLING, _DRAWING = 4, 5, 6  # tell these draws from others of the same seed


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """What is held out.

    Attributes:
      lengths: of all lengths.
      share: of the prompts, within (0, 1).
      seed: of what is drawn.
    """

    lengths: tuple[int, ...]
    share: float = 0.4
    seed: int = 0


def predict_sinks(
    scores_by_length: Mapping[int, np.ndarray],
    first_tokens_by_length: Mapping[int, np.ndarray],
    held_out: HeldOut,
    *,
    definition: str,
    threshold: float,
) -> dict[str, Any]:
    """How well sinks are predicted on held-out prompts.

    Args:
      scores_by_length: by T, float32 [P, L, N], of the same prompts in the same order.
      first_tokens_by_length: by T, int [P].
      held_out: what is; some lengths are and some are not.
      definition, threshold: of the scores, and of a sink.

    Returns:
      the "result" of a record of kind "prediction": `prompts` and `first_tokens`, how many are
      fitted to and held out, and how many first tokens have a number of their own; `penalties`, by
      model; `prompts_held_out` and `lengths_held_out`, the same for held-out prompts at fitted and
      at held-out lengths: `share` of sinks among what is predicted, and by each of `PREDICTORS`
      what `score_predictions` gives with `over_rate`, its Brier score less that of
      `rate_at_length`; `acting`, what `operate` gives for `all` at `LIMITS`; `by_length`.

    Raises:
      ValueError: for scores that are not finite.
    """
    at = sorted(scores_by_length)
    arrays = [checked(scores_by_length[length], "scores") for length in at]
    count, scores = len(arrays[0]), np.concatenate(arrays)
    examples = Examples(  # by length, then prompt
        scores=scores,
        sinks=is_sink(scores, definition, threshold),
        lengths=np.repeat(at, count),
        first_tokens=np.concatenate([first_tokens_by_length[length] for length in at]),
        prompts=np.tile(np.arange(count), len(at)),
    )
    unseen_prompt = held_out_prompts(count, held_out)[examples.prompts]
    unseen_length = np.isin(examples.lengths, held_out.lengths)
    fitted_to = examples.where(~unseen_prompt & ~unseen_length)
    fits = {
        name: fit_penalty(fitted_to, features, seed=held_out.seed)
        for name, features in MODELS.items()
    }
    shuffled = fit_penalty(_shuffled(fitted_to, held_out.seed), MODELS["all"], seed=held_out.seed)

    def probabilities(unseen: Examples) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((_DRAWING, held_out.seed))
        return {
            **{name: fitted.probabilities(unseen) for name, fitted in fits.items()},
            "rate_at_length": _rates_at(fitted_to, unseen.lengths),
            "rate": np.broadcast_to(_rate(fitted_to.outcomes), unseen.outcomes.shape),
            "shuffled": shuffled.probabilities(_shuffled(unseen, held_out.seed)),
            "random": rng.random(unseen.outcomes.shape),
        }

    result = {
        "prompts": {
            "fitted": len(np.unique(fitted_to.prompts)),
            "held_out": len(np.unique(examples.prompts[unseen_prompt])),
        },
        "first_tokens": int((fits["all"].first_tokens >= 0).sum()),
        "penalties": {name: fitted.penalty for name, fitted in fits.items()},
        "by_length": [],
    }
    for name, lengths in (
        ("prompts_held_out", ~unseen_length),
        ("lengths_held_out", unseen_length),
    ):
        unseen = examples.where(unseen_prompt & lengths)
        predicted = _by_prompt(unseen, probabilities(unseen))
        result[name] = _judge(unseen, predicted, fitted_to, held_out.seed)
        result["by_length"] += _by_length(unseen, predicted, held_out)
    result["by_length"].sort(key=lambda entry: entry["length"])
    return result


def _judge(
    unseen: Examples, predicted: Mapping[str, np.ndarray], fitted_to: Examples, seed: int
) -> dict[str, Any]:
    """What one split says; predicted: by predictor, and "outcomes", [P, C, M]."""
    prompts, cells, _ = predicted["outcomes"].shape
    flat = {name: array.reshape(prompts, -1) for name, array in predicted.items()}
    outcomes = flat["outcomes"]
    lengths = np.unique(unseen.lengths)
    static = _rates_at(fitted_to, lengths).reshape(cells, -1)
    return {
        "share": float(outcomes.mean()),
        "predictors": {
            name: {
                **score_predictions(flat[name], outcomes, seed=seed),
                "over_rate": compare_brier(flat[name], flat["rate_at_length"], outcomes, seed=seed),
            }
            for name in PREDICTORS
        },
        "acting": [
            operate(predicted["all"], static, predicted["outcomes"], limit=limit, seed=seed)
            for limit in LIMITS
        ],
    }


def _by_length(
    unseen: Examples, predicted: Mapping[str, np.ndarray], held_out: HeldOut
) -> list[dict[str, Any]]:
    """The share of sinks at each length, and Brier scores beside that of `rate_at_length`."""
    entries = []
    for cell, length in enumerate(np.unique(unseen.lengths).tolist()):
        outcomes, static = predicted["outcomes"][:, cell], predicted["rate_at_length"][:, cell]
        logistic = predicted["all"][:, cell]
        entries.append(
            {
                "length": length,
                "held_out": length in held_out.lengths,
                "share": float(outcomes.mean()),
                "brier": float(np.square(logistic - outcomes).mean()),
                "rate_brier": float(np.square(static - outcomes).mean()),
                "over_rate": compare_brier(logistic, static, outcomes, seed=held_out.seed),
            }
        )
    return entries


def _by_prompt(unseen: Examples, predicted: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """[R, L - 1, N] of examples by length, then prompt, to [P, C, M]; with "outcomes"."""
    cells = len(np.unique(unseen.lengths))
    arrays = {**predicted, "outcomes": unseen.outcomes}
    return {
        name: array.reshape(cells, len(unseen) // cells, -1).swapaxes(0, 1)
        for name, array in arrays.items()
    }


def held_out_prompts(prompts: int, held_out: HeldOut) -> np.ndarray:
    """Which prompts are: bool [P]."""
    order = np.random.default_rng((_SPLITTING, held_out.seed)).permutation(prompts)
    return order < round(held_out.share * prompts)


def _shuffled(examples: Examples, seed: int) -> Examples:
    """The same outcomes, with first tokens and scores of other prompts at the same length."""
    rng, order = np.random.default_rng((_SHUFFLING, seed)), np.arange(len(examples))
    for length in np.unique(examples.lengths):
        at_length = np.flatnonzero(examples.lengths == length)
        shift = rng.integers(1, max(len(at_length), 2))  # so that none keeps its own
        order[at_length] = np.roll(at_length, shift)
    return dataclasses.replace(
        examples, scores=examples.scores[order], first_tokens=examples.first_tokens[order]
    )


def _rate(outcomes: np.ndarray) -> np.ndarray:
    """Shares of sinks among bool [R, ...]: never 0 or 1, as if half of one more were one."""
    return (outcomes.sum(axis=0) + 0.5) / (len(outcomes) + 1)


def _rates_at(fitted_to: Examples, lengths: np.ndarray) -> np.ndarray:
    """Shares of sinks at these lengths: [lengths, L - 1, N]."""
    known = np.unique(fitted_to.lengths)
    rates = np.stack([_rate(fitted_to.outcomes[fitted_to.lengths == n]) for n in known])
    at = np.interp(np.log2(lengths), np.log2(known), np.arange(len(known)))
    below = np.floor(at).astype(int)
    above = np.minimum(below + 1, len(known) - 1)
    part = (at - below)[:, None, None]
    return (1 - part) * rates[below] + part * rates[above]
