"""Mistral: a Llama, of which some checkpoints have a window in every layer, or in those they list.

transformers calls those that list kinds of layers Ministral, as the 8B of October 2024.
"""

from typing import Any

from sinkjax.models.families.family import (
    WHOLE,
    Attributes,
    Family,
    is_whole,
    shown,
    window_problems,
    windows_of,
    written_windows,
)


def problems(attributes: Attributes) -> list[str]:
    """Returns what is wrong with the one window, of all layers or of those that are listed."""
    window, kinds = attributes["sliding_window"], attributes.get("layer_types")
    if kinds is not None:
        return window_problems(attributes, kinds)
    if window is None or is_whole(window):
        return []
    return [f"sliding_window is {shown(window)}; {WHOLE}, or null"]


def read(attributes: Attributes) -> dict[str, Any]:
    """Returns the field `layer_windows` of a window in all layers, in those listed, or none."""
    window, kinds = attributes["sliding_window"], attributes.get("layer_types")
    if kinds is not None:
        return windows_of(kinds, window)
    layers = attributes["num_hidden_layers"]
    return {"layer_windows": () if window is None else (window,) * layers}


def written(config: Any) -> dict[str, Any]:
    """Returns the attribute of the one window, and where not all layers have it, their kinds."""
    if len(set(config.layer_windows)) > 1:
        return written_windows(config)
    return {"sliding_window": config.window(0)}


FAMILY = Family(
    "mistral",
    "MistralForCausalLM",
    defaults={
        "intermediate_size": 14_336,
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
    },
    own={"sliding_window": 4096, "layer_types": None},
    problems=problems,
    read=read,
    write=written,
    needed=("num_key_value_heads",),
)
