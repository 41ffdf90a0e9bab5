"""A mask as a table, and as a heat map of every head, coloured by its path."""

from collections.abc import Iterator

import numpy as np
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import KINDS
from sinkjax.masks.scores import group_size
from sinkjax.report import canvas, formats
from sinkjax.report.canvas import Scale, Sheet
from sinkjax.report.table import Table

_FIRST = ("#e9e9e9", canvas.VERMILLION, "#56b4e9", canvas.BLUE)
COLOURS = dict(zip(KINDS, (*_FIRST, *canvas.COLOURS[2:]), strict=False))
_SCALE = Scale(ListedColormap([COLOURS[kind] for kind in KINDS]), Normalize(0, len(KINDS) - 1))


def mask_table(mask: SinkMask, control: SinkMask, num_kv_heads: int) -> Table:
    """Which heads of each layer are masked, and how many groups that frees.

    Args:
      control: as many heads a layer, drawn at random.
      num_kv_heads: K, which divides N.
    """
    off = mask.masked
    layers, heads = off.shape
    ours, controls = _whole_groups(mask, num_kv_heads), _whole_groups(control, num_kv_heads)
    rows = [
        [
            str(layer),
            f"{off[layer].sum()} of {heads}",
            str(ours[layer]),
            str(controls[layer]),
            ", ".join(map(str, off[layer].nonzero()[0])),
        ]
        for layer in range(layers)
        if off[layer].any()
    ]
    total = f"{formats.count(off.sum())} of {formats.count(off.size)}"
    rows.append(["all", total, str(sum(ours)), str(sum(controls)), ""])
    paths = dict.fromkeys(path for layer in mask.heads for path in layer if path.kind != "full")
    kinds = [str(path) for path in paths if path.kind != "copy"]
    kinds += ["copy"] if any(path.kind == "copy" for path in paths) else []
    return Table(
        title=f"Masked heads: {total} ({formats.percent(off.mean())}), to {', '.join(kinds)}",
        columns=("layer", "masked", "whole\ngroups", "control's", "heads"),
        rows=rows,
        notes=(
            f"Whole groups: of {num_kv_heads} a layer, those whose {heads // num_kv_heads} heads "
            "are all masked, so that their keys, values or cache can go, too.",
            "Control: as many heads a layer on the same paths, drawn at random.",
        ),
    )


def _whole_groups(mask: SinkMask, num_kv_heads: int) -> list[int]:
    """How many groups of each layer have no head on `full`."""
    size = group_size(mask.num_heads, num_kv_heads)
    grouped = mask.masked.reshape(mask.num_layers, num_kv_heads, size)
    return grouped.all(axis=-1).sum(axis=-1).tolist()


def mask_map(mask: SinkMask, name: str, num_kv_heads: int) -> Figure:
    """Draws a mask, layers up the side with layer 0 at the bottom, heads along.

    Args:
      name: of the mask or its model, under the headline.
      num_kv_heads: K, to part the groups by lines.

    Returns:
      a figure of matplotlib's objects alone, with an Agg canvas.

    Raises:
      ValueError: where K does not divide N.
    """
    layers, heads = mask.num_layers, mask.num_heads
    size = group_size(heads, num_kv_heads)
    width = heads * min(0.4, (canvas.WIDTH - canvas.LEFT - canvas.RIGHT) / heads)
    height = layers * min(0.25, max(0.1, 5.4 / layers))  # so that 30 layers fit a screen
    off = int(mask.masked.sum())
    sheet = Sheet(
        f"Masked heads: {off:,} of {layers * heads:,} ({off / (layers * heads):.1%})",
        f"{name}; mask {mask.digest[:16]}",
        body=height + 0.6,
        key=0.3,
    )
    sheet.legend(_keys(mask))
    axes = sheet.axes(canvas.LEFT, sheet.top, width, height)
    kinds = np.array([[KINDS.index(path.kind) for path in layer] for layer in mask.heads])
    canvas.image(axes, kinds, _SCALE)
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
