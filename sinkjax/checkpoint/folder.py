"""Reads Llama weights from a folder as the Hugging Face Hub has it.

FOLDER/config.json
FOLDER/generation_config.json             more tokens that end an answer, if it is there
FOLDER/model.safetensors                  all tensors, or
FOLDER/model.safetensors.index.json       which of the files beside it has which tensor
FOLDER/tokenizer...                       as transformers saves it
"""

import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  (gives numpy its bfloat16, without which safetensors cannot read it)
import numpy as np
from safetensors import SafetensorError, safe_open

from sinkjax.checkpoint.names import DERIVED
from sinkjax.checkpoint.stored import Part, Stored
from sinkjax.checkpoint.text_part import text_config, text_names
from sinkjax.errors import InputError, explaining
from sinkjax.files import check_path, parse_json, read_file
from sinkjax.models.hf_config import listed

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = ("F32", "F16", "BF16")  # safetensors' names


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """The parsed `config.json` of a folder, its `eos_token_id` with generation_config.json's.

    Of a model that sees images as well it is its text part's.

    Raises:
      InputError: if there is no config, or one of the two is not a JSON object.
    """
    return _own_config(folder, _read_whole_config(folder))


def _own_config(folder: pathlib.Path, whole: Mapping[str, Any]) -> dict[str, Any]:
    config = text_config(whole)
    if os.path.lexists(folder / GENERATION_CONFIG):  # a link to nothing is no absent file
        generation = read_json(folder / GENERATION_CONFIG, "download it again, or remove it")
        if more := listed(generation.get("eos_token_id")):
            config["eos_token_id"] = listed(config.get("eos_token_id")) + more
    return config


def _read_whole_config(folder: pathlib.Path) -> dict[str, Any]:
    return read_json(
        folder / CONFIG,
        "give a folder as the Hub has it, with config.json and safetensors, or one that "
        "sinkjax convert wrote to its end (it writes sinkjax.json last)",
    )


def index_files(folder: pathlib.Path) -> dict[str, str]:
    """The file of each tensor, by name, as the folder's index says.

    Raises:
      InputError: if the index is not one.
    """
    path = folder / INDEX
    files = read_json(path, "download it again").get("weight_map")
    if not isinstance(files, Mapping) or not all(isinstance(file, str) for file in files.values()):
        raise InputError(f"{path} has no weight_map from tensors to files; download it again")
    if outside := [
        f"{path} names the file {file!r}, which is no name of one inside the folder; download it "
        "again, from where you trust it"
        for file in sorted(set(files.values()))
        if not _is_inside(file)
    ]:
        raise InputError(*outside)
    return dict(files)


def _is_inside(name: str) -> bool:
    """Whether a name stays in its folder; a link of that name may lead elsewhere, as in caches."""
    path = pathlib.PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def open_folder(folder: pathlib.Path) -> Stored:
    """Opens a folder with `config.json` and safetensors; no tensor is read yet.

    `Stored.read` gives float32, float16 or bfloat16, as stored.

    Raises:
      InputError: listing every file that is missing, truncated or damaged, every tensor of another
        dtype, and every tensor on which the index and the files do not agree.
    """
    whole = _read_whole_config(folder)
    config = _own_config(folder, whole)
    indexed = None if (folder / WEIGHTS).exists() else _indexed(folder)
    problems: list[str] = []
    file_of, shapes, opened = {}, {}, set()
    for file in [WEIGHTS] if indexed is None else sorted(set(indexed.values())):
        path = folder / file
        try:
            check_path(path)
            tensors = safe_open(path, framework="numpy")
        except FileNotFoundError:
            problems.append(f"{path} is missing, though {INDEX} names it; download it again")
            continue
        except (SafetensorError, OSError) as error:
            problems.append(f"{path} is truncated or damaged ({error}); download it again")
            continue
        opened.add(file)
        for name in tensors.keys():  # noqa: SIM118  (it is no dict, and has no iterator)
            if DERIVED.fullmatch(name):
                continue
            if name in file_of:
                problems.append(f"tensor {name} is in both {folder / file_of[name]} and {path}")
            stored = tensors.get_slice(name)
            if stored.get_dtype() not in _DTYPES:
                problems.append(
                    f"tensor {name} in {path} is of dtype {stored.get_dtype()}; "
                    f"{', '.join(_DTYPES)} are read. Choose a checkpoint that is not quantized"
                )
            file_of[name], shapes[name] = file, tuple(stored.get_shape())
    if indexed is not None:
        problems += _disagreements(folder, indexed, file_of, opened)
    if problems:
        raise InputError(*problems)

    named = text_names(whole, shapes)

    def read(name: str, part: Part = ()) -> np.ndarray:
        path = folder / file_of[named[name]]
        try:
            # Opened for each: the pages of a file that stays open fill this process's memory.
            with safe_open(path, framework="numpy") as file:
                return file.get_slice(named[name])[part]
        except (SafetensorError, OSError) as error:
            text = f"{path} changed while it was read ({error}); load the model again"
            raise InputError(text) from error

    shapes = {alone: shapes[name] for alone, name in named.items()}
    return Stored(name=str(folder), config=config, shapes=shapes, read=read)


def _indexed(folder: pathlib.Path) -> dict[str, str]:
    """The index of a folder that has no single file of weights."""
    if (folder / INDEX).exists():
        return index_files(folder)
    others = [
        path.name
        for end in ("bin", "safetensors", "gguf")
        for path in sorted(folder.glob(f"*.{end}"))
    ]
    instead = f"; of weights, it holds only {', '.join(others)}" if others else ""
    raise InputError(
        f"{folder} holds neither {WEIGHTS} nor {INDEX}{instead}. Give a folder with safetensors, "
        "or a .gguf file by its name; PyTorch's .bin files can be converted with transformers: "
        "from_pretrained, save_pretrained"
    )


def _disagreements(
    folder: pathlib.Path, indexed: Mapping[str, str], file_of: Mapping[str, str], opened: Collection
) -> list[str]:
    """One line a tensor that the index and the files that could be opened place differently."""
    absent = [
        f"tensor {name} is not in {folder / file}, though {INDEX} says so; download both again"
        for name, file in indexed.items()
        if file in opened and file_of.get(name) != file and not DERIVED.fullmatch(name)
    ]
    unlisted = [
        f"tensor {name} is in {folder / file}, but not in {INDEX}; download both again"
        for name, file in file_of.items()
        if name not in indexed
    ]
    return absent + unlisted


def read_json(path: pathlib.Path, advice: str) -> dict[str, Any]:
    with explaining(f"{path} cannot be read", advice):
        content = read_file(path)
    try:
        value = parse_json(content)
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); {advice}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object; {advice}")
    return value
