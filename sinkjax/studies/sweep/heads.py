"""Figures of every head: where sinks are, how strong they are, and which hold at every length."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Rectangle

from sinkjax.report import canvas, formats
from sinkjax.report.canvas import Picture, Sheet
from sinkjax.studies.sweep import findings, grids
from sinkjax.studies.sweep.records import Curve, Group, file_name

_HEADS = "Layer 0 is at the bottom. Fine lines part the groups of heads that share keys and values."


def head_share_figure(group: Group, curve: Curve) -> Picture:
    """In which share of the prompts each head is a sink, a panel a length."""
    panels = [np.array(result["per_head"]) for result in curve.results]
    return grids.mosaic(
        group,
        curve,
        panels,
        title=f"Which heads are sinks: {findings.share_of(curve)}",
        subtitle=f"{group.name}; {formats.shortened(curve.source_name)}; sinks: {curve.criterion}",
        label="share of prompts in which the head is a sink",
        colours=grids.SHARE_COLOURS,
        norm=Normalize(0, 1),
        ticks=grids.SHARES,
        name=("heads", curve.definition, f"{curve.threshold:g}"),
        caption="One square is one head, one panel one length. A dark square is a head that is a "
        f"sink whatever the prompt. {_HEADS}",
    )


def score_figure(group: Group, curve: Curve) -> Picture:
    """The score of each head, averaged over prompts, a panel a length."""
    panels = [np.array(result["mean_score"]) for result in curve.results]
    colours, norm = grids.SIGNED_COLOURS, Normalize(-1, 1)
    ticks = {value: f"{value:g}" for value in (-1, -0.5, 0, 0.5, 1)}
    if curve.definition == "log_odds":
        most = max(1, math.ceil(np.quantile(np.abs(panels), 0.98)))  # a few heads go far beyond
        norm = Normalize(-most, most)
        ticks = {-most: f"≤-{most}", -most / 2: f"{-most / 2:g}", 0: "0"}
        ticks |= {most / 2: f"{most / 2:g}", most: f"≥{most}"}
    elif curve.definition != "excess":
        colours, norm = grids.SHARE_COLOURS, Normalize(0, 1)
        ticks = {value: f"{value:g}" for value in (0, 0.25, 0.5, 0.75, 1)}
    key = formats.key(curve.cells[0]["key_position"])
    return grids.mosaic(
        group,
        curve,
        panels,
        title=f"How much attention each head gives {key}, by {curve.definition}",
        subtitle=f"{group.name}; {formats.shortened(curve.source_name)}; mean over prompts",
        label=f"mean score ({formats.unit(curve.definition)})",
        colours=colours,
        norm=norm,
        ticks=ticks,
        name=("scores", curve.definition),
        caption="The same squares by the score itself, without a threshold. Heads that fade from "
        f"panel to panel do so little by little; the threshold makes it a step. {_HEADS}",
    )


def norm_figure(group: Group, curve: Curve) -> Picture:
    """The norm of each head's output relative to its layer's, a panel a length."""
    panels = [np.array(result["output_norm"]) for result in curve.results]
    ticks = {0.25: "≤1/4", 0.5: "1/2", 1.0: "1", 2.0: "2", 4.0: "≥4"}
    return grids.mosaic(
        group,
        curve,
        panels,
        title="How large each head's output is, relative to the mean of its layer",
        subtitle=f"{group.name}; {formats.shortened(curve.source_name)}; mean over prompts",
        label="output norm (ratio to the layer's mean, logarithmic)",
        colours=grids.SIGNED_COLOURS,
        norm=LogNorm(1 / 4, 4),
        ticks=ticks,
        name=("norms",),
        caption="A head that gives all its attention to the first token adds nearly the same "
        f"vector at every position, often a small one. Small outputs are the darkest purple. "
        f"{_HEADS}",
    )


def consistent_figure(group: Group, curves: Sequence[Curve]) -> Picture:
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
        f"{group.name}; sinks: {first.criterion}; a head is a sink at a length if it is one in at "
        f"least {formats.percent(least, 0)} of the prompts",
        body=0.4 + height + 0.55,
        key=grids.BAR_SPACE,
    )
    colours, norm = canvas.colour_map(grids.SHARE_COLOURS), Normalize(0, 1)
    sheet.colour_bar(
        "least share of prompts over all lengths; framed: a sink at every length",
        colours,
        norm,
        grids.SHARES,
    )
    for column, curve in enumerate(curves):
        result = curve.over_lengths["result"]["consistent"]
        left, top = canvas.LEFT + column * each, sheet.top + 0.3
        axes = sheet.axes(left, top, map_width, height)
        grids.image(axes, np.array(result["min_share_per_head"]), grids.SHARE_COLOURS, norm)
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
        file_name("consistent", group, first.definition, f"{first.threshold:g}"),
        f"Heat map of the heads that are sinks at every length, for {group.name}.",
        "Left of each pair: a head's share of prompts at the length where it is least often a "
        "sink. Right: how many heads are sinks at every length up to this one. Layer 0 is at the "
        "bottom.",
    )
