"""Figures of every head: where sinks are, how strong they are, and which hold at every length."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from sinkjax.masks.definitions import BY_NAME
from sinkjax.report import canvas, formats
from sinkjax.report.canvas import Scale, Sheet
from sinkjax.report.page import Picture
from sinkjax.studies.sweep import findings, grids
from sinkjax.studies.sweep.records import Curve


def head_share_figure(curve: Curve) -> Picture:
    """The share of the prompts in which each head is a sink, a panel a length."""
    return grids.mosaic(
        curve,
        "per_head",
        grids.SHARES,
        title=f"Which heads are sinks: {findings.share_of(curve)}",
        detail=f"sinks: {curve.criterion}",
        label="share of prompts in which the head is a sink",
        file_name=curve.criterion_file_name("heads", curve.source_name),
        caption="One square is one head, one panel one length. A dark square is a head that is a "
        "sink whatever the prompt.",
    )


def score_figure(curve: Curve) -> Picture:
    """The score of each head, averaged over prompts, a panel a length."""
    definition = BY_NAME[curve.definition]
    if definition.range is None:
        scores = np.abs([result["mean_score"] for result in curve.results])
        most = max(1, math.ceil(np.quantile(scores, 0.98)))  # a few heads go far beyond
        least = -most
    else:
        least, most = definition.range
    colours = grids.SIGNED_COLOURS if least < 0 else grids.SHARE_COLOURS
    ticks = {value: f"{value:g}" for value in np.linspace(least, most, 5).tolist()}
    if definition.range is None:
        ticks |= {least: f"≤{least}", most: f"≥{most}"}
    return grids.mosaic(
        curve,
        "mean_score",
        Scale(colours, Normalize(least, most), ticks),
        title=f"How much attention each head gives {formats.key(curve.cells[0]['key_position'])}, "
        f"by {curve.definition}",
        detail="mean over prompts",
        label=f"mean score ({definition.unit})",
        file_name=curve.file_name("scores", curve.definition, curve.source_name),
        caption="The same squares by the score itself, without a threshold. Heads that fade from "
        "panel to panel do so little by little; the threshold makes it a step.",
    )


def norm_figure(curve: Curve) -> Picture:
    """The norm of each head's output relative to its layer's, a panel a length."""
    return grids.mosaic(
        curve,
        "output_norm",
        grids.RATIOS,
        title="How large each head's output is, relative to the mean of its layer",
        detail="mean over prompts",
        label="output norm (ratio to the layer's mean, logarithmic)",
        file_name=curve.file_name("norms", curve.source_name),
        caption="A head that gives all its attention to the first token adds nearly the same "
        "vector at every position, often a small one. Small outputs are the darkest purple.",
    )


def consistent_figure(curves: Sequence[Curve]) -> Picture:
    """Which heads are sinks at every length, and how many up to each: two panels a source."""
    first = curves[0]
    L, N = first.model["num_layers"], first.model["num_heads"]
    height = grids.layer_height(first)
    map_width = min(2.1, max(1.2, N * 0.14))
    rest = canvas.WIDTH - canvas.RIGHT - canvas.LEFT
    each = min(5.5, (rest + 0.8) / len(curves))
    least = first.over_lengths["result"]["consistent"]["min_share"]
    sheet = Sheet(
        findings.consistent_headline(curves),
        f"{first.group_name}; sinks: {first.criterion}; a head is a sink at a length if it is one "
        f"in at least {formats.percent(least, 0)} of the prompts",
        body=0.4 + height + 0.55,
        key=grids.BAR_SPACE,
    )
    sheet.colour_bar(
        "least share of prompts over all lengths; framed: a sink at every length", grids.SHARES
    )
    for column, curve in enumerate(curves):
        result = curve.over_lengths["result"]["consistent"]
        left, top = canvas.LEFT + column * each, sheet.top + 0.3
        axes = sheet.axes(left, top, map_width, height)
        canvas.image(axes, np.array(result["min_share_per_head"]), grids.SHARES)
        grids.head_lines(axes, curve, 0, map_width / N)
        for layer, number in result["heads"]:
            axes.add_patch(
                Rectangle((number, layer), 1, 1, fill=False, edgecolor=canvas.VERMILLION, lw=1.4)
            )
        axes.set(xlim=(0, N), ylim=(0, L))
        canvas.numbered(axes.yaxis, L, height, 0.15)
        canvas.numbered(axes.xaxis, N, map_width, 0.2)
        canvas.label(axes, "head", "" if column else "layer")
        canvas.panel_title(axes, curve.source_name, each - 0.6)
        width = each - map_width - 1.5
        axes = sheet.axes(left + map_width + 0.7, top, width, height)
        lengths = curve.over_lengths["lengths"]
        axes.plot(lengths, result["count_up_to"], color=canvas.BLUE, marker="o", ms=5, lw=1.6)
        axes.set_ylim(0, max(1, 1.08 * max(result["count_up_to"])))
        canvas.grid(axes)
        canvas.token_axis(axes, lengths, width)
        canvas.label(axes, "tokens in the prompt", "sinks at every length so far")
    return sheet.picture(
        first.criterion_file_name("consistent"),
        f"Heat map of the heads that are sinks at every length, for {first.group_name}.",
        "Left of each pair: a head's share of prompts at the length where it is least often a "
        "sink. Right: how many heads are sinks at every length up to this one. Layer 0 is at the "
        "bottom.",
    )
