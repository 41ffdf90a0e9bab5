"""The KL of any mask on fixed windows, by one program for all masks."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.instruments.compare import BATCH_TOKENS, QualityStats, collect_stats
from sinkjax.instruments.token_losses import compare_tokens, token_divergences
from sinkjax.instruments.traced import select_paths, selected_residuals
from sinkjax.instruments.traced_attention import Selection
from sinkjax.masks.mask import SinkMask
from sinkjax.models.decoder import Llama

SCORE_FROM = 1
"""The first scored position: position 0 is the same under every mask."""


class Judge:
    """A baseline on W windows of T tokens, against which masks are held.

    The baseline's residual streams are kept, [W, T, D] in all; logits are there for a block of
    positions at a time.
    """

    def __init__(self, model: Llama, windows: np.ndarray, *, fills: np.ndarray | None = None):
        """Runs the baseline once.

        Args:
          model: every head `full`.
          windows: int32 [W, T], T at least 2.
          fills: float32 [L, N, H], for masks with `sink(mean)` heads.
        """
        self._model, self._fills, self.windows = model, fills, windows
        full = select_paths(SinkMask.full(model.config), model.config)
        self._baseline = [self._residuals(tokens, full) for tokens, _ in self._batches()]

    def __call__(self, mask: SinkMask) -> np.ndarray:
        """KL(baseline ‖ masked) in nats of each scored position: float32 [W, T - 1]."""
        selection = select_paths(mask, self._model.config, fills=self._fills)
        parts = []
        for (tokens, count), baseline in zip(self._batches(), self._baseline, strict=True):
            residual = self._residuals(tokens, selection)
            kl = token_divergences(self._model, baseline, residual)
            parts.append(np.asarray(kl)[:count])
        return np.concatenate(parts)

    def stats(self, mask: SinkMask) -> QualityStats:
        """KL, likelihoods and agreement of each scored position, as of `sinkjax.quality`."""
        selection = select_paths(mask, self._model.config, fills=self._fills)
        parts = []
        for (tokens, count), baseline in zip(self._batches(), self._baseline, strict=True):
            compared = compare_tokens(
                self._model,
                self._model,
                baseline,
                self._residuals(tokens, selection),
                jnp.roll(tokens, -1, axis=1)[:, SCORE_FROM:],
            )
            parts.append(collect_stats(compared, SCORE_FROM, count))
        return QualityStats.join(parts)

    def _residuals(self, tokens: jax.Array, selection: Selection) -> jax.Array:
        return selected_residuals(self._model, tokens, selection)[:, SCORE_FROM:]

    def _batches(self) -> Iterator[tuple[jax.Array, int]]:
        return batches(self.windows)


def batches(windows: np.ndarray) -> Iterator[tuple[jax.Array, int]]:
    """Windows [W, T] in batches of one shape, and how many of each are no repetition."""
    count, length = windows.shape
    size = min(count, max(1, BATCH_TOKENS // length))
    for start in range(0, count, size):
        chunk = windows[start : start + size]
        filled = np.resize(chunk, (size, length)).astype(np.int32)
        yield jnp.asarray(filled), len(chunk)
