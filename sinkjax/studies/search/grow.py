"""The search: rounds of predicting what moves cost, and of measuring how many of them fit.

In each round the cost of every head on every path is predicted anew under the mask so far
(`sensitivity`, or heads' own errors; `gates` stay what they are), moves are ranked by cost a
saving, and the KL on held-back excerpts decides how many are made. Early rounds may spend a part of
the budget only, so that most of it is spent with predictions for a mask that is near.

Sensitivities rest on few draws, and of many noisy costs the least are those that noise made small.
So each is drawn towards what the layer's own errors say, as if those were worth `_PRIOR` draws; and
what only seems to lower the KL, by cancelling earlier moves, is not counted on.

Nothing is random but the draws of labels, which are seeded: the same call finds the same mask.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from sinkjax.accounts.savings import Workload, path_savings
from sinkjax.instruments.judge import SCORE_FROM
from sinkjax.instruments.sensitivity import Prediction
from sinkjax.instruments.tasks import Questions
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Full, Path, Sink
from sinkjax.masks.scores import group_size
from sinkjax.models.decoder import Llama
from sinkjax.studies.costs import late_from, parts_up_to
from sinkjax.studies.retrieval.asked import kept_answers
from sinkjax.studies.retrieval.measure import FLOOR
from sinkjax.studies.search.budget import Move, Step, make_moves, rank_moves, rank_returns, spend
from sinkjax.studies.search.kept import KeptCosts, KeptJudge, kept_means
from sinkjax.studies.search.learned import LearnedGates
from sinkjax.studies.store import Store
from sinkjax.studies.units import Units, units_of

_PRIOR = 8  # draws


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """Questions that a mask has to answer as its baseline does.

    Attributes:
      ranked: on which costs are predicted.
      held: on which masks are measured, others than those: sets of one task and depth, of two
        questions at least.
      nll_budget: the most nats that an answer's NLL may rise by, in the mean of any set with its
        standard error.
      floor: the least share of a set that the baseline itself has to answer; others say nothing,
        and are left out.
    """

    ranked: Questions
    held: tuple[Questions, ...]
    nll_budget: float
    floor: float = FLOOR


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """What is searched for, and how: settings of `Search`.

    Attributes:
      kl_budget: the most KL, nats a token, on the held-back excerpts.
      budget_on: which KL that is: the `largest` of `sinkjax.studies.costs.PARTS` at any of
        `lengths_up_to`, for which costs are predicted over the last quarter, or the `mean` over
        all positions of the prompt.
      workload: for which savings are counted.
      by: units that move, each `head` or each key/value `group` as a whole.
      gates: for the ranking of that name.
      prune: mask whose path alone each head may take, or stay `full`; a unit's heads are on one
        path in it. None for any of the paths.
      chips: over which key/value heads are divided, and which have the same to do.
    """

    paths: tuple[Path, ...]
    kl_budget: float
    workload: Workload
    budget_on: Literal["largest", "mean"] = "largest"
    by: Literal["head", "group"] = "head"
    objective: Literal["savings", "heads"] = "savings"
    ranking: Literal["sensitivity", "error", "gates"] = "sensitivity"
    rounds: int = 4
    tries: int = 5
    samples: int = 2
    seed: int = 0
    gates: LearnedGates | None = None
    prune: SinkMask | None = None
    chips: int = 1

    def describe(self) -> dict[str, Any]:
        """Its JSON values, without what earlier versions had no word for, where it is not used."""
        fields = dataclasses.asdict(dataclasses.replace(self, gates=None, prune=None))
        if self.chips == 1:
            del fields["chips"]
        del fields["prune"]
        if self.prune is not None:
            fields["prune"] = str(self.prune)
        fields["gates"] = None if self.gates is None else dict(self.gates.origin)
        return {**fields, "paths": list(map(str, self.paths))}


@dataclasses.dataclass(frozen=True, eq=False)
class SearchOutcome:
    """What came of a search.

    Attributes:
      mask: with the most savings, or heads, of those within the budget.
      kl: its KL on the held-back excerpts, of the kind that the budget is on.
      fills: float32 [L, N, H], means of `sink(mean)`; None where no path asks for them.
      savings: float64 [P, L], of a unit on each path in each layer.
      errors: float64 [P, L, N], heads' own errors under the baseline.
      rounds: each with the masks that it measured.
      asked_at: length of the questions that were to be kept; None without questions.
      rises: of their sets, by how many nats the NLL of an answer rises; None of sets that say
        nothing.
    """

    mask: SinkMask
    kl: float
    fills: np.ndarray | None
    savings: np.ndarray
    errors: np.ndarray
    rounds: tuple[Step, ...]
    asked_at: int | None = None
    rises: tuple[float | None, ...] = ()


def search_mask(
    model: Llama,
    ranking_excerpts: np.ndarray,
    held_excerpts: np.ndarray,
    settings: SearchSettings,
    store: Store,
    *,
    answers: Sequence[Answers] = (),
) -> SearchOutcome:
    """Finds a mask whose measured KL is within a budget, and whose answers are, if there are any.

    Each round grows the mask to its part of the KL's budget; where that costs more in answers than
    they allow, heads go back, for good, or fewer are moved. They go back to `full`, or to the path
    that saves most of those that hide nothing in as many tokens as a question has.

    Args:
      model: every head `full`.
      ranking_excerpts: int32 [W, T], on which costs are predicted and means taken.
      held_excerpts: int32 [W, T + M], on which masks are measured; others than those. The last M
        are tokens after the prompt.
      answers: that the mask has to keep, the longest first; those count of which the baseline
        itself answers most sets, of several the first.
    """
    config = model.config
    kv_heads = config.num_kv_heads if settings.by == "group" else None
    savings = path_savings(config, settings.paths, settings.workload, num_kv_heads=kv_heads)
    worth = savings
    if settings.objective == "heads":
        # Of paths that are worth the same the one that saves more is better, by next to nothing.
        worth = np.where(savings > 0, 1 + 1e-6 * savings / savings.max(), 0)
    needed = Sink("mean") in settings.paths
    fills = kept_means(model, ranking_excerpts, store) if needed else None
    prompt, largest = ranking_excerpts.shape[1], settings.budget_on == "largest"
    first = late_from(prompt) if largest else SCORE_FROM
    scored = np.broadcast_to(np.arange(prompt) >= first, ranking_excerpts.shape)
    costs = KeptCosts(model, ranking_excerpts, settings.paths, fills, store, scored)
    judge = KeptJudge(model, held_excerpts, fills, store)
    full = SinkMask.full(config)
    shape = config.num_layers, config.num_heads
    own = np.zeros(shape) if settings.chips == 1 else costs.errors(full).min(axis=0)
    units = units_of(own, config.num_kv_heads, settings.by, settings.chips)
    of_answers = (
        None
        if not answers
        else _KeptAnswers(model, answers, settings.paths, savings, fills, store, units)
    )

    def budgeted(mask: SinkMask) -> float:
        at = judge(mask)
        if largest:
            parts_of = parts_up_to(at, mask.hiding(config.layer_windows), prompt)
            return max(max(parts.values()) for parts in parts_of.values())
        return float(at[:, : prompt - SCORE_FROM].mean(dtype=np.float64))

    within = None if settings.prune is None else units.arranged(settings.prune)
    best, kl, scale = full, 0.0, None
    rounds: list[Step] = []
    returned: set[tuple[int, int]] = set()
    for number in range(settings.rounds):
        start = units.arranged(best)
        predicted = units.predicted(_predict(costs, settings, best, number))
        moves = [
            move
            for move in rank_moves(
                start, settings.paths, predicted, worth, size=units.size, within=within
            )
            if (move.layer, move.unit) not in returned
        ]
        target = settings.kl_budget * (number + 1) / settings.rounds
        how = {"kl": kl, "scale": scale, "size": units.size, "tries": settings.tries}
        how["whole"] = within is not None and target == settings.kl_budget
        measure = lambda mask: budgeted(units.restored(mask))  # noqa: E731
        step = spend(start, moves, target, measure, **how)
        if of_answers is not None:
            step = of_answers.keep(start, moves, step, settings.samples, settings.seed + number)
            returned |= step.returned
            step = dataclasses.replace(step, kl=measure(step.mask))
        best, kl, scale = units.restored(step.mask), step.kl, step.scale
        rounds.append(dataclasses.replace(step, mask=best))
    outcome = SearchOutcome(best, kl, fills, savings, costs.errors(full), tuple(rounds))
    if of_answers is None:
        return outcome
    rises = tuple(None if of is None else float(of.mean()) for of in of_answers.rises(best))
    return dataclasses.replace(outcome, asked_at=of_answers.length, rises=rises)


class _KeptAnswers:
    """What masks cost in answers, each measured once."""

    def __init__(
        self,
        model: Llama,
        answers: Sequence[Answers],
        paths: Sequence[Path],
        savings: np.ndarray,
        fills: np.ndarray | None,
        store: Store,
        units: Units,
    ):
        self._fills, self._units = fills, units
        self._of = functools.partial(kept_answers, model, keep=store)
        self._answers = self._most_answered(answers)
        asked = self._answers.ranked
        self.length = asked.tokens.shape[1]
        self._costs = KeptCosts(model, asked.tokens, paths, fills, store, asked.predicting, "nll")
        by_savings = [paths[index] for index in np.argsort(-savings.max(axis=1), kind="stable")]
        self._whole = [*(path for path in by_savings if _hides_none(path, self.length)), Full()]

    def rises(self, mask: SinkMask) -> Iterator[np.ndarray | None]:
        """Nats that each answer's NLL rises by, [W], set by set; None of sets that say nothing."""
        for questions in self._answers.held:
            if self._answered(questions, self._answers.floor):
                masked = self._of(questions, mask=mask, fills=self._fills)
                yield masked["nll"] - self._of(questions)["nll"]
            else:
                yield None

    def keep(
        self,
        start: SinkMask,
        moves: Sequence[Move],
        step: Step,
        samples: int,
        seed: int,
    ) -> Step:
        """A round whose answers are within their budget, as they were under the mask before it.

        Units are given back in the order of what each one costs in the answers' NLL, as predicted
        under the mask: their number is doubled until answers are kept, and of that number
        three quarters are enough where they still are. Where it takes as many as the round's moves
        to return them to `full`, the order is not to be trusted, and fewer of the moves are made
        instead, by bisection.

        Args:
          start: the mask before the round; heads are in the order of the units, as in the step.
          moves: of the round, best first.
          step: how many of them the KL allows.
          samples, seed: of what is predicted.
        """
        if self._kept(step.mask):
            return step
        units, size = self._units, self._units.size
        predicted = self._costs.sensitivity(samples, seed, units.restored(step.mask))
        predicted = units.predicted(predicted)
        returns = rank_returns(
            step.mask, self._costs.paths, predicted, size=size, whole=self._whole
        )
        restored = functools.partial(make_moves, step.mask, size=size)
        most = min(step.number, len(returns)) - 1
        numbers = [1 << power for power in range(most.bit_length())]
        if self._whole[0] != Full():  # which all of them may take, and still save
            numbers.append(len(returns))
        for number in numbers:
            if not self._kept(restored(returns[:number])):
                continue
            fewer = number - number // 4
            made = returns[: fewer if self._kept(restored(returns[:fewer])) else number]
            given = frozenset((move.layer, move.unit) for move in made)
            return dataclasses.replace(step, mask=restored(made), returned=given)
        fits, too_many = 0, step.number
        while too_many - fits > max(1, step.number // 8):
            middle = (fits + too_many) // 2
            if self._kept(make_moves(start, moves[:middle], size=size)):
                fits = middle
            else:
                too_many = middle
        mask = make_moves(start, moves[:fits], size=size)
        return dataclasses.replace(step, mask=mask, number=fits)

    def _most_answered(self, answers: Sequence[Answers]) -> Answers:
        """Returns those of which the baseline answers most sets, of several the first."""
        best, most = answers[0], -1
        for each in answers:
            if len(each.held) <= most:  # it cannot be more; a baseline's answers take long
                continue
            number = sum(self._answered(questions, each.floor) for questions in each.held)
            if number > most:
                best, most = each, number
        return best

    def _answered(self, questions: Questions, floor: float) -> bool:
        """Whether the baseline gives enough of them back."""
        return bool(self._of(questions)["given_back"].mean() >= floor)

    def _kept(self, mask: SinkMask) -> bool:
        rises = self.rises(self._units.restored(mask))
        # Of several sets the one that rises most is in part the one that was drawn worst for the
        # baseline, and a mask that just keeps it may break it on others: hence the standard error.
        return all(
            of.mean() + of.std() / (len(of) - 1) ** 0.5 <= self._answers.nll_budget
            for of in rises
            if of is not None
        )


def _hides_none(path: Path, length: int) -> bool:
    """Whether a head's output in as many tokens is that of `full`."""
    return path.acts_from is None or path.acts_from >= length


def _predict(costs: KeptCosts, settings: SearchSettings, mask: SinkMask, number: int) -> Prediction:
    """What moves from a mask cost in the round of this number, as the settings' ranking says."""
    if settings.ranking == "sensitivity":
        predicted = costs.sensitivity(settings.samples, settings.seed + number, mask)
        return _steadied(predicted, costs.errors(mask), settings.paths)
    if settings.ranking == "error":
        return _adding_up(mask, np.square(costs.errors(mask)))
    gates = np.asarray(settings.gates.values, np.float64)
    size = group_size(mask.num_heads, gates.shape[1])
    return _adding_up(mask, np.repeat(gates / size, size, axis=1)[None])


def _adding_up(mask: SinkMask, costs: np.ndarray) -> Prediction:
    """Prediction from costs of single heads on each path, float [P, L, N], which add up."""
    linear = np.concatenate([np.zeros_like(costs[:1]), costs])
    return Prediction(mask, linear, np.zeros((0, *linear.shape)))


def _steadied(predicted: Prediction, errors: np.ndarray, paths: Sequence[Path]) -> Prediction:
    """Predictions whose noise is held down by own errors, float [P, L, N], under the same mask."""
    options = [Full(), *paths]
    squares = np.concatenate([np.zeros_like(errors[:1]), np.square(errors)])  # [1 + P, L, N]
    here = np.array([[options.index(path) for path in layer] for layer in predicted.mask.heads])
    squares = squares - np.take_along_axis(squares, here[None], axis=0)
    own = np.square(predicted.products).mean(axis=0) / 2
    per_square = own.sum(axis=(0, 2)) / np.abs(squares).sum(axis=(0, 2))  # [L]
    draws = len(predicted.products)
    trusted = draws / (draws + _PRIOR)
    linear = np.maximum(predicted.linear, 0) + (1 - trusted) * per_square[:, None] * squares
    return Prediction(predicted.mask, linear, predicted.products * trusted**0.5)
