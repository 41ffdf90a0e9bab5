"""Gemma 3, text: windows in most layers with a rope of their own, and norms around everything.

Norms' scales are stored as what they differ from 1 by, queries and keys are normed, what a layer
adds is normed too, and rows of the embedding are multiplied by sqrt(D).
"""

import math
from typing import Any

from sinkjax.models.families.family import (
    FULL,
    OUTER_NORMS,
    QK_NORMS,
    WHOLE,
    WINDOWED,
    Attributes,
    Family,
    Gguf,
    Metadata,
    is_whole,
    shown,
    window_problems,
    windows_of,
    written_windows,
)

_OFF = "final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"
_PATTERNS = "sliding_window_pattern", "_sliding_window_pattern"  # of older configs


def _problems(attributes: Attributes) -> list[str]:
    problems = [
        f"{name} is {shown(attributes[name])}; the decoder does not compute that yet: choose a "
        "checkpoint without it"
        for name in _OFF
        if attributes[name]
    ]
    for name in ("query_pre_attn_scalar", *_PATTERNS):
        value = attributes[name]
        if not is_whole(value) and not (name in _PATTERNS and value is None):
            problems.append(f"{name} is {shown(value)}; {WHOLE}")
    if problems:
        return problems
    return window_problems({**attributes, "layer_types": _kinds(attributes)})


def _kinds(attributes: Attributes) -> Any:
    if attributes["layer_types"] is not None:
        return attributes["layer_types"]
    every = next((attributes[name] for name in _PATTERNS if attributes[name]), 6)
    layers = range(attributes["num_hidden_layers"])
    return [WINDOWED if (layer + 1) % every else FULL for layer in layers]


def _read(attributes: Attributes) -> dict[str, Any]:
    head_dim, scalar = attributes["head_dim"], attributes["query_pre_attn_scalar"]
    return {
        "activation": attributes["hidden_activation"],
        "qk_norm": True,
        "outer_norms": True,
        "norm_offset": 1.0,
        "embedding_scale": math.sqrt(attributes["hidden_size"]),
        "query_scale": math.sqrt(head_dim / scalar) if head_dim != scalar else None,
        **windows_of(_kinds(attributes), attributes["sliding_window"]),
    }


def _write(config: Any) -> dict[str, Any]:
    scalar = config.head_dim / (config.query_scale or 1.0) ** 2
    return {
        "hidden_activation": config.activation,
        "query_pre_attn_scalar": round(scalar),
        **written_windows(config),
    }


def _read_gguf(metadata: Metadata, attributes: Attributes) -> dict[str, Any]:
    ropes = {
        FULL: attributes["rope_parameters"],
        WINDOWED: {
            "rope_type": "default",
            "rope_theta": metadata.number("rope.freq_base_swa", 1e4),
        },
    }
    head_dim, width = attributes["head_dim"], attributes["hidden_size"]
    # The file does not say it: of all sizes, that of 27B alone differs.
    is_27b = attributes["num_hidden_layers"] == 62
    return {
        "rope_parameters": ropes,
        "sliding_window": metadata.count("attention.sliding_window"),
        "sliding_window_pattern": metadata.count("attention.sliding_window_pattern", 6),
        "query_pre_attn_scalar": width // attributes["num_attention_heads"] if is_27b else head_dim,
    }


FAMILY = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    defaults={
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
    },
    own={
        **dict.fromkeys((*_OFF, *_PATTERNS, "layer_types")),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "rope_local_base_freq": None,
        "sliding_window": 4096,
    },
    problems=_problems,
    read=_read,
    write=_write,
    gguf=Gguf(
        "gemma3",
        norm_offset=1.0,
        names={
            **QK_NORMS,
            **OUTER_NORMS,
            "ffn_norm.weight": "pre_feedforward_layernorm.weight",
        },
        read=_read_gguf,
    ),
    local_theta=10_000.0,
)
