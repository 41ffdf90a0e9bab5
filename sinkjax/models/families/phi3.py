"""Phi-3 and Phi-4: a Llama whose projections of one input lie in one tensor, some with a window.

The window is heeded in GGUF files too, where llama.cpp leaves it out. Of Phi-4-mini's heads a part
has rotary positions.
"""

from typing import Any

from sinkjax.models.families.family import Attributes, Family, Gguf, Metadata
from sinkjax.models.families.mistral import problems, read, written

_ORIGINAL = "original_max_position_embeddings"


def _beside(original: int | None) -> dict[str, int]:
    """Returns the original length beside the rope parameters, where a default wins over theirs."""
    return {} if original is None else {_ORIGINAL: original}


def _read_gguf(metadata: Metadata, attributes: Attributes) -> dict[str, Any]:
    window = "attention.sliding_window"
    # Files older than the key are of Phi-3, which has this window where its context is 4,096.
    unsaid = 2047 if attributes["max_position_embeddings"] == 4096 else 0
    return {
        "sliding_window": metadata.count(window, unsaid) if metadata.has(window, unsaid) else None,
        **_beside(attributes["rope_parameters"].get(_ORIGINAL)),
    }


FAMILY = Family(
    "phi3",
    "Phi3ForCausalLM",
    defaults={
        "vocab_size": 32_064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        _ORIGINAL: 4096,
        "rms_norm_eps": 1e-5,
    },
    own={"sliding_window": None},
    problems=problems,
    read=read,
    write=lambda config: {**written(config), **_beside(config.rope.original_max_length)},
    ropes=("default", "longrope"),
    turns_parts=True,
    joined={
        **{f"self_attn.{x}_proj": "self_attn.qkv_proj" for x in "qkv"},
        **{f"mlp.{x}_proj": "mlp.gate_up_proj" for x in ("gate", "up")},
    },
    gguf=Gguf(
        "phi3",
        names={
            "attn_qkv.weight": "self_attn.qkv_proj.weight",
            "ffn_up.weight": "mlp.gate_up_proj.weight",
        },
        read=_read_gguf,
    ),
)
