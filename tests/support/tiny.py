"""Tiny random Llamas of our own, and their logits by every way there is to get them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sinkjax.models.abstract import abstract_model, fill_model
from sinkjax.models.config import LlamaConfig, RopeConfig
from sinkjax.models.decoder import Llama

LLAMA3 = RopeConfig(
    type="llama3",
    theta=5e5,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_length=16,
)


def make(seed: int = 0, dtype: Any = jnp.float32, **changes: Any) -> Llama:
    """Random weights, biases and norm scales; attention is far from uniform."""
    shape = dict(
        vocab_size=61,
        num_layers=3,
        num_heads=6,
        num_kv_heads=2,
        head_dim=8,
        embed_dim=40,
        mlp_dim=48,
        max_length=64,
        norm_eps=1e-5,
    )
    config = LlamaConfig(**{**shape, **changes})
    abstract = abstract_model(config, dtype)
    parameters = dict(nnx.to_flat_state(nnx.state(abstract)))
    rng = np.random.default_rng(seed)

    def draw(path: tuple) -> jax.Array:
        mean = 1 - config.norm_offset if "scale" in path else 0
        values = rng.normal(loc=mean, scale=0.2, size=parameters[path].shape)
        return jnp.asarray(values, dtype)

    return fill_model(abstract, draw)


def make_fills(model: Llama, seed: int = 2) -> np.ndarray:
    """Means for `sink(mean)`: float32 [L, N, H]."""
    config = model.config
    shape = (config.num_layers, config.num_heads, config.head_dim)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tokens_of(model: Llama, shape: tuple[int, int], seed: int = 3) -> jax.Array:
    """int32 [B, T]."""
    tokens = np.random.default_rng(seed).integers(0, model.config.vocab_size, shape)
    return jnp.asarray(tokens, jnp.int32)


def call(model: Llama, tokens: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
    """`model(tokens, lengths=lengths)` as one program, compiled in little time.

    Called as it is, a model is a hundred programs, each of which takes as long to build.
    """
    return quick_jit(lambda model, *args: model(args[0], lengths=args[1]))(model, tokens, lengths)


def decoded(
    model: Llama, tokens: jax.Array, prompts: np.ndarray, max_length: int, steps: int | None = None
) -> np.ndarray:
    """Logits after each row's prompt, then after each of the tokens that follow it.

    Args:
      tokens: int [B, T].
      prompts: int [B], tokens of each row that are prefilled.
      steps: those that follow, in every row; None for as many as there are.

    Returns:
      float32 [B, steps + 1, V].
    """
    steps = tokens.shape[1] - max(prompts) if steps is None else steps
    lengths = jnp.asarray(prompts, jnp.int32)
    following = [jnp.take_along_axis(tokens, (lengths + i)[:, None], axis=1) for i in range(steps)]

    def run(model, prompt, lengths, following):
        logits, cache = model.prefill(prompt, lengths=lengths, max_length=max_length)

        def step(cache, token):
            logits, cache = model.decode(token, cache)
            return cache, logits

        cache, later = jax.lax.scan(step, cache, following)
        return jnp.concatenate([logits[None], later]), cache.lengths

    prompt = tokens[:, : tokens.shape[1] - steps]
    logits, held = quick_jit(run)(model, prompt, lengths, jnp.stack(following)[:, :, 0])
    np.testing.assert_array_equal(held, lengths + steps)
    return np.asarray(logits.swapaxes(0, 1))


def quick_jit(function):
    """Compiles fast and runs slowly."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def after(logits: jax.Array, prompts: np.ndarray, steps: int | None = None) -> np.ndarray:
    """Of logits [B, T, V], those that `decoded` gives."""
    steps = logits.shape[1] - max(prompts) if steps is None else steps
    return np.stack([row[n - 1 : n + steps] for row, n in zip(logits, prompts, strict=True)])
