"""A random Llama that is made in a moment, and a mask with every path mixed in its layers."""

from flax import nnx

import sinkjax

MASK = sinkjax.SinkMask.from_text("L0: 2f w(2,6) 3s(first) | L1: c(0,0) w(2,6) f 2s(first) s(zero)")


def tiny_llama() -> sinkjax.Llama:
    """Two layers of six heads that share two key/value heads, and a vocabulary of 97 tokens."""
    config = sinkjax.LlamaConfig(
        vocab_size=97,
        num_layers=2,
        num_heads=6,
        num_kv_heads=2,
        head_dim=8,
        embed_dim=48,
        mlp_dim=96,
        max_length=64,
        norm_eps=1e-5,
        initializer_range=0.15,
    )
    return sinkjax.Llama(config, rngs=nnx.Rngs(0))
