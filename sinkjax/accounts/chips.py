"""What each chip of a mesh has and does under a program, as records of JSON values."""

import collections
import math
import re
from collections.abc import Iterable
from typing import Any

import jax
from flax import nnx

from sinkjax.accounts.formulas import total
from sinkjax.accounts.inspect import by_formula
from sinkjax.models.rules import BY_CHIP, BY_SUB
from sinkjax.models.sharding import mesh_of
from sinkjax.programs.generate import Program
from sinkjax.programs.hlo import Collective


def inspect_chips(program: Program) -> list[dict[str, Any]]:
    """Reads every executable of a program that lies over a mesh.

    Returns:
      one record of kind "chip" each, prefill by ascending bucket, then decode: of one chip its
      `memory` in bytes as XLA has it, with the `cache`; its FLOPs (`operations`); `collectives`
      by place ("layer_0", "sampling" or "rest") and kind, their `count` and the `bytes` of their
      results, a loop's and a branch's once; `nominal`, what all chips together would need by
      formula if nothing were whole on several; and for all executables `parameters`, in bytes,
      those that are `whole` on every chip, by kind, and those that others divide, but chips along
      an axis hold `alike`, by axis and kind; of the `cache`, the bytes that chips along an axis
      hold alike (`cache_whole`); and the layers whose heads do not come out alike, so that the
      chips of `model` divide rows (`by_rows`), or those along `sub` alone (`by_sub`).
    """
    mesh = mesh_of(program.model)
    assert mesh is not None
    held, whole = 0, collections.Counter()
    of_heads = [axis for axis, size in mesh.shape.items() if size > 1 and axis != "data"]
    alike = {axis: collections.Counter() for axis in of_heads}
    for path, parameter in nnx.to_flat_state(nnx.state(program.structure, nnx.Param)):
        array = parameter.get_value()
        name = ".".join(part for part in map(str, path) if not part.isdecimal())
        size = _chip_bytes(array)
        held += size
        if size == array.size * array.dtype.itemsize:
            whole[name] += size
            continue
        for axis in alike.keys() - {*_axes(array)}:
            alike[axis][name] += size
    cache = jax.tree.leaves(program.decode.arguments[2])
    batches = [layer.attention.batch for layer in program.model.layers]
    common = {
        "kind": "chip",
        "mesh": dict(mesh.shape),
        "batch_size": program.batch_size,
        "max_length": program.max_length,
        "dtype": program.model.embedding.dtype.name,
        "parameters": held,
        "whole": dict(whole.most_common()),
        "alike": {axis: dict(kinds.most_common()) for axis, kinds in alike.items()},
        "by_rows": [n for n, batch in enumerate(batches) if batch == BY_CHIP],
        "by_sub": [n for n, batch in enumerate(batches) if batch == BY_SUB],
        "cache": sum(map(_chip_bytes, cache)),
        "cache_whole": {
            axis: sum(_chip_bytes(array) for array in cache if axis not in _axes(array))
            for axis, size in mesh.shape.items()
            if size > 1
        },
    }
    return [
        {
            **common,
            "name": executable.name,
            "memory": {"temporary": executable.memory.temporary, "peak": executable.memory.peak},
            "operations": executable.module.flops(),
            "collectives": _by_place(executable.module.collectives()),
            "nominal": total(by_formula(program, executable)).record(),
        }
        for executable in program.executables
    ]


def _by_place(exchanged: Iterable[Collective]) -> dict[str, dict[str, dict[str, int]]]:
    """The number and bytes of collectives, by the place that they come from and their kind."""
    by_place: dict[str, dict[str, dict[str, int]]] = {}
    for item in exchanged:
        layer = re.search(r"layer_\d+", item.scope)
        other = "sampling" if re.search(r"/sampling|/cond", item.scope) else "rest"
        kinds = by_place.setdefault(layer[0] if layer else other, {})
        of_kind = kinds.setdefault(item.kind, {"count": 0, "bytes": 0})
        of_kind["count"] += 1
        of_kind["bytes"] += item.size
    return by_place


def _axes(array: jax.ShapeDtypeStruct) -> list[str]:
    """The axes of a mesh along which an array is divided."""
    return jax.tree.leaves(tuple(array.sharding.spec))


def _chip_bytes(array: Any) -> int:
    """The bytes of one chip's part of an array."""
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
