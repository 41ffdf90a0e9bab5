"""SmolLM3: a Llama of which every fourth layer, as a rule, has no rotary positions."""

from typing import Any

from sinkjax.models.families.family import (
    FULL,
    WHOLE,
    WINDOWED,
    Attributes,
    Family,
    Gguf,
    is_whole,
    shown,
    window_problems,
    windows_of,
    written_windows,
)


def _problems(attributes: Attributes) -> list[str]:
    layers, turned = attributes["num_hidden_layers"], attributes["no_rope_layers"]
    if turned is not None and not (
        isinstance(turned, list)
        and len(turned) >= layers
        and all(type(x) is int and x in (0, 1) for x in turned)
    ):
        return [f"no_rope_layers is {shown(turned)}; a list of 0 or 1 for each layer is needed"]
    interval = attributes["no_rope_layer_interval"]
    if turned is None and not is_whole(interval):
        return [f"no_rope_layer_interval is {shown(interval)}; {WHOLE}"]
    return window_problems(attributes, _kinds(attributes))


def _turned(attributes: Attributes) -> list[int]:
    layers, interval = attributes["num_hidden_layers"], attributes["no_rope_layer_interval"]
    if attributes["no_rope_layers"] is not None:
        return attributes["no_rope_layers"][:layers]
    return [int((layer + 1) % interval != 0) for layer in range(layers)]


def _kinds(attributes: Attributes) -> Any:
    if attributes["layer_types"] is not None:
        return attributes["layer_types"]
    has_windows = attributes["use_sliding_window"] and attributes["sliding_window"] is not None
    return [WINDOWED if has_windows and not turns else FULL for turns in _turned(attributes)]


def _read(attributes: Attributes) -> dict[str, Any]:
    return {
        "unrotated_layers": tuple(n for n, turns in enumerate(_turned(attributes)) if not turns),
        **windows_of(_kinds(attributes), attributes["sliding_window"]),
    }


def _write(config: Any) -> dict[str, Any]:
    still = config.unrotated_layers
    return {
        "no_rope_layers": [int(layer not in still) for layer in range(config.num_layers)],
        "use_sliding_window": bool(config.layer_windows),
        **written_windows(config),
    }


FAMILY = Family(
    "smollm3",
    "SmolLM3ForCausalLM",
    defaults={
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
        "rope_theta": 2_000_000.0,
        "tie_word_embeddings": True,
    },
    own={
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": None,  # published, and read by nobody
        "layer_types": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
    },
    problems=_problems,
    read=_read,
    write=_write,
    gguf=Gguf("smollm3", pairs=True),
)
