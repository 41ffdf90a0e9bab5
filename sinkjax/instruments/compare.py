"""Two models on the same tokens, teacher-forced."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.distributed import outside_meshes, to_host
from sinkjax.errors import check_array, check_whole
from sinkjax.instruments.batches import batches, check_tokens
from sinkjax.instruments.token_losses import (
    TOP,
    Comparison,
    OutputHead,
    compare_tokens,
    decoded_residuals,
    residuals,
)
from sinkjax.models.config import MOST_SIZE
from sinkjax.models.decoder import Llama, check_model
from sinkjax.models.finite import check_finite
from sinkjax.models.sharding import on_devices


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
      generated_kl: float32 [W, M], of M tokens after the excerpts, read through decoding; of none
        by default.
    """

    positions: np.ndarray
    kl: np.ndarray
    top1: np.ndarray
    top5: np.ndarray
    baseline_nll: np.ndarray
    candidate_nll: np.ndarray
    baseline_correct: np.ndarray
    candidate_correct: np.ndarray
    generated_kl: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0)))

    @classmethod
    def join(cls, parts: Sequence["QualityStats"]) -> "QualityStats":
        """The excerpts of all parts, in order; they have the same positions."""
        first = parts[0].arrays()
        arrays = {name: np.concatenate([part.arrays()[name] for part in parts]) for name in first}
        return cls(**{**arrays, "positions": parts[0].positions})

    def set_apart(self, generated: int) -> "QualityStats":
        """The same with the last positions as those of tokens after the excerpts."""
        if not generated:
            return self
        kept = {name: array[..., :-generated] for name, array in self.arrays().items()}
        return QualityStats(**{**kept, "generated_kl": self.kl[:, -generated:]})

    def arrays(self) -> dict[str, np.ndarray]:
        """The attributes by name, to be kept; `QualityStats(**arrays)` is their inverse."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@outside_meshes()
def compare(
    baseline: Llama,
    candidate: Llama,
    excerpts: np.ndarray,
    *,
    score_from: int = 1,
    generated: int = 0,
    batch_size: int | None = None,
) -> QualityStats:
    """Compares a candidate's predictions with the baseline's on the same tokens, teacher-forced.

    Beside the models, memory holds their residual streams [batch, T, D], what one layer needs, and
    logits of a few positions (`sinkjax.instruments.token_losses`).

    Args:
      baseline, candidate: each a `Llama`, or what `sinkjax.specialize` makes of one, of the same
        vocabulary.
      excerpts: int [W, T + M], full excerpts.
      generated: M, of the last tokens of each, which are read as decoding does, through the caches
        that the first T leave. `generated_kl` is theirs, all else that of the first T.
      score_from: the first position that is scored, below T. Position 0 attends to itself alone and
        is the same under every mask: from it on, means would be diluted.
      batch_size: excerpts that go through a model at once; None for as many as have `BATCH_TOKENS`
        on each part of a mesh over which rows lie.

    Raises:
      InputError: for a model whose logits are not finite.
      TypeError: for excerpts that are not whole numbers.
      ValueError: for excerpts that are not [W, T + M] or not in the vocabulary, a `score_from`
        outside of their first T, models of different vocabularies.
    """
    check_model(baseline, "baseline")
    check_model(candidate, "candidate")
    excerpts = check_array("excerpts", excerpts)
    score_from = check_whole("score_from", score_from, 0)
    generated = check_whole("generated", generated, 0)
    batch_size = None if batch_size is None else check_whole("batch_size", batch_size, 1, MOST_SIZE)
    vocab_size, candidate_size = baseline.config.vocab_size, candidate.config.vocab_size
    if vocab_size != candidate_size or vocab_size < TOP:
        raise ValueError(
            f"the vocabularies have {vocab_size} and {candidate_size} tokens; as many are needed, "
            f"and at least {TOP}"
        )
    check_tokens(excerpts, vocab_size, "excerpts", "excerpts")
    length = excerpts.shape[1]
    if generated >= length:
        raise ValueError(f"generated is {generated}; the excerpts have {length} tokens in all")
    if score_from >= length - generated:
        raise ValueError(
            f"score_from is {score_from}; the excerpts have positions 0 to {length - generated - 1}"
        )
    # Over no explicit axes.
    baseline, candidate = (jax.tree.map(on_devices, model) for model in (baseline, candidate))
    heads = OutputHead(baseline), OutputHead(candidate)
    parts = []
    for tokens, count in batches(baseline, excerpts, batch_size):
        targets = jnp.roll(tokens, -1, axis=1)
        (x, x_after), (y, y_after) = (_streams(m, tokens, generated) for m in (baseline, candidate))
        prompt = x.shape[1]
        compared = compare_tokens(
            *heads, x[:, score_from:], y[:, score_from:], targets[:, score_from:prompt]
        )
        stats = collect_stats(compared, score_from, count)
        kl = [stats.kl]
        if generated:
            after = compare_tokens(*heads, x_after, y_after, targets[:, prompt:])
            kl.append(to_host(after.kl)[:count])
            stats = dataclasses.replace(stats, generated_kl=kl[1])
        first = sum(len(part.kl) for part in parts)
        check_finite(
            "logits",
            np.concatenate(kl, axis=1),
            lambda excerpt, column, first=first: (
                f" at position {score_from + column} of excerpt {first + excerpt}"
            ),
        )
        parts.append(stats)
    return QualityStats.join(parts)


def _streams(model: Llama, tokens: jax.Array, generated: int) -> tuple[jax.Array, jax.Array | None]:
    """The residual streams of the prompts and of the tokens after them, None without any."""
    if not generated:
        return residuals(model, tokens), None
    return decoded_residuals(model, tokens, tokens.shape[1] - generated)


def collect_stats(compared: Comparison, score_from: int, count: int) -> QualityStats:
    """The first `count` excerpts of a comparison; the last position has no next token."""
    compared = to_host(compared)
    kl, top1, top5 = (array[:count] for array in (compared.kl, compared.top1, compared.top5))
    models = {"baseline": compared.baseline, "candidate": compared.candidate}
    scores = {
        f"{model}_{name}": array[:count, :-1]
        for model, of_model in models.items()
        for name, array in of_model._asdict().items()
    }
    positions = np.arange(score_from, score_from + kl.shape[1], dtype=np.int32)
    none = np.zeros((count, 0), np.float32)
    return QualityStats(positions, kl, top1, top5, **scores, generated_kl=none)
