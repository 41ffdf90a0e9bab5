"""Between tensors under Hugging Face names and the Flax model, in both directions."""

import collections
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import save_file

from sinkjax.checkpoint.folder import CONFIG, INDEX, WEIGHTS
from sinkjax.checkpoint.names import Entry, Path, name_table
from sinkjax.checkpoint.stored import Part, Stored
from sinkjax.distributed import first, to_host
from sinkjax.errors import InputError, Problem, check_path_name, first_line
from sinkjax.files import check_path
from sinkjax.models.abstract import abstract_model, fill_model
from sinkjax.models.config import LlamaConfig
from sinkjax.models.decoder import Llama, check_model
from sinkjax.models.hf_config import from_hf_config, to_hf_config
from sinkjax.models.sharding import parameter_shardings, place_parts

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_LAYER = re.compile(r"model\.layers\.(\d{1,9})\.")
_SHARD_BYTES = 4 * 2**30
_COMPARED = 1 << 22  # numbers of two tensors that are compared at once


def convert(source: Stored, dtype: jnp.dtype, mesh: jax.sharding.Mesh | None) -> Llama:
    """Converts a checkpoint, tensor by tensor; every tensor is consumed or the whole is refused.

    A process reads of each what its devices hold.

    Args:
      source: the checkpoint.
      dtype: of the parameters.
      mesh: to lay them over by `sinkjax.models.sharding`; None for the default device.

    Raises:
      InputError: listing all config attributes not understood, or all tensors unknown, missing or
        misshapen.
    """
    config = from_hf_config(source.config, source.name)
    _check_layers(source, config)
    if config.tie_embeddings:
        source = _with_embedding(source)
    entries = {entry.path: entry for entry in name_table(config)}
    _check_tensors(source, list(entries.values()), config)
    abstract = abstract_model(config, dtype)
    shardings = parameter_shardings(abstract, mesh)

    def parameter(path: Path) -> jax.Array:
        entry = entries[path]

        def read(part: Part) -> np.ndarray:
            value = source.read(entry.name, entry.stored_part(part)).astype(dtype, copy=False)
            return value.reshape([at.stop - at.start for at in part])

        return place_parts(read, entry.shape, shardings.get(path))

    return fill_model(abstract, parameter)


def _check_layers(source: Stored, config: LlamaConfig) -> None:
    """Raises InputError where layers are missing at the end, before anything counts them."""
    numbers = (_LAYER.match(name) for name in source.shapes)
    stored = 1 + max((int(number[1]) for number in numbers if number), default=-1)
    if config.num_layers > stored:
        raise InputError(
            f"{source.name}: its config has {config.num_layers:,} layers, its tensors are of "
            f"{stored:,}; download it again"
        )


def _with_embedding(source: Stored) -> Stored:
    """A tied checkpoint with the embedding under its own name, where it has it as the head."""
    if _EMBEDDING in source.shapes or _HEAD not in source.shapes:
        return source
    return dataclasses.replace(
        source,
        shapes={_EMBEDDING if n == _HEAD else n: shape for n, shape in source.shapes.items()},
        read=lambda name, part=(): source.read(_HEAD if name == _EMBEDDING else name, part),
    )


def _check_tensors(source: Stored, table: list[Entry], config: LlamaConfig) -> None:
    """Raises InputError with every tensor that is missing, misshapen or unknown."""
    wanted = {entry.name: entry.stored_shape for entry in table}
    problems = [f"tensor {name} is missing" for name in wanted if name not in source.shapes]
    for name, shape in source.shapes.items():
        if name in wanted and tuple(shape) != wanted[name]:
            problems.append(
                f"tensor {name} has shape {tuple(shape)}; its config asks for {wanted[name]}"
            )
        elif name == _HEAD and config.tie_embeddings:
            if not _are_equal(source, _HEAD, _EMBEDDING):
                problems.append(
                    "tensor lm_head.weight differs from model.embed_tokens.weight, though the "
                    "config ties them; set tie_word_embeddings to false in its config.json"
                )
        elif name not in wanted:
            problems.append(f"tensor {name} is unknown: no part of a Llama of this config reads it")
    if problems:
        raise InputError(*(f"{source.name}: {problem}" for problem in problems))


def _are_equal(source: Stored, *names: str) -> bool:
    """Whether two tensors are the same; a block of rows at a time, since they are the largest."""
    (rows, columns), other = (source.shapes[name] for name in names)
    step = max(1, _COMPARED // columns)
    parts = [(slice(n, min(n + step, rows)), slice(columns)) for n in range(0, rows, step)]
    return (rows, columns) == other and all(
        np.array_equal(*(source.read(name, part) for name in names)) for part in parts
    )


def stored_tensors(model: Llama) -> Mapping[str, Callable[[], np.ndarray]]:
    """Each parameter as a Hugging Face checkpoint stores it, by name, made when called."""
    parameters = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    entries = collections.defaultdict(list)
    for entry in name_table(model.config):
        entries[entry.name].append(entry)

    def tensor(parts: list[Entry]) -> Callable[[], np.ndarray]:
        def rows(part: Entry) -> np.ndarray:
            return to_host(parameters[part.path][...]).reshape(-1, *part.stored_shape[1:])

        return lambda: rows(parts[0]) if len(parts) == 1 else np.concatenate(list(map(rows, parts)))

    return {name: tensor(parts) for name, parts in entries.items()}


def save_safetensors(model: Llama, folder: str | pathlib.Path) -> None:
    """Writes `config.json` and safetensors that transformers loads, sharded above 4 GiB.

    Args:
      model: to write, in its parameters' dtype.
      folder: made if it is not there; a model that it holds is overwritten.

    Raises:
      InputError: if the model's rotary frequencies have no form in a Hugging Face config, or the
        folder cannot be written.
    """
    check_savable(model)
    folder = check_path_name("folder", folder, "a folder")
    dtype = model.embedding[...].dtype
    config = to_hf_config(model.config, dtype.name)

    def clear() -> None:
        check_path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, WEIGHTS, INDEX):  # so that nothing is read with another model's file
            (folder / name).unlink(missing_ok=True)

    try:
        first(clear)
        _write_shards(model, folder, dtype.itemsize)
        text = json.dumps(config, indent=2) + "\n"
        first(lambda: (folder / CONFIG).write_text(text))
    except (OSError, SafetensorError) as error:
        raise unwritable(folder, error) from error


def check_savable(model: Llama) -> None:
    """Raises InputError for a model without the parameters of its config, as a specialized one."""
    check_model(model, values=True)
    own = {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    if own != {entry.path: entry.shape for entry in name_table(model.config)}:
        text = "it is specialized: save the model that it was made of, and its mask by save_mask"
        raise InputError(Problem("model", None, text))


def unwritable(folder: pathlib.Path, error: Exception) -> InputError:
    """The error for a checkpoint that cannot be written."""
    reason = first_line(error) or type(error).__name__
    return InputError(
        f"{folder} cannot be written ({reason}); remove what was written there so far, and name a "
        "folder that can be written, on a disk with the space"
    )


def _write_shards(model: Llama, folder: pathlib.Path, itemsize: int) -> None:
    from huggingface_hub import split_state_dict_into_shards_factory  # slow to import

    shards = split_state_dict_into_shards_factory(
        {entry.name: entry.stored_shape for entry in name_table(model.config)},
        get_storage_size=lambda shape: math.prod(shape) * itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=_SHARD_BYTES,
    )
    tensors = stored_tensors(model)
    for file, names in shards.filename_to_tensors.items():
        values = {name: tensors[name]() for name in names}  # of all processes, written by one
        first(lambda: save_file(values, folder / file, {"format": "pt"}))  # noqa: B023
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        text = json.dumps(index, indent=2)
        first(lambda: (folder / INDEX).write_text(text))
