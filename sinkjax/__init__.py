"""sinkjax: Llama in Flax, with attention chosen per head by a static sink mask."""

from sinkjax.checkpoint import load, load_config, load_tokenizer, save_orbax, save_safetensors
from sinkjax.config import LlamaConfig, RopeConfig
from sinkjax.digest import model_digest, tokenizer_digest
from sinkjax.errors import InputError
from sinkjax.mask import Copy, Full, Sink, SinkMask, Window
from sinkjax.mask_file import Provenance, SavedMask, load_mask, save_mask
from sinkjax.measure import DEFINITIONS, HeadStats, measure_sinks
from sinkjax.model import Llama
from sinkjax.program import Dispatcher, Plan, Program, Stage, compile, compile_plan
from sinkjax.specialize import SpecializedLlama, specialize

__all__ = [
    "DEFINITIONS",
    "Copy",
    "Dispatcher",
    "Full",
    "HeadStats",
    "InputError",
    "Llama",
    "LlamaConfig",
    "Plan",
    "Program",
    "Provenance",
    "RopeConfig",
    "SavedMask",
    "Sink",
    "SinkMask",
    "SpecializedLlama",
    "Stage",
    "Window",
    "compile",
    "compile_plan",
    "load",
    "load_config",
    "load_mask",
    "load_tokenizer",
    "measure_sinks",
    "model_digest",
    "save_mask",
    "save_orbax",
    "save_safetensors",
    "specialize",
    "tokenizer_digest",
]
