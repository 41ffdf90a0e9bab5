"""Qwen3: norms of each head's queries and keys, and heads of a size of their own."""

from sinkjax.models.families.family import QK_NORMS, Family, Gguf
from sinkjax.models.families.qwen2 import DEFAULTS, WINDOWS, problems, windows, written

FAMILY = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    defaults={**DEFAULTS, "head_dim": 128},
    own=WINDOWS,
    problems=problems,
    read=lambda attributes: {"qk_norm": True, **windows(attributes)},
    write=written,
    gguf=Gguf("qwen3", names=QK_NORMS),
    needed=("head_dim",),
)
