"""How likely a model finds the answers that excerpts end in, under a mask."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.distributed import to_host
from sinkjax.instruments.batches import batch_rows, batches, check_tokens
from sinkjax.instruments.tasks import Questions
from sinkjax.instruments.token_losses import OutputHead, residuals, score_tokens
from sinkjax.instruments.traced import traced_paths, traced_residuals
from sinkjax.masks.mask import SinkMask
from sinkjax.models.decoder import Llama
from sinkjax.models.finite import check_finite
from sinkjax.models.sharding import row_shards
from sinkjax.specialize.build import specialize


def score_answers(
    model: Llama,
    questions: Questions,
    mask: SinkMask | None = None,
    *,
    fills: np.ndarray | None = None,
    rows: int | None = None,
) -> dict[str, np.ndarray]:
    """Scores the answers of W questions, teacher-forced, in one pass.

    Greedy decoding gives an answer back whole exactly if each of its tokens is the likeliest after
    those before it, which the pass says. Masks without `copy` heads are data of one program, as of
    `sinkjax.instruments.traced`, so that another mask compiles nothing.

    Args:
      model: every head `full`.
      questions: each with its answer at its end.
      mask: None for the baseline.
      fills: float32 [L, N, H], where the mask has `sink(mean)` heads.
      rows: that go through the model at once; None for `batch_rows`.

    Returns:
      `nll`, float64 [W], -ln of each whole answer's probability; `given_back`, bool [W].

    Raises:
      InputError: for a mask of another shape, or without the fills that it needs, tokens outside
        the vocabulary, and answers whose NLL is not finite.
    """
    check_tokens(questions.tokens, model.config.vocab_size, "questions", "questions")
    forward, head = _forward(model, mask, fills), OutputHead(model)
    ends, width = questions.lengths, int(questions.answer_tokens.max())
    places = ends[:, None] - width + np.arange(width)  # of the answers' tokens
    rows = rows or batch_rows(questions.tokens, shards=row_shards(model))
    nll, likeliest = [], []
    parts = (batches(model, array, rows) for array in (questions.tokens, places, ends[:, None]))
    for (tokens, count), (places_of, _), (lengths, _) in zip(*parts, strict=True):
        residual = forward(tokens, lengths=lengths[:, 0])
        before = jnp.take_along_axis(residual, places_of[:, :, None] - 1, axis=1)
        scores = score_tokens(head, before, jnp.take_along_axis(tokens, places_of, axis=1))
        nll.append(to_host(scores.nll)[:count])
        likeliest.append(to_host(scores.correct)[:count])
    asked = np.arange(width) >= width - questions.answer_tokens[:, None]
    of_answers = np.sum(np.concatenate(nll), axis=1, where=asked, dtype=np.float64)
    check_finite("logits", of_answers, " in question {}".format)
    return {"nll": of_answers, "given_back": (np.concatenate(likeliest) | ~asked).all(axis=1)}


def _forward(
    model: Llama, mask: SinkMask | None, fills: np.ndarray | None
) -> Callable[..., jax.Array]:
    """The last residual of tokens int [B, T] and their lengths int [B] under a mask."""
    mask = SinkMask.full(model.config) if mask is None else mask
    if mask.counts()["copy"]:
        return functools.partial(residuals, specialize(model, mask, fills=fills))
    paths = traced_paths(mask, model.config, fills=fills)
    return functools.partial(traced_residuals, model, paths=paths)
