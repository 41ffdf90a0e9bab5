"""What studies mask at a time: a head or a key/value group, and over several chips one on each."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from sinkjax.errors import Problem, problems_of
from sinkjax.instruments.sensitivity import Prediction
from sinkjax.masks.choose import by_ranking, random_control
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Path
from sinkjax.masks.scores import group_size
from sinkjax.studies.settings import at_least, setting
from sinkjax.studies.study import Study


class Units(NamedTuple):
    """Heads that are masked together: neighbours in an order of each layer's heads.

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

    def by_ranking(self, scores: np.ndarray, paths: Sequence[Path]) -> SinkMask:
        """The mask of the units that rank highest, the i-th on the i-th path.

        Args:
          scores: float [L, N], of heads; a unit ranks by its lowest.
          paths: of as many units.
        """
        arranged = np.take_along_axis(scores, self.order, axis=1)
        return self.restored(by_ranking(arranged, paths, num_kv_heads=self.of_layer))

    def random_control(self, mask: SinkMask, seed: int) -> SinkMask:
        """The same paths in every layer, each on a unit drawn at random."""
        drawn = random_control(self.arranged(mask), seed=seed, num_kv_heads=self.of_layer)
        return self.restored(drawn)

    @property
    def of_layer(self) -> int:
        """The number of units in a layer."""
        return self.order.shape[1] // self.size


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


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ChipsStudy(Study):
    """A study that chooses masks, for one chip or for several that divide the key/value heads."""

    chips: int = setting(
        1,
        "Number of chips that key/value heads are divided over: heads move on all of them at once, "
        "so that every chip has as much to do as the fullest.",
    )

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from at_least(self, chips=1)

    def plan_problems(self) -> Iterator[Problem]:
        yield from super().plan_problems()
        if self.chips > 1:
            yield from problems_of(lambda: self.on_fullest(SinkMask.full(self.subject.config)))

    def together(self, costs: np.ndarray, by: Literal["head", "group"] = "head") -> Units:
        """Returns what `units_of` does, for as many chips."""
        return units_of(costs, self.subject.config.num_kv_heads, by, self.chips)

    def on_fullest(self, mask: SinkMask) -> SinkMask:
        """The mask that saves in all what this one saves on the fullest chip."""
        kv_heads = self.subject.config.num_kv_heads
        return mask.balanced(self.chips, kv_heads) if self.chips > 1 else mask

    def over_chips(self) -> dict[str, int]:
        """What specifications and records say of chips: nothing of one, as in earlier versions."""
        return {"chips": self.chips} if self.chips > 1 else {}
