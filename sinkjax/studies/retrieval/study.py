"""Does a mask still find what stands far back in a text?

  sinkjax retrieval --flagfile=retrieval.flags --mask=smollm2-135m-512
  sinkjax retrieval --mask=mask.json --lengths=512,1024 --depths=0.1,0.5,0.9
  sinkjax retrieval --mask=mask.json --lengths=2048 --tasks=niah_multikey_2,vt,cwe,fwe

A mask's mean KL on prose says nothing of this: prose hardly ever needs what is far back. Here
questions are generated whose answers stand in a long text, and the baseline, each mask and masks of
as many heads drawn at random (--control_draws) answer them. Nothing is downloaded.

--tasks are RULER's, in words of our own, so that scores are not RULER's:

  niah_single_1    a number for a name, hidden among a few sentences that are repeated
  niah_prose       the same in real prose, of --text
  niah_multikey_2  the same among as many other names with numbers as there is room for
  niah_multikey_3  the same with UUIDs for names and numbers
  vt               variable tracking: five variables, set to a number one by another
  cwe              common words: the ten words of a numbered list that come most often
  fwe              frequent words: the three code words of a text that come most often

Of the niah tasks, --depths says how much of the text comes before what is hidden, and an answer is
right if greedy decoding gives it back whole. Of the others, the answer is a list: its accuracy is
the share of its words in what greedy decoding writes, in twice the answer's tokens. The answer's
negative log-likelihood (NLL) tells masks apart where all or none of the answers are right.

Where the baseline itself reaches less than 80%, a mask's score says nothing, and is marked so:
small models fail most of these tasks. --mask='L0-29: 9f' --control_draws=0, of full heads alone,
asks the baseline and no more. The last lines say whether a mask keeps the baseline's answers, for
which three depths of 30 excerpts each are needed (--depths, --num_excerpts).
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sinkjax.errors import Problem, problems_of
from sinkjax.instruments.tasks import LISTS, TASKS
from sinkjax.masks.choose import random_control
from sinkjax.masks.mask import SinkMask
from sinkjax.report.records import Record
from sinkjax.studies import texts
from sinkjax.studies.candidates import MASKS, Candidate, candidates, check_candidates
from sinkjax.studies.prompts import BOS, BosPolicy, TextExcerpts
from sinkjax.studies.retrieval.asked import Asked, ask_all, depth_problems
from sinkjax.studies.retrieval.measure import MeasureAnswers, needs_means
from sinkjax.studies.retrieval.page import openings, sections
from sinkjax.studies.retrieval.promise import promise_line, promises_of
from sinkjax.studies.retrieval.tables import retrieval_tables
from sinkjax.studies.series import Source
from sinkjax.studies.settings import (
    MOST_DRAWN,
    at_least,
    known,
    seed_of_draw,
    setting,
    some,
    values,
)
from sinkjax.studies.study import Bench, Cell, Size, Study

_MEANS = (8, 512)  # excerpts and their tokens that heads' means are taken on
_RECORD_BYTES, _EXCERPT_BYTES = 8192, 256  # upper bounds


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Retrieval(Study):
    """Does a mask still find what stands far back in a text?"""

    name = "retrieval"
    tables_of = staticmethod(retrieval_tables)
    openings = staticmethod(openings)
    sections = staticmethod(sections)
    title = "What masks of {} still find in a text"
    lede = "Questions whose answers stand in a long text, asked of the baseline and each mask."

    mask: tuple[str | Candidate, ...] = setting((), MASKS, repeated=True)
    control_draws: int = setting(
        1, "Random controls of each mask: the same paths in every layer, on heads drawn at random."
    )
    tasks: tuple[str, ...] = setting(
        ("niah_single_1", "niah_prose"), f"Tasks, of {', '.join(TASKS)}."
    )
    lengths: tuple[int, ...] = setting(
        (512,), "Tokens of an excerpt, at most, BOS and answer included."
    )
    depths: tuple[float, ...] = setting(
        (0.1, 0.5, 0.9), "Shares, from 0 to 1, of a text that come before what is hidden in it."
    )
    num_excerpts: int = setting(30, "Number of excerpts of each task, length and depth.")
    text: str | None = setting(
        None,
        f"{texts.TEXT} that niah_prose hides numbers in. Default: the shipped text for judging.",
    )
    bos: BosPolicy = setting("tokenizer", f"{BOS.format('excerpt')}.")

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from at_least(self, most=MOST_DRAWN, num_excerpts=1, control_draws=0)
        yield from known("tasks", self.tasks, tuple(TASKS))
        yield from depth_problems(self.depths)
        if not set(self.tasks) <= set(LISTS):
            yield from some(self, depths=0.5)
        yield from some(self, lengths=512, tasks="niah_single_1")
        if not self.mask:
            yield Problem("mask", None, "name a mask's file, or a shipped mask")

    def plan_problems(self) -> Iterator[Problem]:
        yield from check_candidates(self.candidates, self.subject.config, ["baseline"])
        limit = self.subject.config.context
        if beyond := [length for length in self.lengths if not 1 < length <= limit]:
            text = f"give 2 or more tokens; the model's context is {limit} tokens"
            yield Problem("lengths", beyond, text)
        else:
            yield from problems_of(lambda: self.asked)
            yield from problems_of(lambda: self.calibrated_on)

    @property
    def candidates(self) -> list[Candidate]:
        """Every mask, with its controls behind it."""
        return [candidate for candidate, _ in self._controlled]

    @functools.cached_property
    def _controlled(self) -> list[tuple[Candidate, str | None]]:
        """The candidates, each control with the name of its mask."""
        config, lengths = self.subject.config, sorted(self.lengths)
        controlled: list[tuple[Candidate, str | None]] = []
        for candidate in candidates(self.mask, (), config, lengths):
            controlled.append((candidate, None))
            for number in range(self.control_draws):
                masks = {
                    length: _control(mask, seed_of_draw(self.seed, number), config.num_kv_heads)
                    for length, mask in candidate.masks.items()
                }
                which = f" {number + 1}" if self.control_draws > 1 else ""
                control = Candidate.of_masks(f"{candidate.name}, at random{which}", masks)
                controlled.append((control, candidate.name))
        return controlled

    @functools.cached_property
    def filler(self) -> TextExcerpts:
        """The text that `niah_prose` hides numbers in."""
        return texts.read_text(self.text or texts.JUDGE, _MEANS[0], self.seed)

    @functools.cached_property
    def calibrated_on(self) -> np.ndarray | None:
        """Excerpts for the means of controls' heads, int32 [W, T]; None where none needs any.

        Raises:
          InputError: for a text that is too short.
        """
        if not any(needs_means(of, mask) for of in self.candidates for mask in of.masks.values()):
            return None
        count, length = _MEANS
        length = min(length, max(self.lengths))
        return self.filler.at_length(self.subject.tokenizer, self.bos, length, count)

    @functools.cached_property
    def asked(self) -> list[Asked]:
        """All questions, by task, length and depth.

        Raises:
          InputError: for a task that no length has room for, and a token that the model does not
            know.
        """
        how = {"count": self.num_excerpts, "seed": self.seed, "filler": self.filler}
        return ask_all(self.subject, self.bos, self.tasks, self.lengths, self.depths, **how)

    def specification(self) -> dict[str, Any]:
        names = ("control_draws", "tasks", "lengths", "depths", "num_excerpts", "bos", "seed")
        return {
            "candidates": [candidate.specification() for candidate in self.candidates],
            "filler": Source(self.filler, "text").describe(),
            **values(self, *names),
        }

    def size(self) -> Size:
        masks, steps = len(self.candidates), sum(asked.steps for asked in self.asked)
        counts = [len(asked.questions.tokens) for asked in self.asked]
        kept = sum(_RECORD_BYTES + _EXCERPT_BYTES * count for count in counts)
        return Size(masks * steps, masks * len(counts), 2 * masks * kept)

    def cells(self, bench: Bench) -> Iterator[Cell]:
        written = {asked.length for asked in self.asked if asked.written}
        measure = MeasureAnswers(bench, self.calibrated_on, sorted(written), self.num_excerpts)
        for candidate, control_of in self._controlled:
            yield from measure.cells(candidate, control_of, self.asked, self.seed)

    def closing(self, folder: str, records: Sequence[Record]) -> list[str]:
        asked = {(of.task, of.length) for of in self.asked}
        lines = []
        for task in dict.fromkeys(self.tasks):
            if short := [n for n in sorted(set(self.lengths)) if (task, n) not in asked]:
                lines.append(
                    f"{task} is not asked in {', '.join(map(str, short))} tokens: no room."
                )
        for candidate, control_of in self._controlled:
            if control_of is None:
                promised = promises_of(candidate.name, records)
                lines += [f"{candidate.name}: {promise_line(of)}" for of in promised]
        return lines


def _control(mask: SinkMask, seed: int, num_kv_heads: int) -> SinkMask:
    """The random control of a mask: of whole groups where it is made of such."""
    grouped = mask.in_groups(num_kv_heads)
    return random_control(mask, seed=seed, num_kv_heads=num_kv_heads if grouped else None)
