"""Excerpts in batches of one shape, so that one program serves all of them."""

from collections.abc import Iterator

import jax
import numpy as np

from sinkjax.distributed import to_host
from sinkjax.errors import InputError
from sinkjax.models.decoder import Llama
from sinkjax.models.sharding import even_rows, lay_rows, row_shards

BATCH_TOKENS = 2048
"""Tokens that go through a model at once, unless the caller says otherwise."""


def batch_rows(excerpts: np.ndarray, tokens: int = BATCH_TOKENS, shards: int = 1) -> int:
    """The number of excerpts, of [W, T], that have so many tokens: at least 1, at most all.

    Over a mesh, they do so on each of the `shards` over which rows lie, and are as many on each.
    """
    count, length = excerpts.shape
    return even_rows(count, max(1, tokens // length), shards)


def batches(
    model: Llama, excerpts: np.ndarray, rows: int | None = None
) -> Iterator[tuple[jax.Array, int]]:
    """Excerpts a batch after another, laid over the model's mesh.

    Args:
      model: that they go through.
      excerpts: int [W, T], or what goes with each of their positions, [W, T, ...].
      rows: of a batch; None for `batch_rows`.

    Yields:
      int32 or float32 [rows, T, ...], and how many of these rows are new: the last batch is filled
      up with repetitions to the shape of the others.
    """
    rows = rows or batch_rows(excerpts, shards=row_shards(model))
    dtype = np.float32 if excerpts.dtype.kind == "f" else np.int32
    for start in range(0, len(excerpts), rows):
        chunk = excerpts[start : start + rows]
        filled = np.resize(chunk, (rows, *excerpts.shape[1:])).astype(dtype)
        yield lay_rows(model, filled), len(chunk)


def check_tokens(tokens: np.ndarray | jax.Array, vocab_size: int, name: str, rows: str) -> None:
    """Checks tokens int [B, T] against V; those that are traced are taken on trust.

    `name` and `rows` are what messages call the argument and its rows.

    Raises:
      InputError: for tokens outside the vocabulary.
      TypeError: for tokens that are not whole numbers.
      ValueError: for tokens of another shape.
    """
    if tokens.ndim != 2 or not tokens.size:
        raise ValueError(f"{name} have shape {tokens.shape}; [{rows}, length] is needed")
    if not np.issubdtype(tokens.dtype, np.integer):
        raise TypeError(f"{name} are {tokens.dtype}; whole numbers are needed")
    if isinstance(tokens, jax.core.Tracer):
        return
    ids = to_host(tokens)
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise InputError(
            f"tokens lie between {ids.min()} and {ids.max()}; the vocabulary, from 0 to "
            f"{vocab_size - 1}, has to hold all of them, padding too"
        )
