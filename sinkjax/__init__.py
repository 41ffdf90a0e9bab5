"""sinkjax: Llama in Flax, with attention chosen per head by a static sink mask."""

from sinkjax.interrupts import end_at_once, is_command

if is_command():  # a Ctrl-C while JAX is imported, which takes a second, would be a traceback
    end_at_once()

from sinkjax.checkpoint.load import load, load_config, load_tokenizer
from sinkjax.checkpoint.orbax import save_orbax
from sinkjax.checkpoint.weights import save_safetensors
from sinkjax.errors import InputError
from sinkjax.instruments.sinks import HeadStats, measure_sinks
from sinkjax.masks.definitions import DEFINITIONS
from sinkjax.masks.file import Provenance, SavedMask, load_mask, save_mask
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Copy, Full, Sink, Window
from sinkjax.models.config import LlamaConfig, RopeConfig
from sinkjax.models.decoder import Llama
from sinkjax.models.digest import model_digest, tokenizer_digest
from sinkjax.programs.compile import Program, compile
from sinkjax.programs.dispatch import Dispatcher, Plan, Stage, compile_plan
from sinkjax.specialize.build import SpecializedLlama, specialize

__version__ = "0.2.0.dev0"

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
