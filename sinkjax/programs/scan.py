"""Runs of like layers as one loop: a program whose compile time does not grow with depth.

A run takes the place of its layers in the model and is called as a layer is. Its weights are
stacked, which is a copy of them, and its cache is the layers' caches stacked.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from sinkjax.attention.cache import LayerCache
from sinkjax.attention.context import Context
from sinkjax.models.decoder import Llama


class LayerRun(nnx.Module):
    """Several layers of one structure, one after the other.

    Attributes:
      layer: their common structure; each parameter has an axis of layers in front.
    """

    stacked = 1

    def __init__(self, layers: list[nnx.Module]):
        graph, first = nnx.split(layers[0])
        states = [first, *(nnx.split(layer)[1] for layer in layers[1:])]
        self.layer = nnx.merge(graph, jax.tree.map(_stack, *states))

    @property
    def attention(self) -> nnx.Module:
        """The attention of each of the layers."""
        return self.layer.attention

    def __call__(
        self, x: jax.Array, context: Context
    ) -> tuple[jax.Array, Context, LayerCache | None]:
        """Does what one layer does; every array of the cache has an axis of layers in front."""
        graph, state = nnx.split(self.layer)

        def step(x: jax.Array, state: Any) -> tuple[jax.Array, LayerCache | None]:
            x, after, cache = nnx.merge(graph, state)(x, context)
            _check_unchanged(context, after)
            return x, cache

        x, caches = jax.lax.scan(step, x, state)
        return x, context, caches

    def _with_cache(
        self, stage: str, x: jax.Array, context: Context, cache: LayerCache
    ) -> tuple[jax.Array, Context, LayerCache]:
        """Does what one layer does, with a cache of `__call__`."""
        graph, state = nnx.split(self.layer)
        arrays, structure = jax.tree.flatten(state)

        def step(
            x: jax.Array, inputs: tuple[list[jax.Array | None], LayerCache]
        ) -> tuple[jax.Array, LayerCache]:
            own, cache = inputs
            pairs = zip(arrays, own, strict=True)
            leaves = [stacked if array is None else array for stacked, array in pairs]
            layer = nnx.merge(graph, jax.tree.unflatten(structure, leaves))
            x, after, cache = getattr(layer, stage)(x, context, cache)
            _check_unchanged(context, after)
            return x, cache

        # All that a loop goes over is an argument of the program, read or not; and some weights are
        # for prompts alone: those of `sink` heads, which leave their sum in the cache.
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), (arrays, cache))
        read = _read_by(lambda own, cache: step(x, (own, cache)), *shapes)
        own = [array if is_read else None for array, is_read in zip(arrays, read[0], strict=True)]
        x, caches = jax.lax.scan(step, x, (own, cache))
        return x, context, caches

    decode = functools.partialmethod(_with_cache, "decode")
    extend = functools.partialmethod(_with_cache, "extend")


def scanned(model: Llama) -> Llama:
    """The same model with every run of two or more like layers as a `LayerRun`.

    Layers are alike when they have the same structure, static attributes and shapes: the same paths
    in the same order. One that hands its attention on to layers that copy it stays by itself.
    """
    layers = []
    for _, run in itertools.groupby(model.layers, key=_signature):
        run = list(run)
        layers += [LayerRun(run)] if len(run) > 1 else run
    model = nnx.merge(*nnx.split(model))  # a new module over the same arrays
    model.layers = nnx.List(layers)
    return model


def _signature(layer: nnx.Module) -> Any:
    graph, state = nnx.split(layer)
    arrays = ((path, v.shape, v.dtype) for path, v in nnx.to_flat_state(state))
    return graph, tuple(arrays)


def _stack(*arrays: Any) -> Any:
    if isinstance(arrays[0], jax.ShapeDtypeStruct):
        (array, *_), sharding = arrays, arrays[0].sharding
        if isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
        shape = len(arrays), *array.shape
        return jax.ShapeDtypeStruct(shape, array.dtype, sharding=sharding)
    return jnp.stack(arrays)


def _read_by(function: Callable[..., Any], *arguments: Any) -> Any:
    """Tells which arrays, or shapes, of its arguments a function reads: bools in their trees."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    read = {id(v) for v in (*jaxpr.outvars, *(v for eqn in jaxpr.eqns for v in eqn.invars))}
    structure = jax.tree.structure(arguments)
    return jax.tree.unflatten(structure, [id(v) in read for v in jaxpr.invars])


def _check_unchanged(before: Context, after: Context) -> None:
    if before.patterns.keys() != after.patterns.keys():
        raise ValueError("a layer whose attention is copied by others cannot be one of a run")
