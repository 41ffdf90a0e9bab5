"""Can it be predicted whether a head is a sink, from what is known before the head is computed?

  sinkjax predict --flagfile=predict.flags
  sinkjax predict --text=book.txt --lengths=2,8,32,128 --held_out_lengths=32

A logistic model sees the layer, the head, the length, the first token, and the sink scores of all
heads of layer 0 and of the previous layer. It is fitted to some prompts at some lengths, and judged
on the others, beside each head's share of sinks, layer 0's head of the same index, the same model
with another prompt's features, and chance: AUC, Brier score, calibration, and whether acting on it
would beat a static mask, which needs no prediction.

Prompts and texts are as in sweep; without --text and --prompts, excerpts of the text that is
shipped for choosing.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from sinkjax.distributed import is_first
from sinkjax.errors import Problem, problems_of
from sinkjax.masks.definitions import DEFINITIONS
from sinkjax.models.digest import tokens_digest
from sinkjax.studies import texts
from sinkjax.studies.predict.predictor import HeldOut, held_out_prompts, predict_sinks
from sinkjax.studies.predict.tables import prediction_tables
from sinkjax.studies.prompts import BOS, BosPolicy
from sinkjax.studies.results import read_study
from sinkjax.studies.series import Series, plan_series, read_sources
from sinkjax.studies.settings import setting, values
from sinkjax.studies.shared import take_arrays
from sinkjax.studies.study import Bench, Cell, Size
from sinkjax.studies.sweep.study import ScoreStudy, count_flops

_FEWEST = 4  # prompts to fit to, for their quarters, and to judge on, for an interval
_RECORD_BYTES = 65_536  # an upper bound


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Predict(ScoreStudy):
    """How well sinks are predicted before they are measured."""

    renamed: ClassVar[Mapping[str, str]] = {"sweep_dir": "results"}

    name = "predict"
    tables_of = staticmethod(prediction_tables)
    title = "Predicting the sink heads of {}"
    lede = (
        "Whether what is known of layer 0 on a prompt predicts which heads of later layers are "
        "sinks on it, and whether that is good enough to act on."
    )

    prompts: str | None = setting(None, "File of prompts: .txt, one a line, or .jsonl.")
    text: str | None = setting(None, f"{texts.TEXT}, cut into excerpts at seeded places.")
    bos: BosPolicy = setting("tokenizer", f"{BOS.format('prompt')}.")
    held_out_lengths: tuple[int, ...] = setting(
        (16, 128), "Lengths that nothing is fitted to; they are among lengths."
    )
    held_out_share: float = setting(0.4, "Share of the prompts on which predictions are judged.")
    results: str | None = setting(
        None,
        "Folder of a sweep's records, its --output_dir, whose scores of the same excerpts are "
        "taken over.",
    )

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if not 0 < self.held_out_share < 1:
            yield self.wrong("held_out_share", "give a share between 0 and 1, both excluded")
        yield from self._results_problems
        if not self.held_out_lengths:
            yield Problem("held_out_lengths", None, "it is empty: hold out at least one length")

    @functools.cached_property
    def _results_problems(self) -> tuple[Problem, ...]:
        """What is wrong with the folder of `results`, all of whose records are read to know."""
        if self.results is None or not is_first():
            return ()
        folder = self.results
        return problems_of(lambda: read_study("results", folder, "sweep", "predict"))

    def plan_problems(self) -> Iterator[Problem]:
        if self.subject.config.num_layers < 2:
            yield Problem("model", self.subject.name, "it has one layer: none comes before it")
        for series in self.series:
            yield from self._series_problems(series)

    def _series_problems(self, series: Series) -> Iterator[Problem]:
        lengths = sorted(series.tokens)
        if unknown := sorted(set(self.held_out_lengths).difference(lengths)):
            text = f"{series.name} is measured at {','.join(map(str, lengths))}; hold out some of "
            yield Problem("held_out_lengths", unknown, f"{text}the lengths")
        if not set(self.held_out_lengths) < set(lengths):
            yield self.wrong("held_out_lengths", f"it leaves no length of {series.name} to fit to")
        counts = {length: len(series.tokens[length]) for length in lengths}
        if len(set(counts.values())) > 1:
            by_length = ", ".join(f"{count} at {length}" for length, count in counts.items())
            yield self.wrong(
                "num_prompts",
                f"{series.name} gives other numbers of prompts at other lengths ({by_length} "
                f"tokens), and the same are needed at all: give {min(counts.values())}, or leave "
                "out the longest lengths",
            )
        held_out = held_out_prompts(min(counts.values()), self._held_out)
        if min(held_out.sum(), (~held_out).sum()) < _FEWEST:
            yield self.wrong(
                "held_out_share",
                f"{series.name} has {held_out.size} prompts: {int(held_out.sum())} are held out "
                f"and {int((~held_out).sum())} fitted to; at least {_FEWEST} of each are needed",
            )

    @property
    def _held_out(self) -> HeldOut:
        return HeldOut(self.held_out_lengths, self.held_out_share, self.seed)

    @functools.cached_property
    def series(self) -> list[Series]:
        """The prompts and the excerpts, at every length."""
        count, text = self.num_prompts, self.text or (None if self.prompts else texts.CHOOSE)
        files = [("text", text), ("prompts", self.prompts)]
        sources = read_sources(files, self.lengths, count, self.seed)
        return plan_series(self.subjects, sources, bos=(self.bos,), num_prompts=count)

    def specification(self) -> dict[str, Any]:
        return {
            "sources": [series.describe() for series in self.series],
            **values(self, "definitions", "thresholds", "key_position", "tail"),
            **values(self, "held_out_lengths", "held_out_share", "seed"),
        }

    def size(self) -> Size:
        records = len(self.series) * len(self.rules)
        return Size(
            sum(series.size for series in self.series),
            records,
            _RECORD_BYTES * records,
            flops=sum(map(count_flops, self.series)),
        )

    def cells(self, bench: Bench) -> Iterator[Cell]:
        if self.results is not None:
            take_arrays(bench.results, self.results)
        for series in self.series:
            lengths = sorted(series.tokens)
            scores = functools.cache(lambda n, of=series: self.measured(bench, of.tokens[n]))
            first_tokens = {n: rows[:, 0] for n, rows in series.tokens.items()}
            fields = {
                "kind": "prediction",
                **series.origin(),
                **values(self, "key_position", "tail"),
                "lengths": lengths,
                "held_out_lengths": sorted(self.held_out_lengths),
                "held_out_share": self.held_out_share,
                "num_prompts": len(series.tokens[lengths[0]]),
                "tokens_sha256": [tokens_digest(series.tokens[length]) for length in lengths],
                "seed": self.seed,
            }

            def predict(rule: dict[str, Any], scores=scores, tokens=first_tokens) -> dict[str, Any]:
                index = DEFINITIONS.index(rule["definition"])
                by_length = {length: scores(length)[0][index] for length in tokens}
                return predict_sinks(by_length, tokens, self._held_out, **rule)

            for number, (definition, threshold) in enumerate(self.rules):
                rule = {"definition": definition, "threshold": threshold}
                yield Cell(
                    {**fields, **rule},
                    functools.partial(predict, rule),
                    f"{definition} > {threshold:g} of {series.name}",
                    steps=0 if number else series.size,
                )
