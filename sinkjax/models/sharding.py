"""Models and rows laid over meshes by the rules, and the meshes that a model fits."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding

from sinkjax.distributed import (
    AUTO,
    AXES,
    NEURONS,
    make_mesh,
    mesh_text,
    parse_mesh,
    process_count,
    to_host,
)
from sinkjax.errors import InputError, Problem
from sinkjax.models.abstract import abstract_model
from sinkjax.models.config import LlamaConfig
from sinkjax.models.rules import ROW_AXES, RULES, partition

_SHARE = 0.5  # of a device's memory that the parameters may take under `auto`
_WHOLE = 0.25  # of the parameters that may be whole on every device


def is_explicit(mesh: Mesh) -> bool:
    """Returns whether a mesh has axes along which XLA may not lay what it likes: JAX's default."""
    return set(mesh.axis_types) != {AxisType.Auto}


def _auto(mesh: Mesh) -> Mesh:
    """Returns the same devices with axes along which XLA may lay what it likes: what the model's
    code is written for, but for rows over explicit axes.
    """
    if not is_explicit(mesh):
        return mesh
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def split_axis(parameter: nnx.Variable) -> int | None:
    """Returns the axis of a parameter that a mesh may split; None where each device has it all."""
    return next((axis for axis, name in enumerate(parameter.out_sharding) if RULES[name]), None)


def parameter_shardings(
    model: nnx.Module, mesh: Mesh | None
) -> dict[tuple[Any, ...], NamedSharding]:
    """Returns each parameter's sharding, concrete or abstract, by path; none without a mesh."""
    if mesh is None:
        return {}
    over = _auto(mesh)
    return {
        path: NamedSharding(over, partition(parameter.out_sharding, parameter.shape, mesh))
        for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }


def shard(model: nnx.Module, mesh: Mesh) -> nnx.Module:
    """Returns the same model with its parameters, concrete or abstract, laid over a mesh."""
    graph, state = nnx.split(model)
    shardings = parameter_shardings(model, mesh)

    def laid(path: tuple[Any, ...], parameter: nnx.Variable) -> nnx.Variable:
        return parameter.replace(_laid(parameter.get_value(), shardings[path]))

    return nnx.merge(graph, nnx.map_state(laid, state))


def on_devices(value: Any) -> Any:
    """Returns a parameter, concrete or abstract, as programs take it: no NumPy array, and not over
    explicit axes.
    """
    if isinstance(value, np.ndarray):
        return jax.device_put(value)
    sharding = getattr(value, "sharding", None)
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return value
    return _laid(value, NamedSharding(_auto(sharding.mesh), sharding.spec))


def with_axes_of(model: nnx.Module, mesh: Mesh) -> nnx.Module:
    """Returns a model as it lies, over the axes of a mesh of the same names and devices."""
    return jax.tree.map(lambda v: _laid(v, NamedSharding(mesh, v.sharding.spec)), model)


def _laid(value: Any, sharding: NamedSharding) -> Any:
    if isinstance(value, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)
    return jax.device_put(value, sharding)


def place(values: np.ndarray, sharding: NamedSharding | None) -> jax.Array:
    """Returns values that every process has as an array; None is for the default device."""
    return place_parts(values.__getitem__, values.shape, sharding)


def place_parts(
    read: Callable[[tuple[slice, ...]], np.ndarray],
    shape: tuple[int, ...],
    sharding: NamedSharding | None,
) -> jax.Array:
    """Returns an array of which every process reads what its own devices hold, once.

    Args:
      read: from a part of the array, a slice of each axis, to its values.
      shape: of the array.
      sharding: where it lies; None is for the default device.
    """
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(read(tuple(slice(0, size) for size in shape)), sharding)
    # Of several processes `device_put` would compare all values first.

    def ends(part: tuple[slice, ...] | None) -> list[tuple[int, int]]:
        return [of.indices(size)[:2] for of, size in zip(part or (), shape, strict=True)]

    parts = sharding.addressable_devices_indices_map(shape).values()
    axes = list(zip(*map(ends, parts), strict=True))  # of each, what each device has
    first = [min(start for start, _ in axis) for axis in axes]
    values = read(tuple(map(slice, first, [max(stop for _, stop in axis) for axis in axes])))

    def held(part: tuple[slice, ...] | None) -> np.ndarray:
        own = zip(ends(part), first, strict=True)
        index = tuple(slice(start - at, stop - at) for (start, stop), at in own)
        return values[index]

    return jax.make_array_from_callback(shape, sharding, held)


def mesh_of(model: nnx.Module) -> Mesh | None:
    """Returns the mesh that a model's parameters lie over; None without one, and inside `jit`."""
    for value in jax.tree.leaves(nnx.state(model, nnx.Param)):
        if not isinstance(value, jax.core.Tracer):
            mesh = getattr(getattr(value, "sharding", None), "mesh", None)
            return mesh if isinstance(mesh, Mesh) else None
    return None


def row_shards(model: nnx.Module) -> int:
    """Returns the number of parts in which rows lie over a model's mesh, in attention."""
    mesh = mesh_of(model)
    return 1 if mesh is None else math.prod(mesh.shape.get(axis, 1) for axis in ROW_AXES)


def even_rows(count: int, most: int, shards: int) -> int:
    """Returns the rows of a batch: up to `most` on each shard, and as many on each.

    Args:
      count: of all rows that there are.
      most: on a shard, at least 1.
      shards: as of `row_shards`.
    """
    return min(-(-count // shards), most) * shards


def fitting_rows(model: nnx.Module, rows: int) -> int:
    """Returns as many rows, or the next number that attention can divide over `neurons`."""
    mesh = mesh_of(model)
    parts = row_shards(model) if mesh is not None and NEURONS in mesh.shape else 1
    return -(-rows // parts) * parts


def lay_rows(model: nnx.Module, array: np.ndarray | jax.Array) -> jax.Array:
    """Returns an array [B, ...] with its rows over the axis `data` of a model's mesh.

    Where they are not divided by it, every device has them all.
    """
    mesh = mesh_of(model)
    if mesh is None or isinstance(array, jax.core.Tracer):
        return jnp.asarray(array)
    rows = np.asarray(to_host(array))
    rows = rows.astype(jax.dtypes.canonicalize_dtype(rows.dtype), copy=False)
    return place(rows, NamedSharding(mesh, partition(("batch",), rows.shape[:1], mesh)))


def gathered(array: jax.Array) -> jax.Array:
    """Returns an array that lies over no mesh and whose values this process has, all of them."""
    if isinstance(array, jax.core.Tracer) or not isinstance(array.sharding, NamedSharding):
        return array
    return jnp.asarray(to_host(array))


def fit_mesh(
    text: str | None,
    config: LlamaConfig,
    dtype: str,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh | None:
    """Returns the mesh of a text for a model; None for none.

    Args:
      text: as `sinkjax.distributed.parse_mesh` reads it. `auto` takes for `model`, and where there
        are too few key/value heads for `sub`, the fewest devices on which the parameters take at
        most half of the memory, or one where a device does not say what it has.
      config, dtype: of the model.
      devices: that are not here, to compile for; None for all of all processes.

    Raises:
      InputError: for a text that is none, another number of devices, several processes without a
        mesh, `auto` for devices that cannot be asked, and as `check_mesh`.
    """
    if text is None:
        if process_count() > 1:
            advice = f"give a mesh over the devices of all {process_count()} processes, or {AUTO}"
            raise InputError(Problem("mesh", None, advice))
        return None
    sizes = parse_mesh(text)
    if sizes is None and devices is not None:
        text = "devices that are not here do not say what memory they have; give sizes"
        raise InputError(Problem("mesh", AUTO, text))
    if sizes is None:
        count = sum(v.size for v in jax.tree.leaves(nnx.state(abstract_model(config, dtype))))
        memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        needed = count * jnp.dtype(dtype).itemsize / (memory * _SHARE) if memory else 1
        sizes = fitting_sizes(config, needed, jax.device_count())
    if problems := list(_problems(sizes, config)):
        raise InputError(*problems)
    return make_mesh(sizes, devices)


def fitting_sizes(config: LlamaConfig, needed: float, count: int) -> dict[str, int]:
    """Returns the sizes of `auto`: over `count` devices, of which a model needs at least so many.

    Where heads cannot be divided by as many, they are by as many as they can.
    """
    pairs = [
        (model, sub)
        for model, sub in itertools.product(range(1, count + 1), repeat=2)
        if not count % (model * sub) and not any(_problems({"model": model, "sub": sub}, config))
    ]
    pairs.sort(key=lambda pair: (pair[0] * pair[1], pair[1]))
    enough = min(needed, max(map(math.prod, pairs)))
    model, sub = next(pair for pair in pairs if math.prod(pair) >= enough)
    sizes = {"data": count // (model * sub), "model": model}
    return sizes if sub == 1 else {**sizes, "sub": sub}


def check_mesh(mesh: Mesh, config: LlamaConfig) -> None:
    """Checks before any weight is read that a model's heads can lie over a mesh.

    Raises:
      InputError: for anything but a mesh, axes that no rule names, numbers of heads that an axis
        does not divide, and more than a quarter of the parameters whole on every device.
    """
    if not isinstance(mesh, Mesh):
        text = 'it has to be a jax.sharding.Mesh, such as jax.make_mesh((2, 4), ("data", "model"))'
        raise InputError(Problem("mesh", mesh, text))
    if problems := list(_problems(mesh.shape, config)):
        raise InputError(*problems)


def _problems(sizes: Mapping[str, int], config: LlamaConfig) -> Iterator[Problem]:
    shown = mesh_text(sizes)
    for axis in sizes:
        if axis not in AXES:
            text = f"axis {axis!r} is unknown; known are {', '.join(AXES)}"
            yield Problem("mesh", shown, text)
    kv_heads, group = config.num_kv_heads, config.num_heads // config.num_kv_heads
    counts = {"model": (kv_heads, "key/value heads"), "sub": (group, "query heads of each")}
    fits = {axis: math.gcd(sizes.get(axis, 1), count) for axis, (count, _) in counts.items()}
    if any(_whole_problems(fits, config)):
        fits = dict.fromkeys(fits, 1)
    rows = math.prod(sizes.values()) // math.prod(fits.values())
    for axis, (count, what) in counts.items():
        if count % sizes.get(axis, 1):
            yield Problem(
                "mesh",
                shown,
                f"{axis}:{sizes[axis]} does not divide {count} {what}; "
                f"{mesh_text({'data': rows, **fits})} fits as many devices: model divides "
                f"key/value heads, sub the query heads of each, {NEURONS} no heads, data the rows",
            )
    yield from _whole_problems(sizes, config)


def _whole_problems(sizes: Mapping[str, int], config: LlamaConfig) -> Iterator[Problem]:
    """Neurons and words that a mesh does not divide, where they are a great part of a model."""
    D, H, L = config.embed_dim, config.head_dim, config.num_layers
    over = {axis: sizes[axis] for axis in ("model", NEURONS, "sub") if sizes.get(axis, 1) > 1}
    if len(over) > 1:  # what the others divide is whole nowhere
        over.pop("sub", None)
    chips = math.prod(over.values())
    tables = 1 if config.tie_embeddings else 2
    divided = {
        "neurons": (config.mlp_dim, 3 * L * D * config.mlp_dim),
        "words": (config.vocab_size, tables * D * config.vocab_size),
    }
    heads = 2 * L * D * H * (config.num_heads + config.num_kv_heads)
    total = heads + sum(numbers for _, numbers in divided.values())
    whole = {what: of for what, of in divided.items() if of[0] % chips}
    share = sum(numbers for _, numbers in whole.values()) / total
    if share > _WHOLE:
        what = " and ".join(f"{count} {name}" for name, (count, _) in whole.items())
        text = (
            f"{mesh_text(over)} does not divide {what}: {share:.0%} of the parameters would be "
            f"whole on every device, and at most {_WHOLE:.0%} may be; divide rows instead, as "
            f"data:{math.prod(sizes.values())} does"
        )
        yield Problem("mesh", mesh_text(sizes), text)
