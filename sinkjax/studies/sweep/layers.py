"""Figures of every layer: its share of sinks, and what it tells of the layers after it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullFormatter

from sinkjax.report import canvas, formats
from sinkjax.report.canvas import Picture, Sheet
from sinkjax.report.records import Record, numbers
from sinkjax.studies.sweep import findings, grids, tables
from sinkjax.studies.sweep.records import Curve, Group, file_name

_HATCHED = {"facecolor": "#eeeeee", "edgecolor": canvas.FAINT, "hatch": "////"}


def layer_figure(group: Group, curves: Sequence[Curve]) -> Picture:
    """The share of sinks in each layer, against length: a panel a source."""
    first = curves[0]
    sheet = Sheet(
        findings.layers_headline(first) + findings.whose(first, curves),
        f"{group.name}; sinks: {first.criterion}. Share of a layer's {first.model['num_heads']} "
        "heads, mean over prompts",
        body=0.4 + grids.layer_height(first) + 0.55,
        key=grids.BAR_SPACE,
    )
    sheet.colour_bar(
        "share of the layer's heads",
        canvas.colour_map(grids.SHARE_COLOURS),
        Normalize(0, 1),
        grids.SHARES,
    )

    def draw(axes: Axes, curve: Curve) -> None:
        shares = np.array([result["per_layer"] for result in curve.results]).T
        grids.image(axes, shares, grids.SHARE_COLOURS, Normalize(0, 1))

    grids.columns_by_length(sheet, curves, draw, "layer", first.model["num_layers"])
    return sheet.picture(
        file_name("layers", group, first.definition, f"{first.threshold:g}"),
        f"Heat map of the share of sink heads by layer and prompt length, for {group.name}.",
        "Columns are prompt lengths, evenly spaced whatever their distance. Layer 0 is at the "
        "bottom.",
    )


def source_layer_figure(group: Group, curves: Sequence[Curve]) -> Picture:
    """The lift of every source layer, against length: a panel a source of prompts."""
    first = curves[0]
    num_sources = first.model["num_layers"] - 1
    sheet = Sheet(
        findings.best_source_headline(curves),
        f"{group.name}; sinks: {first.criterion}. Lift of each source layer over all layers after "
        "it",
        body=0.4 + grids.layer_height(first) + 0.55,
        key=grids.BAR_SPACE + 0.27,
    )
    colours, norm = canvas.colour_map(grids.SIGNED_COLOURS), LogNorm(1 / 4, 4)
    ticks = {0.25: "≤1/4", 0.5: "1/2", 1.0: "1", 2.0: "2", 4.0: "≥4"}
    sheet.colour_bar("lift (ratio, logarithmic)", colours, norm, ticks)
    sheet.key_top += grids.BAR_SPACE - 0.04
    sheet.legend(
        [
            Line2D([], [], label="best source layer", **_dot(True)),
            Line2D([], [], label="best, but no better than chance", **_dot(False)),
            Patch(label="undefined", lw=0.5, **_HATCHED),
        ]
    )

    def draw(axes: Axes, curve: Curve) -> None:
        lifts = np.full((num_sources, len(curve.cells)), np.nan)
        for column, result in enumerate(curve.results):
            lifts[:, column] = numbers(c["lift"] for c in result["conditional"])
        axes.add_patch(Rectangle((0, 0), *lifts.shape[::-1], lw=0, zorder=0, **_HATCHED))
        grids.image(axes, lifts, grids.SIGNED_COLOURS, norm)
        for column, result in enumerate(curve.results):
            best = result["best_source"]
            if best["layer"] is not None:
                beyond = tables.beyond_chance(best["lift"], best["shuffled_best_lift"])
                axes.plot(column + 0.5, best["layer"] + 0.5, **_dot(beyond))

    grids.columns_by_length(sheet, curves, draw, "source layer", num_sources)
    return sheet.picture(
        file_name("sources", group, first.definition, f"{first.threshold:g}"),
        f"Heat map of the lift by source layer and prompt length, for {group.name}.",
        "Orange: a sink in this layer makes a sink in the same head of later layers likelier; "
        "purple: less likely. The best layer is picked among many, so chance is the best of as "
        "many layers with their heads shuffled.",
    )


def source_lines_figure(group: Group, curve: Curve) -> Picture:
    """The conditional of every source layer with its base rate, a panel a length."""
    num_sources = curve.model["num_layers"] - 1
    columns = min(4, len(curve.cells))
    rows = math.ceil(len(curve.cells) / columns)
    gap_x, gap_y, height = 0.3, 0.56, 1.45
    width = (canvas.WIDTH - canvas.LEFT - canvas.RIGHT - 3 * gap_x) / 4
    sheet = Sheet(
        "What a sink in each source layer tells of the same head in later layers",
        f"{group.name}; {formats.shortened(curve.source_name)}; sinks: {curve.criterion}",
        body=rows * (height + gap_y) + 0.5,
        key=0.28,
    )
    sheet.legend(
        [
            Line2D(
                [], [], color=canvas.BLUE, marker="o", ms=3.5, label="P(later | source is a sink)"
            ),
            Line2D([], [], color=canvas.VERMILLION, label="P(later | source is not)"),
            Line2D([], [], color=canvas.INK, ls=canvas.DASHES, label="base rate of later layers"),
        ]
    )
    for row in range(rows):
        cells = curve.cells[row * columns : (row + 1) * columns]
        top = max(_highest(cell) for cell in cells)
        for column, cell in enumerate(cells):
            left = canvas.LEFT + column * (width + gap_x)
            axes = sheet.axes(left, sheet.top + 0.3 + row * (height + gap_y), width, height)
            _source_lines(axes, cell, num_sources)
            canvas.share_axis(axes, top)
            axes.set_xlim(0, num_sources)
            canvas.numbered(axes.xaxis, num_sources, width, 0.24)
            if column:
                axes.yaxis.set_major_formatter(NullFormatter())
            bottom = row * columns + column + columns >= len(curve.cells)
            canvas.label(axes, "source layer" if bottom else "", "" if column else "probability")
            canvas.panel_title(axes, f"{formats.count(cell['length'])} tokens", width)
    return sheet.picture(
        file_name(
            "source-lines",
            group,
            curve.definition,
            f"{curve.threshold:g}",
            curve.source_name,
        ),
        f"Conditional probability by source layer, a panel a length, for {group.name}.",
        "Where the blue points lie on the dashed line, knowing the source layer is worth nothing. "
        "Bars are intervals from resampling prompts. A gap is a source layer without a sink. The "
        "scale is that of the row.",
    )


def _source_lines(axes: Axes, cell: Record, num_sources: int) -> None:
    conditional = cell["result"]["conditional"]
    layers = np.arange(num_sources) + 0.5
    given_sink, given_not, base_rate = (
        [c[name] for c in conditional] for name in ("given_sink", "given_not", "base_rate")
    )
    low, high = numbers(given_sink, "low"), numbers(given_sink, "high")
    axes.vlines(layers, low, high, color=canvas.BLUE, lw=1.2, alpha=0.55)
    axes.plot(layers, numbers(given_not), color=canvas.VERMILLION, lw=1.3)
    axes.plot(layers, numbers(base_rate), color=canvas.INK, ls=canvas.DASHES, lw=1.2)
    axes.plot(layers, numbers(given_sink), color=canvas.BLUE, marker="o", ms=3, lw=0.8)


def _highest(cell: Record) -> float:
    """The highest probability among a cell's source layers, intervals left out."""
    conditional = cell["result"]["conditional"]
    names = ("given_sink", "given_not", "base_rate")
    return float(np.nanmax([numbers(c[name] for c in conditional) for name in names]))


def _dot(filled: bool) -> dict[str, Any]:
    face, edge = (canvas.INK, "white") if filled else ("white", canvas.INK)
    return {"ls": "", "marker": "o", "ms": 5.5, "mfc": face, "mec": edge, "mew": 0.9}
