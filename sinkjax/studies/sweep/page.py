"""The page of a sweep: figures and tables in the order in which to read them."""

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from sinkjax.report import formats
from sinkjax.report.appendix import what_was_run
from sinkjax.report.page import Block, Card, Folded, Page, Prose, Section, explanations
from sinkjax.report.records import Record
from sinkjax.studies.resampling import RESAMPLES
from sinkjax.studies.sweep import curves, heads, layers, per_head, tables, uniform
from sinkjax.studies.sweep.conditional import SHUFFLES
from sinkjax.studies.sweep.findings import opening
from sinkjax.studies.sweep.records import Curve, Group, Sweep, arrange

_SIDE_BY_SIDE = 3  # sources that one figure holds


def page(specification: Mapping[str, Any], records: Sequence[Record]) -> Page:
    """The page of a sweep."""
    sweep = arrange(specification, records)
    names = dict.fromkeys(group.model_name for group in sweep.groups)
    shown = list(names) or [model["name"] for model in specification["models"]]
    study, explain = tables.study_tables(sweep), explanations(__package__)
    definitions = explain.definitions(specification["key_position"], specification["tail"])
    return Page(
        study="sweep",
        title=f"Attention sinks of {', '.join(shown)}",
        lede="Which attention heads give nearly all their attention to "
        f"{formats.key(specification['key_position'])}, at which prompt lengths, and whether one "
        "layer tells which heads of later layers do. "
        f"From {formats.count(sweep.num_records)} records.",
        openings=[card for group in sweep.groups for card in _cards(group)],
        sections=[
            *(
                [Section("The founding study's two prompts", [Prose(explain.study()), *study])]
                if study
                else []
            ),
            *(_chapter(sweep, group) for group in sweep.groups),
            Section("Definitions of the sink score", [Prose(definitions)]),
            what_was_run(specification, records),
        ],
    )


def _cards(group: Group) -> list[Card]:
    """The first sentences to read, of each source."""
    return [
        Card(curve.source_name, opening(curve), f"{group.name}; sinks: {curve.criterion}")
        for curve in group.under(*group.criteria[0])
    ]


def _chapter(sweep: Sweep, group: Group) -> Section:
    """One model under one BOS policy."""
    explain = explanations(__package__)
    criterion = formats.criterion(*group.criteria[0])
    first = explain.order(criterion=criterion, folded=len(group.criteria) > 1)
    share = explain.share(
        the_key=formats.key(sweep.specification["key_position"]),
        level=sweep.level,
        resamples=formats.count(RESAMPLES),
    )
    layer_0 = explain.layer_0(shuffles=formats.count(SHUFFLES), level=sweep.level)
    deep = group.model["num_layers"] > 1
    parts: list[tuple[str, str, list[Block]]] = [
        (
            "How many heads are sinks",
            share,
            [
                *(curves.share_figure(group, some) for some in _batches(group.curves)),
                *_by_criterion(
                    group,
                    lambda shown: [tables.sinks_table(c, group, sweep.level) for c in shown],
                ),
            ],
        ),
        (
            "A fixed threshold gets stricter as prompts grow",
            explain.threshold(),
            _definitions(sweep, group),
        ),
        (
            "What layer 0 tells of later layers",
            layer_0,
            _by_criterion(
                group,
                lambda shown: [
                    *(curves.conditional_figure(group, some) for some in _batches(shown)),
                    *(tables.conditional_table(c, group, sweep.level) for c in shown),
                ],
            ),
        ),
        (
            "What other layers tell",
            explain.sources(),
            _by_criterion(group, lambda shown: _sources(sweep, group, shown)) if deep else [],
        ),
        (
            "Which layers have sinks",
            explain.layers(),
            _by_criterion(
                group,
                lambda shown: [layers.layer_figure(group, some) for some in _batches(shown)],
            ),
        ),
        (
            "Which heads are sinks",
            explain.heads(),
            [
                *_by_criterion(
                    group, lambda shown: [heads.head_share_figure(group, c) for c in shown]
                ),
                *_scores(group),
            ],
        ),
        (
            "What holds at every length, and where things change",
            explain.lengths(),
            [
                *_by_criterion(group, lambda shown: _consistent(group, shown)),
                *tables.over_lengths_tables(group, sweep.level),
            ],
        ),
        ("Every layer and head in numbers", explain.data(), _data(sweep, group)),
    ]
    sections = [Section(title, [Prose(text), *blocks]) for title, text, blocks in parts if blocks]
    return Section(group.name, [Prose(first)], sections)


def _by_criterion(group: Group, blocks: Callable[[list[Curve]], Sequence[Block]]) -> list[Block]:
    """Blocks of the main definition and threshold, then those of the others, folded."""
    first, *others = group.criteria
    folded = (
        Folded(formats.criterion(*criterion), list(blocks(group.under(*criterion))))
        for criterion in others
    )
    return [*blocks(group.under(*first)), *(part for part in folded if part.blocks)]


def _definitions(sweep: Sweep, group: Group) -> list[Block]:
    key_position, tail = sweep.specification["key_position"], sweep.specification["tail"]
    sources = _distinct(group.curves, lambda curve: curve.source_name)
    first, *others = (
        curves.definition_figure(
            group,
            [c for c in group.curves if c.source_name == source.source_name],
            key_position,
            tail,
        )
        for source in sources
    )
    blocks: list[Block] = [first]
    for source, picture in zip(sources[1:], others, strict=True):
        blocks.append(Folded(source.source_name, [picture]))
    if key_position == 0:
        lengths = sorted({length for curve in group.curves for length in curve.lengths})
        for curve in _distinct(group.curves, lambda curve: curve.threshold):
            blocks.append(uniform.demands_table(lengths, curve.threshold))
    return blocks


def _sources(sweep: Sweep, group: Group, shown: list[Curve]) -> list[Block]:
    blocks: list[Block] = [layers.source_layer_figure(group, some) for some in _batches(shown)]
    blocks += [tables.best_source_table(curve, group, sweep.level) for curve in shown]
    if shown[0].criterion == group.curves[0].criterion:  # of the others the numbers are enough
        lines = [layers.source_lines_figure(group, curve) for curve in shown]
        blocks.append(Folded("every source layer, length by length", lines))
    return blocks


def _scores(group: Group) -> list[Block]:
    """Scores once a definition and output norms once a source: neither knows of thresholds."""
    shown = _distinct(group.curves, lambda curve: (curve.definition, curve.source_name))
    scores = [
        Folded(f"scores by {name}", [heads.score_figure(group, curve) for curve in of_one])
        for name, of_one in itertools.groupby(shown, lambda curve: curve.definition)
    ]
    sources = _distinct(group.curves, lambda curve: curve.source_name)
    norms = [heads.norm_figure(group, curve) for curve in sources]
    return [*scores, Folded("output norms", norms)]


def _consistent(group: Group, shown: list[Curve]) -> list[Block]:
    shown = [curve for curve in shown if curve.over_lengths]
    return [heads.consistent_figure(group, some) for some in _batches(shown, 2)]


def _data(sweep: Sweep, group: Group) -> list[Block]:
    """Every number of every layer and head."""
    blocks = [
        Folded(
            f"{curve.source_name}, {curve.criterion}",
            [
                per_head.layers_table(curve),
                per_head.source_layers_table(curve, sweep.level),
                per_head.head_shares_table(curve),
            ],
        )
        for curve in group.curves
    ]
    by_definition = _distinct(group.curves, lambda curve: (curve.definition, curve.source_name))
    by_source = _distinct(group.curves, lambda curve: curve.source_name)
    return [
        *blocks,
        Folded("scores", [per_head.head_scores_table(curve) for curve in by_definition]),
        Folded("output norms", [per_head.output_norms_table(curve) for curve in by_source]),
    ]


def _distinct(shown: Iterable[Curve], key: Callable[[Curve], Hashable]) -> list[Curve]:
    """The first curve of each key."""
    first_of: dict[Hashable, Curve] = {}
    for curve in shown:
        first_of.setdefault(key(curve), curve)
    return list(first_of.values())


def _batches(shown: Sequence[Curve], most: int = _SIDE_BY_SIDE) -> list[list[Curve]]:
    """Curves in order, at most so many sources together."""
    names = list(dict.fromkeys(curve.source_name for curve in shown))
    return [
        [curve for curve in shown if curve.source_name in names[start : start + most]]
        for start in range(0, len(names), most)
    ]
