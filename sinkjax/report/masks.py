"""The table of a mask's heads."""

from sinkjax.masks.mask import SinkMask
from sinkjax.masks.scores import group_size
from sinkjax.report import formats
from sinkjax.report.table import Table


def mask_table(mask: SinkMask, control: SinkMask, num_kv_heads: int) -> Table:
    """Which heads of each layer are masked, and how many groups that frees.

    Args:
      mask: to show.
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
