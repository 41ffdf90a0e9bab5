"""Measures what masks cost: each one's predictions beside the baseline's on the same tokens.

  sinkjax quality --flagfile=quality.flags --mask=mask.json
  sinkjax quality --mask='L0: 9f | L1-29: 9w(4,128)' --text=book.txt
  sinkjax quality --mask=mask.json --lengths=512,2048 --num_excerpts=24

Of a plan the mask for each length is measured, and its rule holds where a continuation grows from
one mask's lengths into the next one's. Texts are as in `sinkjax sweep`; without --text and
--prompts, excerpts of the text that is shipped for judging.

Measured are the KL of each token, over all positions and where the mask acts, over the last quarter
of an excerpt and over the text's next --generated tokens, read as decoding reads them; NLL and
perplexity; the agreement of the likeliest tokens; and how long greedy continuations stay the same
(--continuation_tokens). Each has an interval over excerpts, where there are eight or more. The last
lines say whether a mask keeps the budget that its file promises; whether it still finds what stands
far back in a text, `sinkjax retrieval` says.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from sinkjax.errors import Problem, problems_of
from sinkjax.instruments.judge import SCORE_FROM
from sinkjax.report.records import Record
from sinkjax.studies import texts
from sinkjax.studies.candidates import MASKS, PLANS, Candidate, candidates, check_candidates
from sinkjax.studies.costs import GENERATED
from sinkjax.studies.prompts import BOS, BosPolicy
from sinkjax.studies.quality.measure import Measure
from sinkjax.studies.quality.page import openings, sections
from sinkjax.studies.quality.promise import promise_lines
from sinkjax.studies.quality.tables import quality_tables
from sinkjax.studies.series import Series, plan_series, read_sources
from sinkjax.studies.settings import at_least, setting, some, values
from sinkjax.studies.study import Bench, Cell, Size, Study

_RECORD_BYTES, _POSITION_BYTES = 16_384, 24  # upper bounds: of a record, and of a scored position

_RETRIEVAL = "`sinkjax retrieval` hides numbers, at its depths"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Quality(Study):
    """What masks cost: each one's predictions held against the baseline's."""

    name = "quality"
    tables_of = staticmethod(quality_tables)
    openings = staticmethod(openings)
    sections = staticmethod(sections)
    title = "What masks cost {}"
    lede = "How far the predictions under each mask are from the baseline's on the same tokens."
    renamed: ClassVar[Mapping[str, str]] = {
        "num_windows": "num_excerpts",
        "passkey": _RETRIEVAL,
        "passkey_depths": _RETRIEVAL,
        "scored": "every record has the KL of the last quarter, kl_late, beside the mean of all",
    }

    mask: tuple[str | Candidate, ...] = setting((), MASKS, repeated=True)
    plan: tuple[str, ...] = setting((), PLANS, repeated=True)
    prompts: str | None = setting(None, "File of prompts: .txt, one a line, or .jsonl.")
    text: str | None = setting(
        None,
        f"{texts.TEXT}, cut into excerpts at seeded places. Default: the shipped text for judging.",
    )
    lengths: tuple[int, ...] = setting((24, 512), "Tokens of an excerpt, BOS included.")
    num_excerpts: int = setting(16, "Number of excerpts at one length, at most.")
    bos: BosPolicy = setting("tokenizer", f"{BOS.format('excerpt')}.")
    generated: int = setting(
        GENERATED, "Tokens of the text after each excerpt, read through decoding; 0 for none."
    )
    continuation_tokens: int = setting(
        32, "Tokens of each excerpt's greedy continuation; 0 for none."
    )

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from at_least(self, num_excerpts=1, continuation_tokens=0, generated=0)
        yield from some(self, lengths=512)
        if not self.mask and not self.plan:
            yield Problem("mask", None, "name a mask's file, or a plan's as plan")

    def plan_problems(self) -> Iterator[Problem]:
        config = self.subject.config
        yield from check_candidates(self.candidates, config)
        beyond = [n for n in self.lengths if n + self.continuation_tokens > config.context]
        if beyond and config.rope.type != "dynamic":
            yield self.wrong(
                "continuation_tokens",
                f"after lengths={','.join(map(str, beyond))} it goes beyond the model's context of "
                f"{config.context} tokens: ask for fewer, or leave these lengths out",
            )
        else:
            yield from problems_of(lambda: self.excerpts)

    @functools.cached_property
    def candidates(self) -> list[Candidate]:
        """What is held against the baseline, each with a mask for every length."""
        return candidates(self.mask, self.plan, self.subject.config, sorted(self.lengths))

    @functools.cached_property
    def series(self) -> list[Series]:
        """The excerpts and prompts at each length."""
        count, text = self.num_excerpts, self.text or (None if self.prompts else texts.JUDGE)
        files = [("text", text), ("prompts", self.prompts)]
        sources = read_sources(files, self.lengths, count, self.seed)
        return plan_series([self.subject], sources, bos=(self.bos,), num_prompts=count)

    @functools.cached_property
    def excerpts(self) -> list[tuple[Series, int, np.ndarray]]:
        """Excerpts of each series and length T, with the tokens after them, int32 [W, T + M]."""
        read = [(series, length) for series in self.series for length in series.tokens]
        return [(of, length, of.with_following(length, self.generated)) for of, length in read]

    def specification(self) -> dict[str, Any]:
        return {
            "candidates": [candidate.specification() for candidate in self.candidates],
            "sources": [series.describe() for series in self.series],
            **values(self, "generated", "continuation_tokens", "seed"),
        }

    def size(self) -> Size:
        new, masks = self.continuation_tokens, len(self.candidates)
        tokens = masks * sum(rows.size for *_, rows in self.excerpts)
        if new:
            tokens += masks * sum(len(rows) * (length + new) for _, length, rows in self.excerpts)
        records = masks * len(self.excerpts) * (2 if new else 1)
        return Size(tokens, records, _RECORD_BYTES * records + _POSITION_BYTES * tokens)

    def cells(self, bench: Bench) -> Iterator[Cell]:
        new, most = self.continuation_tokens, max(len(rows) for *_, rows in self.excerpts)
        measure = Measure(bench, sorted(set(self.lengths)), most, new)
        kinds = ("quality", "continuation") if new else ("quality",)
        for candidate, kind in itertools.product(self.candidates, kinds):
            for series, length, rows in self.excerpts:
                excerpts = rows[:, :length]
                if kind == "quality":
                    how = {"score_from": SCORE_FROM, "generated": rows.shape[1] - length}
                    take, steps = (measure.quality, candidate, rows, length), rows.size
                else:
                    crossing = candidate.crossing(length, new)
                    how = {"num_tokens": new} | ({"crossing": crossing} if crossing else {})
                    take = (measure.continuation, candidate, excerpts, crossing)
                    steps = excerpts.size + len(excerpts) * new
                fields = {
                    "kind": kind,
                    "candidate": candidate.describe(length),
                    **series.excerpts(length, excerpts),
                    **how,
                    "seed": self.seed,
                }
                result = functools.partial(*take, self.seed)
                yield Cell(fields, result, f"{kind} of {candidate.name}", steps=steps)

    def closing(self, folder: str, records: Sequence[Record]) -> list[str]:
        measured = [record for record in records if record["kind"] == "quality"]
        return [line for of in self.candidates for line in promise_lines(of, measured)]
