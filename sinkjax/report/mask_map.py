"""The heat map of a mask: every head, coloured by its path."""

from collections.abc import Iterator

import numpy as np
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import KINDS
from sinkjax.masks.scores import group_size
from sinkjax.report import canvas
from sinkjax.report.canvas import Sheet

COLOURS = {
    "full": "#e9e9e9",
    "copy": canvas.VERMILLION,
    "window": "#56b4e9",
    "sink": canvas.BLUE,
}
_LEGEND_SPACE, _AXIS_SPACE = 0.3, 0.6  # inches


def mask_map(mask: SinkMask, name: str = "", num_kv_heads: int | None = None) -> Figure:
    """Draws a mask, layers up the side with layer 0 at the bottom, heads along.

    Args:
      mask: to draw.
      name: of the mask or its model, under the headline.
      num_kv_heads: K, to part the groups by lines; None for no lines.

    Returns:
      a figure of matplotlib's objects alone, with an Agg canvas.

    Raises:
      ValueError: where K does not divide N.
    """
    layers, heads = mask.num_layers, mask.num_heads
    size = heads if num_kv_heads is None else group_size(heads, num_kv_heads)
    width = heads * min(0.4, (canvas.WIDTH - canvas.LEFT - canvas.RIGHT) / heads)
    height = layers * min(0.25, max(0.1, 5.4 / layers))  # so that 30 layers fit a screen
    off = int(mask.masked.sum())
    sheet = Sheet(
        f"Masked heads: {off:,} of {layers * heads:,} ({off / (layers * heads):.1%})",
        f"{name}; mask {mask.digest[:16]}" if name else f"mask {mask.digest[:16]}",
        body=height + _AXIS_SPACE,
        key=_LEGEND_SPACE,
    )
    sheet.legend(_keys(mask))
    axes = sheet.axes(canvas.LEFT, sheet.top, width, height)
    axes.imshow(
        [[KINDS.index(path.kind) for path in layer] for layer in mask.heads],
        extent=(0, heads, 0, layers),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap([COLOURS[kind] for kind in KINDS]),
        norm=Normalize(0, len(KINDS) - 1),
    )
    axes.hlines(np.arange(1, layers), 0, heads, color="white", lw=0.5)
    axes.vlines(np.arange(1, heads), 0, layers, color="white", lw=0.5)
    axes.vlines(np.arange(size, heads, size), 0, layers, color=canvas.SOFT, lw=0.8)
    axes.set(xlim=(0, heads), ylim=(0, layers))
    canvas.numbered(axes.yaxis, layers, height, 0.15)
    canvas.numbered(axes.xaxis, heads, width, 0.2)
    canvas.label(axes, "head", "layer")
    return sheet.figure


def _keys(mask: SinkMask) -> Iterator[Patch]:
    """A key for each kind of path in the mask, with how many heads take it."""
    for kind, count in mask.counts().items():
        if count:
            paths = {str(path) for layer in mask.heads for path in layer if path.kind == kind}
            name = paths.pop() if len(paths) == 1 else f"{kind} ({len(paths)} kinds)"
            yield Patch(facecolor=COLOURS[kind], label=f"{name}: {count:,}")
