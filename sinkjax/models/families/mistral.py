"""Mistral: a Llama, of which some checkpoints have a window in every layer."""

from typing import Any

from sinkjax.models.families.family import WHOLE, Attributes, Family, is_whole, shown


def problems(attributes: Attributes) -> list[str]:
    """Returns what is wrong with the one window of all layers."""
    window = attributes["sliding_window"]
    if window is None or is_whole(window):
        return []
    return [f"sliding_window is {shown(window)}; {WHOLE}, or null"]


def read(attributes: Attributes) -> dict[str, Any]:
    """Returns the field `layer_windows` of a window in all layers, or none."""
    window = attributes["sliding_window"]
    layers = attributes["num_hidden_layers"]
    return {"layer_windows": () if window is None else (window,) * layers}


def written(config: Any) -> dict[str, Any]:
    """Returns the attribute of the one window of all layers."""
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
    problems=problems,
    read=read,
    write=written,
    needed=("num_key_value_heads",),
)
