"""Gemma 2: capped scores and logits, windows in every other layer, and norms around everything.

Norms' scales are stored as what they differ from 1 by, what a layer adds is normed too, and rows of
the embedding are multiplied by sqrt(D).
"""

import math
from typing import Any

from sinkjax.models.families.family import (
    OUTER_NORMS,
    WHOLE,
    Attributes,
    Family,
    Gguf,
    Metadata,
    is_positive,
    is_whole,
    shown,
    window_problems,
    windowed_but_one_in,
    windows_of,
    written_windows,
)

_CAPS = "attn_logit_softcapping", "final_logit_softcapping"

OWN = {
    "hidden_activation": "gelu_pytorch_tanh",
    "layer_types": None,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "use_bidirectional_attention": None,
    **dict.fromkeys(_CAPS),
}
"""Attributes that Gemma 3 has as well."""

NAMES = {**OUTER_NORMS, "ffn_norm.weight": "pre_feedforward_layernorm.weight"}
"""`Gguf.names` of both."""


def problems(attributes: Attributes, kinds: Any) -> list[str]:
    """Returns what is wrong with what a Gemma has of its own, and its kinds of layers."""
    problems = [
        f"{name} is {shown(attributes[name])}; a positive number is needed, or null"
        for name in _CAPS
        if attributes[name] is not None and not is_positive(attributes[name])
    ]
    if attributes["use_bidirectional_attention"]:
        problems.append(
            f"use_bidirectional_attention is {shown(attributes['use_bidirectional_attention'])}; "
            "the decoder does not compute that: choose a checkpoint without it"
        )
    scalar = attributes["query_pre_attn_scalar"]
    if not is_whole(scalar):
        problems.append(f"query_pre_attn_scalar is {shown(scalar)}; {WHOLE}")
    return problems + window_problems(attributes, kinds)


def kinds_of(attributes: Attributes, every: int = 2) -> Any:
    """Returns the kinds of layers: as listed, or all with windows but for one in `every`."""
    if attributes["layer_types"] is not None:
        return attributes["layer_types"]
    return windowed_but_one_in(every, attributes["num_hidden_layers"])


def read(attributes: Attributes, kinds: Any) -> dict[str, Any]:
    """Returns the fields of a Gemma with these kinds of layers."""
    head_dim, scalar = attributes["head_dim"], attributes["query_pre_attn_scalar"]
    score_cap, logit_cap = (attributes[name] for name in _CAPS)
    return {
        "activation": attributes["hidden_activation"],
        "outer_norms": True,
        "norm_offset": 1.0,
        "embedding_scale": math.sqrt(attributes["hidden_size"]),
        "query_scale": math.sqrt(head_dim / scalar) if head_dim != scalar else None,
        "score_cap": None if score_cap is None else float(score_cap),
        "logit_cap": None if logit_cap is None else float(logit_cap),
        **windows_of(kinds, attributes["sliding_window"]),
    }


def written(config: Any) -> dict[str, Any]:
    """Returns the attributes of a Gemma."""
    scalar = config.head_dim / (config.query_scale or 1.0) ** 2
    return {
        "hidden_activation": config.activation,
        "query_pre_attn_scalar": round(scalar),
        **dict(zip(_CAPS, (config.score_cap, config.logit_cap), strict=True)),
        **written_windows(config),
    }


def read_scalar(attributes: Attributes, layers_of_27b: int) -> dict[str, int]:
    """Returns `query_pre_attn_scalar`, which files do not say: of all sizes, 27B alone differs."""
    heads, width = attributes["num_attention_heads"], attributes["hidden_size"]
    is_27b = attributes["num_hidden_layers"] == layers_of_27b
    return {"query_pre_attn_scalar": width // heads if is_27b else attributes["head_dim"]}


def _read_gguf(metadata: Metadata, attributes: Attributes) -> dict[str, Any]:
    return {
        "sliding_window": metadata.count("attention.sliding_window", 4096),
        "layer_types": metadata.kinds(attributes["num_hidden_layers"], every=2),
        "attn_logit_softcapping": metadata.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.number("final_logit_softcapping", 30.0),
        **read_scalar(attributes, layers_of_27b=46),
    }


FAMILY = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    defaults={
        "vocab_size": 256_000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    own={**OWN, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    problems=lambda attributes: problems(attributes, kinds_of(attributes)),
    read=lambda attributes: read(attributes, kinds_of(attributes)),
    write=written,
    gguf=Gguf("gemma2", norm_offset=1.0, names=NAMES, read=_read_gguf),
    needed=("num_key_value_heads", "head_dim"),
)
