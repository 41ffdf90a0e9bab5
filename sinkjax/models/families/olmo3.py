"""OLMo 3: an OLMo 2 of which three layers in four have a window, and a rope without scaling.

Its GGUF files are read as those of OLMo 2 that have a window.
"""

from typing import Any

from sinkjax.models.families import gemma2, olmo2
from sinkjax.models.families.family import (
    Attributes,
    Family,
    window_problems,
    windows_of,
    written_windows,
)


def _kinds(attributes: Attributes) -> Any:
    return gemma2.kinds_of(attributes, every=4)


def _read(attributes: Attributes) -> dict[str, Any]:
    windows = windows_of(_kinds(attributes), attributes["sliding_window"])
    return {**olmo2.FAMILY.read(attributes), **windows}


FAMILY = Family(
    "olmo3",
    "Olmo3ForCausalLM",
    defaults={**olmo2.FAMILY.defaults, "rope_theta": 500_000.0},
    own={"layer_types": None, "sliding_window": 4096},
    problems=lambda attributes: window_problems(attributes, _kinds(attributes)),
    read=_read,
    write=written_windows,
    local_theta=500_000.0,
)
