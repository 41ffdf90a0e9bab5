"""Which mesh axis each logical axis of a parameter lies along: the rules, in one place."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

RULES: Mapping[str, str | None] = {
    "vocab": "model",
    "heads": "model",
    "kv_heads": "model",
    "mlp": "model",
    "embed": None,
    "head_dim": None,
}
"""Logical axis to mesh axis: tensor parallelism over an axis named `model`."""


def named_sharding(
    parameter: nnx.Variable, mesh: Mesh, rules: Mapping[str, str | None] = RULES
) -> NamedSharding:
    """Returns where a parameter, concrete or abstract, lies on a mesh.

    A logical axis of its `out_sharding` whose rule names no axis of this mesh, or whose size the
    mesh axis does not divide (three key/value heads over two devices), is whole on every device.
    """
    axes = []
    for name, size in zip(parameter.out_sharding, parameter.shape, strict=True):
        axis = rules[name]
        fits = axis in mesh.shape and size % mesh.shape[axis] == 0
        axes.append(axis if fits else None)
    return NamedSharding(mesh, PartitionSpec(*axes))


def split_axis(parameter: nnx.Variable, rules: Mapping[str, str | None] = RULES) -> int | None:
    """Returns the axis of a parameter that a mesh may split; None where each device has it all."""
    return next((axis for axis, name in enumerate(parameter.out_sharding) if rules[name]), None)


def parameter_shardings(
    model: nnx.Module, mesh: Mesh, rules: Mapping[str, str | None] = RULES
) -> dict[tuple[Any, ...], NamedSharding]:
    """Returns the sharding of every parameter of a model, concrete or abstract, by path."""
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {path: named_sharding(parameter, mesh, rules) for path, parameter in state}


def shard(model: nnx.Module, mesh: Mesh, rules: Mapping[str, str | None] = RULES) -> nnx.Module:
    """Returns the same model with its parameters laid over a mesh."""
    graph, state = nnx.split(model)
    shardings = parameter_shardings(model, mesh, rules)
    flat = [
        (path, parameter.replace(jax.device_put(parameter[...], shardings[path])))
        for path, parameter in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat))
