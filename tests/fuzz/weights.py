"""Formats of weights. A tensor is known by its sorted elements: no layout is asked for."""

import dataclasses
import hashlib
import json
import pathlib
import struct
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import tiny
from flax import nnx

import sinkjax
from benchmarks.write_gguf import write_gguf
from sinkjax.checkpoint import weights
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
    content = path.read_bytes()
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
        tensors[name] = _elements(array.reshape(entry["shape"]))
    assert end == len(data), "bytes that are no tensor's"
    return tensors


def safetensors_file(folder: pathlib.Path) -> Format:
    sinkjax.save_safetensors(tiny.make(num_layers=2), folder)
    before = _safetensors(folder / "model.safetensors")

    def expected(folder: pathlib.Path, original: dict) -> dict:
        after = _safetensors(folder / "model.safetensors")
        assert after.keys() == before.keys()
        return _expected_model(original, {before[name]: after[name] for name in after}, {})

    return Format(("model.safetensors",), _model, expected)


def index(folder: pathlib.Path) -> Format:
    shard_bytes, weights._SHARD_BYTES = weights._SHARD_BYTES, 40_000
    sinkjax.save_safetensors(tiny.make(num_layers=2), folder)
    weights._SHARD_BYTES = shard_bytes
    assert (folder / "model-00002-of-00003.safetensors").exists()
    # The index places tensors and says nothing of them: nothing it says may change the model.
    return Format(("model.safetensors.index.json",), _model)


_GGUF_KEYS = {
    "context_length": "max_length",
    "embedding_length": "embed_dim",
    "block_count": "num_layers",
    "feed_forward_length": "mlp_dim",
    "attention.head_count": "num_heads",
    "attention.head_count_kv": "num_kv_heads",
    "attention.layer_norm_rms_epsilon": "norm_eps",
}


def _gguf(path: pathlib.Path) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
    """Tensors' elements by name, fields of the config, and all metadata, as `gguf` reads them."""
    reader = gguf.GGUFReader(path)
    end = 0
    for tensor in reader.tensors:
        offset = int(tensor.field.parts[-1][0])
        assert offset == end, "not the running padded size"
        end = offset + -(-int(tensor.n_bytes) // reader.alignment) * reader.alignment
    tensors = {tensor.name: _elements(tensor.data) for tensor in reader.tensors}
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    config = {name: metadata[f"llama.{key}"] for key, name in _GGUF_KEYS.items()}
    config["norm_eps"] = _decimal(config["norm_eps"])
    return tensors, config, metadata


def _decimal(value: float) -> float:
    """The number that float32 holds in its fewest digits; a whole one as it is."""
    return float(value if isinstance(value, int) else str(np.float32(value)))


def gguf_file(folder: pathlib.Path) -> Format:
    write_gguf(tiny.make(num_layers=2), folder / "model.gguf")
    before = _gguf(folder / "model.gguf")[0]

    def expected(folder: pathlib.Path, original: dict) -> dict:
        after, fields, metadata = _gguf(folder / "model.gguf")
        assert after.keys() == before.keys()
        theta = _decimal(metadata.get("llama.rope.freq_base", 10000.0))
        config = {**fields, "rope": {**original["config"]["rope"], "theta": theta}}
        named = ("attention.key_length", "rope.dimension_count")
        sizes = [metadata[f"llama.{key}"] for key in named if f"llama.{key}" in metadata]
        config["head_dim"] = [*sizes, fields["embed_dim"] // fields["num_heads"]][0]
        return _expected_model(original, {before[name]: after[name] for name in after}, config)

    return Format(("model.gguf",), lambda folder: _model(folder / "model.gguf"), expected)


def orbax(folder: pathlib.Path) -> Format:
    sinkjax.save_orbax(tiny.make(num_layers=2), folder)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    names = [str(file.relative_to(folder)) for file in files]
    return Format((*names, *["sinkjax.json"] * len(names)), _model)
