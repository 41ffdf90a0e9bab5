"""The repair step: a specialized model's output slices and biases, trained to make up for its mask.

What is trained in each layer that the mask changed: o of the heads that are left, the sums of o of
`sink` heads, and the bias at later positions, which is added where there is none. All else is the
baseline's. Position 0 keeps no bias, so that it stays nearly what it is under every mask.

A repair is kept beside its mask as what it changed, NAME.repair.safetensors: float32 arrays by the
parameters' names, with the digests of the mask and of the model. Heads have the order in them that
they have on one chip, whatever mesh the model lies over.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from sinkjax.distributed import first, to_host
from sinkjax.errors import InputError, check_path_name, explaining
from sinkjax.files import check_path, replace_file
from sinkjax.instruments.token_losses import residuals
from sinkjax.models.sharding import mesh_of, parameter_shardings
from sinkjax.specialize.attention import SpecializedAttention
from sinkjax.specialize.build import SpecializedLlama
from sinkjax.studies.results import arrays_digest

_DIGEST = "sha256"
_TRAINED = ("o", "first_o", "other_o", "mean_bias", "o_bias")

Changes = Mapping[str, jax.Array]
"""Parameters by name, such as `layers.3.attention.o`."""


class Repair:
    """What of a specialized model is trained, and the model with it in place.

    Attributes:
      start: the parameters as they are, float32, with heads in the order of one chip.
    """

    def __init__(self, model: SpecializedLlama):
        """Takes a specialized model, which stays as it is.

        Raises:
          InputError: for a model in which every head is `full`.
        """
        model = nnx.clone(model)
        changed = [
            index
            for index, layer in enumerate(model.layers)
            if isinstance(layer.attention, SpecializedAttention)
        ]
        if not changed:
            raise InputError("the mask masks no head: there is nothing to repair")
        for index in changed:
            attention = model.layers[index].attention
            if attention.mean_bias is None:
                bias = jnp.zeros((model.config.embed_dim,), model.embedding[...].dtype)
                attention.mean_bias = nnx.data(
                    nnx.Param(bias, out_sharding=("embed",), eager_sharding=False)
                )
        layers = {("layers", index, "attention", name) for index in changed for name in _TRAINED}
        self._graph, trained, self._rest = nnx.split(
            model, lambda path, _: tuple(path) in layers, ...
        )
        self._leaves = dict(nnx.to_flat_state(trained))
        self._shardings = parameter_shardings(model, mesh_of(model))
        plans = {("layers", n, "attention", "o"): model.layers[n].attention.plan for n in changed}
        self._places = {path: plan.places for path, plan in plans.items() if plan.chips > 1}
        self.start: Changes = {
            _name(path): self._laid(path, leaf[...].astype(jnp.float32), self._places)
            for path, leaf in self._leaves.items()
        }

    def _laid(
        self, path: tuple[Any, ...], value: jax.Array, orders: Mapping[tuple[Any, ...], np.ndarray]
    ) -> jax.Array:
        """A parameter where it lies over the mesh, with its heads in another order, if any."""
        if path in orders:
            value = jnp.take(value, orders[path], axis=1)
        return jax.device_put(value, self._shardings[path]) if self._shardings else value

    def model(self, changes: Changes) -> SpecializedLlama:
        """The model with these parameters in place of its own.

        Raises:
          InputError: listing names and shapes that are not those of `start`.
        """
        if changes.keys() != self.start.keys():
            names = ", ".join(sorted(changes.keys() ^ self.start.keys())[:4])
            text = f"the repair is of other parameters than the mask's: {names}"
            raise InputError(f"{text}; repair the mask again")
        problems = [
            f"{name} of the repair is {changes[name].shape}, of the model {value.shape}"
            for name, value in self.start.items()
            if changes[name].shape != value.shape
        ]
        if problems:
            raise InputError(*problems)
        back = {path: np.argsort(places) for path, places in self._places.items()}
        leaves = [
            (path, leaf.replace(self._laid(path, changes[_name(path)], back).astype(leaf.dtype)))
            for path, leaf in self._leaves.items()
        ]
        return nnx.merge(self._graph, nnx.from_flat_state(leaves), self._rest)

    def residuals(self, changes: Changes, tokens: jax.Array) -> jax.Array:
        """The residual stream after the last layer: int [B, T] -> [B, T, D]."""
        return residuals(self.model(changes), tokens)


def save_repair(
    path: str | os.PathLike[str], changes: Changes, *, mask_digest: str, model_digest: str
) -> None:
    """Writes a repair beside its mask; of several processes, which all call it, the first does.

    Args:
      path: of the mask's file, NAME.json; the repair is NAME.repair.safetensors.

    Raises:
      InputError: where it cannot be written.
    """
    path = repair_path(path)
    arrays = {name: to_host(value).astype(np.float32) for name, value in changes.items()}
    metadata = {"mask_digest": mask_digest, "model_digest": model_digest, _DIGEST: _digest(arrays)}
    advice = "free space there, or give another folder"

    def write() -> None:
        check_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, safetensors.numpy.save(arrays, metadata=metadata))

    with explaining(f"{path}: the repair cannot be written", advice):
        first(write)


def load_repair(
    path: str | os.PathLike[str], *, mask_digest: str, model_digest: str
) -> dict[str, jax.Array]:
    """Reads the repair beside a mask's file, for `Repair.model`.

    Raises:
      InputError: for one that is missing or damaged, or is of another mask or model.
    """
    path = repair_path(path)
    try:
        check_path(path)
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.offset_keys()}
        if metadata.get(_DIGEST) not in (None, _digest(arrays)):
            raise OSError("it is damaged: its numbers are not those that were written")
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{path} cannot be read as a repair ({error}); make it again with sinkjax repair"
        ) from error
    wanted = {"mask_digest": mask_digest, "model_digest": model_digest}
    problems = [
        f"{path} is of another {name.removesuffix('_digest')}: its {name} is "
        f"{metadata.get(name)}, that of what it is loaded for is {digest}"
        for name, digest in wanted.items()
        if metadata.get(name) != digest
    ]
    if problems:
        raise InputError(*problems)
    return {name: jnp.asarray(array) for name, array in arrays.items()}


def repair_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Path of the repair beside a mask's file."""
    return check_path_name("path", path, "a mask").with_suffix(".repair.safetensors")


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """The sha256 of what is trained, in the metadata; files of earlier versions have none."""
    return arrays_digest("", dict(sorted(arrays.items()))).decode()


def _name(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))
