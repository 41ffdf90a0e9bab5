"""Source maps to masks: which heads copy, and what.

A head can copy `full` heads of earlier layers alone, and one that copies is not copied. So pairs of
a head and a source are taken from the best on, each unless it breaks that rule: the masks of
growing sizes are nested.
"""

import numpy as np

from sinkjax.errors import InputError, Problem
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Copy, Full, Path

VARIANTS = ("layer_0", "adjacent", "pattern", "output")
"""What a head may copy: layer 0's head of its own index; any head of the layer before; any earlier
head. The first two and the last choose by the own error under `copy`, `pattern` by the distance of
patterns."""

_SHUFFLING = 7  # tells these draws from others of the same seed


def copy_mask(fit: np.ndarray, variant: str, count: int) -> SinkMask:
    """The mask in which the `count` heads with the best sources copy them.

    Args:
      fit: float [L, N, L, N], of `SourceFit`, by the criterion of the variant; lower is better.

    Raises:
      InputError: where fewer heads can.
    """
    layers, heads = fit.shape[:2]
    allowed = np.where(allowed_sources(variant, layers, heads), fit, np.inf)
    paths: list[list[Path]] = [[Full()] * heads for _ in range(layers)]
    copied = np.zeros((layers, heads), bool)
    source = np.zeros((layers, heads), bool)
    left = count
    for pair in np.argsort(allowed, axis=None, kind="stable")[: np.isfinite(allowed).sum()]:
        if not left:
            break
        layer, head, from_layer, from_head = np.unravel_index(pair, fit.shape)
        if copied[layer, head] or source[layer, head] or copied[from_layer, from_head]:
            continue
        copied[layer, head] = source[from_layer, from_head] = True
        paths[layer][head] = Copy(from_layer, from_head)
        left -= 1
    if left:
        most = f"{count - left} can at most by {variant!r}: give smaller shares"
        raise InputError(Problem("shares", None, f"{count} heads are to copy, and {most}"))
    return SinkMask(tuple(map(tuple, paths)))


def shuffled_copies(mask: SinkMask, *, seed: int) -> SinkMask:
    """The same heads copying other ones: each draws among all earlier heads that do not copy."""
    rng = np.random.default_rng((_SHUFFLING, seed))
    full = ~mask.masked

    def drawn(path: Path, sources: np.ndarray) -> Path:
        return Copy(*sources[rng.integers(len(sources))]) if isinstance(path, Copy) else path

    return mask.replaced(drawn, [np.argwhere(full[:layer]) for layer in range(len(full))])


def allowed_sources(variant: str, layers: int, heads: int) -> np.ndarray:
    """Which sources a variant has: bool [L, N, L, N]."""
    layer, head, from_layer, from_head = np.indices((layers, heads, layers, heads))
    if variant == "layer_0":
        return (from_layer == 0) & (from_head == head) & (layer > 0)
    if variant == "adjacent":
        return from_layer == layer - 1
    return from_layer < layer
