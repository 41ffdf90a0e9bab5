"""What moves in a search: heads or key/value groups, and over several chips as many on each."""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np

from sinkjax.instruments.sensitivity import Prediction
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.scores import group_size


class Units(NamedTuple):
    """The units of a search: neighbours in an order of each layer's heads.

    Attributes:
      order: int [L, N], heads.
      size: heads of a unit.
    """

    order: np.ndarray
    size: int

    def arranged(self, mask: SinkMask) -> SinkMask:
        """A mask with its heads in this order."""
        return _taken(mask, self.order)

    def restored(self, mask: SinkMask) -> SinkMask:
        """A mask in this order with its heads where they belong."""
        return _taken(mask, np.argsort(self.order, axis=1))

    def predicted(self, prediction: Prediction) -> Prediction:
        """A prediction with its heads in this order."""
        linear, products = (
            np.take_along_axis(costs, np.broadcast_to(self.order, costs.shape), axis=-1)
            for costs in (prediction.linear, prediction.products)
        )
        return dataclasses.replace(
            prediction, mask=self.arranged(prediction.mask), linear=linear, products=products
        )


def units_of(
    costs: np.ndarray, num_kv_heads: int, by: Literal["head", "group"], chips: int = 1
) -> Units:
    """The units that move as one.

    Over several chips groups of like costs are set side by side, one on each chip, and so are
    their heads: what moves on one chip moves on the others, and none of them waits.

    Args:
      costs: float [L, N], of masking each head.
      num_kv_heads: K.
      by: what a unit has on each chip.
      chips: which divide K.
    """
    layers, heads = costs.shape
    size = group_size(heads, num_kv_heads)
    of_chip = size if by == "group" else 1
    if chips == 1:
        return Units(np.tile(np.arange(heads), (layers, 1)), of_chip)
    grouped = costs.reshape(layers, num_kv_heads, size)
    ranked = np.argsort(grouped, axis=-1, kind="stable") + size * np.arange(num_kv_heads)[:, None]
    groups = np.argsort(grouped.sum(axis=-1), axis=1, kind="stable")
    beside = np.take_along_axis(ranked, groups[..., None], axis=1)
    beside = beside.reshape(layers, num_kv_heads // chips, chips, size)
    if by == "head":
        beside = beside.swapaxes(2, 3)
    return Units(beside.reshape(layers, heads), of_chip * chips)


def _taken(mask: SinkMask, order: np.ndarray) -> SinkMask:
    layers = zip(mask.heads, order.tolist(), strict=True)
    return SinkMask(tuple(tuple(paths[n] for n in heads) for paths, heads in layers))
