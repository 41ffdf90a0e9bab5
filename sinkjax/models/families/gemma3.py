"""Gemma 3, text: a Gemma 2 with norms of queries and keys, and a rope of their own in most layers.

Those are the layers with windows. Scores are not capped.
"""

from typing import Any

from sinkjax.models.families import gemma2
from sinkjax.models.families.family import (
    FULL,
    QK_NORMS,
    WHOLE,
    WINDOWED,
    Attributes,
    Family,
    Gguf,
    Metadata,
    is_positive,
    is_whole,
    shown,
)

_PATTERNS = "sliding_window_pattern", "_sliding_window_pattern"  # of older configs
_LOCAL_BASE = "rope_local_base_freq"


def _problems(attributes: Attributes) -> list[str]:
    cap = attributes["attn_logit_softcapping"]
    problems = [
        f"{name} is {shown(attributes[name])}; {WHOLE}, or null"
        for name in _PATTERNS
        if not (attributes[name] is None or is_whole(attributes[name]))
    ]
    base = attributes[_LOCAL_BASE]
    if base is not None and not is_positive(base):
        problems.append(f"{_LOCAL_BASE} is {shown(base)}; a positive number is needed, or null")
    if cap is not None:  # transformers has the attribute, and does not compute it either
        problems.append(f"attn_logit_softcapping is {shown(cap)}; null is needed")
    return problems + gemma2.problems(attributes, _kinds(attributes))


def _kinds(attributes: Attributes) -> Any:
    every = next((attributes[name] for name in _PATTERNS if is_whole(attributes[name])), 6)
    return gemma2.kinds_of(attributes, every)


def _read_gguf(metadata: Metadata, attributes: Attributes) -> dict[str, Any]:
    ropes = {
        FULL: attributes["rope_parameters"],
        WINDOWED: {
            "rope_type": "default",
            "rope_theta": metadata.number("rope.freq_base_swa", 1e4),
        },
    }
    cap = "final_logit_softcapping"
    return {
        "rope_parameters": ropes,
        "sliding_window": metadata.count("attention.sliding_window"),
        "layer_types": metadata.kinds(attributes["num_hidden_layers"], every=6),
        cap: metadata.number(cap) if metadata.has(cap) else None,
        **gemma2.read_scalar(attributes, layers_of_27b=62),
    }


FAMILY = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    defaults={
        **gemma2.FAMILY.defaults,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "rope_theta": 1_000_000.0,
    },
    own={**gemma2.OWN, **dict.fromkeys(_PATTERNS), _LOCAL_BASE: None},
    problems=_problems,
    read=lambda attributes: {"qk_norm": True, **gemma2.read(attributes, _kinds(attributes))},
    write=gemma2.written,
    gguf=Gguf("gemma3", norm_offset=1.0, names={**QK_NORMS, **gemma2.NAMES}, read=_read_gguf),
    local_theta=10_000.0,
    needed=gemma2.FAMILY.needed,
)
