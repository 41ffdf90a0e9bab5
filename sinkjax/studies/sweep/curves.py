"""Figures with the prompt's length along the bottom: shares, conditionals, and the definitions."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from sinkjax.masks.definitions import BY_NAME, DEFINITIONS
from sinkjax.report import canvas, formats
from sinkjax.report.canvas import Sheet, key
from sinkjax.report.page import Picture
from sinkjax.report.records import grouped, numbers
from sinkjax.studies.sweep import findings
from sinkjax.studies.sweep.records import Curve, Group, probabilities
from sinkjax.studies.sweep.tables import layer_0
from sinkjax.studies.sweep.uniform import excess_from, uniform_score

_GAP = 0.85  # inches between panels with axes of their own
_FOUNDING = ((2, 0.7148), (24, 0.2285))  # the study's two shares, of Llama-3.2-1B at 0.9
_STAR = {"ls": "", "marker": "*", "ms": 10, "mfc": "white", "mec": canvas.INK}
_DOTS = {"color": canvas.VERMILLION, "ls": (0, (1, 1.5)), "lw": 1.6}
_DASHES = {"color": canvas.INK, "ls": canvas.DASHES}
_BANDS = (((0.1, 0.9), 0.16), ((0.25, 0.75), 0.28))  # quantiles over heads, and their opacity


def share_figure(group: Group, curves: Sequence[Curve]) -> Picture:
    """The share of sink heads against length: a column a source, a row a threshold."""
    sources = list(dict.fromkeys(curve.source_name for curve in curves))
    thresholds = list(dict.fromkeys(curve.threshold for curve in curves))
    definitions = list(dict.fromkeys(curve.definition for curve in curves))
    width, height, gap = _columns(len(sources)), 2.7, 0.95
    sheet = Sheet(
        findings.share_headline(curves[0]) + findings.whose(curves[0], curves),
        f"{curves[0].group_name}. Share of all {curves[0].num_heads} heads whose score is above "
        "the threshold; bands are intervals from resampling prompts",
        body=len(thresholds) * (height + gap) + 0.05,
        key=0.28,
    )
    handles = [key(definition, ms=5, **_style(definition)) for definition in definitions]
    # In one panel only: that of the group's first source, at the study's own threshold.
    lengths = [
        length
        for curve in curves
        for length in curve.lengths
        if (curve.source_name, curve.threshold) == (group.curves[0].source_name, 0.9)
    ]
    marks = [mark for mark in _FOUNDING if lengths and min(lengths) <= mark[0] <= max(lengths)]
    if marks:
        handles.append(key("founding study, Llama-3.2-1B", **_STAR))
    sheet.legend(handles)
    for row, threshold in enumerate(thresholds):
        for column, source in enumerate(sources):
            in_panel = [c for c in curves if (c.source_name, c.threshold) == (source, threshold)]
            if not in_panel:
                continue
            left = canvas.LEFT + column * (width + _GAP)
            axes = sheet.axes(left, sheet.top + 0.42 + row * (height + gap), width, height)
            if marks and threshold == 0.9 and column == 0:
                axes.plot(*zip(*marks, strict=True), zorder=5, **_STAR)
            lengths = sorted({length for curve in in_panel for length in curve.lengths})
            for curve in in_panel:
                _share_line(axes, curve)
            canvas.share_axis(axes)
            canvas.token_axis(axes, lengths, width)
            canvas.label(axes, "tokens in the prompt", "share of heads" if column == 0 else "")
            canvas.panel_title(axes, source, width, f"sinks above {threshold:g}")
    return sheet.picture(
        curves[0].file_name("share"),
        f"Lines of the share of sink heads against prompt length, for {curves[0].group_name}.",
        "Each line is one definition of the sink score. The threshold stays the same at every "
        "length; what it asks of a head does not, as the next figure shows. Stars, where there are "
        "any, are the two prompts of an unpublished study of Llama-3.2-1B (the founding study): "
        "another model, one prompt each, not this sweep.",
    )


def conditional_figure(curves: Sequence[Curve]) -> Picture:
    """What layer 0 tells of later layers, against length: a column a source."""
    width = _columns(len(curves))
    upper, lower, gap = 2.3, 2.0, 0.42
    first = curves[0]
    sheet = Sheet(
        findings.layer_0_headline(curves),
        f"{first.group_name}; sinks: {first.criterion}. Pairs of layer 0 and each later layer, "
        "same head index, all prompts pooled",
        body=0.35 + upper + gap + lower + 0.6,
        key=0.28,
    )
    sheet.legend(
        [
            key("P(later | layer 0 is a sink)", color=canvas.BLUE, marker="o", ms=5),
            key("P(later | layer 0 is not)", color=canvas.VERMILLION, marker="s", ms=5),
            key("base rate of later layers", **_DASHES),
            Patch(color=canvas.INK, alpha=0.15, label="shuffled heads"),
            key("undefined", color=canvas.SOFT, ls="", marker="x", ms=6),
        ]
    )
    for column, curve in enumerate(curves):
        left, top = canvas.LEFT + column * (width + _GAP), sheet.top + 0.32
        axes = sheet.axes(left, top, width, upper)
        canvas.share_axis(axes)
        _probabilities(axes, curve)
        canvas.token_axis(axes, curve.lengths, width)
        axes.xaxis.set_major_formatter(lambda *_: "")
        canvas.label(axes, y="probability" if column == 0 else "")
        canvas.panel_title(axes, curve.source_name, width)
        axes = sheet.axes(left, top + upper + gap, width, lower)
        _lifts(axes, curve)
        canvas.token_axis(axes, curve.lengths, width)
        canvas.label(axes, "tokens in the prompt", "lift (ratio)" if column == 0 else "")
    return sheet.picture(
        first.criterion_file_name("layer0"),
        "Conditional probability and lift of layer 0 against prompt length, for "
        f"{first.group_name}.",
        "Above: the founding study's conditional with what it has to be held against. Below: the "
        "lift, the conditional by the base rate. At 1 layer 0 tells nothing; a lift inside the "
        "grey band is chance: layer 0 with its heads renumbered at random, those that share a "
        "key/value head staying together, gives as much. Crosses "
        "mark lengths at which the lift is undefined; the table below says why. Bars that end in "
        "an arrow go on.",
    )


def definition_figure(curves: Sequence[Curve], key_position: int, tail: int) -> Picture:
    """How the scores of all heads, and a uniform one's, move with the length, a panel a definition.

    Args:
      curves: of one source.
      key_position, tail: of the sweep's scores.
    """
    first = curves[0]
    by_definition = grouped(curves, lambda curve: curve.definition)
    panels = [(d, of[0], [c.threshold for c in of]) for d, of in by_definition.items()]
    source = next((d for d in ("mean_excl_first", "mean") if d in by_definition), None)
    derivable = source and (source != "mean" or key_position == 0)
    if "excess" not in by_definition and derivable:
        panels.append(("excess", by_definition[source][0], []))
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    width, height, gap = _columns(columns, 0.75), 2.2, 1.0
    if columns == 1:
        width /= 2
    sheet = Sheet(
        "A fixed threshold gets stricter as prompts grow: uniform attention scores less and less"
        if set(by_definition) != {"excess"}
        else "How much more attention than uniform heads give, by prompt length",
        f"{first.group_name}; {formats.shortened(first.source_name)}. Scores of all "
        f"{first.num_heads} heads, each averaged over prompts",
        body=rows * (height + gap) - 0.1,
        key=0.28,
    )
    sheet.legend(
        [
            key("median head", color=canvas.BLUE, marker="o", ms=4),
            Patch(color=canvas.BLUE, alpha=0.4, label="middle half of the heads"),
            Patch(color=canvas.BLUE, alpha=0.16, label="middle 80%"),
            key("uniform attention", **_DASHES),
            key("threshold", **_DOTS),
        ]
    )
    for index, (definition, curve, thresholds) in enumerate(panels):
        row, column = divmod(index, columns)
        left, top = canvas.LEFT + column * (width + 0.75), sheet.top + 0.4 + row * (height + gap)
        axes = sheet.axes(left, top, width, height)
        scores = np.stack([np.ravel(result["mean_score"]) for result in curve.results])
        if definition not in by_definition:
            scores = np.stack(
                [
                    excess_from(at, curve.definition, T, key_position)
                    for at, T in zip(scores, curve.lengths, strict=True)
                ]
            )
        _score_bands(axes, curve.lengths, scores)
        uniform = [uniform_score(definition, T, key_position, tail) for T in curve.lengths]
        axes.plot(curve.lengths, uniform, lw=1.3, **_DASHES)
        for threshold in thresholds:
            axes.axhline(BY_NAME[definition].limit(threshold), **_DOTS)
        if BY_NAME[definition].range == (0, 1):
            canvas.share_axis(axes)
        canvas.grid(axes)
        canvas.token_axis(axes, curve.lengths, width)
        canvas.label(axes, "tokens in the prompt", BY_NAME[definition].unit)
        derived = "" if definition in by_definition else f"computed from {curve.definition}"
        canvas.panel_title(axes, definition, width, derived or BY_NAME[definition].queries)
    return sheet.picture(
        first.file_name("definitions", first.source_name),
        f"Scores of all heads under each definition against prompt length, for {first.group_name}.",
        "The distance between the dashed line and the dotted one is what a head has to do on its "
        "own to count as a sink. It grows with the length under every definition but those that "
        "take the uniform part off. So a falling share of sinks is in part the threshold "
        "getting stricter, not the heads changing: look at log_odds and excess for the heads.",
    )


def _columns(count: int, gap: float = _GAP) -> float:
    """The width of panels side by side; a single one is not drawn wider than two thirds."""
    width = (canvas.WIDTH - canvas.LEFT - canvas.RIGHT - (count - 1) * gap) / count
    return min(width, 6.2)


def _style(definition: str) -> dict[str, str]:
    index = DEFINITIONS.index(definition)
    colours, markers = canvas.COLOURS, canvas.MARKERS
    return {"color": colours[index % len(colours)], "marker": markers[index % len(markers)]}


def _share_line(axes: Axes, curve: Curve) -> None:
    shares = [result["sinks"]["share"] for result in curve.results]
    style = _style(curve.definition)
    axes.plot(curve.lengths, numbers(shares), ms=5, lw=1.6, **style)
    low, high = numbers(shares, "low"), numbers(shares, "high")
    axes.fill_between(curve.lengths, low, high, color=style["color"], alpha=0.18, lw=0)


def _probabilities(axes: Axes, curve: Curve) -> None:
    conditionals = [layer_0(cell) for cell in curve.cells]
    values = probabilities(conditionals)
    axes.plot(curve.lengths, values["base_rate"], lw=1.3, zorder=3, **_DASHES)
    axes.plot(curve.lengths, values["given_not"], color=canvas.VERMILLION, marker="s", ms=5, lw=1.4)
    axes.plot(curve.lengths, values["given_sink"], color=canvas.BLUE, marker="o", ms=5, lw=1.6)
    _bars(axes, curve.lengths, [c["given_sink"] for c in conditionals])


def _lifts(axes: Axes, curve: Curve) -> None:
    conditionals = [layer_0(cell) for cell in curve.cells]
    lifts = numbers(c["lift"] for c in conditionals)
    control = [c["shuffled"]["lift"] for c in conditionals]
    low, high = numbers(control, "low"), numbers(control, "high")
    reach = 1.25 * np.nanmax(np.abs([*(lifts - 1), *(low - 1), *(high - 1), 0.2]))
    axes.set_ylim(max(-0.02, 1 - reach), 1 + reach)
    canvas.grid(axes)
    axes.axhline(1, color=canvas.SOFT, lw=1)
    axes.fill_between(curve.lengths, low, high, color=canvas.INK, alpha=0.15, lw=0)
    # A band needs a neighbour: alone, it would not be seen.
    padded = np.pad(low, 1, constant_values=np.nan)
    alone = ~np.isnan(low) & np.isnan(padded[:-2]) & np.isnan(padded[2:])
    axes.vlines(np.array(curve.lengths)[alone], low[alone], high[alone], color="#dddddd", lw=8)
    axes.plot(curve.lengths, lifts, color=canvas.BLUE, marker="o", ms=5, lw=1.6)
    _bars(axes, curve.lengths, [c["lift"] for c in conditionals])
    _crosses(axes, curve.lengths, lifts)


def _bars(axes: Axes, lengths: Sequence[int], estimates: Sequence[dict]) -> None:
    """Intervals, with an arrow where one leaves the axes."""
    bottom, top = axes.get_ylim()
    style = {"color": canvas.BLUE, "ms": 6, "clip_on": False}
    for length, estimate in zip(lengths, estimates, strict=True):
        if estimate["value"] is None or estimate["low"] is None:
            continue
        low, high = max(estimate["low"], bottom), min(estimate["high"], top)
        axes.vlines(length, low, high, color=canvas.BLUE, lw=1.3)
        if estimate["high"] > top:
            axes.plot(length, top, marker="^", **style)
        if estimate["low"] < bottom:
            axes.plot(length, bottom, marker="v", **style)


def _crosses(axes: Axes, lengths: Sequence[int], values: np.ndarray) -> None:
    """Marks, on the floor of the axes, lengths at which a value does not exist."""
    missing = [length for length, value in zip(lengths, values, strict=True) if np.isnan(value)]
    bottom, top = axes.get_ylim()
    floor = [bottom + 0.04 * (top - bottom)] * len(missing)
    axes.plot(missing, floor, "x", ms=6, color=canvas.SOFT)


def _score_bands(axes: Axes, lengths: Sequence[int], scores: np.ndarray) -> None:
    """The spread over heads of scores [lengths, heads]."""
    for quantiles, opacity in _BANDS:
        low, high = np.quantile(scores, quantiles, axis=1)
        axes.fill_between(lengths, low, high, color=canvas.BLUE, alpha=opacity, lw=0)
    axes.plot(lengths, np.median(scores, axis=1), color=canvas.BLUE, marker="o", ms=4, lw=1.5)
