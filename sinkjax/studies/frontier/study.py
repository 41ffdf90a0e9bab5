"""Compares ways to choose heads: the KL of masks of growing size beside what they save.

  sinkjax frontier --flagfile=frontier.flags --choose_text=a.txt --judge_text=b.txt
  sinkjax frontier --searches=results/search --copies=results/copies

Heads are ranked on excerpts of one text, and every mask is judged on excerpts of another. --paths
names the paths that heads are ranked for, by length: `24:sink(mean);512:sink(mean),window(4,128)`.
Methods that rank heads for one path:

  sink score    the highest `mean` scores first
  own error     the least own error under the path first
  sensitivity   the least predicted KL a head first, beside those before it
  random        the heads of `own error`, drawn anew within each layer: the control, of which there
                are --control_draws

--searches adds the masks that `sinkjax search` went through, --gates those that `sinkjax gates`
chose, --copies what `sinkjax copies` measured, all at the same lengths; records of copies are taken
over as they are, with the excerpts that they were made on.

Savings are those on one chip. With --chips=4 they are those on the fullest of four that divide the
key/value heads, and ranked heads, as many on each chip, are masked at once; masks that are added
save there what is left of them once they are balanced. Copies are on one chip alone.

What a mask saves is read from its own compiled programs, prefill and a decode step: ten seconds a
mask of smollm2-135m. --saved=formula takes the formulas instead, to which tests hold programs;
on a CPU, beyond 1,024 tokens, programs work on up to a tenth less of a `full` head than they say.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from sinkjax.accounts.formulas import Cost
from sinkjax.accounts.savings import Needs, Workload, read_needs, saved_shares
from sinkjax.errors import InputError, Problem, problems_of
from sinkjax.instruments.sensitivity import Prediction
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Path, Sink, Window, parse_paths
from sinkjax.report.records import Record, by_length
from sinkjax.report.table import Table
from sinkjax.studies import settings
from sinkjax.studies.costs import LAST, PARTS
from sinkjax.studies.fields import Fields, understood
from sinkjax.studies.frontier.page import (
    COPIES,
    GATES,
    METHODS,
    RANDOM,
    SEARCHED,
    frontier_table,
    sections,
)
from sinkjax.studies.held_out import HeldOutStudy, mask_result
from sinkjax.studies.results import read_study
from sinkjax.studies.search.budget import make_moves, rank_moves
from sinkjax.studies.search.kept import KeptCosts, KeptJudge, kept_means, sink_scores
from sinkjax.studies.series import describe_texts
from sinkjax.studies.settings import MOST_DRAWN, at_least, seed_of_draw, setting, values
from sinkjax.studies.study import Bench, Cell, Size
from sinkjax.studies.units import ChipsStudy

_RECORD_BYTES = 8192  # an upper bound


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of the frontier.

    Attributes:
      method, path: how it was chosen; the path of its heads, or "any".
      draw: its number, from 1, of a random control.
    """

    method: str
    path: str
    mask: SinkMask
    draw: int | None = None


def parse_paths_by_length(text: str) -> tuple[tuple[int, tuple[Path, ...]], ...]:
    """Reads `24:sink(mean);512:sink(mean),window(4,128)`.

    Raises:
      InputError: for a part without a length, or with one that is there before; what is no path.
    """
    by_length = []
    for part in text.split(";"):
        length, _, paths = part.partition(":")
        if not length.isdecimal():
            raise InputError(f"{part!r} begins with no length; write 512:window(4,128)")
        if int(length) in dict(by_length):
            raise InputError(f"length {int(length)} is there twice; write its paths together")
        by_length.append((int(length), parse_paths(paths)))
    return tuple(by_length)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Frontier(ChipsStudy, HeldOutStudy):
    """What masks of growing size cost and save, by how their heads were chosen."""

    name = "frontier"
    sections = staticmethod(sections)
    title = "What masks of {} cost, by how they were chosen"
    lede = (
        "How far predictions move from the baseline's as more heads are masked, for several ways "
        "to choose the heads."
    )

    lengths: tuple[int, ...] = setting((24, 512), "Tokens of an excerpt, BOS included.")
    choose_excerpts: int = setting(64, "Number of excerpts to rank on, at most.")
    judge_excerpts: int = setting(64, "Number of excerpts to judge on, at most.")
    max_tokens: int = setting(
        2048, "Tokens at one length on either text; fewer excerpts where they are long."
    )
    paths: tuple[tuple[int, tuple[Path, ...]], ...] = setting(
        ((24, (Sink("mean"),)), (512, (Sink("mean"), Window(4, 128)))),
        "Paths to rank heads for, by length: 24:sink(mean);512:sink(mean),window(4,128).",
        parse=parse_paths_by_length,
    )
    shares: tuple[float, ...] = setting(
        (0.1, 0.3, 0.5, 0.7, 0.9), "Shares of all heads that are masked."
    )
    samples: int = setting(
        2,
        "Draws of next tokens for each excerpt, for ranking by sensitivity; more are less noisy.",
    )
    generated: int = setting(64, "Tokens after each prompt, for which the cache has room.")
    control_draws: int = setting(5, "Draws of the random control of each size.")
    saved: Literal["compiled", "formula"] = setting(
        "compiled", "How savings are known: read from each mask's compiled programs, or by formula."
    )
    searches: tuple[str, ...] = setting(
        (), "Output folders of `sinkjax search`, with commas between them, whose masks are added."
    )
    gates: tuple[str, ...] = setting(
        (), "Output folders of `sinkjax gates`, with commas between them, whose masks are added."
    )
    copies: str | None = setting(
        None, "Output folder of `sinkjax copies`, whose records are added."
    )

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from settings.shares("shares", self.shares, whole=True)
        yield from at_least(self, samples=1, generated=1)
        yield from at_least(self, most=MOST_DRAWN, control_draws=1)
        if self.chips > 1 and self.copies is not None:
            text = "its masks have copies, which are not balanced over chips: leave out one of them"
            yield self.wrong("copies", text)
        if missing := [length for length in self.lengths if not self.paths_at.get(length)]:
            lengths = ",".join(map(str, missing))
            yield Problem("paths", None, f"it has none for lengths={lengths}: name some")

    def plan_problems(self) -> Iterator[Problem]:
        yield from super().plan_problems()
        config = self.subject.config
        longest = config.context - self.generated
        for length in self.lengths:
            if self.saved == "compiled" and length > longest:
                room = f"room for {self.generated} tokens more, and so for prompts of at most"
                text = f"a program has {room} {longest}; give less, or saved=formula"
                yield Problem("lengths", length, text)
        for length in sorted(set(self.added) - set(self.lengths)):
            text = f"masks of searches and gates are for {length} tokens, too: add that length"
            yield self.wrong("lengths", text)
        for points in self.added.values():
            for point in points:
                yield from problems_of(functools.partial(point.mask.check, config))

    @property
    def paths_at(self) -> dict[int, tuple[Path, ...]]:
        """Paths to rank heads for, by length."""
        return dict(self.paths)

    @functools.cached_property
    def added(self) -> dict[int, list[Point]]:
        """Masks that searches went through and gates chose, by length."""
        added: dict[int, list[Point]] = {}

        def add(length: int, method: str, path: str, text: str) -> None:
            added.setdefault(length, []).append(Point(method, path, SinkMask.from_text(text)))

        searches = _ended("searches", self.searches, "search")
        gates = _ended("gates", self.gates, "gates")
        with understood([*searches, *gates]):
            for record in searches:
                result = record["result"]
                for text in [*(step["mask"] for step in result["rounds"]), result["mask"]]:
                    add(record["length"], SEARCHED, "any", text)
            for record in gates:
                if record["method"] == "gates":
                    add(record["length"], GATES, record["path"], record["result"]["mask"])
        return added

    @functools.cached_property
    def _copied(self) -> list[Record]:
        """All records of copies."""
        return [] if self.copies is None else read_study("copies", self.copies, "copies")

    def _copied_at(self, length: int) -> list[Record]:
        """Records of copies at one length that have a place on the frontier."""
        return [
            record
            for record in self._copied
            if record["kind"] == "copies"
            and record["variant"] in COPIES
            and record["length"] == length
        ]

    def specification(self) -> dict[str, Any]:
        return {
            "sources": [
                {**series.source.describe(), "lengths": sorted(series.tokens)}
                for series in (self.chosen_on, self.judged_on)
            ],
            "paths": {str(n): list(map(str, self.paths_at[n])) for n in sorted(self.lengths)},
            **values(self, "shares", "samples", "generated", "control_draws"),
            "saved_as": self.saved,
            **self.over_chips(),
            "seed": self.seed,
            "found": {
                str(length): [[point.method, point.mask.digest] for point in points]
                for length, points in self.added.items()
            },
            "copies": [record["id"] for record in self._copied],
        }

    def size(self) -> Size:
        methods = len(METHODS) - 1 + self.control_draws
        ranked = sum(len(self.paths_at[n]) for n in self.lengths) * len(self.shares) * methods
        added = sum(len(self.added.get(n, ())) + len(self._copied_at(n)) for n in self.lengths)
        masks = ranked + added
        return Size(masks, masks, _RECORD_BYTES * masks, unit="masks")

    def cells(self, bench: Bench) -> Iterator[Cell]:
        for length in sorted(self.lengths):
            yield from self._cells_at(length, bench)

    def _cells_at(self, length: int, bench: Bench) -> Iterator[Cell]:
        excerpts = self.chosen_on.tokens[length]
        common = {
            **describe_texts(self.chosen_on, self.judged_on, length),
            **values(self, "samples", "generated"),
            "saved_as": self.saved,
            **self.over_chips(),
            "seed": self.seed,
        }
        saved = self._savings(length, bench)
        fills = kept_means(bench.model, excerpts, bench.keep)
        judge_rows = self.judged_rows(length, self.generated)
        judge = KeptJudge(bench.model, judge_rows, fills, bench.keep)

        def measured(mask: SinkMask) -> dict[str, Any]:
            windows = bench.model.config.layer_windows
            result = mask_result(mask, judge(mask), length, windows)
            return {**result, "saved": saved(mask)}

        def taken_over(result: Record, mask: SinkMask) -> dict[str, Any]:
            names = ("mask", "heads", "kl", *PARTS, LAST)
            kept = {name: result[name] for name in names if name in result}
            return {**kept, "saved": saved(mask)}

        for point in self._points(bench, excerpts, fills, length):
            fields = {
                "kind": "frontier",
                **common,
                "method": point.method,
                "path": point.path,
                "mask_digest": point.mask.digest,
                **({} if point.draw is None else {"draw": point.draw}),
            }
            measure = functools.partial(measured, point.mask)
            yield Cell(fields, measure, f"{point.method}, {point.path}", steps=1)
        kept = ("model", "chosen_on", "source", "bos", "bos_added", "length", "seed")
        for record in self._copied_at(length):
            mask = SinkMask.from_text(record["result"]["mask"])
            fields = {
                "kind": "frontier",
                **{name: record[name] for name in kept},
                "generated": self.generated,
                "saved_as": self.saved,
                "method": COPIES[record["variant"]],
                "path": "copy",
                "mask_digest": mask.digest,
                "record": record["id"],
            }
            take = functools.partial(taken_over, record["result"], mask)
            yield Cell(fields, take, fields["method"], steps=1)

    def _points(
        self, bench: Bench, excerpts: np.ndarray, fills: np.ndarray, length: int
    ) -> Iterator[Point]:
        """Every mask of one length, by method."""
        paths, full = self.paths_at[length], SinkMask.full(bench.model.config)
        for point in dict.fromkeys(self.added.get(length, ())):
            if point.mask != full:
                yield point
        scores = sink_scores(bench.model, excerpts, bench.keep)
        by_scores = self.together(-scores)
        kept = KeptCosts(bench.model, excerpts, paths, fills, bench.keep)
        errors, costs = kept.errors(), kept.sensitivity(self.samples, self.seed)
        for index, path in enumerate(paths):
            of_path = [0, 1 + index]
            own = Prediction(full, costs.linear[of_path], costs.products[:, of_path])
            units = self.together(errors[index])
            moves = rank_moves(full, [path], units.predicted(own), np.ones(1), size=units.size)
            for share in self.shares:
                count = round(share * scores.size / units.size)
                least = units.by_ranking(-errors[index], [path] * count)
                moved = make_moves(full, moves[:count], size=units.size)
                of_scores = by_scores.by_ranking(scores, [path] * count)
                masks = of_scores, least, units.restored(moved)
                for method, mask in zip(METHODS, masks, strict=False):
                    yield Point(method, str(path), mask)
                for draw in range(self.control_draws):
                    drawn = units.random_control(least, seed_of_draw(self.seed, draw))
                    yield Point(RANDOM, str(path), drawn, draw + 1)

    def _savings(self, length: int, bench: Bench) -> Callable[[SinkMask], dict[str, float]]:
        """What masks save at one length; each mask's programs are compiled and read once."""
        config, dtype = bench.model.config, bench.model.embedding.dtype
        workload = Workload(length, generated=self.generated, itemsize=dtype.itemsize)

        @functools.cache
        def needs(mask: SinkMask) -> Needs:
            if self.saved == "formula":
                return workload.needs(config, mask)

            def read() -> dict[str, np.ndarray]:
                needs = dataclasses.asdict(read_needs(config, mask, workload, dtype))
                return {part: np.array(list(cost.values())) for part, cost in needs.items()}

            work = dataclasses.asdict(workload)
            costs = bench.keep("programs", None, read, mask=mask, workload=work)
            return Needs(*(Cost(*map(int, costs[part])) for part in ("prefill", "decode")))

        full = SinkMask.full(config)
        return lambda mask: saved_shares(needs(self.on_fullest(mask)), needs(full))

    @classmethod
    def tables(cls, specification: Mapping[str, Any], records: Sequence[Record]) -> list[Table]:
        return list(map(frontier_table, by_length(records).values()))


def _ended(field: str, folders: Sequence[str], kind: str) -> list[Fields]:
    """The records of a study's kind in folders of its runs that have come so far."""
    ended = []
    for folder in folders:
        records = [record for record in read_study(field, folder, kind) if record["kind"] == kind]
        if not records:
            raise InputError(Problem(field, folder, "it has not ended; let it, first"))
        ended += records
    return ended
