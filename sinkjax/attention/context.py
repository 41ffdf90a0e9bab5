"""What a layer's attention needs beside the residual stream."""

from typing import Any, NamedTuple

from flax import struct
from jaxtyping import Array, Float32, Int32

from sinkjax.attention.blocks import Position
from sinkjax.attention.kernels import XLA, Kernel
from sinkjax.attention.products import PLAIN, Products

PartName = tuple[int, int, int]
"""(layer, block, part): the heads that are computed together. See `sinkjax.specialize.plan`."""


class Rotary(NamedTuple):
    """Cosines and sines of the angles by which positions turn queries and keys."""

    cos: Float32[Array, "#B T half"]
    sin: Float32[Array, "#B T half"]


@struct.dataclass
class Context:
    """A pytree, passed from layer to layer.

    Attributes:
      rotary: of the positions at hand, for each rotary embedding that the model has.
      lengths: of a prompt the tokens in each row, in decoding those before the one at hand, which
        is its position; with a further piece of a prompt those with the piece.
      start: position of a further piece's first token; None with anything else.
      max_length: tokens that the cache holds, static; None where a prompt leaves no cache.
      products: how products are written, static.
      kernel: what computes a prompt's attention, static.
      patterns: how heads that later layers copy attend, by their part: what the path's file makes
        of it for a prompt, `sinkjax.attention.copy.SlotWeights` in decoding.
    """

    rotary: tuple[Rotary, ...]
    lengths: Int32[Array, " B"]
    max_length: int | None = struct.field(pytree_node=False, default=None)
    products: Products = struct.field(pytree_node=False, default=PLAIN)
    kernel: Kernel = struct.field(pytree_node=False, default=XLA)
    start: Position | None = None
    patterns: dict[PartName, Any] = struct.field(default_factory=dict)
