"""The project's own checkpoint: an Orbax folder, restored without converting anything.

    FOLDER/sinkjax.json     format, config and dtype; written last, so a folder that has it is whole
    FOLDER/weights/         Orbax, one array a parameter
    FOLDER/tokenizer...     as transformers saves it

Orbax writes the weights, and can read them. Here they are read with TensorStore, in which Orbax
keeps them: it maps the files into memory where Orbax reads them first, and copies each array once
where Orbax does three times.
"""

import json
import math
import pathlib
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sinkjax.checkpoint.weights import unwritable
from sinkjax.errors import InputError, first_line
from sinkjax.models.abstract import abstract_model, fill_model
from sinkjax.models.config import LlamaConfig
from sinkjax.models.decoder import Llama
from sinkjax.models.sharding import parameter_shardings

if TYPE_CHECKING:
    import tensorstore as ts

MANIFEST = "sinkjax.json"
_WEIGHTS = "weights"
_FORMAT = 2  # 1 had weights as [in..., out...]
_ADVICE = "write the checkpoint again with sinkjax convert"


def save_orbax(model: Llama, folder: str | pathlib.Path) -> None:
    """Writes a model as an Orbax checkpoint.

    Args:
      model: to write, in its parameters' dtype, sharded or not.
      folder: new or empty, but for tokenizer files.

    Raises:
      InputError: if the folder holds a checkpoint already, or cannot be written.
    """
    import orbax.checkpoint as ocp  # slow to import, and loading needs none of it

    folder = pathlib.Path(folder).absolute()
    if (folder / MANIFEST).exists() or (folder / _WEIGHTS).exists():
        raise InputError(
            f"{folder} holds a checkpoint already; name another folder or remove this one first"
        )
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    manifest = {
        "format": _FORMAT,
        "config": model.config.to_dict(),
        "dtype": model.embedding[...].dtype.name,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Uncompressed: float weights shrink by a tenth and take twice as long to read back.
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as checkpointer:
            checkpointer.save(folder / _WEIGHTS, {_key(path): leaf[...] for path, leaf in state})
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    # Of any class: Orbax's threads raise the system's own, what TensorStore makes of it, or what
    # befell a thread because another had failed, whichever is first.
    except Exception as error:
        raise unwritable(folder, error) from error


def restore_orbax(folder: pathlib.Path, dtype: jnp.dtype, mesh: jax.sharding.Mesh | None) -> Llama:
    """Reads a checkpoint that `save_orbax` wrote.

    Args:
      folder: of the checkpoint.
      dtype: of the parameters, whatever they were saved in.
      mesh: to lay them over while they are read: each device reads its own part; None for the
        default device. It need not be the mesh that they were saved from.

    Raises:
      InputError: if the folder is of another format; listing all weights that cannot be read.
    """
    import tensorstore as ts  # slow to import, as Orbax is

    model = abstract_model(orbax_config(folder), dtype)
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    shardings = parameter_shardings(model, mesh) if mesh is not None else {}
    if not (folder / _WEIGHTS).is_dir():
        raise InputError(f"{folder / _WEIGHTS} is missing; {_ADVICE}")
    context = ts.Context({"file_io_mode": {"mode": "memmap"}})
    opened = {path: ts.open(_spec(folder, path), context=context) for path, _ in state}
    arrays, problems = {}, []
    for path, leaf in state:
        try:
            stored = opened[path].result()
            if stored.shape != leaf.shape:
                raise ValueError(f"its shape is {stored.shape}, its config asks for {leaf.shape}")
            arrays[path] = _read(stored, dtype, shardings.get(path))
        except ValueError as error:
            problems.append(
                f"{folder}: {_key(path)} cannot be read ({first_line(error)}); {_ADVICE}"
            )
    if problems:
        raise InputError(*problems)
    return fill_model(model, arrays.__getitem__)


def orbax_config(folder: pathlib.Path) -> LlamaConfig:
    """The config of a checkpoint, without reading its weights."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["format"] != _FORMAT:
            raise ValueError(f"it has format {manifest['format']!r}; this version reads {_FORMAT}")
        return LlamaConfig.from_dict(manifest["config"])
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}); {_ADVICE}"
        ) from error


def _spec(folder: pathlib.Path, path: tuple[str | int, ...]) -> dict[str, Any]:
    """The place of a parameter in the folder, in TensorStore's words."""
    return {
        "driver": "zarr",
        "kvstore": {
            "driver": "ocdbt",
            "base": {"driver": "file", "path": str(folder.absolute() / _WEIGHTS)},
            "path": _key(path),
        },
        "open": True,
        "fill_missing_data_reads": False,  # but an error
    }


def _read(
    stored: "ts.TensorStore", dtype: jnp.dtype, sharding: jax.sharding.Sharding | None
) -> jax.Array:
    import tensorstore as ts

    def part(index: tuple[slice, ...] | EllipsisType) -> np.ndarray:
        source = stored[index]
        target = _aligned(source.shape, source.dtype.numpy_dtype)
        ts.array(target).write(source[ts.d[:].translate_to[0]]).result()
        return target.astype(dtype, copy=False)

    if sharding is None:
        return jax.device_put(part(...))
    return jax.make_array_from_callback(stored.shape, sharding, part)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialized array such that JAX on the CPU takes it over without copying it."""
    size, alignment = math.prod(shape) * dtype.itemsize, 64
    memory = np.empty(size + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + size].view(dtype).reshape(shape)


def _key(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))
