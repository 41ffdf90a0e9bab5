"""A model without weights, and one filled in parameter by parameter."""

import types
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import DTypeLike

from sinkjax.models.config import LlamaConfig
from sinkjax.models.decoder import Llama

Path = tuple[Any, ...]
"""The attributes and indices that lead to a parameter."""


def abstract_model(config: LlamaConfig, dtype: DTypeLike) -> Llama:
    """Returns the model with shapes in place of arrays."""
    key = jax.random.key(0)
    # Tracing the counter of nnx.Rngs from parameter to parameter takes time quadratic in their
    # number: for 30 layers, longer than it takes to read the weights.
    one_key: Any = types.SimpleNamespace(params=lambda: key)
    # Not nnx's, which takes logical axes for those of a mesh that `jax.set_mesh` has set.
    return jax.eval_shape(lambda: Llama(config, rngs=one_key, dtype=dtype))


def fill_model(model: Llama, parameter: Callable[[Path], jax.Array]) -> Llama:
    """Returns an abstract model with every parameter replaced by `parameter(path)`."""
    graph, state = nnx.split(model)
    filled = nnx.map_state(lambda path, leaf: leaf.replace(parameter(path)), state)
    return nnx.merge(graph, filled)
