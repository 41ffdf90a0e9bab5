"""Savings of masks and paths, by formulas or read from compiled programs.

The work of one text is a prefill of `length` tokens and `generated` decode steps. Its price is one
number: the bytes that the executables read and keep, and their FLOPs at as many FLOPs as the
machine does in the time of a byte (its balance, from the roofline model of Williams, Waterman and
Patterson 2009, with the two times added and not overlapped):

  price = bytes + FLOPs / FLOPs a byte

Formulas are those of `sinkjax.accounts.formulas`, which tests hold equal to compiled executables.
Paths are weighed by them, since a search weighs far more than it could compile.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sinkjax.accounts.compiled import account
from sinkjax.accounts.formulas import Cost, Sizes, predict, total
from sinkjax.accounts.inspect import compile_shapes
from sinkjax.errors import InputError, Problem, check_kind
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Full, Path
from sinkjax.masks.scores import group_size
from sinkjax.models.config import LlamaConfig


@dataclasses.dataclass(frozen=True)
class Needs:
    """The cost of a text: of the prompt's executable once, and of every decode step."""

    prefill: Cost
    decode: Cost


@dataclasses.dataclass(frozen=True)
class Workload:
    """The text that a mask is to serve.

    Attributes:
      length: tokens of a prompt.
      batch_size: rows.
      generated: decode steps after it.
      itemsize: bytes of a parameter and of a cached number.
      operations_per_byte: the machine's FLOPs a byte; some ten for a CPU, hundreds for an
        accelerator.
    """

    length: int
    batch_size: int = 1
    generated: int = 64
    itemsize: int = 4
    operations_per_byte: float = 10.0

    @property
    def prefill(self) -> Sizes:
        """The sizes of the prompt's executable."""
        return Sizes(self.batch_size, self.length, self.length + self.generated, self.itemsize)

    @property
    def decode(self) -> Sizes:
        """The sizes of one step's executable."""
        return dataclasses.replace(self.prefill, length=None)

    def needs(self, config: LlamaConfig, mask: SinkMask) -> Needs:
        """The needs of a text under a mask, rows together, by the formulas."""
        sizes = self.prefill, self.decode
        return Needs(*(total(predict(config, mask, each)) for each in sizes))

    def price(self, config: LlamaConfig, mask: SinkMask) -> float:
        """The price of a text under a mask, rows together, in bytes and their equivalents."""
        needs = self.needs(config, mask)
        return self._price(needs.prefill) + self.generated * self._price(needs.decode)

    def _price(self, cost: Cost) -> float:
        return cost.parameters + cost.cache + cost.flops / self.operations_per_byte


def read_needs(config: LlamaConfig, mask: SinkMask, workload: Workload, dtype: jnp.dtype) -> Needs:
    """The needs of a text, read from a mask's programs, compiled for this machine.

    Raises:
      InputError: where a program calls what has FLOPs that cannot be read from it.
    """
    program = compile_shapes(
        config,
        mask,
        dtype,
        batch_size=workload.batch_size,
        prefill_lengths=[workload.length],
        max_length=workload.length + workload.generated,
    )
    accounts = [account(program, executable) for executable in program.executables]
    if unknown := sorted({target for costs in accounts for target in costs.uncounted}):
        text = f"the programs call {', '.join(unknown)}, whose FLOPs cannot be read; give formula"
        raise InputError(Problem("saved", "compiled", text))
    return Needs(*(total(costs.rows) for costs in accounts))


def saved_shares(ours: Needs, full: Needs) -> dict[str, float]:
    """The shares of what the baseline needs that a mask takes away.

    Of the FLOPs of the prefill and of a decode step, of the bytes that a decode step reads
    (parameters and cache), and of the cache alone.
    """

    def share(of: Callable[[Needs], int]) -> float:
        return 1 - of(ours) / of(full)

    return {
        "prefill_operations": share(lambda needs: needs.prefill.flops),
        "decode_operations": share(lambda needs: needs.decode.flops),
        "decode_bytes": share(lambda needs: needs.decode.parameters + needs.decode.cache),
        "cache_bytes": share(lambda needs: needs.decode.cache),
    }


def saved_over_chips(
    config: LlamaConfig, mask: SinkMask, workload: Workload
) -> list[dict[str, Any]]:
    """What a mask saves on the fullest chip, by how many chips divide its key/value heads.

    By the formulas, and of what is divided: a chip waits for the fullest one, so what a mask saves
    there is what `SinkMask.balanced` saves in all. On one chip it is all that the mask saves.

    Returns:
      for 1 and every other number of chips that divides K, in ascending order: `chips`, how many
      heads are `masked` once the mask is balanced over them, and the shares `saved` by
      `saved_shares`. Of a mask with `copy` heads, for one chip alone.
    """
    check_kind("config", config, LlamaConfig, "a model's config, such as model.config,")
    check_kind("mask", mask, SinkMask, "a SinkMask")
    check_kind("workload", workload, Workload, "a Workload")
    mask.check(config)
    kv_heads, full = config.num_kv_heads, workload.needs(config, SinkMask.full(config))
    most = 1 if mask.counts()["copy"] else kv_heads
    rows = []
    for chips in (number for number in range(1, most + 1) if kv_heads % number == 0):
        even = mask if chips == 1 else mask.balanced(chips, kv_heads)
        saved = saved_shares(workload.needs(config, even), full)
        rows.append({"chips": chips, "masked": int(even.masked.sum()), "saved": saved})
    return rows


def path_savings(
    config: LlamaConfig, paths: Sequence[Path], workload: Workload, *, num_kv_heads: int | None
) -> np.ndarray:
    """The share of the price that goes when a head, or a whole key/value group, takes each path.

    A head of its own is credited with its own work and the G-th part of what its group shares,
    which it frees only together with the others; a group with all that it frees. A window that is
    no narrower than the layer's own saves nothing there.

    Args:
      config, workload: the model and the text.
      paths: P of `full`, `window` and `sink`.
      num_kv_heads: K, for whole groups; None for heads.

    Returns:
      float64 [P, L], in shares of the price of the baseline's text.
    """
    size = group_size(config.num_heads, config.num_kv_heads)
    whole = workload.price(config, SinkMask.full(config))

    @functools.cache
    def of_group(window: int | None) -> np.ndarray:
        """What one group frees on each path in a layer whose own window has so many tokens."""
        layer = dataclasses.replace(config, num_layers=1, layer_windows=(window,))

        def price(path: Path) -> float:
            row = (path,) * size + (Full(),) * (config.num_heads - size)
            return workload.price(layer, SinkMask((row,)))

        base = price(Full())
        return np.array([base - price(path) for path in paths])

    saved = np.stack([of_group(config.window(layer)) for layer in range(config.num_layers)], axis=1)
    return saved / whole if num_kv_heads is not None else saved / whole / size
