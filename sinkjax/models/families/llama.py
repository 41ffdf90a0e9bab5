"""Llama: the family that the decoder is written for."""

from sinkjax.models.families.family import Family

FAMILY = Family("llama", "LlamaForCausalLM")
