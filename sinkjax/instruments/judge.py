"""The KL of any mask on fixed excerpts, by one program for all masks."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.instruments.batches import batches
from sinkjax.instruments.compare import QualityStats, collect_stats
from sinkjax.instruments.patterns import copied_residuals, source_numbers
from sinkjax.instruments.token_losses import compare_tokens, token_divergences
from sinkjax.instruments.traced import traced_paths, traced_residuals
from sinkjax.masks.mask import SinkMask
from sinkjax.models.decoder import Llama

SCORE_FROM = 1
"""The first scored position: position 0 is the same under every mask."""


class Judge:
    """A baseline on W excerpts of T tokens, against which masks are held.

    The baseline's residual streams are kept, [W, T, D] in all; logits are there for a block of
    positions at a time. Masks have `full`, `window` and `sink` heads, or `full` and `copy` ones.
    """

    def __init__(
        self,
        model: Llama,
        excerpts: np.ndarray,
        *,
        fills: np.ndarray | None = None,
        rows: int | None = None,
    ):
        """Runs the baseline once.

        Args:
          model: every head `full`.
          excerpts: int32 [W, T], T at least 2.
          fills: float32 [L, N, H], for masks with `sink(mean)` heads.
          rows: excerpts that go through the model at once, as of `batches`; masks with `copy` heads
            keep L·N·T² numbers for each.
        """
        self._model, self._fills = model, fills
        self._batches = list(batches(excerpts, rows))
        self._baseline = list(self._residuals(SinkMask.full(model.config)))

    def __call__(self, mask: SinkMask) -> np.ndarray:
        """KL(baseline ‖ masked) in nats of each scored position: float32 [W, T - 1]."""
        parts = []
        for (_, count), *residuals in self._compared(mask):
            parts.append(np.asarray(token_divergences(self._model, *residuals))[:count])
        return np.concatenate(parts)

    def stats(self, mask: SinkMask) -> QualityStats:
        """KL, likelihoods and agreement of each scored position, as `compare` gives them."""
        parts = []
        for (tokens, count), *residuals in self._compared(mask):
            targets = jnp.roll(tokens, -1, axis=1)[:, SCORE_FROM:]
            compared = compare_tokens(self._model, self._model, *residuals, targets)
            parts.append(collect_stats(compared, SCORE_FROM, count))
        return QualityStats.join(parts)

    def _compared(
        self, mask: SinkMask
    ) -> Iterator[tuple[tuple[jax.Array, int], jax.Array, jax.Array]]:
        """Every batch, with the baseline's residuals and the mask's."""
        return zip(self._batches, self._baseline, self._residuals(mask), strict=True)

    def _residuals(self, mask: SinkMask) -> Iterator[jax.Array]:
        """Of the scored positions of every batch, [B, T - 1, D], under a mask."""
        if mask.counts()["copy"]:
            forward, heads = copied_residuals, source_numbers(mask)
        else:
            forward = traced_residuals
            heads = traced_paths(mask, self._model.config, fills=self._fills)
        for tokens, _ in self._batches:
            yield forward(self._model, tokens, heads)[:, SCORE_FROM:]
