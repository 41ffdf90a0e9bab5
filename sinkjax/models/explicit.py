"""Arrays over explicit axes, which a mesh has that JAX makes: served as over any others.

The model's code is written for axes along which XLA may lay what it likes. So what a method is
given counts as lying over those, on the same devices, and what it returns is laid over the explicit
axes again: rows as its tokens', all else by the rules.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from sinkjax.errors import InputError
from sinkjax.models.rules import cache_specs, partition

Method = TypeVar("Method", bound=Callable[..., Any])

_STATIC = ("max_length", "products", "kernel")


def explicit_mesh(*arrays: Any) -> AbstractMesh | None:
    """Returns the mesh with explicit axes that is set or that arrays lie over; None without one."""
    meshes = [jax.sharding.get_abstract_mesh()]
    meshes += [jax.typeof(array).sharding.mesh for array in arrays if isinstance(array, jax.Array)]
    return next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)


def check_axes(*arrays: Any) -> None:
    """Raises InputError for arrays over explicit axes, and where a mesh of such axes is set."""
    if (mesh := explicit_mesh(*arrays)) is not None:
        raise InputError(
            f"over a mesh with explicit axes, {', '.join(mesh.axis_names)}, this is not computed: "
            "lay the model by sinkjax.models.sharding.shard(model, mesh), and call this outside of "
            "jax.jit and jax.set_mesh"
        )


def over_any_axes(last: str) -> Callable[[Method], Method]:
    """Decorates a model's method, of tokens, that is written for any axes but explicit ones.

    Over these it is compiled as a whole.

    Args:
      last: the last logical axis of the array that it returns, alone or before a cache.
    """

    def decorate(method: Method) -> Method:
        static = [name for name in _STATIC if name in inspect.signature(method).parameters]

        @functools.partial(jax.jit, static_argnames=static)
        @functools.wraps(method)
        def compiled(model: Any, tokens: jax.Array, *more: Any, **named: Any) -> Any:
            mesh = explicit_mesh(model.embedding[...], tokens)
            assert mesh is not None
            kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
            explicit = tuple(name for name, kind in kinds if kind == AxisType.Explicit)
            auto = mesh.update_axis_types(dict.fromkeys(explicit, AxisType.Auto))
            with jax.sharding.use_abstract_mesh(auto):
                of_method = jax.tree.map(_without_explicit, (model, tokens, more, named))
                its, its_tokens, its_more, its_named = of_method
                out = method(its, its_tokens, *its_more, **its_named)
            over = AbstractMesh(tuple(mesh.shape[name] for name in explicit), explicit)
            first, *caches = out if isinstance(out, tuple) else (out,)
            spec = partition(("batch", *["embed"] * (first.ndim - 2), last), first.shape, over)
            lies = jax.typeof(tokens).sharding
            if AxisType.Explicit in lies.mesh.axis_types:
                spec = PartitionSpec(lies.spec[0], *spec[1:])
            specs = spec, *(cache_specs(model.layers, cache, over) for cache in caches)
            laid = jax.tree.map(
                lambda array, spec: jax.sharding.reshard(array, NamedSharding(mesh, spec)),
                (first, *caches),
                specs,
            )
            return laid if isinstance(out, tuple) else laid[0]

        @functools.wraps(method)
        def call(model: Any, tokens: Any, *more: Any, **named: Any) -> Any:
            is_explicit = explicit_mesh(model.embedding[...], tokens) is not None
            return (compiled if is_explicit else method)(model, tokens, *more, **named)

        return cast(Method, call)

    return decorate


def _without_explicit(value: Any) -> Any:
    """The same array, as one over axes along which XLA may lay what it likes."""
    if not isinstance(value, jax.Array):
        return value
    if AxisType.Explicit not in jax.typeof(value).sharding.mesh.axis_types:
        return value
    return jax.sharding.reshard(value, PartitionSpec(*[None] * value.ndim))
