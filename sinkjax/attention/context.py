"""What a layer's attention needs beside the residual stream."""

import jax
from flax import struct


@struct.dataclass
class Context:
    """A pytree, passed from layer to layer.

    Attributes:
      cos, sin: float32 [B or 1, T, H/2], of the positions at hand.
      lengths: int32 [B]; of a prompt the tokens in each row, in decoding those before the one at
        hand, which is its position.
    """

    cos: jax.Array
    sin: jax.Array
    lengths: jax.Array
