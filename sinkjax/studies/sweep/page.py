"""The page of a sweep: figures and tables in the order in which to read them."""

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sinkjax.masks.definitions import BY_NAME
from sinkjax.report import formats
from sinkjax.report.appendix import what_was_run
from sinkjax.report.page import Block, Card, Folded, Page, Prose, Section, explanations
from sinkjax.report.records import Record, grouped, portions
from sinkjax.studies.resampling import RESAMPLES
from sinkjax.studies.sweep import curves, heads, layers, per_head, tables, uniform
from sinkjax.studies.sweep.conditional import SHUFFLES
from sinkjax.studies.sweep.findings import opening
from sinkjax.studies.sweep.records import Curve, Group, SweepRecords, arrange

_SIDE_BY_SIDE = 3  # sources that one figure holds


def page(specification: Mapping[str, Any], records: Sequence[Record]) -> Page:
    """The page of a sweep."""
    sweep = arrange(specification, records)
    names = dict.fromkeys(group.curves[0].model_name for group in sweep.groups)
    models = list(names) or [model["name"] for model in specification["models"]]
    explain = explanations(__package__)
    definitions = explain.definitions(BY_NAME, specification["key_position"], specification["tail"])
    sections = [
        *(_chapter(sweep, group) for group in sweep.groups),
        Section("Definitions of the sink score", [Prose(definitions)]),
        what_was_run(specification, records),
    ]
    if study := tables.study_tables(sweep):
        blocks = [Prose(explain.study()), *study]
        sections.insert(0, Section("The founding study's two prompts", blocks))
    return Page(
        study="sweep",
        title=f"Attention sinks of {', '.join(models)}",
        lede="Which attention heads give nearly all their attention to "
        f"{formats.key(specification['key_position'])}, at which prompt lengths, and whether one "
        "layer tells which heads of later layers do. "
        f"From {formats.count(len(records))} records.",
        openings=[
            Card(curve.source_name, opening(curve), f"{curve.group_name}; sinks: {curve.criterion}")
            for group in sweep.groups
            for curve in group.under(*group.criteria[0])
        ],
        sections=sections,
    )


def _chapter(sweep: SweepRecords, group: Group) -> Section:
    """One model under one BOS policy."""
    explain, level = explanations(__package__), group.curves[0].level
    criterion = formats.criterion(*group.criteria[0])
    first = explain.order(criterion=criterion, folded=len(group.criteria) > 1)
    share = explain.share(
        the_key=formats.key(sweep.specification["key_position"]),
        level=level,
        resamples=formats.count(RESAMPLES),
    )
    layer_0 = explain.layer_0(shuffles=formats.count(SHUFFLES), level=level)
    by_criterion = functools.partial(_by_criterion, group)
    parts: list[tuple[str, str, list[Block]]] = [
        (
            "How many heads are sinks",
            share,
            [
                *(curves.share_figure(group, batch) for batch in _batches(group.curves)),
                *by_criterion(lambda of: map(tables.sinks_table, of)),
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
            by_criterion(
                lambda of: [
                    *map(curves.conditional_figure, _batches(of)),
                    *map(tables.conditional_table, of),
                    *itertools.chain.from_iterable(map(tables.later_layers_tables, of)),
                ]
            ),
        ),
        (
            "What other layers tell",
            explain.sources(),
            by_criterion(functools.partial(_sources, group)),
        ),
        (
            "Which layers have sinks",
            explain.layers(),
            by_criterion(lambda of: map(layers.layer_figure, _batches(of))),
        ),
        (
            "Which heads are sinks",
            explain.heads(),
            [*by_criterion(lambda of: map(heads.head_share_figure, of)), *_scores(group)],
        ),
        (
            "What holds at every length, and where things change",
            explain.lengths(),
            [*by_criterion(_consistent), *tables.over_lengths_tables(group.curves)],
        ),
        ("Every layer and head in numbers", explain.data(), _data(group)),
    ]
    sections = [Section(title, [Prose(text), *blocks]) for title, text, blocks in parts if blocks]
    return Section(group.curves[0].group_name, [Prose(first)], sections)


def _by_criterion(group: Group, blocks: Callable[[list[Curve]], Iterable[Block]]) -> list[Block]:
    """Blocks of the main definition and threshold, then those of the others, folded."""
    first, *others = group.criteria
    folded = (
        Folded(formats.criterion(*criterion), list(blocks(group.under(*criterion))))
        for criterion in others
    )
    return [*blocks(group.under(*first)), *(part for part in folded if part.blocks)]


def _definitions(sweep: SweepRecords, group: Group) -> list[Block]:
    key_position, tail = sweep.specification["key_position"], sweep.specification["tail"]
    blocks: list[Block] = []
    for name, of_source in grouped(group.curves, lambda curve: curve.source_name).items():
        picture = curves.definition_figure(of_source, key_position, tail)
        blocks.append(Folded(name, [picture]) if blocks else picture)
    if key_position == 0:
        lengths = sorted({length for curve in group.curves for length in curve.lengths})
        thresholds = dict.fromkeys(curve.threshold for curve in group.curves)
        blocks += [uniform.demands_table(lengths, threshold) for threshold in thresholds]
    return blocks


def _sources(group: Group, of_criterion: list[Curve]) -> list[Block]:
    if of_criterion[0].model["num_layers"] == 1:
        return []
    blocks: list[Block] = [layers.source_layer_figure(batch) for batch in _batches(of_criterion)]
    if of_criterion[0].criterion == group.curves[0].criterion:  # of the others numbers are enough
        lines = [layers.source_lines_figure(curve) for curve in of_criterion]
        blocks.append(Folded("every source layer, length by length", lines))
    return blocks


def _scores(group: Group) -> list[Block]:
    """Scores once a definition and output norms once a source: neither knows of thresholds."""
    scored = grouped(_distinct(group, "definition", "source_name"), lambda curve: curve.definition)
    scores = [
        Folded(f"scores by {definition}", list(map(heads.score_figure, of_definition)))
        for definition, of_definition in scored.items()
    ]
    norms = [heads.norm_figure(curve) for curve in _distinct(group, "source_name")]
    return [*scores, Folded("output norms", norms)]


def _consistent(of_criterion: list[Curve]) -> list[Block]:
    measured = [curve for curve in of_criterion if curve.over_lengths]
    return [heads.consistent_figure(batch) for batch in _batches(measured, 2)]


def _data(group: Group) -> list[Block]:
    """Every number of every layer and head."""
    blocks = [
        Folded(
            f"{curve.source_name}, {curve.criterion}",
            [
                per_head.numbers_table(curve, "per_layer"),
                per_head.source_layers_table(curve),
                per_head.later_layers_table(curve),
                per_head.numbers_table(curve, "per_head"),
            ],
        )
        for curve in group.curves
    ]
    scores = _distinct(group, "definition", "source_name")
    norms = _distinct(group, "source_name")
    return [
        *blocks,
        Folded("scores", [per_head.numbers_table(curve, "mean_score") for curve in scores]),
        Folded("output norms", [per_head.numbers_table(curve, "output_norm") for curve in norms]),
    ]


def _distinct(group: Group, *names: str) -> list[Curve]:
    """The first curve of each value of these attributes."""
    return [of[0] for of in grouped(group.curves, operator.attrgetter(*names)).values()]


def _batches(to_draw: Sequence[Curve], most: int = _SIDE_BY_SIDE) -> list[list[Curve]]:
    """Curves in order, at most so many sources together."""
    return portions(to_draw, lambda curve: curve.source_name, most)
