"""What studies share that choose masks which have to keep the baseline's answers."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from sinkjax.errors import Problem, problems_of
from sinkjax.instruments.tasks import LISTS, TASKS
from sinkjax.studies.candidates import Candidate
from sinkjax.studies.prompts import BosPolicy
from sinkjax.studies.retrieval.asked import Asked, ask_all, depth_problems
from sinkjax.studies.retrieval.measure import MeasureAnswers
from sinkjax.studies.retrieval.promise import NLL_BUDGET
from sinkjax.studies.series import Series
from sinkjax.studies.settings import MOST_DRAWN, above_zero, at_least, known, setting, some
from sinkjax.studies.study import Bench, Cell, Study


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class AnswersStudy(Study):
    """A study that chooses masks, by what they answer too, at one length.

    Questions are of `tasks`. Those that are judged on are asked as `sinkjax retrieval` asks them;
    those that are chosen on ask for other things, at depths that lie between.
    """

    if TYPE_CHECKING:  # fields of the studies that this one is part of
        lengths: tuple[int, ...]
        bos: BosPolicy

    tasks: tuple[str, ...] = setting(
        (),
        "Tasks of `sinkjax retrieval`, whose names begin with niah, whose answers a mask has to "
        "keep. Default: none.",
    )
    depths: tuple[float, ...] = setting(
        (0.1, 0.5, 0.9),
        "Depths at which answers are judged: shares of a text that come before what is hidden in "
        "it. Those of the questions to choose on lie between.",
    )
    judge_questions: int = setting(30, "Questions of each task and depth to judge on.")
    nll_budget: float = setting(
        NLL_BUDGET, "The most nats that the NLL of an answer may rise by, at any depth."
    )

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from at_least(self, most=MOST_DRAWN, judge_questions=1)
        yield from known("tasks", self.tasks, tuple(task for task in TASKS if task not in LISTS))
        yield from depth_problems(self.depths)
        if self.tasks:
            yield from some(self, depths=0.5)
        yield from above_zero(self, nll_budget="nats")

    def plan_problems(self) -> Iterator[Problem]:
        yield from super().plan_problems()
        if self.tasks:
            yield from problems_of(lambda: self.judged_answers)

    @property
    def answers_on(self) -> tuple[Series, Series]:
        """The series whose text questions to choose on have for filler, and those to judge on."""
        raise NotImplementedError

    @functools.cached_property
    def judged_answers(self) -> list[Asked]:
        """Questions that no choice sees.

        Raises:
          InputError: for a task that the length has no room for.
        """
        if not self.tasks:
            return []
        series, lengths = self.answers_on[1], self.judged_lengths
        return self._ask(series, lengths, self.depths, self.judge_questions, 0)

    @property
    def judged_lengths(self) -> list[int]:
        """The length, its half and its quarter; at those without room nothing is asked."""
        (length,) = self.lengths
        return [length // part for part in (1, 2, 4)]

    def asked_for(self, count: int, use: int, lengths: Sequence[int]) -> list[Asked]:
        """Questions to choose on, of each task and depth; uses 1 and 2 ask for other things."""
        at = [0.0, *sorted(set(self.depths)), 1.0]
        between = [(low + high) / 2 for low, high in itertools.pairwise(at)]
        return self._ask(self.answers_on[0], lengths, between, count, use)

    def _ask(
        self, series: Series, lengths: Sequence[int], depths: Sequence[float], count: int, use: int
    ) -> list[Asked]:
        how = {"count": count, "seed": self.seed, "filler": series.source.prompts, "use": use}
        return ask_all(self.subject, self.bos, self.tasks, lengths, depths, **how)

    def answer_cells(
        self, bench: Bench, candidates: Iterable[tuple[Candidate, str | None]]
    ) -> Iterator[Cell]:
        """Cells of what masks still answer.

        Args:
          candidates: each answers what is asked at its lengths; with whose control it is, if any.
        """
        measure = MeasureAnswers(bench, None, self.judged_lengths, self.judge_questions)
        for candidate, control_of in candidates:
            yield from measure.cells(candidate, control_of, self.judged_answers, self.seed)
