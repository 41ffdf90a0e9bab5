"""The report of a sweep as one HTML file: figures and tables in the order in which to read them."""

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from sinkjax.report import appendix, formats
from sinkjax.report.canvas import Picture
from sinkjax.report.page import Block, Folded, Names, render_page
from sinkjax.studies.resampling import RESAMPLES
from sinkjax.studies.sweep import curves, heads, layers, per_head, tables, uniform
from sinkjax.studies.sweep.conditional import SHUFFLES
from sinkjax.studies.sweep.findings import opening
from sinkjax.studies.sweep.records import Curve, Group, Sweep

_SIDE_BY_SIDE = 3  # sources that one figure holds


@dataclass(frozen=True)
class Chapter:
    """One model under one BOS policy.

    Attributes:
      number: from 1.
      name: of the model and the policy.
      criterion: the main one.
      folded: whether there are others, folded.
      openings: by source, the first sentences to read.
      sections: blocks by the name that the template gives their place.
    """

    number: int
    name: str
    criterion: str
    folded: bool
    openings: dict[str, list[str]]
    sections: dict[str, list[Block]]


def render(sweep: Sweep) -> tuple[str, list[Picture]]:
    """The report's HTML, and every figure in it under a name of its own."""
    names = Names()
    chapters = [_chapter(sweep, group, n, names) for n, group in enumerate(sweep.groups, start=1)]
    models = sweep.specification["models"]
    shown = list(dict.fromkeys(group.model_name for group in sweep.groups))
    html = render_page(
        "report.html.jinja",
        title=f"Attention sinks of {', '.join(shown or [model['name'] for model in models])}",
        chapters=chapters,
        study=tables.study_tables(sweep),
        run=[
            appendix.models_table({sweep.model_name(model): model for model in models}),
            appendix.sources_table(sweep.specification["sources"]),
            appendix.settings_table(sweep.specification),
            appendix.environments_table(sweep.environments),
        ],
        num_records=formats.count(sweep.num_records),
        level=sweep.level,
        resamples=formats.count(RESAMPLES),
        shuffles=formats.count(SHUFFLES),
        key_position=sweep.specification["key_position"],
        the_key=formats.key(sweep.specification["key_position"]),
        tail=sweep.specification["tail"],
    )
    return html, names.pictures


def _chapter(sweep: Sweep, group: Group, number: int, keep: Names) -> Chapter:
    main = group.under(*group.criteria[0])
    deep = group.model["num_layers"] > 1
    return Chapter(
        number=number,
        name=group.name,
        criterion=main[0].criterion,
        folded=len(group.criteria) > 1,
        openings={curve.source_name: opening(curve) for curve in main},
        sections={
            "share": [
                *(keep(curves.share_figure(group, some)) for some in _batches(group.curves)),
                *_by_criterion(
                    group,
                    lambda shown: [tables.sinks_table(c, group, sweep.level) for c in shown],
                ),
            ],
            "definitions": _definitions(sweep, group, keep),
            "layer_0": _by_criterion(
                group,
                lambda shown: [
                    *(keep(curves.conditional_figure(group, some)) for some in _batches(shown)),
                    *(tables.conditional_table(c, group, sweep.level) for c in shown),
                ],
            ),
            "sources": _by_criterion(group, lambda shown: _sources(sweep, group, shown, keep))
            if deep
            else [],
            "layers": _by_criterion(
                group,
                lambda shown: [keep(layers.layer_figure(group, some)) for some in _batches(shown)],
            ),
            "heads": [
                *_by_criterion(
                    group, lambda shown: [keep(heads.head_share_figure(group, c)) for c in shown]
                ),
                *_scores(group, keep),
            ],
            "lengths": [
                *_by_criterion(group, lambda shown: _consistent(group, shown, keep)),
                *tables.over_lengths_tables(group, sweep.level),
            ],
            "data": list(_data(sweep, group)),
        },
    )


def _by_criterion(group: Group, blocks: Callable[[list[Curve]], Sequence[Block]]) -> list[Block]:
    """Blocks of the main definition and threshold, then those of the others, folded."""
    first, *others = group.criteria
    folded = (
        Folded(formats.criterion(*criterion), list(blocks(group.under(*criterion))))
        for criterion in others
    )
    return [*blocks(group.under(*first)), *(one for one in folded if one.blocks)]


def _definitions(sweep: Sweep, group: Group, keep: Names) -> list[Block]:
    key_position, tail = sweep.specification["key_position"], sweep.specification["tail"]
    sources = _distinct(group.curves, lambda curve: curve.source_name)
    first, *others = (
        keep(
            curves.definition_figure(
                group,
                [c for c in group.curves if c.source_name == source.source_name],
                key_position,
                tail,
            )
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


def _sources(sweep: Sweep, group: Group, shown: list[Curve], keep: Names) -> list[Block]:
    blocks: list[Block] = [
        keep(layers.source_layer_figure(group, some)) for some in _batches(shown)
    ]
    blocks += [tables.best_source_table(curve, group, sweep.level) for curve in shown]
    if shown[0].criterion == group.curves[0].criterion:  # of the others the numbers are enough
        lines = [keep(layers.source_lines_figure(group, curve)) for curve in shown]
        blocks.append(Folded("every source layer, length by length", lines))
    return blocks


def _scores(group: Group, keep: Names) -> list[Block]:
    """Scores once a definition and output norms once a source: neither knows of thresholds."""
    shown = _distinct(group.curves, lambda curve: (curve.definition, curve.source_name))
    scores = [
        Folded(f"scores by {name}", [keep(heads.score_figure(group, curve)) for curve in of_one])
        for name, of_one in itertools.groupby(shown, lambda curve: curve.definition)
    ]
    sources = _distinct(group.curves, lambda curve: curve.source_name)
    norms = [keep(heads.norm_figure(group, curve)) for curve in sources]
    return [*scores, Folded("output norms", norms)]


def _consistent(group: Group, shown: list[Curve], keep: Names) -> list[Block]:
    shown = [curve for curve in shown if curve.over_lengths]
    return [keep(heads.consistent_figure(group, some)) for some in _batches(shown, 2)]


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
    found: dict[Hashable, Curve] = {}
    for curve in shown:
        found.setdefault(key(curve), curve)
    return list(found.values())


def _batches(shown: Sequence[Curve], most: int = _SIDE_BY_SIDE) -> list[list[Curve]]:
    """Curves in order, at most so many sources together."""
    names = list(dict.fromkeys(curve.source_name for curve in shown))
    return [
        [curve for curve in shown if curve.source_name in names[start : start + most]]
        for start in range(0, len(names), most)
    ]
