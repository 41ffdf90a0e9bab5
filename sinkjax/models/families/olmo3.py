"""OLMo 3: an OLMo 2 of which three layers in four have a window, and a rope without scaling."""

from typing import Any

from sinkjax.models.families import gemma2, olmo2
from sinkjax.models.families.family import (
    Attributes,
    Family,
    window_problems,
    windows_of,
    written_windows,
)


def _listed(attributes: Attributes) -> Attributes:
    return {**attributes, "layer_types": gemma2.kinds(attributes, every=4)}


def _read(attributes: Attributes) -> dict[str, Any]:
    kinds = _listed(attributes)["layer_types"]
    return {**olmo2.FAMILY.read(attributes), **windows_of(kinds, attributes["sliding_window"])}


FAMILY = Family(
    "olmo3",
    "Olmo3ForCausalLM",
    defaults={**olmo2.FAMILY.defaults, "rope_theta": 500_000.0},
    own={"layer_types": None, "sliding_window": 4096},
    problems=lambda attributes: window_problems(_listed(attributes)),
    read=_read,
    write=written_windows,
    local_theta=500_000.0,
)
