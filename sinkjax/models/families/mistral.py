"""Mistral: a Llama, of which some checkpoints have a window in every layer."""

from typing import Any

from sinkjax.models.families.family import WHOLE, Attributes, Family, is_whole, shown


def _problems(attributes: Attributes) -> list[str]:
    window = attributes["sliding_window"]
    if window is None or is_whole(window):
        return []
    return [f"sliding_window is {shown(window)}; {WHOLE}, or null"]


def _read(attributes: Attributes) -> dict[str, Any]:
    window = attributes["sliding_window"]
    layers = attributes["num_hidden_layers"]
    return {"layer_windows": () if window is None else (window,) * layers}


def _write(config: Any) -> dict[str, Any]:
    return {"sliding_window": config.window(0)}


FAMILY = Family(
    "mistral",
    "MistralForCausalLM",
    defaults={
        "intermediate_size": 14_336,
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
    },
    own={"sliding_window": 4096},
    problems=_problems,
    read=_read,
    write=_write,
)
