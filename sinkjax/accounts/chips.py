"""What each chip of a mesh has and does under a program, as records of JSON values."""

import collections
import dataclasses
import math
from typing import Any

import jax
from flax import nnx

from sinkjax.accounts.formulas import total
from sinkjax.accounts.inspect import by_formula
from sinkjax.models.sharding import mesh_of
from sinkjax.programs.executable import Executable
from sinkjax.programs.generate import Program


def inspect_chips(program: Program) -> list[dict[str, Any]]:
    """Reads every executable of a program that lies over a mesh.

    Returns:
      one record of kind "chip" each, prefill by ascending bucket, then decode: of one chip its
      `memory` in bytes as XLA has it, with the `cache`; its FLOPs (`operations`); `collectives`
      by kind, their `count` and the `bytes` of their results, a loop's and a branch's once;
      `nominal`, what all chips together would need by formula if nothing were whole on several;
      and for all executables `parameters` and those that are `whole` on every chip, by kind, in
      bytes.
    """
    mesh = mesh_of(program.model)
    assert mesh is not None
    held, whole = 0, collections.Counter()
    for path, parameter in nnx.to_flat_state(nnx.state(program.structure, nnx.Param)):
        array = parameter.get_value()
        size = _chip_bytes(array)
        held += size
        if size == array.size * array.dtype.itemsize:
            whole[".".join(part for part in map(str, path) if not part.isdecimal())] += size
    common = {
        "kind": "chip",
        "mesh": dict(mesh.shape),
        "batch_size": program.batch_size,
        "max_length": program.max_length,
        "dtype": program.model.embedding.dtype.name,
        "parameters": held,
        "whole": dict(whole.most_common()),
        "cache": sum(map(_chip_bytes, _cache(program))),
    }
    lengths = [*program.prefill, None]
    return [
        {
            **common,
            **_read(executable),
            "nominal": dataclasses.asdict(total(by_formula(program, length))),
        }
        for executable, length in zip(program.executables, lengths, strict=True)
    ]


def _read(executable: Executable) -> dict[str, Any]:
    memory, by_kind = executable.memory, collections.defaultdict(list)
    for item in executable.module.collectives():
        by_kind[item.kind].append(item.size)
    return {
        "name": executable.name,
        "memory": {"temporary": memory.temporary, "peak": memory.peak},
        "operations": executable.module.operations(),
        "collectives": {
            kind: {"count": len(sizes), "bytes": sum(sizes)} for kind, sizes in by_kind.items()
        },
    }


def _cache(program: Program) -> list[jax.ShapeDtypeStruct]:
    """The arrays of the cache, the third argument of decode, each where it lies."""
    compiled = program.decode.compiled
    shardings = jax.tree.leaves(compiled.input_shardings[0][2])
    shapes = jax.tree.leaves(program.prefill[min(program.prefill)].compiled.out_info[1])
    return [
        jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
        for shape, sharding in zip(shapes, shardings, strict=True)
    ]


def _chip_bytes(array: Any) -> int:
    """Of one chip's part of an array."""
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
