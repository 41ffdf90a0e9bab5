"""Content hashes by which records name the model, the tokenizer and the tokens they came from."""

import hashlib
import json

import numpy as np
from flax import nnx
from jaxtyping import Int

from sinkjax.distributed import to_host
from sinkjax.errors import InputError, Problem
from sinkjax.files import parse_json
from sinkjax.models.decoder import Llama, check_model

_INERT = ("family", "initializer_range", "bos_token_id", "eos_token_ids", "pad_token_id")


def model_digest(model: Llama) -> str:
    """Returns the sha256 over the parameters and what of the config decides the logits.

    Equal for equal models, whatever file they came from. Costs one pass over the parameters, about
    a second a gigabyte.
    """
    check_model(model, values=True)
    config = {k: v for k, v in model.config.to_dict().items() if k not in _INERT}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        value = to_host(parameter[...])
        digest.update(f"{path} {value.shape} {value.dtype}".encode())
        digest.update(np.ascontiguousarray(value).view(np.uint8).data)
    return digest.hexdigest()


def tokenizer_digest(tokenizer) -> str:
    """Returns the sha256 over the definition and the special tokens of a fast tokenizer.

    Args:
      tokenizer: a `transformers.PreTrainedTokenizerFast`.
    """
    if not hasattr(tokenizer, "backend_tokenizer"):
        text = "a fast tokenizer is needed, such as sinkjax.load_tokenizer gives"
        raise InputError(Problem("tokenizer", type(tokenizer).__name__, text))
    backend = parse_json(tokenizer.backend_tokenizer.to_str())
    definition = {
        # These two are what the last call asked for, not what the tokenizer is.
        "backend": {**backend, "truncation": None, "padding": None},
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
    }
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()


def tokens_digest(tokens: Int[np.ndarray, "P T"]) -> str:
    """Returns the sha256 over the shape and the ids of P prompts."""
    header = f"int32 {tokens.shape}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(tokens, np.int32).tobytes()).hexdigest()
