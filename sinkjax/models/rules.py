"""Which mesh axis each logical axis lies along: the rules, in one place."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from sinkjax.attention.cache import Cache, LayerCache, store_axes
from sinkjax.distributed import NEURONS

ROW_AXES = ("data", NEURONS)
"""Mesh axes that rows lie along in attention."""

AS_DIVIDED, BY_SUB, BY_CHIP = "attention_batch", "sub_batch", "chip_batch"
"""Logical axes of rows in a layer's attention: where a mesh divides its heads; where `sub` divides
rows in their place; where `model` does so as well."""

RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": "data",
    AS_DIVIDED: ROW_AXES,
    BY_SUB: (*ROW_AXES, "sub"),
    BY_CHIP: (*ROW_AXES, "model", "sub"),
    "whole_heads": None,
    "heads": ("model", "sub"),
    "kv_heads": ("model", "sub"),
    "model_heads": "model",
    "mlp": ("model", NEURONS, "sub"),
    "vocab": ("model", NEURONS, "sub"),
    "slots": None,
    "embed": None,
    "head_dim": None,
}
"""Logical axis to mesh axes: of parameters, of the rows of a batch, in attention and elsewhere, and
of what decoding keeps."""


def partition(
    names: Sequence[str], shape: Sequence[int], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """Returns where an array of these logical axes lies.

    A logical axis lies along those of its rule that this mesh has, the first of them alone where
    all together do not divide its size; it is whole on every device where that does not either.
    """
    return PartitionSpec(
        *(_axes(RULES[name], size, mesh) for name, size in zip(names, shape, strict=True))
    )


def _axes(
    rule: str | tuple[str, ...] | None, size: int, mesh: Mesh | AbstractMesh
) -> str | tuple[str, ...] | None:
    axes = (rule,) if isinstance(rule, str) else rule or ()
    axes = tuple(axis for axis in axes if axis in mesh.shape)
    while axes and size % math.prod(mesh.shape[axis] for axis in axes):
        axes = axes[:-1]
    return axes[0] if len(axes) == 1 else axes or None


def heads_axis(name: str, batch: str) -> str:
    """Returns the logical axis of heads, in attention that has its rows along `batch`."""
    if name not in ("heads", "kv_heads") or batch == AS_DIVIDED:
        return name
    return "model_heads" if batch == BY_SUB else "whole_heads"


def cache_batch(rows: int, kv_heads: int, batch: str, mesh: Mesh | AbstractMesh) -> str:
    """Returns the logical axis of a cache's rows, of attention that has its own along `batch`.

    It is `BY_SUB` where `sub` divides the rows, and no key/value heads.
    """
    if batch != AS_DIVIDED:
        return batch
    rows_axes, heads_axes = partition((BY_SUB, "kv_heads"), (rows, kv_heads), mesh)
    return BY_SUB if "sub" in (rows_axes or ()) and "sub" not in (heads_axes or ()) else batch


def cache_specs(layers: Iterable[Any], cache: Cache, mesh: Mesh | AbstractMesh) -> Cache:
    """Returns where each array of a cache lies, in its place.

    Args:
      layers: of the model; those of a run count as one, whose arrays have an axis of layers.
    """
    rows = cache.lengths.shape[0]

    def lies(array: Any, *names: str) -> Any:
        stacked = array.ndim - len(names)
        spec = partition(names, array.shape[stacked:], mesh)
        return PartitionSpec(*[None] * stacked, *spec)

    def of_layer(layer: Any, cache: LayerCache) -> LayerCache:
        batch = layer.attention.batch

        def store(array: Any) -> Any:
            ndim = array.ndim - layer.stacked
            kv_heads = 1 if ndim < 4 else array.shape[-3]
            along = cache_batch(rows, kv_heads, batch, mesh)
            return lies(array, *store_axes(ndim, rows, along, heads_axis("kv_heads", along)))

        bias = None if cache.bias is None else lies(cache.bias, batch, "embed")
        keys, values = jax.tree.map(store, (cache.keys, cache.values))
        return LayerCache(keys, values, bias)

    of_layers = tuple(map(of_layer, layers, cache.layers))
    return dataclasses.replace(cache, lengths=lies(cache.lengths, "batch"), layers=of_layers)


def lay_batch(x: jax.Array, name: str, weight: jax.Array) -> jax.Array:
    """Returns x as `lay` does, where its mesh has an axis `neurons`, and x itself elsewhere.

    To be called where rows pass from products that such an axis divides to attention, which it does
    not, and back: left to itself, XLA may gather the weights in place of the rows.
    """
    return lay(x, name, weight) if NEURONS in jax.typeof(weight).sharding.mesh.shape else x


def lay(x: jax.Array, name: str, weight: jax.Array, heads: str | None = None) -> jax.Array:
    """Returns x [B, ...] with its rows along a logical axis, over the mesh that a weight lies over.

    With an axis for heads, those of x [B, T, N, H] lie along it. Without a mesh it is x itself.
    """
    mesh = jax.typeof(weight).sharding.mesh
    if not mesh.shape:
        return x
    if not isinstance(weight, jax.core.Tracer):  # outside of `jit`, devices have to be named
        assert isinstance(weight.sharding, NamedSharding)
        mesh = weight.sharding.mesh
    elif not isinstance(x, jax.core.Tracer) and not isinstance(x.sharding, NamedSharding):
        return x  # nor by a weight whose gradient is taken there, which does not name them
    spec = [*partition((name,), x.shape[:1], mesh), *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)]
    if heads is not None:
        (spec[2],) = partition((heads,), x.shape[2:3], mesh)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def lay_by_cache(
    q: jax.Array | None,
    k: jax.Array | None,
    v: jax.Array,
    lengths: jax.Array,
    batch: str,
    weight: jax.Array,
) -> tuple[Any, Any, Any, jax.Array]:
    """Returns queries, keys and values [B, T, N or K, H], and lengths [B], where the cache lies.

    Attention has its rows along `batch`, and is divided with its cache where `cache_batch` says so:
    each chip along `sub` then has all heads of a share of its rows, in the place of a share of the
    heads of them all.
    """
    rows = cache_batch(v.shape[0], v.shape[2], batch, jax.typeof(weight).sharding.mesh)
    if rows == batch:
        return q, k, v, lengths
    # Held apart, as they lie outside: XLA would otherwise lay all of the residual as it is here.
    outside = (
        None if q is None else lay(q, batch, weight, "heads"),
        None if k is None else lay(k, batch, weight, "kv_heads"),
        lay(v, batch, weight, "kv_heads"),
        lay(lengths, batch, weight),
    )
    *held, lengths = jax.lax.optimization_barrier(outside)
    q, k, v = jax.tree.map(lambda x: lay(x, rows, weight, "model_heads"), held)
    return q, k, v, lay(lengths, rows, weight)


def lay_from_cache(outputs: jax.Array, kv_heads: int, batch: str, weight: jax.Array) -> jax.Array:
    """Returns heads' outputs [B, T, N, H], of such attention to a cache of K, where o lies."""
    rows = cache_batch(outputs.shape[0], kv_heads, batch, jax.typeof(weight).sharding.mesh)
    if rows == batch:
        return outputs
    held = jax.lax.optimization_barrier(lay(outputs, rows, weight, "model_heads"))
    return lay(held, batch, weight, "heads")
