"""Sweeps attention sinks over models, prompts, lengths, BOS policies, definitions and thresholds.

  sinkjax sweep --flagfile=quickstart.flags
  sinkjax sweep --model=meta-llama/Llama-3.2-1B --lengths=2,8,24,64 --dry_run
  sinkjax sweep --text=book.txt --lengths=64,256,1024 --output_dir=results/book

Without --prompts and --text, two sources need no file and no network: about a hundred short
prompts written for the project, at lengths up to 64, and excerpts of the text that is shipped for
choosing at every length. The two prompts of the founding study, an unpublished one of Llama-3.2-1B,
are measured whole beside them (--nostudy leaves them out).
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.accounts.limits import prefill_limit
from sinkjax.distributed import to_host
from sinkjax.errors import Problem
from sinkjax.instruments.batches import batch_rows
from sinkjax.instruments.sinks import DEFAULT_TAIL, MAX_KEY_POSITIONS, measure_sinks
from sinkjax.masks.definitions import DEFINITIONS
from sinkjax.masks.mask import SinkMask
from sinkjax.models.digest import tokens_digest
from sinkjax.models.sharding import row_shards
from sinkjax.report.records import Record
from sinkjax.report.table import Table
from sinkjax.studies import texts
from sinkjax.studies.prompts import BOS, BOS_POLICIES
from sinkjax.studies.series import Series, Source, plan_series, read_sources
from sinkjax.studies.settings import at_least, known, setting, some, twice, values
from sinkjax.studies.study import MODEL, Bench, Cell, Size, Study
from sinkjax.studies.subject import Subject
from sinkjax.studies.sweep.cell import summarize_cell
from sinkjax.studies.sweep.lengths import summarize_lengths
from sinkjax.studies.sweep.page import page
from sinkjax.studies.sweep.tables import summary_tables

CHUNK_TOKENS = 2048
"""Tokens measured at once on a device: enough to keep two cores busy, seconds of work to lose."""

_SHORT_LENGTHS = 64  # the project's short prompts have at least 70 tokens
_HEAD_BYTES, _LAYER_BYTES = 100, 2500  # that a record takes for each head and each source layer


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ScoreStudy(Study):
    """A study of sink scores: what a sink is, and on which prompts."""

    lengths: tuple[int, ...] = setting(
        (2, 4, 8, 16, 24, 32, 64, 128, 256), "Tokens of a prompt, BOS included."
    )
    definitions: tuple[str, ...] = setting(
        ("mean",), f"Definitions of a head's sink score: {', '.join(DEFINITIONS)}."
    )
    thresholds: tuple[float, ...] = setting(
        (0.9,), "Shares of attention within (0, 1) above which a head is a sink."
    )
    key_position: int = setting(
        0, "Position, 0 to 7, of the key whose attention is measured; 0 is the first token."
    )
    tail: int = setting(DEFAULT_TAIL, "Number of last queries that the definition tail averages.")
    num_prompts: int = setting(100, "Number of prompts at one length, at most.")

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        shortest = self.key_position + 2
        for length in self.lengths:
            if length < shortest:
                key = f"a query comes after the key at position {self.key_position}"
                text = f"at least {shortest} tokens are needed, so that {key}"
                yield Problem("lengths", length, text)
        yield from some(self, lengths=24, definitions="mean", thresholds=0.9)
        yield from twice(self, "lengths", "definitions", "thresholds")
        yield from known("definitions", self.definitions, DEFINITIONS)
        for threshold in self.thresholds:
            if not 0 < threshold < 1:
                allowed = "give one between 0 and 1, both excluded, such as 0.9"
                yield Problem("thresholds", threshold, f"it is no share of attention: {allowed}")
        if not 0 <= self.key_position < MAX_KEY_POSITIONS:
            yield self.wrong("key_position", f"use one of 0 to {MAX_KEY_POSITIONS - 1}")
        yield from at_least(self, tail=1, num_prompts=1)

    @property
    def rules(self) -> list[tuple[str, float]]:
        """Every definition with every threshold."""
        return list(itertools.product(self.definitions, self.thresholds))

    def measured(self, bench: Bench, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 [definition, P, L, N] and output norms float32 [P, L, N].

        Prompts are measured in chunks, every definition at once; what a chunk gave is kept before
        the next one begins.

        Args:
          tokens: int32 [P, T].
        """
        rows = batch_rows(tokens, CHUNK_TOKENS, row_shards(bench.model))
        chunks = [
            self._chunk(bench, tokens[start : start + rows], rows)
            for start in range(0, len(tokens), rows)
        ]
        return (
            np.concatenate([chunk["scores"] for chunk in chunks], axis=1),
            np.concatenate([chunk["output_norm"] for chunk in chunks]),
        )

    def _chunk(self, bench: Bench, tokens: np.ndarray, rows: int) -> dict[str, np.ndarray]:
        def measure() -> dict[str, np.ndarray]:
            # Filled up to the shape of the other chunks, so that one program serves them all.
            filled = np.resize(tokens, (rows, tokens.shape[1]))
            stats = measure_sinks(
                bench.model,
                filled,
                key_positions=(self.key_position,),
                tail=self.tail,
            )
            return {
                "scores": to_host(stats.scores)[:, 0, : len(tokens)],
                "output_norm": to_host(stats.output_norm)[: len(tokens)],
            }

        how = values(self, "key_position", "tail")
        return bench.keep(f"scores of {tokens.shape[1]} tokens", tokens, measure, **how)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Sweep(ScoreStudy):
    """Which heads are sinks, at which prompt lengths."""

    name = "sweep"
    page = staticmethod(page)

    model: tuple[str | Subject, ...] = setting(
        ("smollm2-135m",), f"Models, with commas between them, each {MODEL}."
    )
    prompts: tuple[str, ...] = setting(
        (), "File of prompts: .txt, one a line, or .jsonl.", repeated=True
    )
    text: tuple[str, ...] = setting(
        (),
        f"{texts.TEXT}, cut into excerpts of each length at seeded places.",
        repeated=True,
    )
    study: bool = setting(True, "Whether the two prompts of the founding study are measured, too.")
    bos: tuple[str, ...] = setting(
        ("tokenizer",),
        f"Of {', '.join(BOS_POLICIES)}: {BOS[0].lower()}{BOS[1:].format('prompt')}.",
    )
    max_tokens: int = setting(131_072, "Most tokens at one length, so that long prompts are fewer.")
    min_share: float = setting(
        0.9, "Least share of the prompts of a length in which a consistent head is a sink."
    )

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from some(self, model="smollm2-135m", bos="never")
        yield from known("bos", self.bos, BOS_POLICIES)
        yield from twice(self, "model", "bos")
        yield from at_least(self, most=sys.maxsize, max_tokens=1)
        if not 0 < self.min_share <= 1:
            yield self.wrong("min_share", "give a share above 0, of at most 1")

    def plan_problems(self) -> Iterator[Problem]:
        for series in self.series:
            for length in series.tokens:
                if length < self.key_position + 2:
                    yield self.wrong(
                        "key_position",
                        f"the study's prompt {series.name!r} has {length} tokens; set study to "
                        "false to leave it out",
                    )

    @functools.cached_property
    def series(self) -> list[Series]:
        """Every model on every source under every BOS policy."""
        return plan_series(
            self.subjects,
            self._sources(),
            bos=self.bos,
            num_prompts=self.num_prompts,
            max_tokens=self.max_tokens,
        )

    def _sources(self) -> list[Source]:
        lengths = tuple(sorted(self.lengths))
        if self.prompts or self.text:
            files = [("prompts", path) for path in self.prompts]
            files += [("text", path) for path in self.text]
            sources = read_sources(files, lengths, self.num_prompts, self.seed)
        else:
            short = tuple(length for length in lengths if length <= _SHORT_LENGTHS)
            sources = [Source(texts.default_prompts(), "prompts", short)] if short else []
            text = texts.read_text(texts.CHOOSE, self.num_prompts, self.seed)
            sources.append(Source(text, "text", lengths))
        study = texts.study_prompts() if self.study else ()
        return [*(Source(prompts, "study") for prompts in study), *sources]

    def specification(self) -> dict[str, Any]:
        sources: dict[tuple[str, str], dict[str, Any]] = {}
        for series in self.series:
            entry = {**series.source.describe(), "lengths": sorted(series.tokens)}
            sources.setdefault((entry["name"], entry["sha256"]), entry)
        return {
            "sources": list(sources.values()),
            "lengths": sorted(self.lengths),
            **values(self, "bos", "definitions", "thresholds", "key_position", "tail"),
            **values(self, "num_prompts", "max_tokens", "min_share", "seed"),
        }

    def size(self) -> Size:
        tokens = records = size = 0
        for series in self.series:
            config = series.subject.config
            heads = config.num_layers * config.num_heads
            cells = len(self.rules) * (len(series.tokens) + (series.source.role != "study"))
            prompts = sum(len(rows) for rows in series.tokens.values())
            tokens += series.size
            records += cells
            size += cells * (_HEAD_BYTES * heads + _LAYER_BYTES * config.num_layers)
            size += prompts * heads * 4 * (len(DEFINITIONS) + 1)
        return Size(tokens, records, size, flops=sum(map(count_flops, self.series)))

    def cells(self, bench: Bench) -> Iterator[Cell]:
        for series in self.series:
            if series.subject is bench.subject:
                yield from self._cells(bench, series)

    def _cells(self, bench: Bench, series: Series) -> Iterator[Cell]:
        common = {**series.origin(), **values(self, "key_position", "tail", "seed")}
        lengths = sorted(series.tokens)
        measured = functools.cache(lambda length: self.measured(bench, series.tokens[length]))
        hashes = {length: tokens_digest(series.tokens[length]) for length in lengths}
        counts = {length: len(series.tokens[length]) for length in lengths}

        def of_length(index: int, length: int, **rule: Any) -> dict[str, Any]:
            scores, norms = measured(length)
            groups = series.subject.config.num_kv_heads
            return summarize_cell(scores[index], norms, **rule, seed=self.seed, num_kv_heads=groups)

        def of_lengths(index: int, **rule: Any) -> dict[str, Any]:
            return summarize_lengths(
                lengths,
                [measured(length)[0][index] for length in lengths],
                # With as many prompts two lengths have the same ones, cut elsewhere.
                list(counts.values()),
                **rule,
                seed=self.seed,
                min_share=self.min_share,
            )

        for number, (definition, threshold) in enumerate(self.rules):
            index = DEFINITIONS.index(definition)
            rule = {"definition": definition, "threshold": threshold}
            for length in lengths:
                what = {
                    "length": length,
                    "num_prompts": counts[length],
                    "tokens_sha256": hashes[length],
                }
                yield Cell(
                    {"kind": "cell", **common, **what, **rule},
                    functools.partial(of_length, index, length, **rule),
                    f"{length} tokens of {series.name}",
                    steps=0 if number else series.tokens[length].size,
                    together=(bench.described["model_digest"], hashes[length]),
                )
            if series.source.role != "study":
                what = {
                    "lengths": lengths,
                    "num_prompts": list(counts.values()),
                    "tokens_sha256": list(hashes.values()),
                    "min_share": self.min_share,
                }
                yield Cell(
                    {"kind": "lengths", **common, **what, **rule},
                    functools.partial(of_lengths, index, **rule),
                    f"all lengths of {series.name}",
                    joins=True,
                )

    @classmethod
    def tables(cls, specification: Mapping[str, Any], records: Sequence[Record]) -> list[Table]:
        """What a terminal has room for: the study's prompts, and the first rule of a sink."""
        first = {
            "definition": specification["definitions"][0],
            "threshold": specification["thresholds"][0],
        }
        return summary_tables(
            specification,
            [r for r in records if r["source"]["role"] == "study" or first.items() <= r.items()],
        )

    def closing(self, folder: str, records: Sequence[Record]) -> list[str]:
        if len(self.rules) == 1:
            return []
        return [f"Shown is the first of {len(self.rules)} rules of a sink; the report has all."]

    def planned(self) -> Table:
        rows = [
            (
                series.subject.name,
                series.name,
                series.bos,
                str(length),
                str(len(tokens)),
                definition,
                f"{threshold:g}",
            )
            for series in self.series
            for length, tokens in series.tokens.items()
            for definition, threshold in self.rules
        ]
        return Table(
            title=f"{len(rows)} cells, nothing run",
            columns=("model", "prompts", "BOS", "tokens", "prompts", "definition", "threshold"),
            rows=rows,
        )


def count_flops(series: Series) -> float:
    """Returns the FLOPs of measuring a series, by formula: those of its prompts' prefill."""
    config = series.subject.config
    return sum(
        prefill_limit(config, SinkMask.full(config), len(rows), length, itemsize=4).flops
        for length, rows in series.tokens.items()
    )
