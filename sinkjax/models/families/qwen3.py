"""Qwen3: norms of each head's queries and keys, and heads of a size of their own."""

from typing import Any

from sinkjax.models.families.family import QK_NORMS, Attributes, Family, Gguf
from sinkjax.models.families.qwen2 import DEFAULTS, WINDOWS, problems, windows, written


def _read(attributes: Attributes) -> dict[str, Any]:
    return {"qk_norm": True, **windows(attributes)}


FAMILY = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    defaults={**DEFAULTS, "head_dim": 128},
    own=WINDOWS,
    problems=problems,
    read=_read,
    write=written,
    gguf=Gguf("qwen3", names=QK_NORMS),
    needed=("head_dim",),
)
