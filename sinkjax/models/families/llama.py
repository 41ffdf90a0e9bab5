"""Llama: the family that the decoder is written for."""

from sinkjax.models.families.family import Family, Gguf

FAMILY = Family("llama", "LlamaForCausalLM", gguf=Gguf("llama", pairs=True))
