"""The families of models that the decoder computes, by the `model_type` of their configs.

To add one, write its file and name it here (CONTRIBUTING.md has the recipe).
"""

from sinkjax.models.families import (
    gemma2,
    gemma3,
    granite,
    granitemoehybrid,
    llama,
    mistral,
    olmo2,
    olmo3,
    phi3,
    qwen2,
    qwen3,
    smollm3,
)
from sinkjax.models.families.family import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        llama.FAMILY,
        mistral.FAMILY,
        qwen2.FAMILY,
        qwen3.FAMILY,
        granite.FAMILY,
        granitemoehybrid.FAMILY,
        smollm3.FAMILY,
        gemma2.FAMILY,
        gemma3.FAMILY,
        olmo2.FAMILY,
        olmo3.FAMILY,
        phi3.FAMILY,
    )
}
