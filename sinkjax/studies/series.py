"""Prompts and excerpts of one model, cut to every length: what a study measures on.

A series is one model on one source of prompts under one BOS policy, at every length.
"""

import dataclasses
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from sinkjax.errors import InputError, Problem, each
from sinkjax.models.digest import tokens_digest
from sinkjax.studies.prompts import BOS_POLICIES, PromptList, PromptSet, TextExcerpts, adds_bos
from sinkjax.studies.settings import known
from sinkjax.studies.subject import Subject
from sinkjax.studies.texts import read_prompts, read_text


@dataclasses.dataclass(frozen=True)
class Source:
    """Prompts, and the lengths at which they are used.

    Attributes:
      prompts: cut to each length.
      role: `study` prompts are used whole and without BOS, whatever the settings say.
      lengths: tokens, BOS included; of `study` prompts none.
    """

    prompts: PromptSet
    role: Literal["prompts", "text", "study"]
    lengths: tuple[int, ...] = ()

    def describe(self) -> dict[str, Any]:
        """The "source" of a record."""
        return {"name": self.prompts.name, "sha256": self.prompts.sha256, "role": self.role}


@dataclasses.dataclass(frozen=True)
class Series:
    """One model on one source of prompts under one BOS policy.

    Attributes:
      subject, source: whose and what prompts.
      bos: the policy. bos_added: whether it puts a BOS in front.
      tokens: by length T, int32 [P, T].
      read: by length, the number of the source's first excerpts that are read in all, where there
        are others beside these.
    """

    subject: Subject
    source: Source
    bos: str
    bos_added: bool
    tokens: Mapping[int, np.ndarray]
    read: Mapping[int, int] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The source's name."""
        return self.source.prompts.name

    @property
    def size(self) -> int:
        """Tokens of all lengths."""
        return sum(rows.size for rows in self.tokens.values())

    def describe(self) -> dict[str, Any]:
        """The series in a specification."""
        return {**self.source.describe(), "bos": self.bos, "lengths": sorted(self.tokens)}

    def origin(self) -> dict[str, Any]:
        """What records say of where their prompts are from."""
        source = self.source.describe()
        return {"source": source, "bos": self.bos, "bos_added": self.bos_added}

    def with_following(self, length: int, num_tokens: int) -> np.ndarray:
        """The excerpts of one length, each with the text's next tokens, as many as asked for.

        Returns:
          int32 [P, T + M]; with M = 0 where there are no such tokens for every excerpt: prompts end
          where they end, a text has no room for so many long excerpts, with all others that are
          read, or the model's context ends.
        """
        rows, prompts, total = self.tokens[length], self.source.prompts, length + num_tokens
        config, tokenizer = self.subject.config, self.subject.tokenizer
        beyond = total > config.context and config.rope.type != "dynamic"
        if beyond or not isinstance(prompts, TextExcerpts):
            return rows
        if prompts.fits(tokenizer, total) < self.read.get(length, len(rows)):
            return rows
        return prompts.at_length(tokenizer, self.bos, total, len(rows))

    def excerpts(self, length: int, tokens: np.ndarray) -> dict[str, Any]:
        """What records say of excerpts int32 [W, T] of one length."""
        return {
            **self.origin(),
            "length": length,
            "num_windows": len(tokens),
            "tokens_sha256": tokens_digest(tokens),
        }


def plan_series(
    subjects: Sequence[Subject],
    sources: Sequence[Source],
    *,
    bos: Sequence[str] = ("tokenizer",),
    num_prompts: int,
    max_tokens: int = sys.maxsize,
) -> list[Series]:
    """Every model on every source under every BOS policy, tokenized and cut.

    Args:
      bos: policies of `sinkjax.studies.prompts.encode`.
      num_prompts: the most prompts at one length.
      max_tokens: the most tokens at one length; one prompt is there in any case.

    Raises:
      InputError: listing all that is wrong: an unknown policy, a length below 2 or beyond a model's
        context, a prompt with fewer tokens than a length needs, no BOS to add.
    """
    series, problems = [], list(known("bos", bos, BOS_POLICIES))
    for subject, source in itertools.product(subjects, sources):
        limit = subject.config.context
        wrong = [length for length in source.lengths if not 1 < length <= limit]
        if wrong:
            text = f"give 2 or more tokens; the context of model={subject.name} is {limit} tokens"
            problems.append(Problem("lengths", wrong, text))
        elif not problems:
            for policy in ("never",) if source.role == "study" else bos:
                try:
                    series.append(_series(subject, source, policy, num_prompts, max_tokens))
                except InputError as error:
                    problems += error.problems
    if problems:
        raise InputError(*dict.fromkeys(problems))
    return series


def read_sources(
    named: Sequence[tuple[Literal["prompts", "text"], str | None]],
    lengths: Sequence[int],
    count: int,
    seed: int,
) -> list[Source]:
    """Files of prompts and texts, each with its role and cut to these lengths; None is none.

    Args:
      count, seed: of the excerpts of a text.
    """

    def read(file: tuple[Literal["prompts", "text"], str]) -> Source:
        role, path = file
        prompts = read_prompts(path) if role == "prompts" else read_text(path, count, seed)
        return Source(prompts, role, tuple(sorted(lengths)))

    return each((file for file in named if file[1]), read)


def describe_texts(chosen_on: Series, judged_on: Series, length: int) -> dict[str, Any]:
    """What records at one length say of the text chosen on and of the text judged on."""

    def describe(series: Series) -> dict[str, Any]:
        tokens = series.tokens[length]
        counted = {"num_windows": len(tokens), "tokens_sha256": tokens_digest(tokens)}
        return {**series.source.describe(), **counted}

    of_judged = {**judged_on.origin(), "source": describe(judged_on)}
    return {"chosen_on": describe(chosen_on), **of_judged, "length": length}


def _series(
    subject: Subject, source: Source, bos: str, num_prompts: int, max_tokens: int
) -> Series:
    prompts, tokenizer = source.prompts, subject.tokenizer
    if source.role == "study":
        (row,) = prompts.whole(tokenizer, bos)
        check_ids(subject, prompts.name, row)
        return Series(subject, source, bos, False, {len(row): row[None]})
    counts = {}
    for length in source.lengths:
        most = max(1, min(num_prompts, max_tokens // length))
        if isinstance(prompts, PromptList):
            most = min(most, len(prompts.texts))
        else:
            most = min(most, max(1, prompts.fits(tokenizer, length)))
        counts[length] = most
    prompts.check(tokenizer, bos, counts)
    tokens = {
        length: prompts.at_length(tokenizer, bos, length, count) for length, count in counts.items()
    }
    for rows in tokens.values():
        check_ids(subject, prompts.name, rows)
    return Series(subject, source, bos, adds_bos(tokenizer, bos), tokens)


def check_ids(subject: Subject, name: str, tokens: np.ndarray) -> None:
    """Checks that a model knows the tokens that its tokenizer makes of what has this name.

    Raises:
      InputError: for an id beyond the vocabulary.
    """
    size = subject.config.vocab_size
    if tokens.max(initial=0) >= size:
        raise InputError(
            Problem(
                "model",
                subject.name,
                f"its tokenizer makes token {tokens.max()} of {name}, and its "
                f"vocabulary has ids 0 to {size - 1}: give it the tokenizer that it was made with",
            )
        )
