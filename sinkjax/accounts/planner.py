"""Plans memory: what a mask's programs need of a chip, and how many rows of a batch fit in it.

A text of T tokens a row has a program of one bucket of T, with a cache for as many. Each of its two
executables needs at its peak

  fixed + B row

bytes. Two compiled programs say both, of one row and of half as many as might fit: XLA's buffers
grow with B like this, but for padding. Without programs it is, by formula,

  prefill   parameters + B (cache + 2 T (D + F) itemsize)
  decoding  parameters + B cache

where the last term is what a layer holds between its products where it is widest: the residual
stream and its norm, beside gate and up. A program holds that and more, so that the formula's peak
is the least, and its rows are the most.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sinkjax.accounts.compiled import account
from sinkjax.accounts.formulas import Cost, Sizes, predict, total
from sinkjax.accounts.inspect import compile_shapes
from sinkjax.errors import InputError, Problem
from sinkjax.masks.mask import SinkMask
from sinkjax.models.config import LlamaConfig
from sinkjax.programs.compile import longest_context
from sinkjax.programs.generate import Program
from sinkjax.programs.options import choose_attention
from sinkjax.programs.targets import TARGETS, platform_of, target_device


@dataclasses.dataclass(frozen=True)
class StageMemory:
    """One executable: what a row costs, and the bytes that a batch needs at once.

    Attributes:
      cost: of one row.
      fixed: bytes at the peak whatever the batch.
      row: bytes more for each row.
    """

    cost: Cost
    fixed: int
    row: int

    def record(self) -> dict[str, Any]:
        """Returns the needs under the names that records have them by."""
        return {"cost": self.cost.record(), "fixed": self.fixed, "row": self.row}

    def largest_batch(self, memory: float) -> int:
        """The most rows of which the peak fits in so many bytes; 0 where none does."""
        return max(0, int((memory - self.fixed) // self.row))


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """What a mask's programs need of a chip for a text of T tokens a row.

    Attributes:
      stages: "prefill" and "decode".
      by_formula: why no program says so; None where compiled programs do.
      attention: the kernel of the prompt.
      uncounted: custom calls whose FLOPs are not known.
    """

    stages: Mapping[str, StageMemory]
    by_formula: str | None
    attention: str
    uncounted: tuple[str, ...] = ()

    def largest_batches(self, memory: float) -> dict[str, int]:
        """The most rows of each stage in so many bytes.

        Those of "prefill" are of a batch whose prompts are taken in at once. Where they come one by
        one, or in pieces, what the rows at work hold counts little: "decode" is the bound.
        """
        rows = {name: stage.largest_batch(memory) for name, stage in self.stages.items()}
        return {**rows, "prefill": min(rows.values())}


def plan_memory(
    config: LlamaConfig,
    mask: SinkMask,
    dtype: jnp.dtype,
    length: int,
    *,
    target: str,
    memory: float,
    attention: str,
    **options: Any,
) -> MemoryPlan:
    """Plans texts of T tokens a row on one chip, from compiled programs where there can be any.

    By formula are lengths that the model is not made for, and chips that cannot hold one row, or
    for which nothing here compiles.

    Args:
      config, mask, dtype: as of `sinkjax.accounts.inspect.compile_shapes`.
      length: T.
      target: of `sinkjax.programs.targets.TARGETS`.
      memory: bytes that the chip has.
      attention, options: as of `sinkjax.compile`.

    Raises:
      InputError: for a mask of another shape, an unknown target, or attention that the chip cannot
        compute so.
    """
    if target not in TARGETS:
        raise InputError(Problem("target", target, f"known are {', '.join(TARGETS)}"))
    kernel = choose_attention(attention, platform_of(target), 1, [length], config, dtype)[length]

    def formula(why: str) -> MemoryPlan:
        stages = {}
        wide = 2 * length * (config.embed_dim + config.mlp_dim) * dtype.itemsize
        for name, tokens, held in (("prefill", length, wide), ("decode", None, 0)):
            sizes = Sizes(1, tokens, length, dtype.itemsize, kernel=kernel)
            cost = total(predict(config, mask, sizes))
            stages[name] = StageMemory(cost, cost.parameters, cost.cache + held)
        return MemoryPlan(stages, why, kernel.name)

    too_large = f"one {target} cannot hold it"
    least = formula(too_large)
    own = longest_context(config)
    if own is not None and length > own:
        return formula(f"the model is made for {own:,} tokens")
    if not least.largest_batches(memory)["prefill"]:
        return least
    try:
        device = target_device(target)
    except InputError as error:
        return formula(error.problems[0].text)

    def compiled(rows: int) -> Program | None:
        """None where XLA finds that the chip's memory does not suffice."""
        try:
            return compile_shapes(
                config,
                mask,
                dtype,
                batch_size=rows,
                prefill_lengths=[length],
                max_length=length,
                attention=attention,
                device=device,
                **options,
            )
        except InputError as error:
            if not isinstance(error.__cause__, jax.errors.JaxRuntimeError):
                raise
            return None

    single = compiled(1)
    if single is None:
        return least
    many = least.largest_batches(memory)["prefill"] // 2
    other = compiled(many) if many > 1 else None
    stages = {}
    accounts = [account(single, executable) for executable in single.executables]
    for index, (name, costs) in enumerate(zip(least.stages, accounts, strict=True)):
        cost, peak = total(costs.rows), single.executables[index].memory.peak
        row = peak - cost.parameters
        if other is not None:
            row = -(-(other.executables[index].memory.peak - peak) // (many - 1))
        stages[name] = StageMemory(cost, peak - row, row)
    uncounted = {target for costs in accounts for target in costs.uncounted}
    return MemoryPlan(stages, None, kernel.name, tuple(sorted(uncounted)))
