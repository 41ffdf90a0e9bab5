"""The KL of masks on fixed excerpts, by one program for all masks."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.distributed import to_host
from sinkjax.instruments.batches import batches
from sinkjax.instruments.compare import QualityStats, collect_stats
from sinkjax.instruments.patterns import copied_residuals, source_numbers
from sinkjax.instruments.token_losses import OutputHead, compare_tokens, token_divergences
from sinkjax.instruments.traced import traced_paths, traced_residuals
from sinkjax.masks.mask import SinkMask
from sinkjax.models.decoder import Llama
from sinkjax.models.finite import check_finite

SCORE_FROM = 1
"""The first scored position: position 0 is the same under every mask."""


class Judge:
    """A baseline on W excerpts of T tokens, with which masks are compared.

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
        """Takes the model as it is; the baseline runs when the first mask is judged.

        Args:
          model: every head `full`.
          excerpts: int32 [W, T], T at least 2.
          fills: float32 [L, N, H], for masks with `sink(mean)` heads.
          rows: excerpts that go through the model at once, as of `batches`; masks with `copy` heads
            keep L·N·T² numbers for each.
        """
        self._model, self._head, self._fills = model, OutputHead(model), fills
        self._batches = list(batches(model, excerpts, rows))
        self._baseline: dict[Callable, list[jax.Array]] = {}  # by program, where it was needed

    def __call__(self, mask: SinkMask) -> np.ndarray:
        """KL(baseline ‖ masked) in nats of each scored position: float32 [W, T - 1]."""
        parts = []
        for (_, count), *residuals in self._compared(mask):
            parts.append(to_host(token_divergences(self._head, *residuals))[:count])
            check_finite("logits", parts[-1])
        return np.concatenate(parts)

    def stats(self, mask: SinkMask, generated: int = 0) -> QualityStats:
        """KL, likelihoods and agreement of each scored position, as `compare` gives them.

        The last `generated` positions are taken as those of tokens that are decoded after a prompt:
        no cache is there, but what a head attends to is the same.
        """
        parts = []
        for (tokens, count), *residuals in self._compared(mask):
            targets = jnp.roll(tokens, -1, axis=1)[:, SCORE_FROM:]
            compared = compare_tokens(self._head, self._head, *residuals, targets)
            parts.append(collect_stats(compared, SCORE_FROM, count))
            check_finite("logits", parts[-1].kl)
        return QualityStats.join(parts).set_apart(generated)

    def _compared(
        self, mask: SinkMask
    ) -> Iterator[tuple[tuple[jax.Array, int], jax.Array, jax.Array]]:
        """Every batch, with the residuals of its scored positions, the baseline's and the mask's.

        Both are of one program, in which a mask that changes nothing has a KL of exactly 0.
        """
        config = self._model.config
        if mask.counts()["copy"]:
            forward, heads_of = copied_residuals, source_numbers
        else:
            forward = traced_residuals
            heads_of = functools.partial(traced_paths, config=config, fills=self._fills)

        def residuals(mask: SinkMask) -> Iterator[jax.Array]:
            heads = heads_of(mask)
            for tokens, _ in self._batches:
                yield forward(self._model, tokens, heads)[:, SCORE_FROM:]

        if forward not in self._baseline:
            self._baseline[forward] = list(residuals(SinkMask.full(config)))
        return zip(self._batches, self._baseline[forward], residuals(mask), strict=True)
