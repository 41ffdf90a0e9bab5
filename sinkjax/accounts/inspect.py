"""Costs of a program's executables, compiled beside formulas, as records of JSON values."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.accounts.compiled import account
from sinkjax.accounts.formulas import ROWS, Cost, Sizes, predict, total
from sinkjax.environment import environment
from sinkjax.masks.mask import SinkMask
from sinkjax.models.abstract import abstract_model
from sinkjax.models.config import LlamaConfig
from sinkjax.models.sharding import shard
from sinkjax.programs.compile import compile
from sinkjax.programs.executable import Executable
from sinkjax.programs.generate import Program
from sinkjax.specialize.build import specialize


def compile_shapes(
    config: LlamaConfig,
    mask: SinkMask,
    dtype: jnp.dtype,
    mesh: jax.sharding.Mesh | None = None,
    **options: Any,
) -> Program:
    """Compiles a mask's programs for reading, from the shapes of weights and fills alone.

    The options are those of `sinkjax.compile`, and so are the errors.
    """
    fills = np.broadcast_to(np.float32(0), (config.num_layers, config.num_heads, config.head_dim))
    model = abstract_model(config, dtype)
    model = model if mesh is None else shard(model, mesh)
    return compile(specialize(model, mask, fills=fills), **options)


def inspect_program(program: Program) -> list[dict[str, Any]]:
    """Reads every executable of a program.

    Returns:
      one record of kind "executable" each, prefill by ascending bucket, then decode. Its `compiled`
      is what was read from the executable and its `by_hand` what the mask's formulas say, both by
      `sinkjax.accounts.formulas.ROWS` and in "total". `attention` is what computes it; of its FLOPs
      (`operations`) so many are a `kernel`'s, counted from its blocks, where those pairs alone that
      the mask asks for are `needed`. The rest is as XLA and the clock have it.
    """
    common = {
        "kind": "executable",
        "config": program.model.config.to_dict(),
        "mask": str(_mask(program)),
        "mask_digest": _mask(program).digest,
        "dtype": program.model.embedding.dtype.name,
        "batch_size": program.batch_size,
        "max_length": program.max_length,
        "steps_per_call": program.steps_per_call,
        "environment": environment(),
    }
    return [
        {**common, "name": executable.name, **_read(program, executable)}
        for executable in program.executables
    ]


def _mask(program: Program) -> SinkMask:
    """The mask of a specialized model, or the baseline's."""
    return getattr(program.model, "mask", None) or SinkMask.full(program.model.config)


def by_formula(program: Program, executable: Executable) -> dict[str, Cost]:
    """What `predict` says of an executable of a program."""
    itemsize = program.model.embedding.dtype.itemsize
    length, kernel = program.length_of(executable), program.kernel_of(executable)
    sizes = Sizes(program.batch_size, length, program.max_length, itemsize, kernel=kernel)
    return predict(program.model.config, _mask(program), sizes)


def _read(program: Program, executable: Executable) -> dict[str, Any]:
    costs = account(program, executable)
    return {
        "length": program.length_of(executable),
        "lowering_seconds": executable.lowering_seconds,
        "compile_seconds": executable.compile_seconds,
        "from_cold": executable.from_cold,
        "memory": {**dataclasses.asdict(executable.memory), "peak": executable.memory.peak},
        "xla": {"operations": executable.flops, "bytes": executable.bytes_accessed},
        "attention": program.kernel_of(executable).name,
        "kernel": {"operations": costs.kernel_flops, "needed": costs.needed_flops},
        "all_operations": costs.all_flops,
        "uncounted": list(costs.uncounted),
        "compiled": _rows(costs.rows),
        "by_hand": _rows(by_formula(program, executable)),
    }


def _rows(costs: Mapping[str, Cost]) -> dict[str, dict[str, int]]:
    whole = {**{row: costs[row] for row in ROWS}, "total": total(costs)}
    return {row: cost.record() for row, cost in whole.items()}
