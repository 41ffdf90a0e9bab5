"""Heat maps with layers up the side, for the figures of heads and of layers."""

import math
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.patches import Rectangle

from sinkjax.report import canvas, formats
from sinkjax.report.canvas import Scale, Sheet
from sinkjax.report.page import Picture
from sinkjax.studies.sweep.records import Curve


def _colours(name: str) -> Colormap:
    """A colour map of matplotlib's whose missing values are blank."""
    return matplotlib.colormaps[name].with_extremes(bad=(1, 1, 1, 0))


SHARE_COLOURS, SIGNED_COLOURS = _colours("GnBu"), _colours("PuOr_r")
SHARES = Scale(
    SHARE_COLOURS, Normalize(0, 1), {0.0: "0%", 0.25: "25%", 0.5: "50%", 0.75: "75%", 1.0: "100%"}
)
RATIOS = Scale(
    SIGNED_COLOURS, LogNorm(1 / 4, 4), {0.25: "≤1/4", 0.5: "1/2", 1.0: "1", 2.0: "2", 4.0: "≥4"}
)
BAR_SPACE = 0.5  # inches that a colour bar takes

_PANEL_GAP = 0.17  # inches between the panels of a mosaic


def mosaic(
    curve: Curve,
    quantity: str,
    scale: Scale,
    *,
    title: str,
    detail: str,
    label: str,
    file_name: str,
    caption: str,
) -> Picture:
    """Heat maps of a result's [L][N], one a length. A row of them shares one Axes: far faster."""
    panels = [np.array(result[quantity]) for result in curve.results]
    L, N = panels[0].shape
    cell_height, cell_width, columns = _cells(L, N, len(panels))
    rows = math.ceil(len(panels) / columns)
    panel_height, gap_y = L * cell_height, 0.62
    sheet = Sheet(
        title,
        f"{curve.group_name}; {formats.shortened(curve.source_name)}; {detail}",
        body=rows * (panel_height + gap_y) + 0.05,
        key=BAR_SPACE,
    )
    sheet.colour_bar(label, scale)
    gap = _PANEL_GAP / cell_width  # in heads
    for row in range(rows):
        in_row = slice(row * columns, (row + 1) * columns)
        count = len(panels[in_row])
        width = count * N + (count - 1) * gap  # in heads
        top = sheet.top + 0.24 + row * (panel_height + gap_y)
        axes = sheet.axes(canvas.LEFT, top, width * cell_width, panel_height)
        names = {}
        panels_by_length = zip(curve.lengths[in_row], panels[in_row], strict=True)
        for index, (length, panel) in enumerate(panels_by_length):
            start = index * (N + gap)
            canvas.image(axes, panel, scale, start)
            head_lines(axes, curve, start, cell_width)
            axes.annotate(
                f"{formats.count(length)} tokens",
                (start, L),
                xytext=(0, 3),
                textcoords="offset points",
                size=canvas.SMALL,
                weight="bold",
                color=canvas.INK,
            )
            for number in canvas.steps(N, N * cell_width, 0.22):
                names[start + number + 0.5] = str(number)
        axes.set(xlim=(0, width), ylim=(0, L))
        axes.spines["bottom"].set_visible(False)
        canvas.numbered(axes.yaxis, L, panel_height, 0.15)
        canvas.name_squares(axes.xaxis, names)
        canvas.label(axes, "head" if row == rows - 1 else "", "layer")
    return sheet.picture(
        file_name,
        f"Heat maps of layers by heads, one for each prompt length, for {curve.group_name}: "
        f"{label}.",
        f"{caption} Layer 0 is at the bottom. Fine lines part the groups of heads that share keys "
        "and values.",
    )


def _cells(num_layers: int, num_heads: int, count: int) -> tuple[float, float, int]:
    """Height and width of one head's square in inches, whole pixels, and the panels in a row."""
    usable = canvas.WIDTH - canvas.LEFT - canvas.RIGHT + _PANEL_GAP
    least = max(0.6, min(0.1, max(1.6 / num_heads, 0.03)) * num_heads)  # inches of a panel
    most = max(1, int(usable / (least + _PANEL_GAP)))
    rows = math.ceil(count / most)
    columns = math.ceil(count / rows)
    width = min((usable / columns - _PANEL_GAP) / num_heads, 0.3)
    height = min(max(2.4 / num_layers, 0.025), 0.18)
    pixels = 1 / canvas.DPI
    return max(height // pixels, 1) * pixels, max(width // pixels, 1) * pixels, columns


def columns_by_length(
    sheet: Sheet,
    curves: Sequence[Curve],
    draw: Callable[[Axes, Curve], None],
    side: str,
    num_rows: int,
) -> None:
    """Panels of layers against lengths, one a source, as wide as their lengths need."""
    gap = 0.5
    usable = canvas.WIDTH - canvas.LEFT - canvas.RIGHT - gap * (len(curves) - 1)
    each = min(0.62, usable / sum(len(curve.cells) for curve in curves))
    height = layer_height(curves[0])
    left = canvas.LEFT
    for index, curve in enumerate(curves):
        count = len(curve.cells)
        axes = sheet.axes(left, sheet.top + 0.3, each * count, height)
        draw(axes, curve)
        axes.set(xlim=(0, count), ylim=(0, num_rows))
        canvas.numbered(axes.yaxis, num_rows, height, 0.15)
        lengths = map(formats.count, curve.lengths)
        canvas.name_squares(axes.xaxis, {n + 0.5: length for n, length in enumerate(lengths)})
        if each < 0.42:
            axes.tick_params(axis="x", labelsize=7)
        canvas.label(axes, "tokens in the prompt", side if index == 0 else "")
        canvas.panel_title(axes, curve.source_name, each * count)
        left += each * count + gap


def head_lines(axes: Axes, curve: Curve, start: float, cell_width: float) -> None:
    """Lines between the groups of heads, and a frame."""
    L, N = curve.model["num_layers"], curve.model["num_heads"]
    size = N // curve.model["num_kv_heads"]
    if size > 1 and size * cell_width > 0.1:
        axes.vlines([start + n for n in range(size, N, size)], 0, L, color="#c4c4c4", lw=0.6)
    axes.add_patch(
        Rectangle((start, 0), N, L, fill=False, edgecolor=canvas.FAINT, lw=0.7, clip_on=False)
    )


def layer_height(curve: Curve) -> float:
    return min(3.4, max(1.5, curve.model["num_layers"] * 0.09))
