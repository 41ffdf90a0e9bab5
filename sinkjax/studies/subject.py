"""A model before its weights are read: what a study is put to."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax.sharding import Mesh

from sinkjax.checkpoint.load import load, load_config, load_tokenizer
from sinkjax.checkpoint.text_part import text_config
from sinkjax.distributed import together
from sinkjax.errors import InputError, Problem
from sinkjax.files import parse_json, read_file, user_path
from sinkjax.models.config import LlamaConfig
from sinkjax.models.decoder import Llama
from sinkjax.models.digest import model_digest, tokenizer_digest
from sinkjax.models.hf_config import from_hf_config
from sinkjax.models.shapes import SHAPES, random_model
from sinkjax.models.sharding import fit_mesh

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHAPE = "shape:"
"""Begins the name of a model without tokenizer and trained weights: `shape:NAME`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A model before its weights are read.

    Attributes:
      name: as the user gave it.
      tokenizer: its own; None for a shape.
    """

    name: str
    config: LlamaConfig
    tokenizer: "PreTrainedTokenizerBase"
    load: Callable[[], Llama]

    @classmethod
    def named(
        cls,
        name: str,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        seed: int = 0,
        mesh: str | None = None,
    ) -> "Subject":
        """The model of a name.

        Args:
          name, revision, dtype: as for `sinkjax.load`; or `shape:NAME` or `shape:FOLDER`, of random
            weights.
          seed: of random weights.
          mesh: to lay them over, as of `sinkjax.models.sharding.fit_mesh`.
        """
        is_shape = name.startswith(SHAPE)
        config = (shape_config if is_shape else load_config)(name, revision=revision)
        over = fit_mesh(mesh, config, dtype)
        how = {"revision": revision, "dtype": dtype, "seed": seed, "mesh": over}
        tokenizer = None if is_shape else load_tokenizer(name, revision=revision)
        return cls(name, config, tokenizer, functools.partial(load_model, name, **how))

    def describe(self, model: Llama) -> dict[str, Any]:
        """The "model" of a specification; reads all parameters once."""
        config = self.config
        return {
            "name": self.name,
            "model_digest": model_digest(model),
            "tokenizer_digest": tokenizer_digest(self.tokenizer),
            "num_layers": config.num_layers,
            "num_heads": config.num_heads,
            "num_kv_heads": config.num_kv_heads,
            "max_length": config.max_length,
            "dtype": model.embedding[...].dtype.name,
        }


def load_model(
    name: str, *, revision: str | None, dtype: str, seed: int, mesh: Mesh | None = None
) -> Llama:
    """`sinkjax.load`, in all processes or in none, or random weights of a shape."""
    if not name.startswith(SHAPE):
        return together(lambda: load(name, revision=revision, dtype=dtype, mesh=mesh))
    config = shape_config(name, revision)
    return random_model(config, dtype=jnp.dtype(dtype), seed=seed, mesh=mesh)


def shape_config(name: str, revision: str | None = None) -> LlamaConfig:
    """The config of `shape:...`, from the table of shapes or a folder's config.json.

    Raises:
      InputError: for a shape that is not known and no file that can be read.
    """
    shape = name.removeprefix(SHAPE)
    if revision is not None:
        raise InputError(Problem("model", name, "it has no revisions; leave revision out"))
    if shape in SHAPES:
        return SHAPES[shape]
    path = user_path(shape)
    if shape and os.path.isdir(path):  # of no name is too long
        path = path / "config.json"
    try:
        attributes = parse_json(read_file(path))
        if not isinstance(attributes, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        text = (
            f"it is no known shape, and {path} cannot be read as JSON ({error}); known are "
            f"{', '.join(SHAPES)}, or give a folder with a config.json, or such a file"
        )
        raise InputError(Problem("model", name, text)) from error
    return from_hf_config(text_config(attributes), str(path))
