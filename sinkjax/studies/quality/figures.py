"""The figures of what masks cost: means with intervals, KL by position, how long texts agree."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from sinkjax.report import canvas, formats
from sinkjax.report.canvas import Sheet
from sinkjax.report.page import Picture
from sinkjax.report.records import Record, by_length, numbers, title
from sinkjax.studies.quality.tables import excerpts, label
from sinkjax.studies.resampling import LEVEL

MOST_CANDIDATES = 6
"""Candidates that a figure tells apart, at most."""

_FLOOR = 1e-6  # nats; less is drawn as this
_LEFT, _GAP, _ROW = 3.2, 0.35, 0.23  # inches: room for names, between panels, of a row
_COLUMNS, _PANEL_HEIGHT, _PANEL_GAP = 3, 2.4, 0.85
_KEYS = 3  # in a row of the legend
_NAME = 30  # characters of a mask's name
_INTERVALS = f"{formats.percent(LEVEL, 0)} intervals over excerpts"


@dataclass(frozen=True)
class _Measure:
    """A column of the figure of means: its name, where it lies in a result, how it is drawn."""

    name: str
    of: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    show: Callable[[float], str]
    neutral: float | None = None
    logarithmic: bool = False


_MEASURES = (
    _Measure("KL, nats a token", lambda r: r["kl"]["mean"], lambda x: f"{x:g}", logarithmic=True),
    _Measure(
        "perplexity, change", lambda r: r["perplexity"]["change"], lambda x: f"{100 * x:g}%", 0.0
    ),
    _Measure("top 1 the same", lambda r: r["agreement"]["top1"], lambda x: f"{100 * x:g}%", 1.0),
)


def cost_figure(records: Sequence[Record]) -> Picture:
    """What each mask costs at each length: a row each, a panel a measure.

    Args:
      records: of kind "quality" and of one text, of at most `MOST_CANDIDATES` candidates.
    """
    styles, last = _styles(records), max(record["length"] for record in records)
    longest = [record for record in records if record["length"] == last]
    best = min(longest, key=lambda record: record["result"]["kl"]["mean"]["value"])
    of_all = f", the least of {len(longest)} masks" if len(longest) > 1 else ""
    sheet = Sheet(
        f"At {formats.count(last)} tokens {_name(best)} costs a KL of "
        f"{formats.nats(best['result']['kl']['mean']['value'])} nats a token{of_all}",
        f"{title(records[0])}. Means over {excerpts(records)}, {_INTERVALS}",
        body=0.3 + _ROW * len(records) + 0.55,
    )
    width = (canvas.WIDTH - _LEFT - canvas.RIGHT - 2 * _GAP) / len(_MEASURES)
    top, height = sheet.top + 0.3, _ROW * len(records)
    for row, record in enumerate(records):
        name, tokens = label(record)
        style = {"color": styles[record["candidate"]["name"]][0], "size": canvas.SMALL}
        sheet.write(0.12, top + row * _ROW + 0.05, name, **style)
        sheet.write(_LEFT - 0.1, top + row * _ROW + 0.05, f"{tokens} tokens", ha="right", **style)
    for column, measure in enumerate(_MEASURES):
        axes = sheet.axes(_LEFT + column * (width + _GAP), top, width, height)
        _draw_measure(axes, measure, records, styles)
        canvas.panel_title(axes, measure.name, width)
    return sheet.picture(
        _file("cost", records[0]),
        f"Means with intervals of KL, perplexity and agreement, for {title(records[0])}.",
        "Each row is a mask at a length, its dot the mean and its line the interval. A mask that "
        f"costs nothing has its KL at the left, at {_FLOOR:g} or below, at no change of the "
        "perplexity, and at 100%.",
    )


def position_figure(records: Sequence[Record]) -> Picture:
    """KL against the position in the excerpt: a panel a length, a line a mask."""
    styles = _styles(records)
    first = records[-1]
    spans = first["result"]["kl_by_position"]
    ends = (
        f"{formats.nats(span['kl']['value'])} at {formats.span(span['first'], span['last'])}"
        for span in (spans[0], spans[-1])
    )
    headline = f"KL of {_name(first)} by position: {', and '.join(dict.fromkeys(ends))}"
    subtitle = f"{title(first)}. Mean over {excerpts(records)}; bands are {_INTERVALS}"
    sheet, panels = _panels(records, headline, subtitle, styles)
    values = [_sides(_kl_by_position(record), _FLOOR).ravel() for record in records]
    for axes, width, of_length in panels:
        places = set()
        for record in of_length:
            spans = record["result"]["kl_by_position"]
            places |= {span["first"] for span in spans} | {spans[-1]["last"]}
            middle = [math.sqrt(span["first"] * span["last"]) for span in spans]
            kl, low, high = _sides(_kl_by_position(record), _FLOOR)
            colour, marker = styles[record["candidate"]["name"]]
            axes.plot(middle, kl, color=colour, marker=marker, ms=4.5, lw=1.5)
            axes.fill_between(middle, low, high, color=colour, alpha=0.18, lw=0)
        _log_axis(axes, axes.yaxis, np.concatenate(values))
        canvas.grid(axes)
        canvas.token_axis(axes, sorted(places), width)
        canvas.label(axes, "position, from 0", "KL, nats a token")
    return sheet.picture(
        _file("positions", first),
        f"Lines of KL against the position in the excerpt, for {title(first)}.",
        "Each dot is the mean over a span of positions that double in size. Every mask leaves the "
        f"first position as it is. What is below {_FLOOR:g} is drawn there.",
    )


def continuation_figure(records: Sequence[Record]) -> Picture:
    """The share of excerpts whose continuations are still the baseline's: a panel a length."""
    styles = _styles(records)
    first = records[-1]
    share = first["result"]["identical"]["value"]
    sheet, panels = _panels(
        records,
        f"{_name(first)}, {formats.count(first['length'])} tokens: {formats.percent(share, 0)} of "
        f"excerpts keep the baseline's next {formats.count(first['num_tokens'])} tokens",
        f"{title(first)}. Greedy continuations of {excerpts(records)}",
        styles,
    )
    for axes, _, of_length in panels:
        for record in of_length:
            agreeing = np.array(record["result"]["per_window"])
            steps = np.arange(record["num_tokens"] + 1)
            same = (agreeing[:, None] >= steps[None, :]).mean(axis=0)
            colour, _ = styles[record["candidate"]["name"]]
            axes.plot(steps, same, color=colour, lw=1.6, drawstyle="steps-post", clip_on=False)
        canvas.share_axis(axes)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        canvas.label(axes, "new tokens", "excerpts still the same")
    return sheet.picture(
        _file("continuations", first),
        f"Shares of excerpts with the baseline's own continuation, for {title(first)}.",
        "After a first difference the two texts go on from different tokens, and are not compared "
        "any more.",
    )


def _panels(
    records: Sequence[Record], headline: str, subtitle: str, styles: Mapping[str, tuple[str, str]]
) -> tuple[Sheet, list[tuple[Axes, float, list[Record]]]]:
    """A sheet with a panel a length, each with its width and the length's records."""
    lengths = by_length(records)
    columns = min(_COLUMNS, len(lengths))
    rows = -(-len(lengths) // columns)
    gap = canvas.LEFT - 0.05
    width = min(6.2, (canvas.WIDTH - canvas.LEFT - canvas.RIGHT - (columns - 1) * gap) / columns)
    keys = -(-len(styles) // _KEYS)
    sheet = Sheet(
        headline, subtitle, body=rows * (_PANEL_HEIGHT + _PANEL_GAP) + 0.05, key=0.2 * keys + 0.08
    )
    sheet.legend(
        [
            canvas.key(formats.shortened(name, _NAME), color=colour, marker=marker, ms=4.5)
            for name, (colour, marker) in styles.items()
        ],
        columns=min(_KEYS, len(styles)),
    )
    panels = []
    for index, (length, of_length) in enumerate(lengths.items()):
        row, column = divmod(index, columns)
        left = canvas.LEFT + column * (width + gap)
        top = sheet.top + 0.3 + row * (_PANEL_HEIGHT + _PANEL_GAP)
        axes = sheet.axes(left, top, width, _PANEL_HEIGHT)
        canvas.panel_title(axes, f"{formats.count(length)} tokens", width)
        panels.append((axes, width, of_length))
    return sheet, panels


def _draw_measure(
    axes: Axes,
    measure: _Measure,
    records: Sequence[Record],
    styles: Mapping[str, tuple[str, str]],
) -> None:
    least = _FLOOR if measure.logarithmic else -math.inf
    sides = _sides([measure.of(record["result"]) for record in records], least)
    if measure.logarithmic:
        _log_axis(axes, axes.xaxis, sides)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    if measure.neutral is not None:
        axes.axvline(measure.neutral, color=canvas.SOFT, lw=1)
    for row, (value, low, high) in enumerate(sides.T):
        colour, _ = styles[records[row]["candidate"]["name"]]
        axes.hlines(row, low, high, color=colour, lw=1.6)
        axes.plot(value, row, "o", color=colour, ms=4.5)
    axes.xaxis.set_major_formatter(lambda value, _: measure.show(round(value, 9)))
    axes.set_ylim(len(records) - 0.5, -0.5)
    axes.yaxis.set_major_locator(NullLocator())
    axes.grid(axis="x", color=canvas.GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def _kl_by_position(record: Record) -> list[Mapping[str, Any]]:
    return [span["kl"] for span in record["result"]["kl_by_position"]]


def _sides(estimates: Sequence[Mapping[str, Any]], least: float) -> np.ndarray:
    """Values and the ends of their intervals, float64 [3, any number]; what is below as `least`."""
    return np.maximum([numbers(estimates, side) for side in ("value", "low", "high")], least)


def _log_axis(axes: Axes, axis: Axis, values: np.ndarray) -> None:
    """Whole powers of ten around the values, named as numbers."""
    low, high = np.nanmin(values), np.nanmax(values)
    limits = 10.0 ** math.floor(math.log10(low) - 0.05), 10.0 ** math.ceil(math.log10(high) + 0.05)
    horizontal = axis is axes.xaxis
    (axes.set_xscale if horizontal else axes.set_yscale)("log")
    (axes.set_xlim if horizontal else axes.set_ylim)(*limits)
    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def _styles(records: Sequence[Record]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each candidate."""
    names = dict.fromkeys(record["candidate"]["name"] for record in records)
    return dict(zip(names, zip(canvas.COLOURS, canvas.MARKERS, strict=True), strict=False))


def _name(record: Record) -> str:
    return formats.shortened(record["candidate"]["name"], _NAME)


def _file(kind: str, record: Record) -> str:
    parts = (record["model"]["name"], "bos", record["bos"], record["source"]["name"])
    return canvas.slug(kind, *parts)
