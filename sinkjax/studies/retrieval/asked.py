"""Questions of several tasks, lengths and depths, and what is measured of their answers."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.errors import InputError, Problem
from sinkjax.instruments.answers import score_answers
from sinkjax.instruments.batches import batch_rows
from sinkjax.instruments.tasks import LISTS, Questions, ask
from sinkjax.masks.mask import SinkMask
from sinkjax.models.decoder import Llama
from sinkjax.models.digest import tokens_digest
from sinkjax.models.sharding import row_shards
from sinkjax.studies.prompts import BosPolicy, TextExcerpts, adds_bos, encode
from sinkjax.studies.series import Source, check_ids
from sinkjax.studies.store import Store
from sinkjax.studies.subject import Subject

_USES = 3  # of questions: to judge on, to choose on, to measure on


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """One set of questions.

    Attributes:
      task, length, depth: of all of them; no depth of `LISTS`.
      questions: W of them.
      filler: that `niah_prose` hides numbers in.
      bos, bos_added: the policy, and whether it puts a BOS in front.
    """

    task: str
    length: int
    depth: float | None
    questions: Questions
    filler: TextExcerpts
    bos: BosPolicy
    bos_added: bool

    @property
    def written(self) -> bool:
        """Whether the answers are written out, and searched for the words asked for."""
        return self.task in LISTS

    @property
    def steps(self) -> int:
        """Tokens of the two models; those of lists go through them twice."""
        return self.questions.tokens.size * (4 if self.written else 2)

    def fields(self, candidate: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """A record but for its result, of a described candidate and a seed of the resamples."""
        described: dict[str, Any] = {"task": self.task, "length": self.length}
        if self.depth is not None:
            described["depth"] = self.depth
        if self.task == "niah_prose":
            described["source"] = Source(self.filler, "text").describe()
        return {
            "kind": "retrieval",
            "candidate": candidate,
            **described,
            "bos": self.bos,
            "bos_added": self.bos_added,
            "seed": seed,
            "num_windows": len(self.questions.tokens),
            "tokens_sha256": tokens_digest(self.questions.tokens),
        }


def depth_problems(depths: Iterable[float]) -> Iterator[Problem]:
    """Depths that lie outside a text."""
    for depth in depths:
        if not 0 <= depth <= 1:
            yield Problem("depths", depth, "depths lie between 0 and 1, both included")


def ask_all(
    subject: Subject,
    bos: BosPolicy,
    tasks: Iterable[str],
    lengths: Iterable[int],
    depths: Iterable[float],
    *,
    count: int,
    seed: int,
    filler: TextExcerpts,
    use: int = 0,
) -> list[Asked]:
    """Questions by task, length and depth, W of each, in a subject's tokens; see `ask`.

    A task is left out at lengths that have no room for it. Each use of questions, 0 of those to
    judge on, asks for other things than the others do, whatever their seeds.

    Raises:
      InputError: for tasks that no length has room for, and a token that the subject's model does
        not know.
    """
    encoder = functools.partial(encode, subject.tokenizer, bos=bos)
    of_all = filler, bos, adds_bos(subject.tokenizer, bos)
    lengths, asked, problems = sorted(set(lengths)), [], []
    for task in dict.fromkeys(tasks):
        without = []
        for length in lengths:
            places = (None,) if task in LISTS else sorted(set(depths))
            how = {"count": count, "seed": _USES * seed + use, "text": filler.text}
            try:
                questions = {
                    depth: ask(encoder, task, length, depth=depth or 0.0, **how) for depth in places
                }
            except InputError as error:
                without.append(error.problems)
                continue
            asked += [Asked(task, length, depth, of, *of_all) for depth, of in questions.items()]
        if len(without) == len(lengths):
            problems += without[-1]
    if problems:
        raise InputError(*problems)
    for of in asked:
        check_ids(subject, of.task, of.questions.tokens)
    return asked


def kept_answers(
    model: Llama,
    questions: Questions,
    keep: Store,
    mask: SinkMask | None = None,
    fills: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """`score_answers`, some questions at a time, each measured once."""
    rows, parts = batch_rows(questions.tokens, shards=row_shards(model)), []
    how: Mapping[str, Any] = {"mask": mask, "fills": fills}
    for first in range(0, len(questions.tokens), rows):
        part = questions.part(slice(first, first + rows))
        parts.append(
            keep(
                "answers",
                part.tokens,
                lambda part=part: score_answers(model, part, rows=rows, **how),
                answer_tokens=part.answer_tokens.tolist(),
                **how,
            )
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def joined(asked: Sequence[Asked]) -> Questions:
    """All questions of one length as one set."""
    each = [of.questions for of in asked]
    return Questions(
        *(
            np.concatenate([getattr(of, name) for of in each])
            for name in ("tokens", "lengths", "answer_tokens")
        ),
        tuple(answers for of in each for answers in of.answers),
        max(of.new_tokens for of in each),
    )
