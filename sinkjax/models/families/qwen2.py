"""Qwen2 and Qwen2.5: biases of queries, keys and values, and none of the output projection."""

from typing import Any

from sinkjax.models.families.family import WINDOWS, Attributes, Family, window_problems

DEFAULTS = {
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "max_position_embeddings": 32_768,
    "num_key_value_heads": 32,
}


def _read(attributes: Attributes) -> dict[str, Any]:
    return {"attention_bias": True, "output_bias": False}


FAMILY = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    defaults=DEFAULTS,
    own=WINDOWS,
    read=_read,
    problems=window_problems,
)
