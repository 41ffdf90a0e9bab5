"""Two models on the same tokens, teacher-forced."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from sinkjax.errors import InputError
from sinkjax.instruments.token_losses import TOP, Comparison, compare_tokens, residuals
from sinkjax.models.decoder import Llama

BATCH_TOKENS = 2048
"""Tokens that go through a model at once, unless the caller says otherwise."""


@dataclasses.dataclass(frozen=True, eq=False)
class QualityStats:
    """What each position of W windows says; P positions are scored, one after the other.

    The last position of a window has a prediction, and so a KL, but no next token there.

    Attributes:
      positions: int32 [P], counted from the window's first token.
      kl: float32 [W, P], KL(baseline ‖ candidate) in nats.
      top1: bool [W, P], whether both find the same token likeliest.
      top5: float32 [W, P], the share of the baseline's five likeliest tokens that are among the
        candidate's five.
      baseline_nll, candidate_nll: float32 [W, P - 1], -ln of the next token's probability.
      baseline_correct, candidate_correct: bool [W, P - 1], whether it is the likeliest.
    """

    positions: np.ndarray
    kl: np.ndarray
    top1: np.ndarray
    top5: np.ndarray
    baseline_nll: np.ndarray
    candidate_nll: np.ndarray
    baseline_correct: np.ndarray
    candidate_correct: np.ndarray

    @classmethod
    def join(cls, parts: Sequence["QualityStats"]) -> "QualityStats":
        """The windows of all parts, in order; they have the same positions."""
        arrays = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(cls)
        }
        return cls(**{**arrays, "positions": parts[0].positions})

    def arrays(self) -> dict[str, np.ndarray]:
        """The attributes by name, to be kept; `QualityStats(**arrays)` is their inverse."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def compare(
    baseline: Llama,
    candidate: Llama,
    windows: np.ndarray,
    *,
    score_from: int = 1,
    batch_size: int | None = None,
) -> QualityStats:
    """How a candidate's predictions differ from the baseline's on the same tokens.

    Both see the text as it is, whatever they would have said themselves. Logits are there for a few
    positions at a time (`sinkjax.instruments.token_losses`): beside the models, memory holds their
    residual streams [batch, T, D] and what one layer needs.

    Args:
      baseline, candidate: each a `Llama`, or what `sinkjax.specialize` makes of one, of the same
        vocabulary.
      windows: int [W, T], full windows.
      score_from: the first position that is scored, below T. Position 0 attends to itself alone and
        is the same under every mask: from it on, means would be diluted.
      batch_size: windows that go through a model at once; None for as many as have `BATCH_TOKENS`.

    Raises:
      InputError: for a model whose logits are not finite.
      TypeError: for windows that are not whole numbers.
      ValueError: for windows that are not [W, T] or not in the vocabulary, a `score_from` outside
        of them, models of different vocabularies.
    """
    windows = np.asarray(windows)
    _check(baseline, candidate, windows, score_from, batch_size)
    count, length = windows.shape
    batch_size = batch_size or min(count, max(1, BATCH_TOKENS // length))
    parts = []
    for start in range(0, count, batch_size):
        chunk = windows[start : start + batch_size].astype(np.int32)
        # Filled up to the shape of the other batches, so that one program serves them all.
        tokens = jnp.asarray(np.resize(chunk, (batch_size, length)))
        compared = compare_tokens(
            baseline,
            candidate,
            residuals(baseline, tokens)[:, score_from:],
            residuals(candidate, tokens)[:, score_from:],
            jnp.roll(tokens, -1, axis=1)[:, score_from:],
        )
        parts.append(collect_stats(compared, score_from, len(chunk)))
        _check_finite(parts[-1], start)
    return QualityStats.join(parts)


def collect_stats(compared: Comparison, score_from: int, count: int) -> QualityStats:
    """The first `count` windows of a comparison, without next tokens that are not there."""
    kl, top1, top5 = (np.asarray(x)[:count] for x in (compared.kl, compared.top1, compared.top5))
    models = {"baseline": compared.baseline, "candidate": compared.candidate}
    scores = {
        f"{model}_{name}": np.asarray(array)[:count, :-1]
        for model, of_model in models.items()
        for name, array in of_model._asdict().items()
    }
    positions = np.arange(score_from, score_from + kl.shape[1], dtype=np.int32)
    return QualityStats(positions, kl, top1, top5, **scores)


def _check(
    baseline: Llama,
    candidate: Llama,
    windows: np.ndarray,
    score_from: int,
    batch_size: int | None,
) -> None:
    vocab_size, other = baseline.config.vocab_size, candidate.config.vocab_size
    if vocab_size != other or vocab_size < TOP:
        raise ValueError(
            f"the vocabularies have {vocab_size} and {other} tokens; as many are needed, and at "
            f"least {TOP}"
        )
    if windows.ndim != 2 or not windows.size:
        raise ValueError(f"windows have shape {windows.shape}; [windows, length] is needed")
    if not np.issubdtype(windows.dtype, np.integer):
        raise TypeError(f"windows are {windows.dtype}; whole numbers are needed")
    if windows.min() < 0 or windows.max() >= vocab_size:
        raise ValueError(
            f"tokens lie between {windows.min()} and {windows.max()}; the vocabulary, from 0 to "
            f"{vocab_size - 1}, has to hold all of them"
        )
    if not 0 <= score_from < windows.shape[1]:
        raise ValueError(
            f"score_from is {score_from}; the windows have positions 0 to {windows.shape[1] - 1}"
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; at least 1 is needed")


def _check_finite(stats: QualityStats, first_window: int) -> None:
    if np.isfinite(stats.kl).all():
        return
    window, column = np.argwhere(~np.isfinite(stats.kl))[0].tolist()
    raise InputError(
        f"logits are not finite at position {stats.positions[column]} of window "
        f"{first_window + window}: activations outgrow the parameters' dtype, or the weights are "
        "damaged; with dtype float16, use bfloat16 or float32"
    )
