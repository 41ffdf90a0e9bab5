"""Qwen2 and Qwen2.5: biases of queries, keys and values, and none of the output projection.

Where a config asks for windows, the layers from `max_window_layers` on have one, or those that
`layer_types` names.
"""

from typing import Any

from sinkjax.models.families.family import (
    FULL,
    WINDOWED,
    Attributes,
    Family,
    Gguf,
    shown,
    window_problems,
    windows_of,
    written_windows,
)

DEFAULTS = {
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "max_position_embeddings": 32_768,
    "num_key_value_heads": 32,
}

WINDOWS = {
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}


def problems(attributes: Attributes) -> list[str]:
    """Returns what is wrong with the windows of a Qwen."""
    used, first = attributes["use_sliding_window"], attributes["max_window_layers"]
    kinds = attributes["layer_types"]
    if not used and isinstance(kinds, list) and WINDOWED in kinds:
        return [f"layer_types has {WINDOWED}, though use_sliding_window is false; set it to true"]
    if used and kinds is None and not (type(first) is int and first >= 0):
        return [f"max_window_layers is {shown(first)}; a whole number is needed"]
    return window_problems(attributes, _kinds(attributes))


def windows(attributes: Attributes) -> dict[str, Any]:
    """Returns the field `layer_windows` of a Qwen."""
    return windows_of(_kinds(attributes), attributes["sliding_window"])


def written(config: Any) -> dict[str, Any]:
    """Returns the attributes of a Qwen's windows."""
    return {"use_sliding_window": bool(config.layer_windows), **written_windows(config)}


def _kinds(attributes: Attributes) -> Any:
    if attributes["layer_types"] is not None:
        return attributes["layer_types"]
    layers, window = attributes["num_hidden_layers"], attributes["sliding_window"]
    has_windows = attributes["use_sliding_window"] and window is not None
    first = attributes["max_window_layers"] if has_windows else layers
    return [WINDOWED if layer >= first else FULL for layer in range(layers)]


FAMILY = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    defaults=DEFAULTS,
    own=WINDOWS,
    problems=problems,
    read=lambda attributes: {"attention_bias": True, "output_bias": False, **windows(attributes)},
    write=written,
    gguf=Gguf("qwen2"),
)
