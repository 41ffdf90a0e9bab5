"""Heat maps with layers up the side, for the figures of heads and of layers."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from sinkjax.report import canvas, formats
from sinkjax.report.canvas import Picture, Sheet
from sinkjax.studies.sweep.records import Curve, Group, file_name

SHARE_COLOURS, SIGNED_COLOURS = "GnBu", "PuOr_r"
SHARES = {0.0: "0%", 0.25: "25%", 0.5: "50%", 0.75: "75%", 1.0: "100%"}  # ticks of a colour bar
BAR_SPACE = 0.5  # inches that a colour bar takes

_PANEL_GAP = 0.17  # inches between the panels of a mosaic


def mosaic(
    group: Group,
    curve: Curve,
    panels: Sequence[np.ndarray],
    *,
    title: str,
    subtitle: str,
    label: str,
    colours: str,
    norm: Normalize,
    ticks: dict[float, str],
    name: tuple[str, ...],
    caption: str,
) -> Picture:
    """Heat maps of [L, N], one a length. A row of them shares one Axes: far faster to draw."""
    L, N = panels[0].shape
    cell_height, cell_width, columns = _cells(L, N, len(panels))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    panel_height, gap_y = L * cell_height, 0.62
    sheet = Sheet(title, subtitle, body=len(rows) * (panel_height + gap_y) + 0.05, key=BAR_SPACE)
    sheet.colour_bar(label, canvas.colour_map(colours), norm, ticks)
    gap = _PANEL_GAP / cell_width  # in heads
    for row, shown in enumerate(rows):
        count = len(shown)
        width = count * N + (count - 1) * gap  # in heads
        top = sheet.top + 0.24 + row * (panel_height + gap_y)
        axes = sheet.axes(canvas.LEFT, top, width * cell_width, panel_height)
        names = {}
        for index, panel in enumerate(shown):
            start = index * (N + gap)
            image(axes, panel, colours, norm, start)
            head_lines(axes, curve, start, cell_width)
            length = formats.count(curve.lengths[row * columns + index])
            axes.annotate(
                f"{length} tokens",
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
        canvas.label(axes, "head" if row == len(rows) - 1 else "", "layer")
    return sheet.picture(
        file_name(name[0], group, *name[1:], curve.source_name),
        f"Heat maps of layers by heads, one for each prompt length, for {group.name}: {label}.",
        caption,
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


def image(
    axes: Axes, values: np.ndarray, colours: str, norm: Normalize, start: float = 0.0
) -> None:
    """Values [rows, columns], row 0 at the bottom, one unit a square; NaN is left blank."""
    rows, columns = values.shape
    axes.imshow(
        np.ma.masked_invalid(np.clip(values, norm.vmin, norm.vmax)),
        extent=(start, start + columns, 0, rows),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap=canvas.colour_map(colours),
        norm=norm,
    )


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
