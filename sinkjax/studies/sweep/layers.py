"""Figures of every layer: its share of sinks, and what it tells of the layers after it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullFormatter

from sinkjax.report import canvas, formats
from sinkjax.report.canvas import Sheet, key
from sinkjax.report.page import Picture
from sinkjax.report.records import numbers
from sinkjax.studies.sweep import findings, grids, tables
from sinkjax.studies.sweep.records import Curve, probabilities

_HATCHED = {"facecolor": "#eeeeee", "edgecolor": canvas.FAINT, "hatch": "////"}


def layer_figure(curves: Sequence[Curve]) -> Picture:
    """The share of sinks in each layer, against length: a panel a source."""
    first = curves[0]
    sheet = Sheet(
        findings.layers_headline(first) + findings.whose(first, curves),
        f"{first.group_name}; sinks: {first.criterion}. Share of a layer's "
        f"{first.model['num_heads']} heads, mean over prompts",
        body=0.4 + grids.layer_height(first) + 0.55,
        key=grids.BAR_SPACE,
    )
    sheet.colour_bar("share of the layer's heads", grids.SHARES)

    def draw(axes: Axes, curve: Curve) -> None:
        shares = np.array([result["per_layer"] for result in curve.results]).T
        canvas.image(axes, shares, grids.SHARES)

    grids.columns_by_length(sheet, curves, draw, "layer", first.model["num_layers"])
    return sheet.picture(
        first.criterion_file_name("layers"),
        f"Heat map of the share of sink heads by layer and prompt length, for {first.group_name}.",
        "Columns are prompt lengths, evenly spaced whatever their distance. Layer 0 is at the "
        "bottom.",
    )


def source_layer_figure(curves: Sequence[Curve]) -> Picture:
    """The lift of every source layer, against length: a panel a source of prompts."""
    first = curves[0]
    num_sources = first.model["num_layers"] - 1
    sheet = Sheet(
        findings.best_source_headline(curves),
        f"{first.group_name}; sinks: {first.criterion}. Lift of each source layer over all "
        "layers after it",
        body=0.4 + grids.layer_height(first) + 0.55,
        key=grids.BAR_SPACE + 0.27,
    )
    sheet.colour_bar("lift (ratio, logarithmic)", grids.RATIOS)
    sheet.key_top += grids.BAR_SPACE - 0.04
    sheet.legend(
        [
            key("best source layer", **_dot(True)),
            key("best, but no better than chance", **_dot(False)),
            Patch(label="undefined", lw=0.5, **_HATCHED),
        ]
    )

    def draw(axes: Axes, curve: Curve) -> None:
        lifts = np.full((num_sources, len(curve.cells)), np.nan)
        for column, result in enumerate(curve.results):
            lifts[:, column] = numbers(c["lift"] for c in result["conditional"])
        axes.add_patch(Rectangle((0, 0), *lifts.shape[::-1], lw=0, zorder=0, **_HATCHED))
        canvas.image(axes, lifts, grids.RATIOS)
        for column, result in enumerate(curve.results):
            best = result["best_source"]
            if best["layer"] is not None:
                beyond = tables.beyond_chance(best["lift"], best["shuffled_best_lift"])
                axes.plot(column + 0.5, best["layer"] + 0.5, **_dot(beyond))

    grids.columns_by_length(sheet, curves, draw, "source layer", num_sources)
    return sheet.picture(
        first.criterion_file_name("sources"),
        f"Heat map of the lift by source layer and prompt length, for {first.group_name}.",
        "Orange: a sink in this layer makes a sink in the same head of later layers likelier; "
        "purple: less likely. The best layer is picked among many, so chance is the best of as "
        "many layers with their heads shuffled.",
    )


def source_lines_figure(curve: Curve) -> Picture:
    """The conditional of every source layer with its base rate, a panel a length."""
    num_sources = curve.model["num_layers"] - 1
    columns = min(4, len(curve.cells))
    rows = math.ceil(len(curve.cells) / columns)
    gap_x, gap_y, height = 0.3, 0.56, 1.45
    width = (canvas.WIDTH - canvas.LEFT - canvas.RIGHT - 3 * gap_x) / 4
    sheet = Sheet(
        "What a sink in each source layer tells of the same head in later layers",
        f"{curve.group_name}; {formats.shortened(curve.source_name)}; sinks: {curve.criterion}",
        body=rows * (height + gap_y) + 0.5,
        key=0.28,
    )
    sheet.legend(
        [
            key("P(later | source is a sink)", color=canvas.BLUE, marker="o", ms=3.5),
            key("P(later | source is not)", color=canvas.VERMILLION),
            key("base rate of later layers", color=canvas.INK, ls=canvas.DASHES),
        ]
    )
    for row in range(rows):
        cells = curve.cells[row * columns : (row + 1) * columns]
        conditionals = [cell["result"]["conditional"] for cell in cells]
        highest = float(np.nanmax([list(probabilities(c).values()) for c in conditionals]))
        for column, cell in enumerate(cells):
            left = canvas.LEFT + column * (width + gap_x)
            axes = sheet.axes(left, sheet.top + 0.3 + row * (height + gap_y), width, height)
            _source_lines(axes, cell["result"]["conditional"])
            canvas.share_axis(axes, highest)
            axes.set_xlim(0, num_sources)
            canvas.numbered(axes.xaxis, num_sources, width, 0.24)
            if column:
                axes.yaxis.set_major_formatter(NullFormatter())
            bottom = row * columns + column + columns >= len(curve.cells)
            canvas.label(axes, "source layer" if bottom else "", "" if column else "probability")
            canvas.panel_title(axes, f"{formats.count(cell['length'])} tokens", width)
    return sheet.picture(
        curve.criterion_file_name("source-lines", curve.source_name),
        f"Conditional probability by source layer, a panel a length, for {curve.group_name}.",
        "Where the blue points lie on the dashed line, knowing the source layer is worth nothing. "
        "Bars are intervals from resampling prompts. A gap is a source layer without a sink. The "
        "scale is that of the row.",
    )


def _source_lines(axes: Axes, conditionals: Sequence[Mapping[str, Any]]) -> None:
    layers = np.arange(len(conditionals)) + 0.5
    values = probabilities(conditionals)
    low, high = (numbers((c["given_sink"] for c in conditionals), side) for side in ("low", "high"))
    axes.vlines(layers, low, high, color=canvas.BLUE, lw=1.2, alpha=0.55)
    axes.plot(layers, values["given_not"], color=canvas.VERMILLION, lw=1.3)
    axes.plot(layers, values["base_rate"], color=canvas.INK, ls=canvas.DASHES, lw=1.2)
    axes.plot(layers, values["given_sink"], color=canvas.BLUE, marker="o", ms=3, lw=0.8)


def _dot(filled: bool) -> dict[str, Any]:
    face, edge = (canvas.INK, "white") if filled else ("white", canvas.INK)
    return {"ls": "", "marker": "o", "ms": 5.5, "mfc": face, "mec": edge, "mew": 0.9}
