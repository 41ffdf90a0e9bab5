"""Reads weights from a GGUF file, into the names and the config of Hugging Face.

What a key or a tensor means is what llama.cpp makes of it (`src/llama-model.cpp`) and what its
converter writes (`conversion/`). Three things differ from a Hugging Face checkpoint: names, in some
families the order of the query and key rows, and the rotary scaling of Llama 3 and longrope, which
is tensors of divisors here. What else a family has in its files is said in its own
(`sinkjax.models.families`).
"""

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.checkpoint.gguf_file import GGUFFile, open_gguf_file, under
from sinkjax.checkpoint.gguf_tokenizer import end_tokens
from sinkjax.checkpoint.stored import Part, Stored
from sinkjax.errors import InputError, naming
from sinkjax.models.families import FAMILIES
from sinkjax.models.families.family import FULL, WINDOWED, Family, Gguf, windowed_but_one_in
from sinkjax.models.hf_config import MOST_LAYERS_OR_HEADS, unlisted

_ROPE_FREQS = "rope_freqs.weight"
_LONG_ROPE = {f"{x}_factor": f"rope_factors_{x}.weight" for x in ("short", "long")}
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INPUTS = {f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"}
_OUTPUT = {"attn_output": "self_attn.o_proj"}
_MLP = {f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
_LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
} | {
    f"{stored}.{part}": f"{name}.{part}"
    for stored, name in (_INPUTS | _OUTPUT | _MLP).items()
    for part in ("weight", "bias")
}
_LAYER_NAME = re.compile(r"blk\.(0|[1-9][0-9]*)\.(.+)")
_ROTARY_NAME = re.compile(r"blk\.[0-9]+\.(attn_q|attn_k)\.(weight|bias)")

_NORM_NAME = re.compile(r".*_norm\.weight")

# Keys under the architecture that say nothing of the computation, or only of what sizes tensors are
# that are refused where they are there, as files of Granite 4 say of those that other layers have.
_DESCRIPTIVE = (
    *("vocab_size", "pooling_type", "expert_shared_feed_forward_length"),
    *(f"ssm.{x}" for x in ("conv_kernel", "group_count", "inner_size", "state_size")),
    "ssm.time_step_rank",
)
# Keys under the architecture that change the computation in ways that a family does not have, or
# does not take, with the values at which llama.cpp computes it all the same.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "rope.scaling.alpha": (0,),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.finetuned": (False, True),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_ext_factor": (1,),
    "rope.scaling.yarn_log_multiplier": (0,),
    "tensor_data_layout": ("Meta AI original pth",),  # the order of rows that is undone below
    "use_parallel_residual": (False,),
}


def open_gguf(path: pathlib.Path) -> Stored:
    """Opens a GGUF file of one of the families, or the first of its parts; no weight is read yet.

    `Stored.read` gives float32, float16 or bfloat16 as stored, and float32 for every quantized
    type, in Hugging Face's [out, in] and with its order of query and key rows. A part of one tensor
    is in memory at a time, beside what the caller keeps.

    A tensor without a Hugging Face name keeps its own, so that the conversion reports it.

    Raises:
      InputError: the file is not GGUF, damaged, truncated, of another architecture, a later part of
        a split file, or has metadata or quantizations that cannot be honoured; all are listed.
    """
    file = open_gguf_file(path)
    with naming(path):
        family, gguf = _family(file)
        config = _config(file, family, gguf)
    layer_names = _LAYER_NAMES | gguf.names
    of_rope = {_ROPE_FREQS, *_LONG_ROPE.values()}
    stored_names = {_hugging_face_name(n, layer_names): n for n in file.tensors if n not in of_rope}
    num_heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}

    def read(name: str, part: Part = ()) -> np.ndarray:
        stored = stored_names[name]
        rotary = _ROTARY_NAME.fullmatch(stored) if gguf.pairs else None
        if rotary is None:
            value = file.read(stored, *part)
            is_offset = gguf.norm_offset and _NORM_NAME.fullmatch(stored)
            return value - np.float32(gguf.norm_offset) if is_offset else value
        order = hugging_face_rows(file.tensors[stored].shape[0], num_heads[rotary[1]])
        return file.read(stored, order[part[:1]], *part[1:])

    return Stored(
        name=str(path),
        config=config,
        shapes={name: file.tensors[stored].shape for name, stored in stored_names.items()},
        read=read,
    )


def hugging_face_rows(rows: int, num_heads: int) -> np.ndarray:
    """Returns the row of the file for each row of Hugging Face's projection, int [rows].

    Rotary embeddings turn pairs of rows. In the file the two of a pair are neighbours, as Meta
    published Llama; Hugging Face has the first of every pair in the first half of the head.
    `rows` is num_heads × H, with H even.
    """
    return np.arange(rows).reshape(num_heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _hugging_face_name(name: str, layer_names: Mapping[str, str]) -> str:
    match = _LAYER_NAME.fullmatch(name)
    if match and match[2] in layer_names:
        return f"model.layers.{match[1]}.{layer_names[match[2]]}"
    return _NAMES.get(name, name)


def _family(file: GGUFFile) -> tuple[Family, Gguf]:
    """The family that the file is of."""
    families = {f.gguf.architecture: (f, f.gguf) for f in FAMILIES.values() if f.gguf is not None}
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in families:
        raise InputError(
            f"general.architecture is {architecture!r}; read are {', '.join(families)}. Give the"
            " GGUF file of a model of one of these."
        )
    kind = file.metadata.get("general.type", "model")
    if kind != "model":
        raise InputError(
            f"general.type is {kind!r}, not 'model'. Give the GGUF file of the model itself."
        )
    return families[architecture]


class _Metadata:
    """The metadata under an architecture: every key is taken once; what is left was no use."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str):
        self.architecture = architecture
        self._left = under(f"{architecture}.", metadata)
        self.problems: list[str] = []

    def count(self, key: str, default: int | None = None, most: float = math.inf) -> int:
        """A positive integer; a list with one number a layer is one number where they agree."""
        value = self._left.pop(key, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most:
            return value
        limit = "" if most == math.inf else f", at most {most:,}"
        return self._refuse(key, value, f"one positive integer for all layers{limit}", 1)

    def number(self, key: str, default: float | None = None) -> float:
        value = self._left.pop(key, default)
        if type(value) in (int, float) and 0 < value < math.inf:
            return float(value)
        return self._refuse(key, value, "a positive finite number", 1.0)

    def word(self, key: str, default: str) -> str:
        value = self._left.pop(key, default)
        return value if isinstance(value, str) else self._refuse(key, value, "a string", default)

    def has(self, key: str, unsaid: int = 0) -> bool:
        """Whether it is not 0, which for llama.cpp is none; an absent key is worth `unsaid`."""
        return self._left.get(key, unsaid) != 0

    def kinds(self, layers: int, every: int) -> list[str]:
        """The kinds of layers: as listed, or all with windows but for one in so many as it says."""
        key = "attention.sliding_window_pattern"
        listed = self._left.get(key)
        if isinstance(listed, list) and {type(has) for has in listed} == {bool}:
            del self._left[key]
            return [WINDOWED if has else FULL for has in listed]
        return windowed_but_one_in(self.count(key, every), layers)

    def check_nothing_left(self, neutral: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuses keys that are left over at other values than those that change nothing."""
        left = {
            key: value
            for key, value in sorted(self._left.items())
            if key not in _DESCRIPTIVE and value not in neutral.get(key, ())
        }
        if left:
            name = self.architecture
            listed = ", ".join(f"{name}.{key} = {value!r}" for key, value in left.items())
            self.problems.append(
                f"metadata that changes the computation in a way that is not implemented: {listed}."
                f" Use a plain, dense {name}."
            )

    def _refuse(self, key: str, value: Any, allowed: str, placeholder: Any) -> Any:
        state = "is missing" if value is None else f"is {value!r}"
        self.problems.append(
            f"{self.architecture}.{key} {state}; it must be {allowed}. Convert the model again."
        )
        return placeholder  # so that the reading goes on and finds the other problems


def _config(file: GGUFFile, family: Family, gguf: Gguf) -> dict[str, Any]:
    """The config in the form of Hugging Face's config.json, from the metadata and the tensors."""
    embedding = file.tensors.get("token_embd.weight")
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    num_tokens = len(tokens) if isinstance(tokens, list) else 0
    name, metadata = gguf.architecture, _Metadata(file.metadata, gguf.architecture)
    hidden_size = metadata.count("embedding_length")
    num_heads = metadata.count("attention.head_count")
    context_length = metadata.count("context_length")
    even_share = hidden_size // num_heads if hidden_size % num_heads == 0 else None
    is_said = metadata.has("rope.dimension_count")
    rotary_size = metadata.count("rope.dimension_count") if is_said else None
    head_dim = metadata.count("attention.key_length", even_share or rotary_size)
    rotary_size = rotary_size or head_dim
    value_size = metadata.count("attention.value_length", head_dim)
    if value_size != head_dim:
        metadata.problems.append(
            f"{name}.attention.value_length is {value_size}, attention.key_length {head_dim};"
            " values and keys of different sizes are not implemented."
        )
    has_allowed_size = rotary_size <= head_dim if family.turns_parts else rotary_size == head_dim
    if rotary_size % 2 or not has_allowed_size:
        part = "at most the head" if family.turns_parts else "the whole head"
        metadata.problems.append(
            f"{name}.rope.dimension_count is {rotary_size}, the head size {head_dim}; the rotary"
            f" embeddings must be those of {part}, and of an even size."
        )
    has_bias, has_output_bias = _has_bias(file, _INPUTS), _has_bias(file, _OUTPUT)
    if family.model_type == "llama" and has_bias and not has_output_bias:
        family = FAMILIES["qwen2"]  # a Llama but for that
    config = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "hidden_act": "silu",
        "vocab_size": embedding.shape[0] if embedding else num_tokens,
        "hidden_size": hidden_size,
        "intermediate_size": metadata.count("feed_forward_length"),
        "num_hidden_layers": metadata.count("block_count", most=MOST_LAYERS_OR_HEADS),
        "num_attention_heads": num_heads,
        "num_key_value_heads": metadata.count("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": context_length,
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope_parameters(file, metadata, rotary_size, context_length),
        **({} if rotary_size == head_dim else _of_a_part(rotary_size, head_dim)),
        "attention_bias": has_bias or has_output_bias,
        "mlp_bias": _has_bias(file, _MLP),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": unlisted(end_tokens(file.metadata)),
        "pad_token_id": file.metadata.get("tokenizer.ggml.padding_token_id"),
    }
    config |= gguf.read(metadata, config)
    metadata.check_nothing_left({**_NEUTRAL, **gguf.neutral})
    if metadata.problems:
        raise InputError(*metadata.problems)
    return config


def _has_bias(file: GGUFFile, projections: Mapping[str, str]) -> bool:
    biases = tuple(f".{projection}.bias" for projection in projections)
    return any(name.endswith(biases) for name in file.tensors)


def _of_a_part(turned: int, head_dim: int) -> dict[str, float]:
    """The attribute of heads of which a part turns: its product with their size is not below it."""
    share = turned / head_dim
    share = share if share * head_dim >= turned else math.nextafter(share, 1)
    return {"partial_rotary_factor": share}


def _rope_parameters(
    file: GGUFFile, metadata: _Metadata, rotary_size: int, context_length: int
) -> dict[str, Any]:
    """The rotary embeddings in Hugging Face's form.

    With one extension, where the file has divisors of the inverse frequencies that no Llama 3.x
    scaling gives: type "default" with "freq_factors", a list of half the rotary size.
    """
    theta = metadata.number("rope.freq_base", 10000.0)
    old_factor = metadata.number("rope.scale_linear", 1.0)  # the key's name before there were types
    factor = metadata.number("rope.scaling.factor", old_factor)
    kind = metadata.word("rope.scaling.type", "linear")
    original_length = metadata.count("rope.scaling.original_context_length", context_length)
    parameters = {"rope_type": "default", "rope_theta": theta}
    if any(name in file.tensors for name in _LONG_ROPE.values()):
        factors = {
            key: _rope_divisors(file, metadata, rotary_size, name)
            for key, name in _LONG_ROPE.items()
        }
        return {
            **parameters,
            "rope_type": "longrope",
            **{key: None if x is None else x.tolist() for key, x in factors.items()},
            "original_max_position_embeddings": original_length,
            "attention_factor": metadata.number("rope.scaling.attn_factor", 1.0),
        }
    if kind == "linear" and factor != 1:
        parameters |= {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        parameters |= {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original_length,
            **_yarn_options(metadata, factor),
        }
    elif kind not in ("linear", "none"):
        metadata.problems.append(
            f"{metadata.architecture}.rope.scaling.type is {kind!r}; 'none', 'linear' and 'yarn'"
            " are read."
        )
    divisors = _rope_divisors(file, metadata, rotary_size, _ROPE_FREQS)
    if divisors is None or np.all(divisors == 1):
        return parameters
    if parameters["rope_type"] != "default":
        metadata.problems.append(
            f"both {_ROPE_FREQS} and {metadata.architecture}.rope.scaling.type {kind!r} scale the"
            " rotary embeddings; one of them can be honoured."
        )
    return parameters | (_llama3_scaling(theta, divisors) or {"freq_factors": divisors.tolist()})


def _yarn_options(metadata: _Metadata, factor: float) -> dict[str, float]:
    options = {}
    for key in ("beta_fast", "beta_slow"):
        if metadata.has(f"rope.scaling.yarn_{key}"):
            options[key] = metadata.number(f"rope.scaling.yarn_{key}")
    # The converter writes Hugging Face's attention_factor under the one key; under the other,
    # llama.cpp multiplies its own factor, which is YaRN's recommended one (arXiv:2309.00071).
    if metadata.has("rope.scaling.yarn_attn_factor"):
        options["attention_factor"] = metadata.number("rope.scaling.yarn_attn_factor")
    elif metadata.has("rope.scaling.attn_factor"):
        recommended = 1 + 0.1 * math.log(factor)
        options["attention_factor"] = metadata.number("rope.scaling.attn_factor") * recommended
    return options


def _rope_divisors(
    file: GGUFFile, metadata: _Metadata, rotary_size: int, name: str
) -> np.ndarray | None:
    """The divisors of the inverse frequencies that a tensor holds, float64; None for none."""
    if name not in file.tensors:
        return None
    divisors = file.read(name).astype(np.float64)
    if divisors.shape != (rotary_size // 2,) or not np.all(np.isfinite(divisors) & (divisors > 0)):
        metadata.problems.append(
            f"tensor {name} has the shape {divisors.shape}; it must hold {rotary_size // 2}"
            " positive finite numbers, half the rotary size. Convert the model again."
        )
        return None
    return divisors


def _llama3_scaling(theta: float, divisors: np.ndarray) -> dict[str, Any] | None:
    """The Llama 3.x scaling that gives these divisors, float64 [H/2], if there is one.

    Every published Llama 3.1, 3.2 and 3.3 has low_freq_factor 1, high_freq_factor 4 and an original
    length of 8192, and its lowest frequency is divided by the whole factor. The formula is that of
    transformers' `_compute_llama3_parameters`.
    """
    factor, low, high, length = float(divisors[-1]), 1.0, 4.0, 8192
    wavelengths = 2 * math.pi * theta ** (np.arange(len(divisors)) / len(divisors))
    smooth = np.clip((length / wavelengths - low) / (high - low), 0, 1)
    if not np.allclose(1 / ((1 - smooth) / factor + smooth), divisors, rtol=1e-5, atol=0):
        return None
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }
