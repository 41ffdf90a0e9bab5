"""What models refuse: configs, tokens, numbers of rows and caches that are none.

Each would otherwise fail inside JAX, or be another model or another batch without a word.
"""

from collections.abc import Collection, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Int32

from sinkjax.attention.cache import Cache
from sinkjax.errors import (
    InputError,
    Problem,
    check_array,
    check_kind,
    check_whole,
    each,
    is_one_of,
)
from sinkjax.masks.scores import group_size
from sinkjax.models.config import ACTIVATIONS, MOST_SIZE, ROPE_TYPES, LlamaConfig, RopeConfig

_SIZES = (
    *("vocab_size", "num_layers", "num_heads", "num_kv_heads"),
    *("head_dim", "embed_dim", "mlp_dim", "max_length"),
)


def check_model_config(config: Any) -> None:
    """Raises InputError for a config that no model can be made of."""
    check_kind("config", config, LlamaConfig, "a LlamaConfig, such as load_config gives,")
    each(_SIZES, lambda name: check_whole(name, getattr(config, name), 1, MOST_SIZE))
    group_size(config.num_heads, config.num_kv_heads)
    names: list[tuple[str, Any, Collection[str]]]
    names = [("activation", config.activation, ACTIVATIONS)]
    for rope in config.ropes:
        check_kind("rope", rope, RopeConfig, "a RopeConfig")
        names.append(("rope type", rope.type, ROPE_TYPES))
    for field, value, allowed in names:
        if not is_one_of(value, allowed):
            raise InputError(Problem(field, value, f"allowed are {', '.join(allowed)}"))


def check_tokens(tokens: Any) -> None:
    """Raises InputError for what is no [B, T] of ids."""
    shape = getattr(tokens, "shape", ())
    if len(shape) != 2 or 0 in shape or not jnp.issubdtype(tokens.dtype, jnp.integer):
        kind = getattr(tokens, "dtype", type(tokens).__name__)
        raise InputError(
            f"tokens are {kind} {shape}; an array [B, T] of whole numbers, at least one row of one "
            "token is needed"
        )


def check_of_rows(field: str, numbers: Any, rows: jax.Array) -> Int32[Array, " B"]:
    """Returns a whole number for each of the rows [B, ...] of another array."""
    array = check_array(field, numbers, jax.Array)
    if array.shape != rows.shape[:1] or not jnp.issubdtype(array.dtype, jnp.integer):
        given = f"{array.dtype} {array.shape}"
        text = f"they are {given}; a whole number for each row of tokens is needed"
        raise InputError(Problem(field, None, text))
    return jnp.asarray(array).astype(jnp.int32)


def row_lengths(tokens: Int[Array, "B T"], lengths: Any) -> Int32[Array, " B"]:
    """Returns how many tokens each row has: T where no lengths are given."""
    if lengths is None:
        return jnp.full_like(tokens[:, 0], tokens.shape[1], dtype=jnp.int32)
    return check_of_rows("lengths", lengths, tokens)


def check_cache(cache: Any, kind: Hashable) -> None:
    """Raises InputError for what is no cache, or one of another model, mask or dtype."""
    check_kind("cache", cache, Cache, "a cache, such as prefill gives,")
    if cache.kind != kind:
        text = "it is of another model, mask or dtype: give one that this model's prefill made"
        raise InputError(Problem("cache", None, text))
