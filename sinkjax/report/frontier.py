"""The frontier as figures, tables and a page: KL against how much of a model masks take away."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from sinkjax.report import appendix, canvas, formats
from sinkjax.report.canvas import Picture, Sheet
from sinkjax.report.formats import Footnotes
from sinkjax.report.page import Block, Names, render_page
from sinkjax.report.records import Record, environments, numbers
from sinkjax.report.tables import Table
from sinkjax.search.frontier import COPIES
from sinkjax.statistics import LEVEL, RESAMPLES

_ORDER = ("budget search", "sensitivity", "own error", "sink score", "random", *COPIES.values())
_COLOURS = (canvas.VERMILLION, canvas.BLUE, canvas.GREEN, "#AA4499", canvas.FAINT)
_COPY_COLOUR = "#B8860B"
_FLOOR, _CEILING = 1e-4, 10.0  # nats; what lies beyond is drawn there
_HEIGHT, _GAP = 2.9, 0.7  # inches

_SAVED_AS = {
    "compiled": "as read from the programs that each mask compiles into",
    "by_hand": "by formulas of a mask's heads",
}

_AXES: tuple[tuple[str, Callable[[Record], float]], ...] = (
    ("heads off full", lambda record: off_full(record)),
    ("operations of the prefill saved", lambda record: _saved(record, "prefill_operations")),
    ("bytes of a decode step saved", lambda record: _saved(record, "decode_bytes")),
)


def render_frontier(
    specification: Mapping[str, Any], records: Sequence[Record]
) -> tuple[str, list[Picture]]:
    """The report's HTML, and every figure in it under a name of its own.

    Args:
      specification, records: of `sinkjax.search.frontier.run_frontier`.
    """
    keep, sections = Names(), {}
    for length in sorted({record["length"] for record in records}):
        of_length = [record for record in records if record["length"] == length]
        blocks: list[Block] = [
            keep(frontier_figure(some)) for some in _by_path(of_length).values() if some
        ]
        sections[formats.count(length)] = [*blocks, frontier_table(of_length)]
    model = specification["model"]
    html = render_page(
        "frontier.html.jinja",
        title=f"What masks of {model['name']} cost, by how they were chosen",
        sections=sections,
        run=[
            appendix.models_table({model["name"]: model}),
            appendix.sources_table(specification["sources"]),
            appendix.settings_table(specification),
            appendix.environments_table(environments(records)),
        ],
        saved_as=_SAVED_AS[specification["saved_as"]],
        num_records=formats.count(len(records)),
        level=formats.percent(LEVEL, 0),
        resamples=formats.count(RESAMPLES),
    )
    return html, keep.pictures


def frontier_figure(records: Sequence[Record]) -> Picture:
    """KL against heads, operations and bytes: a panel each, a line a method.

    Args:
      records: of one length and of one path of ranked heads, with those of any path.
    """
    first, path = records[0], _path_of(records)
    lines = _lines(records)
    sheet = Sheet(
        _headline(lines),
        f"{first['model']['name']}, {first['source']['name']}: "
        f"{first['source']['num_windows']} windows of {formats.count(first['length'])} tokens that "
        f"no choice saw. Ranked heads take {path}; bands are "
        f"{formats.percent(LEVEL, 0)} intervals from resampling windows",
        body=0.3 + _HEIGHT + 0.6,
        key=0.28,
    )
    sheet.legend(_key(name) for name in lines)
    width = (canvas.WIDTH - canvas.LEFT - canvas.RIGHT - 2 * _GAP) / len(_AXES)
    for column, (name, of) in enumerate(_AXES):
        left = canvas.LEFT + column * (width + _GAP)
        axes = sheet.axes(left, sheet.top + 0.3, width, _HEIGHT)
        for method, points in lines.items():
            _draw(axes, method, sorted(points, key=of), of)
        _finish(axes, first=column == 0)
        canvas.label(axes, x=name, y="KL, nats a token" if column == 0 else "")
    return sheet.picture(
        f"frontier-{first['length']}-{path}".replace("(", "-").replace(")", "").replace(",", "-"),
        f"Lines of KL against heads off full, operations and bytes saved, at {first['length']} "
        f"tokens, for heads on {path}.",
        "Further right is more saved, further down is cheaper. The control draws as many heads of "
        "each layer at random. What budget search found may take several paths, so it is on the "
        "same curve in each figure of a length. The dashed line is a KL of 0.05.",
    )


def frontier_table(records: Sequence[Record]) -> Table:
    """Every mask of one length: its size, what it saves and what it costs."""
    notes, rows = Footnotes(), []
    for record in sorted(records, key=_row_order):
        rows.append(
            (
                record["method"],
                record["path"],
                formats.percent(off_full(record)),
                *(
                    formats.percent(_saved(record, what))
                    for what in ("prefill_operations", "decode_bytes", "cache_bytes")
                ),
                formats.estimate(record["result"]["kl"], formats.nats, notes),
            )
        )
    return Table(
        title=f"{formats.count(records[0]['length'])} tokens: every mask",
        columns=(
            "chosen by",
            "path",
            "heads\noff full",
            "prefill\noperations",
            "decode\nbytes",
            "cache",
            "mean KL",
        ),
        rows=rows,
        notes=(
            "Operations, bytes and cache: what is saved, in shares of the baseline's, "
            f"{_SAVED_AS[records[0]['saved_as']]}. KL in nats a token. In brackets: "
            f"the {formats.percent(LEVEL, 0)} interval from resampling windows.",
            *notes.lines(),
        ),
        labels=2,
    )


def off_full(record: Record) -> float:
    """The share of heads off `full`."""
    heads = record["result"]["heads"]
    return 1 - heads["full"] / sum(heads.values())


def _saved(record: Record, what: str) -> float:
    return record["result"]["saved"][what]


def _by_path(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by the path that heads were ranked for, each with those of no single path."""
    shared = [record for record in records if record["path"] in ("any", "copy")]
    paths = dict.fromkeys(r["path"] for r in records if r["path"] not in ("any", "copy"))
    return {path: [r for r in records if r["path"] == path] + shared for path in paths}


def _path_of(records: Sequence[Record]) -> str:
    return next((r["path"] for r in records if r["path"] not in ("any", "copy")), "any")


def _lines(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Points by method."""
    found = {name: [r for r in records if r["method"] == name] for name in _ORDER}
    return {name: points for name, points in found.items() if points}


def _headline(lines: Mapping[str, Sequence[Record]]) -> str:
    """How many heads each method takes off full within a KL of 0.05."""
    most = {
        name: max((off_full(p) for p in points if p["result"]["kl"]["value"] <= 0.05), default=0.0)
        for name, points in lines.items()
    }
    best = max(most, key=lambda name: most[name])
    if not most[best]:
        return "No measured mask stays within a KL of 0.05"
    text = f"Within a KL of 0.05, {best} takes {formats.percent(most[best], 0)} of heads off full"
    if "sink score" in most and best != "sink score":
        text += f", the sink score {formats.percent(most['sink score'], 0)}"
    return text


def _key(name: str) -> Line2D:
    return Line2D([], [], label=name, ms=5, **_style(name))


def _style(name: str) -> dict[str, Any]:
    if name in COPIES.values():
        marker = canvas.MARKERS[list(COPIES.values()).index(name)]
        return {"color": _COPY_COLOUR, "marker": marker, "lw": 1, "ls": canvas.DASHES}
    index = _ORDER.index(name)
    return {"color": _COLOURS[index], "marker": canvas.MARKERS[index], "lw": 1.6}


def _draw(axes: Axes, method: str, points: Sequence[Record], of: Callable[[Record], float]) -> None:
    places = np.array([of(point) for point in points])
    kl, low, high = (
        np.clip(numbers((p["result"]["kl"] for p in points), side), _FLOOR, _CEILING)
        for side in ("value", "low", "high")
    )
    style = _style(method)
    axes.plot(places, kl, ms=4.5, **style)
    axes.fill_between(places, low, high, color=style["color"], alpha=0.16, lw=0)


def _finish(axes: Axes, first: bool) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, _FLOOR / 1.5), min(high, _CEILING * 1.5))
    axes.yaxis.set_major_locator(LogLocator(10, numticks=8))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.axhline(0.05, color=canvas.SOFT, lw=0.8, ls=canvas.DASHES)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0 if first else None))
    canvas.grid(axes)


def _row_order(record: Record) -> tuple[Any, ...]:
    return _ORDER.index(record["method"]), record["path"], off_full(record)
