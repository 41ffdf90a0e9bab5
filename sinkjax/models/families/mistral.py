"""Mistral: a Llama, of which some checkpoints have a window in every layer."""

from typing import Any

from sinkjax.models.families.family import Attributes, Family


def _problems(attributes: Attributes) -> list[str]:
    window, length = attributes["sliding_window"], attributes["max_position_embeddings"]
    if window is None or (isinstance(window, int) and isinstance(length, int) and window >= length):
        return []
    return [
        f"sliding_window is {window!r}; windows of the model's own are not computed yet: choose a "
        "checkpoint without them, such as Mistral-7B v0.2 and later, where it is null"
    ]


def _write(config: Any) -> dict[str, Any]:
    return {"sliding_window": None}


FAMILY = Family(
    "mistral",
    "MistralForCausalLM",
    defaults={
        "intermediate_size": 14_336,
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
    },
    own={"sliding_window": 4096},
    write=_write,
    problems=_problems,
)
