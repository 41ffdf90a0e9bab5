"""Masks made of a ranking of heads, and the random masks that a choice has to beat."""

from collections.abc import Sequence

import numpy as np

from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Copy, Full, Path
from sinkjax.masks.scores import Scores, group_size, ranks

_CONTROL = 2  # tells these draws from others of the same seed


def by_ranking(
    scores: Scores, paths: Sequence[Path], *, num_kv_heads: int | None = None
) -> SinkMask:
    """Returns the mask of the heads, or groups, that rank highest, the i-th on the i-th path.

    Scores and K are as of `ranks`; for heads' errors give their negatives.

    Raises:
      ValueError: for more paths than heads, or groups, and as `ranks`. Also InputError of
        `SinkMask`.
    """
    places = ranks(scores, num_kv_heads)
    if len(paths) > (units := places.max() + 1):
        raise ValueError(f"{len(paths)} paths are given for {units} heads or groups")
    by_place = [*paths, *[Full()] * (units - len(paths))]
    return SinkMask(tuple(tuple(by_place[place] for place in layer) for layer in places.tolist()))


def random_control(mask: SinkMask, *, seed: int, num_kv_heads: int | None = None) -> SinkMask:
    """Returns the same paths in every layer, each on a head drawn at random.

    Counts per layer and kind stay. A copy follows the head that it copies to where that one went;
    for the control of `copy_first_layer`, draw the heads first and let those copy.

    Args:
      mask: to control for.
      seed: not negative.
      num_kv_heads: K, to move whole groups, their heads in order, so that as many groups lose their
        keys and values as in the mask; None to move heads one by one.

    Raises:
      ValueError: for K that does not divide N, or a negative seed.
    """
    rng = np.random.default_rng((_CONTROL, seed))
    size = 1 if num_kv_heads is None else group_size(mask.num_heads, num_kv_heads)
    heads = np.arange(mask.num_heads).reshape(-1, size)
    drawn = [rng.permutation(heads).ravel() for _ in mask.heads]  # drawn[l][new head] = old head
    went = np.argsort(drawn, axis=1)  # went[l][old head] = new head

    def moved(path: Path) -> Path:
        return Copy(path.layer, went[path.layer, path.head]) if isinstance(path, Copy) else path

    return SinkMask(
        tuple(
            tuple(moved(layer[head]) for head in order)
            for layer, order in zip(mask.heads, drawn, strict=True)
        )
    )
