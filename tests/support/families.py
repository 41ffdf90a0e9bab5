"""Tiny models of every family, as changes of `hf.TINY`, with the `model_type` as `family`.

Together a family's have every number of key/value heads, and whatever else `test_family.py` asks.
"""

import hf

GRANITE_4 = dict(
    family="granitemoehybrid",
    layer_types=["attention"] * 3,
    num_local_experts=0,
    shared_intermediate_size=64,
    residual_multiplier=0.7,
    attention_multiplier=0.2,
    logits_scaling=1.5,
    mamba_n_heads=1,  # which transformers holds against the width
)

KINDS = {
    "llama": dict(family="llama", head_dim=10),
    "mistral": dict(
        family="mistral",
        num_key_value_heads=6,
        sliding_window=None,
        head_dim=10,
        tie_word_embeddings=True,
    ),
    "qwen2": dict(family="qwen2", hidden_size=60),
    "qwen2_tied": dict(family="qwen2", num_key_value_heads=1, tie_word_embeddings=True),
    "qwen3": dict(family="qwen3", num_key_value_heads=1, head_dim=16, tie_word_embeddings=True),
    "qwen3_bias": dict(family="qwen3", num_key_value_heads=6, head_dim=6, attention_bias=True),
    "granite": dict(
        family="granite",
        embedding_multiplier=3.0,
        residual_multiplier=0.7,
        attention_multiplier=0.2,
        logits_scaling=1.5,
    ),
    "granite_tied": dict(
        family="granite",
        num_key_value_heads=1,
        hidden_size=60,
        tie_word_embeddings=True,
        embedding_multiplier=2.0,
    ),
    "granite_all_kv_heads": dict(
        family="granite", num_key_value_heads=6, residual_multiplier=0.5, logits_scaling=0.5
    ),
    "granite4": dict(**GRANITE_4, position_embedding_type="rope", embedding_multiplier=3.0),
    "granite4_unrotated": dict(
        **GRANITE_4, num_key_value_heads=1, head_dim=10, tie_word_embeddings=True
    ),
    "granite4_all_kv_heads": dict(
        **GRANITE_4, num_key_value_heads=6, position_embedding_type="rope"
    ),
    "smollm3": dict(
        family="smollm3", num_hidden_layers=4, no_rope_layer_interval=2, pad_token_id=None
    ),
    "smollm3_listed": dict(
        family="smollm3",
        num_key_value_heads=6,
        no_rope_layers=[0, 1, 1],
        attention_bias=True,
        pad_token_id=None,
    ),
    "mistral_windows": dict(family="mistral", sliding_window=24),
    "mistral_one_kv_head": dict(family="mistral", num_key_value_heads=1, sliding_window=20),
    "qwen2_windows": dict(
        family="qwen2",
        num_key_value_heads=6,
        use_sliding_window=True,
        sliding_window=24,
        max_window_layers=1,
    ),
    "qwen3_windows": dict(
        family="qwen3",
        head_dim=16,
        use_sliding_window=True,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "smollm3_windows": dict(
        family="smollm3",
        num_key_value_heads=1,
        hidden_size=60,
        tie_word_embeddings=False,
        no_rope_layer_interval=2,
        use_sliding_window=True,
        sliding_window=24,
        max_window_layers=1,
        pad_token_id=None,
    ),
    "gemma3": dict(
        family="gemma3_text",
        head_dim=16,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=11,
        final_logit_softcapping=3.0,
    ),
    "gemma3_linear": dict(
        family="gemma3_text",
        num_key_value_heads=1,
        head_dim=10,
        sliding_window=20,
        query_pre_attn_scalar=10,
        tie_word_embeddings=True,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        num_hidden_layers=6,
    ),
    "gemma3_all_kv_heads": dict(
        family="gemma3_text",
        num_key_value_heads=6,
        head_dim=8,
        sliding_window=20,
        sliding_window_pattern=2,
        tie_word_embeddings=False,
    ),
    "gemma2": dict(
        family="gemma2",
        head_dim=16,
        sliding_window=24,
        query_pre_attn_scalar=11,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=2.5,
    ),
    "gemma2_uncapped": dict(
        family="gemma2",
        num_key_value_heads=1,
        head_dim=10,
        sliding_window=20,
        query_pre_attn_scalar=10,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        attn_logit_softcapping=None,
        final_logit_softcapping=3.0,
        tie_word_embeddings=True,
    ),
    "gemma2_all_kv_heads": dict(
        family="gemma2",
        num_key_value_heads=6,
        head_dim=8,
        sliding_window=20,
        tie_word_embeddings=False,
    ),
    "olmo2": dict(family="olmo2"),
    "olmo2_one_kv_head": dict(family="olmo2", num_key_value_heads=1),
    "olmo3": dict(
        family="olmo3",
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_scaling={"rope_type": "linear", "factor": 4.0},
        rope_theta=5e5,
    ),
    "olmo3_one_kv_head": dict(
        family="olmo3",
        num_key_value_heads=1,
        head_dim=10,
        sliding_window=20,
        tie_word_embeddings=True,
        num_hidden_layers=5,
    ),
    "olmo3_all_kv_heads": dict(family="olmo3", num_key_value_heads=6, sliding_window=20),
    "phi3": dict(family="phi3", hidden_size=60, pad_token_id=None),
    "phi3_longrope": dict(
        family="phi3",
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
        max_position_embeddings=400,
        original_max_position_embeddings=90,  # crossed in decoding
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0, 1.1, 1.5, 2.0],
            "long_factor": [1.5, 4.0, 9.0, 16.0],
        },
        pad_token_id=None,
    ),
    "phi3_part": dict(
        family="phi3",
        head_dim=8,
        partial_rotary_factor=0.75,
        tie_word_embeddings=True,
        max_position_embeddings=400,
        original_max_position_embeddings=90,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0, 1.1, 1.5],
            "long_factor": [1.5, 4.0, 9.0],
        },
        pad_token_id=None,
    ),
    "phi3_windows": dict(
        family="phi3", num_key_value_heads=6, sliding_window=24, pad_token_id=None
    ),
    "olmo2_tied": dict(
        family="olmo2", num_key_value_heads=6, head_dim=10, tie_word_embeddings=True
    ),
}


def attributes(kind: str, **changes) -> dict:
    """A kind's `config.json`."""
    shape = {**hf.TINY, **KINDS[kind], **changes}
    family = shape.pop("family")
    return {**shape, "model_type": family}
