"""The project's own checkpoint: an Orbax folder, restored without converting anything.

    FOLDER/sinkjax.json     format, config, dtype and hashes, with a digest of them all; written
                            last, so a folder that has it is whole
    FOLDER/weights/         Orbax, one array a parameter
    FOLDER/tokenizer...     as transformers saves it

Orbax writes the weights, and can read them. Here they are read with TensorStore, in which Orbax
keeps them: it maps the files into memory where Orbax reads them first, and copies each array once
where Orbax does three times.

Each parameter is hashed in equal pieces along the axis that a mesh may split. So a process holds
what it reads of a parameter against hashes, and has to read little or nothing else for it.
"""

import concurrent.futures
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sinkjax.checkpoint.names import name_table
from sinkjax.checkpoint.weights import check_savable, unwritable
from sinkjax.distributed import first, to_host
from sinkjax.errors import InputError, check_path_name, explaining, first_line
from sinkjax.files import (
    PARTIAL,
    check_file,
    check_path,
    json_digest,
    parse_json,
    read_file,
    replace_file,
)
from sinkjax.models.abstract import abstract_model, fill_model
from sinkjax.models.config import LlamaConfig
from sinkjax.models.decoder import Llama
from sinkjax.models.hf_config import check_config
from sinkjax.models.sharding import parameter_shardings, place_parts, split_axis

if TYPE_CHECKING:
    import tensorstore as ts

MANIFEST = "sinkjax.json"
_WEIGHTS = "weights"
_FORMAT = 2  # 1 had weights as [in..., out...]
_KEYS = {"format", "config", "dtype"}  # all that a manifest had before it had hashes
_MOST_PIECES = 8  # of a parameter; on as many devices, each reads its own alone
_INTERRUPTED = f"a checkpoint without {MANIFEST}: the writing of it was interrupted"
_ADVICE = "write the checkpoint again with sinkjax convert"
_UNREADABLE = (  # what reading a damaged manifest raises
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    ArithmeticError,  # of numbers that no config has, in what they would be for Hugging Face
)


def save_orbax(model: Llama, folder: str | pathlib.Path) -> None:
    """Writes a model as an Orbax checkpoint.

    Args:
      model: to write, in its parameters' dtype, sharded or not. Over several processes, each writes
        its part, to a folder that all of them see.
      folder: new or empty, but for tokenizer files.

    Raises:
      InputError: if the folder holds a checkpoint already, or cannot be written.
    """
    import orbax.checkpoint as ocp  # slow to import, and loading needs none of it

    check_savable(model)
    folder = check_path_name("folder", folder, "a folder").absolute()
    first(lambda: _check_free(folder))
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    with concurrent.futures.ThreadPoolExecutor(_MOST_PIECES) as pool:
        hashes = {
            _key(path): _hashes(to_host(leaf[...]), *_pieces(leaf.shape, split_axis(leaf)), pool)
            for path, leaf in state
        }
    manifest = {
        "format": _FORMAT,
        "config": model.config.to_dict(),
        "dtype": model.embedding[...].dtype.name,
        "hashes": hashes,
    }
    manifest["digest"] = json_digest(manifest)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Uncompressed: float weights shrink by a tenth and take twice as long to read back.
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as checkpointer:
            checkpointer.save(folder / _WEIGHTS, {_key(path): leaf[...] for path, leaf in state})
        text = f"{json.dumps(manifest, indent=2)}\n"
        first(lambda: replace_file(folder / MANIFEST, text.encode()))
    # Of any class: Orbax's threads raise the system's own, what TensorStore makes of it, or what
    # befell a thread because another had failed, whichever is first.
    except Exception as error:
        raise unwritable(folder, error) from error


def _check_free(folder: pathlib.Path) -> None:
    if (folder / MANIFEST).exists() or (folder / _WEIGHTS).exists():
        what = "a checkpoint already" if (folder / MANIFEST).exists() else _INTERRUPTED
        raise InputError(f"{folder} holds {what}; name another folder or remove this one first")


def restore_orbax(
    folder: pathlib.Path, dtype: jnp.dtype, mesh: jax.sharding.Mesh | None, *, verify: bool = True
) -> Llama:
    """Reads a checkpoint that `save_orbax` wrote.

    Args:
      folder: of the checkpoint.
      dtype: of the parameters, whatever they were saved in.
      mesh: to lay them over while they are read: each device reads its own part; None for the
        default device. It need not be the mesh that they were saved from.
      verify: whether what is read is held against the hashes, which older checkpoints do not have.

    Raises:
      InputError: if the folder is of another format; listing all weights that are missing, unknown,
        of another shape, or damaged.
    """
    config, hashes = _read_manifest(folder)
    shapes = {_key(entry.path): entry.shape for entry in name_table(config)}
    check_files(folder / _WEIGHTS, _ADVICE)
    stored = open_arrays(folder / _WEIGHTS, shapes, _ADVICE)
    model = abstract_model(config, dtype)
    shardings = parameter_shardings(model, mesh)
    arrays, problems = {}, []
    with concurrent.futures.ThreadPoolExecutor(_MOST_PIECES) as pool:
        for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param)):
            name, axis = _key(path), split_axis(parameter)
            its_hashes = hashes.get(name, []) if verify and hashes is not None else None
            try:
                part = functools.partial(_part, stored[name], axis, its_hashes, pool)
                arrays[path] = place_parts(
                    lambda index, part=part: part(index).astype(dtype, copy=False),
                    parameter.shape,
                    shardings.get(path),
                )
            except ValueError as error:
                problems.append(f"{folder}: {name} cannot be read ({first_line(error)}); {_ADVICE}")
    if problems:
        raise InputError(*problems)
    return fill_model(model, arrays.__getitem__)


def orbax_config(folder: pathlib.Path) -> LlamaConfig:
    """The config of a checkpoint, without reading its weights."""
    return _read_manifest(folder)[0]


def check_ended(folder: pathlib.Path) -> None:
    """Raises InputError where a folder has the beginnings of a checkpoint that was never whole."""
    begun = [PARTIAL, f"{_WEIGHTS}/*.ocdbt", f"{_WEIGHTS}.orbax-checkpoint-tmp*"]
    if any(path for pattern in begun for path in folder.glob(pattern)):
        raise InputError(
            f"{folder} holds {_INTERRUPTED}. Convert the model again: to the same folder, the "
            "conversion removes what an interrupted one left"
        )


def check_files(folder: pathlib.Path, advice: str) -> None:
    """Refuses a folder in which Orbax or TensorStore, which read all of it, would wait for a pipe.

    Args:
      advice: what to do, for the message.

    Raises:
      InputError: naming the first of what `check_path` refuses in it.
    """
    for path in folder.rglob("*"):
        with explaining(f"{path} cannot be read", advice):
            check_path(path)
            if path.name.startswith("_") and path.is_file():  # Orbax's JSON, which it reads whole
                check_file(path)


def _read_manifest(folder: pathlib.Path) -> tuple[LlamaConfig, dict[str, list[str]] | None]:
    """The config of a checkpoint, and the hashes of its parameters by name, if it has some."""
    path = folder / MANIFEST
    try:
        manifest = parse_json(read_file(path))
        if manifest["format"] != _FORMAT:
            raise ValueError(f"it has format {manifest['format']!r}; this version reads {_FORMAT}")
        digest = manifest.pop("digest", None)
        if manifest.keys() != (_KEYS if digest is None else _KEYS | {"hashes"}):
            raise ValueError(f"its keys are {', '.join(manifest)}")
        if digest not in (None, json_digest(manifest)):
            raise ValueError("it was changed after it was written: it has another digest")
        hashes = manifest.get("hashes")
        if digest is not None and not all(isinstance(of, list) for of in hashes.values()):
            raise ValueError("its hashes are no lists")
        config = LlamaConfig.from_dict(manifest["config"])
        check_config(config)
        return config, hashes
    except InputError as error:
        raise InputError(
            *(f"{path}: {problem}; {_ADVICE}" for problem in error.problems)
        ) from error
    except _UNREADABLE as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}); {_ADVICE}"
        ) from error


def open_arrays(
    folder: pathlib.Path, shapes: Mapping[str, tuple[int, ...]], advice: str
) -> dict[str, "ts.TensorStore"]:
    """Opens the arrays that Orbax wrote to a folder, by name, after `check_files` of it.

    Args:
      shapes: of all that it has.
      advice: what to do, for messages.

    Raises:
      InputError: listing all that are missing, unknown, of another shape, or cannot be opened.
    """
    import tensorstore as ts  # slow to import, as Orbax is

    if not folder.is_dir():
        raise InputError(f"{folder} is missing; {advice}")
    context = ts.Context({"file_io_mode": {"mode": "memmap"}})
    place = {"driver": "ocdbt", "base": {"driver": "file", "path": str(folder.absolute())}}
    try:
        keys = ts.KvStore.open(place, context=context).result().list().result()
    except ValueError as error:
        raise InputError(f"{folder} cannot be read ({first_line(error)}); {advice}") from error
    names = {key.split(b"/")[0].decode(errors="backslashreplace") for key in keys}
    problems = [f"{name} is missing" for name in shapes if name not in names]
    problems += [f"{name!r} is no part of its config" for name in sorted(names - shapes.keys())]
    opening = {
        name: ts.open(
            {
                "driver": "zarr",
                "kvstore": {**place, "path": name},
                "open": True,
                "fill_missing_data_reads": False,  # but an error
            },
            context=context,
        )
        for name in shapes
        if name in names
    }
    stored = {}
    for name, future in opening.items():
        try:
            stored[name] = future.result()
        except ValueError as error:
            problems.append(f"{name} cannot be read ({first_line(error)})")
            continue
        if stored[name].shape != shapes[name]:
            problems.append(
                f"{name} cannot be read (its shape is {stored[name].shape}, its config asks for "
                f"{shapes[name]})"
            )
    if problems:
        raise InputError(*(f"{folder}: {problem}; {_ADVICE}" for problem in problems))
    return stored


def _part(
    stored: "ts.TensorStore",
    axis: int | None,
    hashes: list[str] | None,
    pool: concurrent.futures.Executor,
    index: tuple[slice, ...],
) -> np.ndarray:
    """Reads a part of a parameter; ValueError where one of the hashes is not that of its piece.

    Pieces lie along the axis that a mesh may split. Without hashes nothing is checked.
    """
    if hashes is None:
        return read_part(stored, index)
    axis, count = _pieces(stored.shape, axis)
    size = stored.shape[axis] // count
    start, stop, _ = index[axis].indices(stored.shape[axis])
    first, last = start // size, -(-stop // size)
    whole = read_part(stored, (*index[:axis], slice(first * size, last * size), *index[axis + 1 :]))
    if _hashes(whole, axis, last - first, pool) != hashes[first:last]:
        raise ValueError("its bytes are not those that were written")
    own = slice(start - first * size, stop - first * size)
    return whole[(slice(None),) * axis + (own,)]


def _pieces(shape: tuple[int, ...], axis: int | None) -> tuple[int, int]:
    """Along which axis a parameter is hashed, and in how many pieces of one size."""
    return (0, 1) if axis is None else (axis, math.gcd(shape[axis], _MOST_PIECES))


def _hashes(
    value: np.ndarray, axis: int, count: int, pool: concurrent.futures.Executor
) -> list[str]:
    """The sha256 of each piece, with its dtype and shape."""

    def sha256(piece: np.ndarray) -> str:
        digest = hashlib.sha256(f"{piece.dtype} {piece.shape}".encode())
        digest.update(np.ascontiguousarray(piece).view(np.uint8).data)
        return digest.hexdigest()

    return list(pool.map(sha256, np.split(value, count, axis)))


def read_part(stored: "ts.TensorStore", index: tuple[slice, ...]) -> np.ndarray:
    import tensorstore as ts

    source = stored[index]
    dtype, alignment = source.dtype.numpy_dtype, 64  # so that JAX on a CPU takes it over uncopied
    size = source.size * dtype.itemsize
    memory = np.empty(size + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    target = memory[start : start + size].view(dtype).reshape(source.shape)
    ts.array(target).write(source[ts.d[:].translate_to[0]]).result()
    return target


def _key(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))
