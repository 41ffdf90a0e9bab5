"""SmolLM3: a Llama of which every fourth layer, as a rule, has no rotary positions."""

from typing import Any

from sinkjax.models.families.family import WINDOWS, Attributes, Family, window_problems


def _problems(attributes: Attributes) -> list[str]:
    layers, turned = attributes["num_hidden_layers"], attributes["no_rope_layers"]
    if turned is not None and not (
        isinstance(turned, list) and len(turned) >= layers and all(x in (0, 1) for x in turned)
    ):
        return [f"no_rope_layers is {turned!r}; a list of 0 or 1 for each layer is needed"]
    interval = attributes["no_rope_layer_interval"]
    if turned is None and not (type(interval) is int and interval > 0):
        return [f"no_rope_layer_interval is {interval!r}; a whole number of at least 1 is needed"]
    return window_problems(attributes)


def _read(attributes: Attributes) -> dict[str, Any]:
    layers, turned = attributes["num_hidden_layers"], attributes["no_rope_layers"]
    if turned is None:
        interval = attributes["no_rope_layer_interval"]
        turned = [int((index + 1) % interval != 0) for index in range(layers)]
    return {"unrotated_layers": tuple(index for index in range(layers) if not turned[index])}


def _write(config: Any) -> dict[str, Any]:
    still = config.unrotated_layers
    return {"no_rope_layers": [int(index not in still) for index in range(config.num_layers)]}


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
    own={**WINDOWS, "no_rope_layers": None, "no_rope_layer_interval": 4},
    read=_read,
    write=_write,
    problems=_problems,
)
