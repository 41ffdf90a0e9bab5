"""OLMo 2: norms of what attention and feed-forward add and not of what they read.

The queries of all heads have one norm together, and so have their keys. llama.cpp's files have OLMo
3 under the same name, with a window.
"""

from typing import Any

from sinkjax.models.families.family import (
    FULL,
    OUTER_NORMS,
    QK_NORMS,
    WINDOWED,
    Attributes,
    Family,
    Gguf,
    Metadata,
)


def _read_gguf(metadata: Metadata, attributes: Attributes) -> dict[str, Any]:
    if not metadata.has("attention.sliding_window"):
        return {}
    rope = attributes["rope_parameters"]
    theta = metadata.number("rope.freq_base_swa", rope["rope_theta"])
    return {
        "model_type": "olmo3",
        "architectures": ["Olmo3ForCausalLM"],
        "sliding_window": metadata.count("attention.sliding_window"),
        "layer_types": metadata.kinds(attributes["num_hidden_layers"], every=4),
        "rope_parameters": {FULL: rope, WINDOWED: {"rope_type": "default", "rope_theta": theta}},
    }


FAMILY = Family(
    "olmo2",
    "Olmo2ForCausalLM",
    defaults={"vocab_size": 50_304, "rms_norm_eps": 1e-5},
    read=lambda attributes: {
        "qk_norm": True,
        "joint_qk_norm": True,
        "inner_norms": False,
        "outer_norms": True,
    },
    gguf=Gguf("olmo2", names={**QK_NORMS, **OUTER_NORMS}, read=_read_gguf),
)
