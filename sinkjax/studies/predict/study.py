"""Prompts to records of how well sinks can be predicted.

Prompts and lengths are both held out: a model is fitted to some prompts at some lengths, and judged
on the other prompts alone, at lengths that it saw and at lengths that it did not. A held-out prompt
enters nothing that is fitted at any length, for a prompt at one length is the beginning of itself
at another.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.errors import InputError
from sinkjax.instruments.sinks import DEFINITIONS
from sinkjax.masks.scores import checked, is_sink
from sinkjax.models.digest import tokens_digest
from sinkjax.studies.predict.logistic import Examples, fit_penalty
from sinkjax.studies.predict.metrics import compare_brier, operate, score_predictions
from sinkjax.studies.results import Results
from sinkjax.studies.sweep.study import (
    Progress,
    Series,
    Settings,
    describe_model,
    describe_source,
    measure_chunks,
)

MODELS: dict[str, tuple[str, ...]] = {
    "all": ("head", "length", "first_token", "layer_0", "previous"),
    "no_scores": ("head", "length", "first_token"),
    "same_index": ("same_index",),
}
"""The logistic models by name: the features of each."""

PREDICTORS = (*MODELS, "rate_at_length", "rate", "shuffled", "random")
"""Those models and, to hold them against: each head's share of sinks among the fitted prompts at
the length (between fitted lengths interpolated in log2, beyond them the nearest one's), and at all
lengths together; `all` fitted and judged with first tokens and scores that are another prompt's of
the same length; a number drawn at random."""

LIMITS = (0.5, 0.9)
"""Probabilities from which on a head would be taken out."""

_SPLITTING, _SHUFFLING, _DRAWING = 4, 5, 6  # tell these draws from others of the same seed
_FEWEST = 4  # prompts to fit to, for their quarters, and to judge on, for an interval
_RECORD_BYTES = 65_536  # an upper bound


@dataclasses.dataclass(frozen=True)
class PredictSettings:
    """What is held out.

    Attributes:
      held_out_lengths: of the lengths.
      held_out_share: of the prompts, within (0, 1).
      seed: of what is drawn.
    """

    held_out_lengths: tuple[int, ...]
    held_out_share: float = 0.4
    seed: int = 0


def run_predict(
    series: Sequence[Series],
    sweep: Settings,
    settings: PredictSettings,
    folder: str,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    *,
    sweep_folder: str | None = None,
) -> dict[str, Any]:
    """Runs what a folder does not hold yet.

    Args:
      series: of one model, of `sinkjax.studies.sweep.study.plan_sweep` for the same `sweep`.
      sweep: definitions and thresholds of what is predicted.
      folder: for the results; for users, the value of --output_dir.
      on_progress: called after every step.
      sweep_folder: of a sweep's results, whose scores of the same windows are taken over.

    Returns:
      the specification that the folder now belongs to.

    Raises:
      InputError: listing settings out of their range and lengths at which fewer prompts fit than at
        others; for weights that cannot be read, or a folder that cannot be used.
    """
    check_predict(series, settings)
    subject = series[0].subject
    model = subject.load()
    described = describe_model(subject, model)
    on_progress(Progress("model", f"loaded {subject.name}"))
    rules = list(itertools.product(sweep.definitions, sweep.thresholds))
    specification = {
        "experiment": "predict",
        "model": described,
        "sources": [
            {**describe_source(one.source), "bos": one.bos, "lengths": sorted(one.tokens)}
            for one in series
        ],
        "definitions": list(sweep.definitions),
        "thresholds": list(sweep.thresholds),
        "key_position": sweep.key_position,
        "tail": sweep.tail,
        **dataclasses.asdict(settings),
    }
    with Results(folder, specification) as results:
        results.reserve(_RECORD_BYTES * len(series) * len(rules))
        if sweep_folder is not None:
            _take_over(results, sweep_folder)
        for one in series:
            by_definition = {}
            for length, tokens in one.tokens.items():
                parts = measure_chunks(tokens, sweep, model, described, results, on_progress)
                scores = np.concatenate([part["scores"] for part in parts], axis=1)
                by_definition[length] = scores
            for definition, threshold in rules:
                fields = _fields(one, sweep, settings, described)
                fields |= {"definition": definition, "threshold": threshold}
                predicted = functools.partial(
                    predict_sinks,
                    {n: _of(by_definition[n], definition) for n in by_definition},
                    {n: rows[:, 0] for n, rows in one.tokens.items()},
                    settings,
                    definition=definition,
                    threshold=threshold,
                )
                results.record(fields, predicted)
                name = f"{definition} > {threshold:g} of {one.source.prompts.name}"
                on_progress(Progress("record", name, records=1))
    return specification


def _take_over(results: Results, sweep_folder: str) -> None:
    """Copies what a sweep measured and the folder does not hold: names say of what it is."""
    for path in sorted(pathlib.Path(sweep_folder, "measured").glob("*.npz")):
        if results.arrays(path.stem) is None:
            with np.load(path, allow_pickle=False) as arrays:
                results.put_arrays(path.stem, **arrays)


def check_predict(series: Sequence[Series], settings: PredictSettings) -> None:
    """All that can be refused before any weight is read: see `run_predict`."""
    problems = []
    if not 0 < settings.held_out_share < 1:
        problems.append(
            f"--held_out_share={settings.held_out_share:g}: give a share between 0 and 1, both "
            "excluded"
        )
    if settings.seed < 0:
        problems.append(f"--seed={settings.seed}: give 0 or more")
    for one in series:
        name, lengths = one.source.prompts.name, sorted(one.tokens)
        unknown = sorted(set(settings.held_out_lengths).difference(lengths))
        if unknown:
            problems.append(
                f"--held_out_lengths={','.join(map(str, unknown))}: {name} is measured at "
                f"{','.join(map(str, lengths))}; hold out some of --lengths"
            )
        if not set(settings.held_out_lengths) < set(lengths):
            problems.append(f"--held_out_lengths leaves no length of {name} to fit to")
        if not settings.held_out_lengths:
            problems.append("--held_out_lengths is empty: hold out at least one of --lengths")
        if one.subject.config.num_layers < 2:
            problems.append(f"--model={one.subject.name} has one layer: none comes before it")
        counts = {length: len(rows) for length, rows in one.tokens.items()}
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{count} at {length}" for length, count in sorted(counts.items()))
            problems.append(
                f"{name} gives other numbers of prompts at other lengths ({shown} tokens), and the "
                f"same are needed at all: give --num_prompts={min(counts.values())}, or leave out "
                "the longest --lengths"
            )
        held_out = _held_out(min(counts.values()), settings)
        if min(held_out.sum(), (~held_out).sum()) < _FEWEST:
            problems.append(
                f"{name} has {held_out.size} prompts: at --held_out_share="
                f"{settings.held_out_share:g}, {int(held_out.sum())} are held out and "
                f"{int((~held_out).sum())} fitted to; at least {_FEWEST} of each are needed"
            )
    if problems:
        raise InputError(*dict.fromkeys(problems))


def predict_sinks(
    scores_by_length: Mapping[int, np.ndarray],
    first_tokens_by_length: Mapping[int, np.ndarray],
    settings: PredictSettings,
    *,
    definition: str,
    threshold: float,
) -> dict[str, Any]:
    """How well sinks are predicted on held-out prompts.

    Args:
      scores_by_length: by T, float32 [P, L, N], of the same prompts in the same order.
      first_tokens_by_length: by T, int [P].
      settings: what is held out; some lengths are and some are not.
      definition, threshold: of the scores, and of a sink.

    Returns:
      the "result" of a record of kind "prediction": `prompts` and `first_tokens`, how many are
      fitted to and held out, and how many first tokens have a number of their own; `penalties`, by
      model; `prompts_held_out` and `lengths_held_out`, the same for held-out prompts at fitted and
      at held-out lengths: `share` of sinks among what is predicted, and by each of `PREDICTORS`
      what `score_predictions` gives with `over_rate`, its Brier score less that of
      `rate_at_length`; `acting`, what `operate` gives for `all` at `LIMITS`; `by_length`.

    Raises:
      ValueError: for shapes that differ between lengths, or scores that are not finite.
    """
    examples = _examples(scores_by_length, first_tokens_by_length, definition, threshold)
    held_out = _held_out(examples.prompts.max() + 1, settings)[examples.prompts]
    unseen_length = np.isin(examples.lengths, settings.held_out_lengths)
    fitted_to = examples.where(~held_out & ~unseen_length)
    fits = {
        name: fit_penalty(fitted_to, features, seed=settings.seed)
        for name, features in MODELS.items()
    }
    shuffled = fit_penalty(_shuffled(fitted_to, settings.seed), MODELS["all"], seed=settings.seed)

    def probabilities(judged: Examples) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((_DRAWING, settings.seed))
        return {
            **{name: fitted.probabilities(judged) for name, fitted in fits.items()},
            "rate_at_length": _rates_at(fitted_to, judged.lengths),
            "rate": np.broadcast_to(_rate(fitted_to.outcomes), judged.outcomes.shape),
            "shuffled": shuffled.probabilities(_shuffled(judged, settings.seed)),
            "random": rng.random(judged.outcomes.shape),
        }

    result = {
        "prompts": {
            "fitted": len(np.unique(fitted_to.prompts)),
            "held_out": len(np.unique(examples.prompts[held_out])),
        },
        "first_tokens": int((fits["all"].first_tokens >= 0).sum()),
        "penalties": {name: fitted.penalty for name, fitted in fits.items()},
        "by_length": [],
    }
    for name, lengths in (
        ("prompts_held_out", ~unseen_length),
        ("lengths_held_out", unseen_length),
    ):
        judged = examples.where(held_out & lengths)
        found = _by_prompt(judged, probabilities(judged))
        result[name] = _judge(judged, found, fitted_to, settings.seed)
        result["by_length"] += _by_length(judged, found, settings)
    result["by_length"].sort(key=lambda entry: entry["length"])
    return result


def _judge(
    judged: Examples, found: Mapping[str, np.ndarray], fitted_to: Examples, seed: int
) -> dict[str, Any]:
    """What one split says; found: by predictor, and "outcomes", [P, C, M]."""
    prompts, cells, _ = found["outcomes"].shape
    flat = {name: array.reshape(prompts, -1) for name, array in found.items()}
    outcomes = flat["outcomes"]
    lengths = np.unique(judged.lengths)
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
            operate(found["all"], static, found["outcomes"], limit=limit, seed=seed)
            for limit in LIMITS
        ],
    }


def _by_length(
    judged: Examples, found: Mapping[str, np.ndarray], settings: PredictSettings
) -> list[dict[str, Any]]:
    """Of each length: the share of sinks, and Brier scores beside that of `rate_at_length`."""
    entries = []
    for cell, length in enumerate(np.unique(judged.lengths).tolist()):
        outcomes, static = found["outcomes"][:, cell], found["rate_at_length"][:, cell]
        compared = functools.partial(
            compare_brier, found["all"][:, cell], static, outcomes, seed=settings.seed
        )
        entries.append(
            {
                "length": length,
                "held_out": length in settings.held_out_lengths,
                "share": float(outcomes.mean()),
                "brier": float(np.square(found["all"][:, cell] - outcomes).mean()),
                "rate_brier": float(np.square(static - outcomes).mean()),
                "over_rate": compared(),
            }
        )
    return entries


def _by_prompt(judged: Examples, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """[R, L - 1, N] of examples by length, then prompt, to [P, C, M]; with "outcomes"."""
    cells = len(np.unique(judged.lengths))
    arrays = {**found, "outcomes": judged.outcomes}
    return {
        name: array.reshape(cells, len(judged) // cells, -1).swapaxes(0, 1)
        for name, array in arrays.items()
    }


def _examples(
    scores_by_length: Mapping[int, np.ndarray],
    first_tokens_by_length: Mapping[int, np.ndarray],
    definition: str,
    threshold: float,
) -> Examples:
    """By length, then prompt."""
    lengths = sorted(scores_by_length)
    arrays = [checked(scores_by_length[length], "scores") for length in lengths]
    if len({array.shape for array in arrays}) > 1:
        raise ValueError(f"scores have shapes {[array.shape for array in arrays]}; equal ones")
    count = len(arrays[0])
    scores = np.concatenate(arrays)
    return Examples(
        scores=scores,
        sinks=is_sink(scores, definition, threshold),
        lengths=np.repeat(lengths, count),
        first_tokens=np.concatenate([first_tokens_by_length[length] for length in lengths]),
        prompts=np.tile(np.arange(count), len(lengths)),
    )


def _held_out(prompts: int, settings: PredictSettings) -> np.ndarray:
    """Which prompts are: bool [P]."""
    order = np.random.default_rng((_SPLITTING, settings.seed)).permutation(prompts)
    return order < round(settings.held_out_share * prompts)


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


def _of(scores: np.ndarray, definition: str) -> np.ndarray:
    """Scores [definition, P, L, N] under one of them."""
    return scores[DEFINITIONS.index(definition)]


def _fields(
    series: Series, sweep: Settings, settings: PredictSettings, described: Mapping[str, Any]
) -> dict[str, Any]:
    """What a record says but for definition, threshold and result."""
    lengths = sorted(series.tokens)
    return {
        "kind": "prediction",
        "model": {key: value for key, value in described.items() if key != "max_length"},
        "source": describe_source(series.source),
        "bos": series.bos,
        "bos_added": series.bos_added,
        "key_position": sweep.key_position,
        "tail": sweep.tail,
        "lengths": lengths,
        "held_out_lengths": sorted(settings.held_out_lengths),
        "held_out_share": settings.held_out_share,
        "num_prompts": len(series.tokens[lengths[0]]),
        "tokens_sha256": [tokens_digest(series.tokens[length]) for length in lengths],
        "seed": settings.seed,
    }
