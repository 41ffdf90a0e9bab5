"""Shapes of well-known models, for programs that are compiled and timed without their weights."""

import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import DTypeLike

from sinkjax.models.abstract import abstract_model, fill_model
from sinkjax.models.config import LlamaConfig, RopeConfig
from sinkjax.models.decoder import Llama
from sinkjax.models.sharding import parameter_shardings, place_parts

_DRAWN = 1 << 22  # random numbers at a time


def _llama3(
    stretch: float, sizes: tuple[int, int, int, int, int, int], *, tie_embeddings: bool = False
) -> LlamaConfig:
    """Returns the shape of a Llama 3.x; its sizes are L, N, K, H, D and F."""
    rope = RopeConfig(
        type="llama3",
        theta=500_000.0,
        factor=stretch,
        original_max_length=8192,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    return LlamaConfig(128_256, *sizes, 131_072, 1e-5, rope, tie_embeddings=tie_embeddings)


# The first numbers of each are V, L, N, K, H, D, F, tokens of context, and the norms' epsilon.
_LLAMA_2 = LlamaConfig(32_000, 32, 32, 32, 128, 4096, 11_008, 4096, 1e-5)
_LLAMA_31 = _llama3(8.0, (32, 32, 8, 128, 4096, 14_336))

SHAPES: dict[str, LlamaConfig] = {
    "llama-2-7b": _LLAMA_2,
    "llama-2-7b-32k": dataclasses.replace(  # togethercomputer/Llama-2-7B-32K-Instruct
        _LLAMA_2, max_length=32_768, rope=RopeConfig(type="linear", factor=8.0)
    ),
    "llama-3-8b-1048k": dataclasses.replace(  # gradientai/Llama-3-8B-Instruct-Gradient-1048k
        _LLAMA_31, max_length=1_048_576, rope=RopeConfig(theta=3_580_165_449.0)
    ),
    "llama-3.1-8b": _LLAMA_31,
    "llama-3.1-70b": _llama3(8.0, (80, 64, 8, 128, 8192, 28_672)),
    "llama-3.2-1b": _llama3(32.0, (16, 32, 8, 64, 2048, 8192), tie_embeddings=True),
    "llama-3.2-3b": _llama3(32.0, (28, 24, 8, 128, 3072, 8192), tie_embeddings=True),
    "mistral-7b-v0.2": dataclasses.replace(  # without the window that v0.1 had
        _LLAMA_31,
        vocab_size=32_000,
        max_length=32_768,
        rope=RopeConfig(theta=1_000_000.0),
        family="mistral",
    ),
    "qwen2.5-coder-0.5b": LlamaConfig(  # as its GGUF has it: the output's matrix is quantized apart
        *(151_936, 24, 14, 2, 64, 896, 4864, 32_768, 1e-6),
        rope=RopeConfig(theta=1_000_000.0),
        attention_bias=True,
        output_bias=False,
        family="qwen2",
    ),
    "smollm2-135m": LlamaConfig(
        *(49_152, 30, 9, 3, 64, 576, 1536, 8192, 1e-5),
        rope=RopeConfig(theta=100_000.0),
        tie_embeddings=True,
    ),
}
"""Configs by name, as `config.json` has them, without the token ids that no program reads."""


def random_model(
    config: LlamaConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    seed: int = 0,
    mesh: jax.sharding.Mesh | None = None,
) -> Llama:
    """Returns a model of random weights, of which time and memory are those of trained ones.

    Args:
      config: its shape.
      dtype: of the parameters.
      seed: of the draws, uniform with the config's initializer_range as standard deviation, about
        what makes a norm's scale 1 where they are one.
      mesh: to lay the parameters over; the values are the same without. A process draws those of
        its own devices alone.
    """
    abstract = abstract_model(config, dtype)
    shardings = parameter_shardings(abstract, mesh)
    shapes = {path: v.shape for path, v in nnx.to_flat_state(nnx.state(abstract))}
    numbers = {path: number for number, path in enumerate(shapes)}
    width = np.float32(math.sqrt(12) * config.initializer_range)

    def draw(path: tuple) -> jax.Array:
        middle = np.float32(1 - config.norm_offset if "scale" in path else 0)

        def kept(part: tuple[slice, ...]) -> np.ndarray:
            own = np.empty([of.stop - of.start for of in part], dtype)
            for values, drawn in _uniform((seed, numbers[path]), shapes[path], part, own):
                drawn -= np.float32(0.5)
                drawn *= width
                drawn += middle
                values[...] = drawn
            return own

        return place_parts(kept, shapes[path], shardings.get(path))

    return fill_model(abstract, draw)


def _uniform(
    seed: tuple[int, int], shape: tuple[int, ...], part: tuple[slice, ...], own: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields pieces of `own`, flat, each with float32 numbers of [0, 1) that belong there.

    They are those that an array of that shape has in that part: the generator goes on to where a
    piece begins. (`jax.random` in one `jit` over the mesh would do it too, but on a CPU holds five
    times the largest array meanwhile.)
    """
    # Of axes behind this one all is taken, so that what is taken of it lies together.
    axis = max((n for n, of in enumerate(part) if of != slice(0, shape[n])), default=0)
    rows = np.arange(math.prod(shape[:axis])).reshape(shape[:axis])[part[:axis]].ravel()
    bits = np.random.PCG64(np.random.SeedSequence(seed))
    generator, origin = np.random.Generator(bits), bits.state
    for row, values in zip(rows.tolist(), own.reshape(rows.size, -1), strict=True):
        first = (row * shape[axis] + part[axis].start) * math.prod(shape[axis + 1 :])
        for start in range(0, values.size, _DRAWN):
            piece = values[start : start + _DRAWN]
            bits.state = origin
            skipped = (first + start) % 2  # a step of the generator's makes two float32
            bits.advance((first + start) // 2)
            yield piece, generator.random(skipped + piece.size, np.float32)[skipped:]
