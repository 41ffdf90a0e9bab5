"""The least that a step has to do, and the time that the machine would need for just that.

Counted is what attention's definition asks for, not what a program does: pairs of a query and a key
that it sees, cache slots that hold a token, parameters that are read. So a program that computes
more than it has to is further from its limit, not closer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from sinkjax.accounts.formulas import Sizes, predict, total
from sinkjax.masks.mask import SinkMask
from sinkjax.models.config import LlamaConfig


@dataclasses.dataclass(frozen=True)
class Limit:
    """The least that a step needs.

    Attributes:
      flops: of matrix products.
      bytes: read or written: parameters, and the cache.
    """

    flops: int
    bytes: int

    def __mul__(self, times: int) -> Limit:
        return Limit(self.flops * times, self.bytes * times)

    def seconds(self, rates: Mapping[str, float]) -> float:
        """The least time, memory and arithmetic at work at once (Williams et al. 2009, roofline).

        Args:
          rates: `read` in bytes and `multiply` in FLOPs a second.
        """
        return max(self.bytes / rates["read"], self.flops / rates["multiply"])


@dataclasses.dataclass(frozen=True)
class Chip:
    """The figures that a chip's maker publishes.

    Attributes:
      multiply: FLOPs a second in bfloat16, without sparsity.
      read: bytes a second.
      memory: bytes.
    """

    multiply: float
    read: float
    memory: float

    def bound(self, limit: Limit) -> tuple[float, str]:
        """The least seconds by these figures, and which of them is the bound: `rate`, `reading`."""
        rates = dataclasses.asdict(self)
        seconds = limit.seconds(rates)
        return seconds, "rate" if seconds > limit.bytes / self.read else "reading"


CHIPS: Mapping[str, Chip] = {
    # Google Cloud, "TPU v5e", system architecture: 197 TFLOPs, 16 GB HBM2 at 819 GB/s a chip.
    "tpu:v5e": Chip(multiply=197e12, read=819e9, memory=16e9),
    # NVIDIA, "H100 Tensor Core GPU", data sheet, SXM: 1,979 TFLOPS with sparsity, half of it
    # without; 80 GB at 3.35 TB/s.
    "cuda:h100": Chip(multiply=989e12, read=3.35e12, memory=80e9),
}
"""Chips of published figures, by their names in `sinkjax.programs.targets.TARGETS`."""


def prefill_limit(
    config: LlamaConfig, mask: SinkMask, batch_size: int, length: int, itemsize: int
) -> Limit:
    """The limit of a prompt of `length` tokens a row, with its cache and its last logits."""
    sizes = Sizes(batch_size, length, length, itemsize, blocked=False)
    return _limit(config, mask, sizes, batch_size * length)


def decode_limit(
    config: LlamaConfig, mask: SinkMask, batch_size: int, context: int, itemsize: int
) -> Limit:
    """The limit of one step, of which the token is the `context`-th of its row."""
    return _limit(config, mask, Sizes(batch_size, None, context, itemsize), batch_size)


def _limit(config: LlamaConfig, mask: SinkMask, sizes: Sizes, tokens: int) -> Limit:
    cost = total(predict(config, mask, sizes))
    # An embedding that is no head, too, is looked up, not read.
    looked_up = max(0, config.vocab_size - tokens) * config.embed_dim * sizes.itemsize
    unread = 0 if config.tie_embeddings else looked_up
    return Limit(cost.flops, cost.parameters + cost.cache - unread)
