"""The result of every reader of weights: a config and tensors, both under Hugging Face names."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Part = tuple[slice, ...]
"""A part of an array: a slice of each of its axes."""


Read = Callable[..., np.ndarray]
"""Reads a tensor by its name, or the `Part` of it that is named as well, into memory of its own."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """Llama weights as they lie on disk, before any conversion.

    Attributes:
      name: what the user named, for messages.
      config: in the form of a Hugging Face `config.json`.
      shapes: the shape of every tensor, by its Hugging Face name. Known without reading a tensor,
        so that a checkpoint can be refused before any of it is converted.
      read: a tensor or a part of it, in its stored dtype, or in float32 where it was quantized.
    """

    name: str
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    read: Read
