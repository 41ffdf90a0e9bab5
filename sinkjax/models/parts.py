"""What a decoder's layers are made of beside their products: parameters, norms, and the turn of
queries and keys. Axes as in `sinkjax.models.decoder`; M are those of a residual or of a head.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from sinkjax.attention.blocks import PerHead, PerKvHead
from sinkjax.attention.context import Context
from sinkjax.models.config import LlamaConfig
from sinkjax.models.rope import rotate


class Maker:
    """Makes parameters: one call gives shape, initial value, dtype and logical axes."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs, dtype: DTypeLike):
        self._init = nnx.initializers.normal(config.initializer_range)
        self._rngs, self._dtype = rngs, dtype
        self._scale = 1 - config.norm_offset

    def weight(self, *axes: tuple[str, int]) -> nnx.Param:
        names, shape = zip(*axes, strict=True)
        return self._param(self._init(self._rngs.params(), shape, self._dtype), names)

    def bias(self, *axes: tuple[str, int]) -> nnx.Param:
        names, shape = zip(*axes, strict=True)
        return self._param(jnp.zeros(shape, self._dtype), names)

    def scale(self, *axes: tuple[str, int]) -> nnx.Param:
        names, shape = zip(*axes, strict=True)
        return self._param(jnp.full(shape, self._scale, self._dtype), names)

    def norm(self, config: LlamaConfig) -> "RMSNorm":
        return RMSNorm(config, self.scale(("embed", config.embed_dim)))

    @staticmethod
    def _param(value: jax.Array, names: tuple[str, ...]) -> nnx.Param:
        # Logical names are not mesh axes: laying them out on creation would fail under a mesh.
        return nnx.Param(value, out_sharding=names, eager_sharding=False)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x²) + eps) · (offset + scale) over the last axes, those of scale, in float32.

    Zhang and Sennrich 2019; the offset is 0 in most models.
    """

    def __init__(self, config: LlamaConfig, scale: nnx.Param):
        self.eps, self.offset, self.scale = config.norm_eps, config.norm_offset, scale

    def __call__(self, x: Float[Array, "B T *heads M"]) -> Float[Array, "B T *heads M"]:
        """Returns the normed residual, or heads, in x's dtype."""
        wide = x.astype(jnp.float32)
        scale = self.scale[...].astype(jnp.float32)
        axes = tuple(range(-scale.ndim, 0))
        mean_square = jnp.mean(jnp.square(wide), axis=axes, keepdims=True)
        wide = wide * jax.lax.rsqrt(mean_square + jnp.float32(self.eps))
        scale = scale + self.offset if self.offset else scale
        return (wide * jnp.expand_dims(scale, range(x.ndim - scale.ndim))).astype(x.dtype)


def unnormed(x: Array) -> Array:
    """Returns x, in the place of a norm. (Unlike nnx.identity it can be pickled.)"""
    return x


class Turn(nnx.Module):
    """What makes projected queries and keys those of attention: norms, rotation, a multiplier.

    Attributes:
      q_norm, k_norm: over each head, or over all heads together; None where the model has none.
      rope: which of the model's rotary embeddings the layer has; None for none.
      query_scale: multiplies the queries; None for 1.
    """

    def __init__(self, config: LlamaConfig, index: int, make: Maker):
        def norm(*heads: tuple[str, int]) -> RMSNorm | None:
            axes = *(heads if config.joint_qk_norm else ()), ("head_dim", config.head_dim)
            return RMSNorm(config, make.scale(*axes)) if config.qk_norm else None

        self.q_norm = norm(("heads", config.num_heads))
        self.k_norm = norm(("kv_heads", config.num_kv_heads))
        self.rope = config.rope_index(index)
        self.query_scale = config.query_scale

    def __call__(self, q: PerHead, k: PerKvHead, context: Context) -> tuple[PerHead, PerKvHead]:
        """Returns queries and keys as attention takes them."""
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            q, k = (rotate(heads, context.rotary[self.rope]) for heads in (q, k))
        return scaled(q, self.query_scale), k


def scaled(x: Array, scale: float | None) -> Array:
    """Returns x times a multiplier, in x's dtype; x itself where there is none."""
    return x if scale is None else x * jnp.asarray(scale, x.dtype)
