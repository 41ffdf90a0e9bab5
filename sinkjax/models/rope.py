"""Rotary position embeddings, with every scaling that Llama checkpoints use.

Formulas: Su et al. 2021 (RoFormer); linear: Chen et al. 2023; dynamic: NTK-aware scaling, by the
current length; yarn: Peng et al. 2023; llama3: the Llama 3.1 release; longrope: Ding et al. 2024,
by whether the current length is beyond the original one. Frequencies are computed in float32 in
transformers' order of operations, because an angle is position times frequency: one unit in the
last place of a frequency is 4e-4 rad at position 8,192.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from sinkjax.attention.context import Rotary
from sinkjax.models.config import LlamaConfig, RopeConfig


def rotary_tables(
    config: LlamaConfig, positions: Int32[Array, "#B T"], lengths: Int32[Array, " B"]
) -> tuple[Rotary, ...]:
    """Returns cosines and sines for `rotate`, of each of the config's `ropes`.

    They are of H/2 angles, or of fewer where only a part of each head turns.

    Args:
      config: of the model.
      positions: counted from the prompt's first token.
      lengths: tokens in each row so far; only dynamic scaling and longrope read it. A row's angles
        follow its own length, so that a row padded beside longer ones equals the row alone.
    """
    tables = []
    for rope in config.ropes:
        size = rope.turned(config.head_dim)
        if rope.type == "dynamic":
            frequencies = _dynamic_frequencies(config, rope, lengths)[:, None, :]
        elif rope.type == "longrope":
            short, long = map(jnp.asarray, _long_frequencies(rope, size))
            assert rope.original_max_length is not None
            is_long = (lengths > rope.original_max_length)[:, None, None]
            frequencies = jnp.where(is_long, long[None, None, :], short[None, None, :])
        else:
            fixed = inverse_frequencies(rope, size)
            frequencies = jnp.asarray(fixed)[None, None, :]
        angles = positions.astype(jnp.float32)[:, :, None] * frequencies
        scale = jnp.float32(attention_factor(rope))
        tables.append(Rotary(jnp.cos(angles) * scale, jnp.sin(angles) * scale))
    return tuple(tables)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def prompt_tables(
    config: LlamaConfig, length: int, lengths: Int32[Array, " B"]
) -> tuple[Rotary, ...]:
    """Returns a prompt's `rotary_tables`: one program where they are no part of a larger one."""
    return rotary_tables(config, jnp.arange(length, dtype=jnp.int32)[None, :], lengths)


def rotate(x: Float[Array, "B T heads H"], table: Rotary) -> Float[Array, "B T heads H"]:
    """Rotates each pair (x[h], x[h + A]) by one of the table's A angles, in float32.

    A is H/2, or less: then the rest of x is left as it is. The result has x's dtype.
    """
    cos, sin = (angles[:, :, None, :] for angles in table)
    half = cos.shape[-1]
    turned, rest = x[..., : 2 * half].astype(jnp.float32), x[..., 2 * half :]
    first, second = jnp.split(turned, 2, axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    turned = jnp.concatenate(rotated, axis=-1).astype(x.dtype)
    return jnp.concatenate((turned, rest), axis=-1) if rest.size else turned


def inverse_frequencies(rope: RopeConfig, size: int) -> Float32[np.ndarray, " half"]:
    """Returns radians a position, half as many as the numbers of a head that turn, `size`.

    For dynamic and longrope they are those within the original length.
    """
    if rope.type == "longrope":
        return _long_frequencies(rope, size)[0]
    if rope.type == "yarn":
        return _yarn_frequencies(rope, size)
    frequencies = np.float32(1.0) / _wavelength_series(rope.theta, size)
    if rope.type == "linear":
        return frequencies / np.float32(rope.factor)
    if rope.type == "llama3":
        return _llama3_frequencies(rope, frequencies)
    if rope.freq_factors is not None:
        return frequencies / np.asarray(rope.freq_factors, np.float32)
    return frequencies


def attention_factor(rope: RopeConfig) -> float:
    """Returns what cos and sin are multiplied by.

    1 but for yarn (Peng et al. 2023, eq. 22) and longrope (Ding et al. 2024, section 3.3).
    """
    if rope.type not in ("yarn", "longrope"):
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    factor = rope.factor
    assert factor is not None
    if rope.type == "longrope":
        assert rope.original_max_length is not None
        stretch = math.log(max(factor, 1)) / math.log(rope.original_max_length)
        return math.sqrt(1 + stretch)

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def _wavelength_series(theta: float, size: int) -> Float32[np.ndarray, " half"]:
    """Returns theta^(2i/size) for i < size/2."""
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    return np.float32(theta) ** exponents


def _dynamic_frequencies(
    config: LlamaConfig, rope: RopeConfig, lengths: Int32[Array, " B"]
) -> Float32[Array, "B half"]:
    """Returns frequencies whose theta grows with a row's length once beyond `max_length`."""
    size, factor = rope.turned(config.head_dim), rope.factor
    assert factor is not None
    stretch = jnp.maximum(lengths, config.max_length).astype(jnp.float32) / config.max_length
    theta = rope.theta * (factor * stretch - (factor - 1)) ** (size / (size - 2))
    exponents = jnp.arange(0, size, 2, dtype=jnp.float32) / size
    return 1.0 / (theta[:, None] ** exponents[None, :])


def _long_frequencies(rope: RopeConfig, size: int) -> Float32[np.ndarray, "2 half"]:
    """Returns frequencies of texts within the original length, and those of longer ones."""
    divisors = np.asarray(rope.freq_factors, np.float32).reshape(2, -1)
    return np.float32(1.0) / (divisors * _wavelength_series(rope.theta, size))


def _llama3_frequencies(
    rope: RopeConfig, frequencies: Float32[np.ndarray, " half"]
) -> Float32[np.ndarray, " half"]:
    """Keeps short wavelengths, stretches long ones by `factor` and blends between them."""
    low, high = rope.low_freq_factor, rope.high_freq_factor
    assert low is not None
    assert high is not None
    wavelengths = np.float32(2 * math.pi) / frequencies
    turns = np.float32(rope.original_max_length) / wavelengths
    blend = (turns - np.float32(low)) / np.float32(high - low)
    blend = np.clip(blend, np.float32(0), np.float32(1))
    stretched = frequencies / np.float32(rope.factor)
    return (np.float32(1) - blend) * stretched + blend * frequencies


def _yarn_frequencies(rope: RopeConfig, size: int) -> Float32[np.ndarray, " half"]:
    """Keeps dimensions that turn often, stretches those that turn rarely, a ramp between."""
    original = rope.original_max_length
    assert original is not None

    def dimension_of(rotations: float) -> float:
        """Returns the dimension that makes so many rotations over the original context."""
        span = original / (rotations * 2 * math.pi)
        return size * math.log(span) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high = high + 0.001 if low == high else high  # a ramp of no width is a step
    ramp = (np.arange(size // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    keep = np.float32(1) - np.clip(ramp, np.float32(0), np.float32(1))
    series = _wavelength_series(rope.theta, size)
    stretched = np.float32(1.0) / (np.float32(rope.factor) * series)
    return stretched * (np.float32(1) - keep) + keep / series
