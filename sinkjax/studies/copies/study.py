"""Can heads copy the attention of earlier heads, and which, and what does it cost?

  sinkjax copies --choose_text=one.txt --judge_text=other.txt
  sinkjax copies --flagfile=copies.flags

For each head, the earlier head is found whose pattern serves it best: on --choose_text, by the
distance of patterns and by the error of the head's own output. Then the heads with the best sources
copy them, and the KL to the baseline is measured on --judge_text, beside copying layer 0's head of
the same index (the idea of the study that this project set out from), with the heads that bear it
best and with those of the highest sink scores, the layer before, heads and sources drawn at random
(--control_draws of each), and `sink` heads that have no pattern at all. Sources are any earlier
heads, whatever chip of a mesh they would be on. Memory holds the patterns of all heads on one
excerpt: lengths up to about 512.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from sinkjax.errors import Problem
from sinkjax.instruments.batches import batch_rows
from sinkjax.instruments.judge import Judge
from sinkjax.instruments.patterns import PATTERN_TOKENS
from sinkjax.masks.choose import by_ranking, random_control
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Sink
from sinkjax.models.sharding import row_shards
from sinkjax.studies import settings
from sinkjax.studies.copies.fit import CRITERIA, SourceFit, fit_sources
from sinkjax.studies.copies.masks import VARIANTS, allowed_sources, copy_mask, shuffled_copies
from sinkjax.studies.copies.tables import copying_tables
from sinkjax.studies.costs import GENERATED
from sinkjax.studies.held_out import HeldOutStudy, mask_result
from sinkjax.studies.search.kept import KeptCosts, sink_scores
from sinkjax.studies.series import describe_texts
from sinkjax.studies.settings import MOST_DRAWN, at_least, seed_of_draw, setting, values
from sinkjax.studies.study import Bench, Cell, Size

CHOSEN = (*VARIANTS, "sinks", "sink")
"""`sinks`: the heads of the highest sink scores copy layer 0's head of their own index, as the
founding study would have them. `sink`: those of the least own error under `sink(first)` are on it:
what needs no pattern at all."""

DRAWN = ("shuffled", "random")
"""Controls: the heads of `output` copying earlier heads drawn at random; as many heads of each
layer as in `sinks`, drawn at random, copying layer 0's of their own index."""

_RECORD_BYTES = 32_768  # an upper bound


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Copies(HeldOutStudy):
    """What copying earlier heads' attention costs."""

    name = "copies"
    tables_of = staticmethod(copying_tables)
    title = "What copying attention patterns costs {}"
    lede = (
        "How far predictions move from the baseline's where heads take the pattern of an earlier "
        "head, for several ways to choose that head."
    )

    lengths: tuple[int, ...] = setting((24, 256), "Tokens of an excerpt, BOS included.")
    max_tokens: int = setting(
        2048, "Tokens at one length on either text; fewer excerpts where they are long."
    )
    shares: tuple[float, ...] = setting((0.05, 0.1, 0.2), "Shares of all heads that copy.")
    generated: int = setting(
        GENERATED, "Tokens of the text after each excerpt, under the same mask; 0 for none."
    )
    control_draws: int = setting(5, "Draws of each random control.")

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from settings.shares("shares", self.shares)
        yield from at_least(self, generated=0)
        yield from at_least(self, most=MOST_DRAWN, control_draws=1)

    def plan_problems(self) -> Iterator[Problem]:
        yield from super().plan_problems()
        if self.subject.config.num_layers < 2:
            text = "it has one layer: there is none to copy from"
            yield Problem("model", self.subject.name, text)

    def specification(self) -> dict[str, Any]:
        return {
            "chosen_on": self.chosen_on.describe(),
            "judged_on": self.judged_on.describe(),
            **values(self, "shares", "generated", "control_draws", "seed"),
        }

    def size(self) -> Size:
        masks = len(self.shares) * (len(CHOSEN) + self.control_draws * len(DRAWN))
        records = len(self.lengths) * (1 + masks)
        tokens = self.chosen_on.size + masks * self.judged_on.size
        return Size(tokens, records, _RECORD_BYTES * records)

    def cells(self, bench: Bench) -> Iterator[Cell]:
        for length in sorted(self.lengths):
            common = {
                **describe_texts(self.chosen_on, self.judged_on, length),
                **values(self, "generated", "seed"),
            }
            excerpts = self.chosen_on.tokens[length]
            judge_rows = self.judged_rows(length, self.generated)
            fit = _fitted(bench, excerpts)
            summarize = functools.partial(summarize_sources, fit)
            yield Cell({"kind": "sources", **common}, summarize, "sources")
            rows = batch_rows(judge_rows, PATTERN_TOKENS, row_shards(bench.model))
            judge = Judge(bench.model, judge_rows, rows=rows)

            def result(
                variant: str, share: float, draw: int, fit=fit, excerpts=excerpts, judge=judge
            ) -> dict[str, Any]:
                seed = seed_of_draw(self.seed, draw)
                mask = _mask(variant, share, fit, bench, excerpts, seed)
                windows = bench.model.config.layer_windows
                return mask_result(mask, judge(mask), excerpts.shape[1], windows)

            draws = itertools.product(DRAWN, range(self.control_draws))
            variants = [*((variant, None) for variant in CHOSEN), *draws]
            for (variant, draw), share in itertools.product(variants, sorted(self.shares)):
                drawn = {} if draw is None else {"draw": draw + 1}
                yield Cell(
                    {"kind": "copies", **common, "variant": variant, "share": share, **drawn},
                    functools.partial(result, variant, share, draw or 0),
                    f"{variant} {share:g}",
                    steps=judge_rows.size,
                )


def summarize_sources(fit: SourceFit) -> dict[str, Any]:
    """What there is to copy, over all heads after layer 0.

    Returns:
      the "result" of a record of kind "sources": by `layer_0`, `adjacent` and `any`, the median
      over heads of the own error under the best copy relative to that under `nothing`, in place of
      the head (`output`, and `worse`, the share of heads for which nothing is better); of `any`,
      the median number of layers between a head and its best source (`distance`); and `best`
      [L][N], each head's best source as [layer, head] or None.
    """
    layers, heads = fit.nothing.shape
    by_sources: dict[str, Any] = {}
    for name in ("layer_0", "adjacent", "any"):
        sources = allowed_sources(name, layers, heads)
        least = np.where(sources, fit.output, np.inf).min(axis=(2, 3))[1:]
        relative = least / fit.nothing[1:]
        by_sources[name] = {
            "output": float(np.median(relative)),
            "worse": float((relative > 1).mean()),
        }
    best = fit.output.reshape(layers, heads, -1).argmin(axis=-1)
    distance = np.arange(layers)[1:, None] - best[1:] // heads
    by_sources["any"]["distance"] = float(np.median(distance))
    sources = np.stack(np.divmod(best[1:], heads), axis=-1).tolist()
    return {**by_sources, "best": [[None] * heads, *sources]}


def _fitted(bench: Bench, excerpts: np.ndarray) -> SourceFit:
    """Returns `fit_sources` of the model on these excerpts, [W, T]."""

    def measure() -> dict[str, np.ndarray]:
        report = functools.partial(bench.keep.report, "copy sources")
        fit = fit_sources(bench.model, excerpts, report)
        return {field.name: getattr(fit, field.name) for field in dataclasses.fields(fit)}

    return SourceFit(**bench.keep("copy sources", excerpts, measure, criteria=list(CRITERIA)))


def _mask(
    variant: str, share: float, fit: SourceFit, bench: Bench, excerpts: np.ndarray, seed: int
) -> SinkMask:
    count = max(1, round(share * fit.nothing.size))
    if variant == "sink":
        costs = KeptCosts(bench.model, excerpts, [Sink("first")], None, bench.keep)
        return by_ranking(-costs.errors()[0], [Sink("first")] * count)
    if variant in ("sinks", "random"):
        scores = sink_scores(bench.model, excerpts, bench.keep).copy()
        scores[0] = -1  # below any: layer 0 is what they copy
        heads = by_ranking(scores, [Sink("first")] * count)
        if variant == "random":
            heads = random_control(heads, seed=seed)
        return SinkMask.copy_first_layer(heads.masked)
    if variant == "shuffled":
        return shuffled_copies(copy_mask(fit.output, "output", count), seed=seed)
    return copy_mask(fit.pattern if variant == "pattern" else fit.output, variant, count)
