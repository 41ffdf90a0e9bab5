"""Granite: a Llama with four multipliers."""

import math
from typing import Any

from sinkjax.models.families.family import Attributes, Family, Gguf, Metadata, is_positive, shown

_MULTIPLIERS = "embedding_multiplier", "residual_multiplier", "attention_multiplier"


def _problems(attributes: Attributes) -> list[str]:
    return [
        f"{name} is {shown(value)}; a positive number is needed"
        for name, value in attributes.items()
        if name in FAMILY.own and not is_positive(value)
    ]


def _read(attributes: Attributes) -> dict[str, Any]:
    embedding, residual, attention = (float(attributes[name]) for name in _MULTIPLIERS)
    return {
        "embedding_scale": embedding,
        "residual_scale": residual,
        "query_scale": attention * math.sqrt(attributes["head_dim"]),
        "logit_scale": 1 / attributes["logits_scaling"],
    }


def _write(config: Any) -> dict[str, Any]:
    return {
        "embedding_multiplier": config.embedding_scale,
        "residual_multiplier": config.residual_scale,
        "attention_multiplier": config.query_scale / math.sqrt(config.head_dim),
        "logits_scaling": 1 / config.logit_scale,
    }


def _read_gguf(metadata: Metadata, attributes: Attributes) -> dict[str, Any]:
    return {
        "embedding_multiplier": metadata.number("embedding_scale", 1.0),
        "residual_multiplier": metadata.number("residual_scale", 1.0),
        "attention_multiplier": metadata.number("attention.scale", attributes["head_dim"] ** -0.5),
        "logits_scaling": metadata.number("logit_scale", 1.0),
    }


FAMILY = Family(
    "granite",
    "GraniteForCausalLM",
    own={**dict.fromkeys(_MULTIPLIERS, 1.0), "logits_scaling": 1.0},
    read=_read,
    write=_write,
    problems=_problems,
    # By a key that says nothing elsewhere llama.cpp leaves out a Granite's rotation.
    gguf=Gguf("granite", pairs=True, neutral={"rope.scaling.finetuned": (True,)}, read=_read_gguf),
)
