"""Formats of weights. A tensor is known by its sorted elements: no layout is asked for."""

import dataclasses
import hashlib
import json
import pathlib
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import families
import gguf
import gguf_files
import ml_dtypes
import numpy as np
import tiny
import transformers
from flax import nnx

import sinkjax
from sinkjax.checkpoint import weights
from sinkjax.models.hf_config import from_hf_config
from tests.fuzz.configs import by_transformers
from tests.fuzz.format import Format


def _elements(array: np.ndarray) -> str:
    return hashlib.sha256(np.sort(np.asarray(array, np.float32).ravel().view("u4"))).hexdigest()


def _model(path: pathlib.Path) -> dict[str, Any]:
    model = sinkjax.load(path)
    arrays = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {
        "config": dataclasses.asdict(model.config),
        "tensors": {".".join(map(str, path)): _elements(value[...]) for path, value in arrays},
    }


def _expected_model(original: dict, tensors: dict[str, str], config: dict[str, Any]) -> dict:
    """What the model is, of a file in which tensors that had these elements have others.

    Args:
      original: the undamaged model, as `_model` gives it.
      tensors: what each of its tensors' elements have become.
      config: fields of the config as another reader finds them.
    """
    changed = {name: tensors[elements] for name, elements in original["tensors"].items()}
    return {"config": {**original["config"], **config}, "tensors": changed}


def _safetensors(path: pathlib.Path) -> dict[str, str]:
    """Tensors' elements by name, as the format's definition reads."""
    if path.is_dir():  # of shards
        files = [_safetensors(file) for file in sorted(path.glob("*.safetensors"))]
        assert len(set().union(*files)) == sum(map(len, files)), "a tensor in two files"
        return {name: elements for file in files for name, elements in file.items()}
    arrays = stored_arrays(path.read_bytes())
    return {name: _elements(array) for name, array in arrays.items()}


def stored_arrays(content: bytes) -> dict[str, np.ndarray]:
    """Tensors by name, as the format's definition reads."""
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    header.pop("__metadata__", None)
    dtypes = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    end, tensors = 0, {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, next_end = entry["data_offsets"]
        assert start == end, "a hole"
        end = next_end
        array = np.frombuffer(data[start:end], dtypes[entry["dtype"]])
        tensors[name] = array.reshape(entry["shape"])
    assert end == len(data), "bytes that are no tensor's"
    return tensors


def safetensors_file(folder: pathlib.Path) -> Format:
    sinkjax.save_safetensors(tiny.make(num_layers=2), folder)
    before = _safetensors(folder)
    return Format(("model.safetensors",), _model, _as_stored(before))


def _as_stored(before: dict[str, str]) -> Callable[[pathlib.Path, dict], dict]:
    """Expects the model of the tensors that are there, if they are those that were.

    Args:
      before: their elements by name, undamaged.
    """

    def expected(folder: pathlib.Path, original: dict) -> dict:
        after = _safetensors(folder)
        assert after.keys() == before.keys()
        return _expected_model(original, {before[name]: after[name] for name in after}, {})

    return expected


def index(folder: pathlib.Path) -> Format:
    shard_bytes, weights._SHARD_BYTES = weights._SHARD_BYTES, 40_000
    sinkjax.save_safetensors(tiny.make(num_layers=2), folder)
    weights._SHARD_BYTES = shard_bytes
    shards = [path.name for path in sorted(folder.glob("*.safetensors"))]
    assert len(shards) == 3
    # The index places tensors and says nothing of them: nothing it says may change the model.
    files = ("model.safetensors.index.json",) * 2, tuple(shards)
    return Format(sum(files, ()), _model, _as_stored(_safetensors(folder)))


_ARCHITECTURES = {  # of each, what it has that no key of its files says
    "llama": {"kind": "mistral"},
    "qwen2": {},
    "qwen3": {"attention_bias": False},
    "granite": {},
    "smollm3": {"no_rope_layer_interval": 4},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3": {"query_pre_attn_scalar": 16, "layer_types": None},
    "olmo2": {},
    "phi3": {},
}
_GGUF_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.scale": "attention_multiplier",
    "attention.sliding_window": "sliding_window",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_NOT_SAID = {  # by llama.cpp, of a key that is absent
    "gemma2": {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
}


def gguf_file(folder: pathlib.Path) -> Format:
    """A file of each architecture, of which that of Llamas is in parts."""
    files, before = {}, {}
    for architecture, changes in _ARCHITECTURES.items():
        said = families.attributes(**{"kind": architecture, "num_hidden_layers": 2, **changes})
        its = tiny.make(**vars(from_hf_config(said)))
        parts = {"split_max_tensors": 10} if architecture == "llama" else {}
        writer = gguf.GGUFWriter(folder / f"{architecture}.gguf", architecture, **parts)
        tensors = {name: tensor() for name, tensor in weights.stored_tensors(its).items()}
        of_family = transformers.AutoConfig.for_model(**said)
        gguf_files.add_family(writer, architecture, of_family, tensors)
        gguf_files.finish(writer)
        files[architecture] = sorted(path.name for path in folder.glob(f"{architecture}*"))
        before[architecture] = _gguf(folder, files[architecture])[0]
    undamaged = {a: [(folder / name).read_bytes() for name in files[a]] for a in files}
    known = {architecture: _model(folder / files[architecture][0]) for architecture in files}

    def is_damaged(folder: pathlib.Path, architecture: str) -> bool:
        paths = [folder / name for name in files[architecture]]
        small = [p.is_file() and p.stat().st_size < 10**7 for p in paths]
        return not all(small) or [p.read_bytes() for p in paths] != undamaged[architecture]

    def read(folder: pathlib.Path) -> dict[str, Any]:
        damaged = [a for a in files if is_damaged(folder, a)]  # one, and reading all takes a while
        return {**known, **{a: _model(folder / files[a][0]) for a in damaged}}

    def expected(folder: pathlib.Path, original: dict) -> dict:
        models = dict(original)
        for architecture in (a for a in files if is_damaged(folder, a)):
            after, metadata = _gguf(folder, files[architecture])
            config = by_transformers(_attributes(architecture, metadata, after))
            assert after.keys() == before[architecture].keys()
            pairs = zip(
                _pieces(architecture, original[architecture], before[architecture]),
                _pieces(architecture, original[architecture], after),
                strict=True,
            )
            models[architecture] = _expected_model(original[architecture], dict(pairs), config)
        return models

    names = tuple(name for of_one in files.values() for name in of_one)
    return Format(names, read, expected)


def _attributes(
    architecture: str, metadata: dict[str, Any], tensors: dict[str, np.ndarray]
) -> dict[str, Any]:
    """What a config.json would have of a file's model."""
    assert metadata["general.architecture"] == architecture
    keys = {key: metadata.get(f"{architecture}.{key}") for key in _GGUF_KEYS}
    said = {_GGUF_KEYS[key]: value for key, value in keys.items() if value is not None}
    said = {key: value[0] if isinstance(value, list) else value for key, value in said.items()}
    said = {key: _decimal(v) if isinstance(v, float) else v for key, v in said.items()}
    said = {**_NOT_SAID.get(architecture, {}), **said}
    heads = said["num_attention_heads"]
    said.setdefault("num_key_value_heads", heads)
    turned = metadata.get(f"{architecture}.rope.dimension_count")
    share, left = divmod(said["hidden_size"], heads)
    said.setdefault("head_dim", turned if left else share)
    if architecture == "granite":
        said.setdefault("attention_multiplier", said["head_dim"] ** -0.5)
    rope = {"rope_type": "default"}
    rope["rope_theta"] = _decimal(metadata.get(f"{architecture}.rope.freq_base", 10000.0))
    if architecture in ("gemma2", "gemma3"):
        said["query_pre_attn_scalar"] = said["head_dim"]
    if architecture == "gemma2":
        said.setdefault("sliding_window", 4096)
    if architecture == "gemma3":
        rope = {"full_attention": rope, "sliding_attention": {**rope, "rope_theta": 10000.0}}
        said.setdefault("final_logit_softcapping", None)
    if architecture == "phi3":
        unsaid = 2047 if said["max_position_embeddings"] == 4096 else None
        said["sliding_window"] = said.get("sliding_window", unsaid) or None
        said["partial_rotary_factor"] = (turned or said["head_dim"]) / said["head_dim"]
        said["pad_token_id"] = None
    return {
        **said,
        "model_type": {"gemma3": "gemma3_text"}.get(architecture, architecture),
        "vocab_size": len(tensors["token_embd.weight"]),
        "tie_word_embeddings": "output.weight" not in tensors,
        "rope_parameters": rope,
    }


def _pieces(
    architecture: str, original: dict[str, Any], tensors: dict[str, np.ndarray]
) -> Iterator[str]:
    """Elements of what a file has in one tensor, and as what differs from 1."""
    config = original["config"]
    heads = [config["num_heads"], *[config["num_kv_heads"]] * 2]
    for name, array in sorted(tensors.items()):
        parts = [array]
        if architecture == "phi3" and name.endswith("attn_qkv.weight"):
            ends = np.cumsum(np.multiply(heads, config["head_dim"]))[:2]
            parts = np.split(array, ends)
        if architecture == "phi3" and name.endswith("ffn_up.weight"):
            parts = np.split(array, 2)
        if architecture in ("gemma2", "gemma3") and "norm" in name:
            parts = [array - np.float32(1)]
        yield from map(_elements, parts)


def _gguf(
    folder: pathlib.Path, names: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors by name and the first part's metadata, as the `gguf` package reads them."""
    tensors, metadata = {}, {}
    for number, name in enumerate(names):
        reader, end = gguf.GGUFReader(folder / name), 0
        its = {key: field.contents() for key, field in reader.fields.items()}
        metadata = metadata or its
        assert its.get("split.no", 0) == number
        assert its.get("split.count", 1) == len(names)
        for tensor in reader.tensors:
            offset = int(tensor.field.parts[-1][0])
            assert offset == end, "not the running padded size"
            end = offset + -(-int(tensor.n_bytes) // reader.alignment) * reader.alignment
            assert tensor.name not in tensors
            tensors[tensor.name] = gguf.dequantize(tensor.data, tensor.tensor_type)
    return tensors, metadata


def _decimal(value: float) -> float:
    """The number that float32 holds in its fewest digits; a whole one as it is."""
    return float(value if isinstance(value, int) else str(np.float32(value)))


def orbax(folder: pathlib.Path) -> Format:
    sinkjax.save_orbax(tiny.make(num_layers=2), folder)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    names = [str(file.relative_to(folder)) for file in files]
    return Format((*names, *["sinkjax.json"] * len(names)), _model)
