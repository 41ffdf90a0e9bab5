"""Two models on the same tokens, teacher-forced."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from sinkjax.instruments.batches import batches, check_tokens
from sinkjax.instruments.token_losses import TOP, Comparison, OutputHead, compare_tokens, residuals
from sinkjax.models.decoder import Llama
from sinkjax.models.finite import check_finite


@dataclasses.dataclass(frozen=True, eq=False)
class QualityStats:
    """Scores of the P scored positions of W excerpts.

    The last position of an excerpt has a prediction, and so a KL, but no next token.

    Attributes:
      positions: int32 [P], counted from the excerpt's first token.
      kl: float32 [W, P], KL(baseline ‖ candidate) in nats.
      top1: bool [W, P], whether the same token is the likeliest under both.
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
        """The excerpts of all parts, in order; they have the same positions."""
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
    excerpts: np.ndarray,
    *,
    score_from: int = 1,
    batch_size: int | None = None,
) -> QualityStats:
    """Compares a candidate's predictions with the baseline's on the same tokens, teacher-forced.

    Beside the models, memory holds their residual streams [batch, T, D], what one layer needs, and
    logits of a few positions (`sinkjax.instruments.token_losses`).

    Args:
      baseline, candidate: each a `Llama`, or what `sinkjax.specialize` makes of one, of the same
        vocabulary.
      excerpts: int [W, T], full excerpts.
      score_from: the first position that is scored, below T. Position 0 attends to itself alone and
        is the same under every mask: from it on, means would be diluted.
      batch_size: excerpts that go through a model at once; None for as many as have `BATCH_TOKENS`.

    Raises:
      InputError: for a model whose logits are not finite.
      TypeError: for excerpts that are not whole numbers.
      ValueError: for excerpts that are not [W, T] or not in the vocabulary, a `score_from` outside
        of them, models of different vocabularies.
    """
    excerpts = np.asarray(excerpts)
    _check(baseline, candidate, excerpts, score_from, batch_size)
    heads = OutputHead(baseline), OutputHead(candidate)
    parts = []
    for tokens, count in batches(excerpts, batch_size):
        compared = compare_tokens(
            *heads,
            residuals(baseline, tokens)[:, score_from:],
            residuals(candidate, tokens)[:, score_from:],
            jnp.roll(tokens, -1, axis=1)[:, score_from:],
        )
        first = sum(len(part.kl) for part in parts)
        parts.append(collect_stats(compared, score_from, count))
        check_finite(
            "logits",
            parts[-1].kl,
            lambda excerpt, column, first=first: (
                f" at position {score_from + column} of excerpt {first + excerpt}"
            ),
        )
    return QualityStats.join(parts)


def collect_stats(compared: Comparison, score_from: int, count: int) -> QualityStats:
    """The first `count` excerpts of a comparison; the last position has no next token."""
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
    excerpts: np.ndarray,
    score_from: int,
    batch_size: int | None,
) -> None:
    vocab_size, candidate_size = baseline.config.vocab_size, candidate.config.vocab_size
    if vocab_size != candidate_size or vocab_size < TOP:
        raise ValueError(
            f"the vocabularies have {vocab_size} and {candidate_size} tokens; as many are needed, "
            f"and at least {TOP}"
        )
    check_tokens(excerpts, vocab_size, "excerpts", "excerpts")
    if not 0 <= score_from < excerpts.shape[1]:
        raise ValueError(
            f"score_from is {score_from}; the excerpts have positions 0 to {excerpts.shape[1] - 1}"
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; at least 1 is needed")
