"""The project's own checkpoint: an Orbax folder, restored without converting anything.

FOLDER/sinkjax.json     format, config and dtype; written last, so a folder that has it is whole
FOLDER/weights/         Orbax, one array a parameter
FOLDER/tokenizer...     as transformers saves it
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx

from sinkjax.checkpoint.weights import abstract_model, fill_model
from sinkjax.config import LlamaConfig
from sinkjax.errors import InputError
from sinkjax.model import Llama
from sinkjax.sharding import parameter_shardings

MANIFEST = "sinkjax.json"
_FORMAT = 1


def save_orbax(model: Llama, folder: str | pathlib.Path) -> None:
    """Writes a model as an Orbax checkpoint.

    Args:
      model: to write, in its parameters' dtype, sharded or not.
      folder: new or empty, but for tokenizer files.

    Raises:
      InputError: if the folder holds a checkpoint already.
    """
    folder = pathlib.Path(folder).absolute()
    if (folder / MANIFEST).exists() or (folder / "weights").exists():
        raise InputError(
            f"{folder} holds a checkpoint already; name another folder or remove this one first"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with _checkpointer() as checkpointer:
        checkpointer.save(folder / "weights", _tree(nnx.state(model, nnx.Param)))
    manifest = {
        "format": _FORMAT,
        "config": model.config.to_dict(),
        "dtype": model.embedding[...].dtype.name,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def restore_orbax(
    folder: pathlib.Path, dtype: jnp.dtype | None, mesh: jax.sharding.Mesh | None
) -> Llama:
    """Reads a checkpoint that `save_orbax` wrote.

    Args:
      folder: of the checkpoint.
      dtype: of the parameters; None for that in which they were saved.
      mesh: to lay them over while they are read: each device reads its own part; None for the
        default device. It need not be the mesh that they were saved from.

    Raises:
      InputError: if the folder is of another format or its weights are incomplete.
    """
    manifest = _manifest(folder)
    config = LlamaConfig.from_dict(manifest["config"])
    model = abstract_model(config, jnp.dtype(dtype or manifest["dtype"]))
    if mesh is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = {path: device for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    else:
        shardings = parameter_shardings(model, mesh)
    target = {
        _key(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[path])
        for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }
    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    try:
        with _checkpointer() as checkpointer:
            arrays = checkpointer.restore(
                folder.absolute() / "weights",
                args=ocp.args.PyTreeRestore(item=target, restore_args=restore_args),
            )
    except (ValueError, OSError, KeyError) as error:
        raise InputError(
            f"{folder}: its weights cannot be read ({str(error).splitlines()[0]}); "
            "write it again with python -m experiments.convert"
        ) from error
    return fill_model(model, lambda path: arrays[_key(path)])


def orbax_config(folder: pathlib.Path) -> LlamaConfig:
    """The config of a checkpoint, without reading its weights."""
    return LlamaConfig.from_dict(_manifest(folder)["config"])


def _manifest(folder: pathlib.Path) -> dict:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except json.JSONDecodeError as error:
        raise InputError(
            f"{folder / MANIFEST} is not JSON ({error}); "
            "write the checkpoint again with python -m experiments.convert"
        ) from error
    if manifest.get("format") != _FORMAT:
        raise InputError(
            f"{folder / MANIFEST} has format {manifest.get('format')!r}; this version reads "
            f"{_FORMAT}. Write it again with python -m experiments.convert"
        )
    return manifest


def _checkpointer() -> ocp.Checkpointer:
    # Uncompressed: float weights shrink by a tenth and take twice as long to read back.
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_compression=False))


def _key(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))


def _tree(state: nnx.State) -> dict[str, jax.Array]:
    return {_key(path): leaf[...] for path, leaf in nnx.to_flat_state(state)}
