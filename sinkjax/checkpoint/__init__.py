"""Reading Llama weights from wherever they lie, and writing them."""

from sinkjax.checkpoint.load import DTYPES, load, load_config, load_tokenizer
from sinkjax.checkpoint.orbax import save_orbax
from sinkjax.checkpoint.weights import save_safetensors

__all__ = ["DTYPES", "load", "load_config", "load_tokenizer", "save_orbax", "save_safetensors"]
