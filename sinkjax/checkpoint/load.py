"""Loads a model, its config or its tokenizer by the name that a user gives."""

import os
import pathlib
import re
from typing import TYPE_CHECKING, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from sinkjax.checkpoint import folder as hf_folder
from sinkjax.checkpoint import orbax, registry
from sinkjax.checkpoint.stored import Stored
from sinkjax.checkpoint.weights import convert
from sinkjax.errors import InputError, Problem, about, check_kind, is_one_of
from sinkjax.files import user_path
from sinkjax.models.config import LlamaConfig
from sinkjax.models.decoder import Llama
from sinkjax.models.hf_config import from_hf_config
from sinkjax.models.sharding import check_mesh

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[str, ...] = get_args(Dtype)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def load(
    model: str | pathlib.Path,
    *,
    revision: str | None = None,
    dtype: DTypeLike = "float32",
    mesh: jax.sharding.Mesh | None = None,
    verify: bool = True,
) -> Llama:
    """Loads a Llama, or a model of one of the families beside it (`sinkjax.models.families`).

    Args:
      model: a name of the registry (`smollm2-135m`), a folder with `config.json` and safetensors,
        a `.gguf` file or the first part of one, an Orbax folder written by `sinkjax.save_orbax`,
        or a Hub id (`owner/name`). What exists on disk goes before a Hub id.
      revision: branch, tag or commit of a Hub id.
      dtype: of the parameters, whatever the stored ones are: one of `DTYPES`, or as NumPy and JAX
        have it, such as `jnp.bfloat16`.
      mesh: to lay the parameters over, by the rules of `sinkjax.models.rules`; its axes are
        some of `data`, `neurons`, `model` and `sub`.
      verify: whether what is read of an Orbax folder is held against the hashes that it keeps.

    Returns:
      The model, an `nnx.Module`.

    Raises:
      InputError: if it cannot be found, is of no family, is corrupt, or has anything that is not
        understood, with all of it listed; and for a mesh that does not divide its heads.
    """
    name = jnp.dtype(dtype).name if isinstance(dtype, type | np.dtype) else dtype
    if not is_one_of(name, DTYPES):
        raise InputError(Problem("dtype", dtype, f"allowed are {', '.join(DTYPES)}"))
    if mesh is not None:  # refused before weights are fetched
        check_mesh(mesh, load_config(model, revision=revision))
    kind, path = _locate(model, revision, weights=True)
    if kind == "orbax":
        return orbax.restore_orbax(path, jnp.dtype(name), mesh, verify=verify)
    return convert(_open(kind, path), jnp.dtype(name), mesh)


def load_config(model: str | pathlib.Path, *, revision: str | None = None) -> LlamaConfig:
    """The config, without downloading weights of a Hub id. Arguments and errors as for `load`."""
    kind, path = _locate(model, revision, weights=False)
    if kind == "orbax":
        return orbax.orbax_config(path)
    if kind == "folder":
        return from_hf_config(hf_folder.read_config(path), str(model))
    return from_hf_config(_open(kind, path).config, str(model))


def load_tokenizer(
    model: str | pathlib.Path, *, revision: str | None = None
) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model; no network but for a Hub id. Arguments and errors as for `load`.

    One model's tokens are the same from a folder, a GGUF file and an Orbax folder: of a text,
    `tokenizer(text)["input_ids"]`, a list of T ids.
    """
    kind, path = _locate(model, revision, weights=False)
    if kind == "gguf":
        from sinkjax.checkpoint.gguf_tokenizer import load_gguf_tokenizer

        return load_gguf_tokenizer(path)
    from sinkjax.checkpoint.folder_tokenizer import load_folder_tokenizer

    return load_folder_tokenizer(path)


def _locate(
    model: str | pathlib.Path, revision: str | None, *, weights: bool
) -> tuple[Literal["gguf", "folder", "orbax"], pathlib.Path]:
    """The kind and the place of what a name stands for, fetched if need be."""
    check_kind("model", model, str | os.PathLike, "a name or a path")
    if not isinstance(revision, str | None):
        raise InputError(Problem("revision", revision, "it has to be text; put it in quotes"))
    name, path = str(model), user_path(model)
    in_registry, on_disk = name in registry.names(), name != "" and os.path.exists(path)
    is_hub_id = not in_registry and not on_disk and _HUB_ID.fullmatch(name)
    if revision is not None and not is_hub_id:
        raise InputError(
            Problem("revision", revision, f"{name} is not a Hub id; leave revision out")
        )
    with about("model", name):
        if in_registry:
            return "gguf", registry.fetch(name)
        if on_disk and path.is_dir():
            if (path / orbax.MANIFEST).exists():
                return "orbax", path
            if not (path / hf_folder.CONFIG).exists():
                orbax.check_ended(path)
                if files := sorted(path.glob("*.gguf")):
                    raise InputError(
                        f"it holds GGUF files, of which one has to be named: give {files[0]}"
                    )
            return "folder", path
        if on_disk and path.suffix == ".gguf":
            return "gguf", path
        if on_disk:
            raise InputError(
                "it is a file that does not end in .gguf; give a .gguf file or a folder with "
                "config.json and safetensors"
            )
        if is_hub_id and path.suffix != ".gguf":
            from sinkjax.checkpoint import hub  # slow to import

            return "folder", hub.fetch(name, revision, weights=weights)
        raise InputError(
            "it is no file or folder here, no Hub id (owner/name), and no name of the registry "
            f"({', '.join(registry.names())}); check the spelling or the path"
        )


def _open(kind: Literal["gguf", "folder"], path: pathlib.Path) -> Stored:
    if kind == "folder":
        return hf_folder.open_folder(path)
    from sinkjax.checkpoint.gguf import open_gguf  # slow to import

    return open_gguf(path)
