"""What a family's file says of it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

Attributes = Mapping[str, Any]
"""Attributes of a `config.json`."""


def _nothing(attributes: Attributes) -> dict[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True)
class Family:
    """What checkpoints of one architecture have that a Llama's have not.

    Attributes:
      model_type: in `config.json`.
      architecture: the class of transformers that reads and writes them.
      defaults: values of absent attributes, where they are not those of transformers' LlamaConfig.
      own: attributes that only this family has, with the values of absent ones. Together with
        `num_hidden_layers` and `head_dim` they are what `read` and `problems` are given.
      read: the fields of `sinkjax.LlamaConfig` that they decide.
      write: the attributes, of a `sinkjax.LlamaConfig`.
      problems: a line for everything in them that the decoder does not compute.
    """

    model_type: str
    architecture: str
    defaults: Attributes = dataclasses.field(default_factory=dict)
    own: Attributes = dataclasses.field(default_factory=dict)
    read: Callable[[Attributes], dict[str, Any]] = _nothing
    write: Callable[[Any], dict[str, Any]] = _nothing
    problems: Callable[[Attributes], list[str]] = lambda attributes: []


WINDOWS: Attributes = {
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": None,
    "layer_types": None,
}
"""Attributes of families whose layers may have windows of their own."""


def window_problems(attributes: Attributes) -> list[str]:
    """Refuses windows of a model's own, which the decoder does not have yet."""
    kinds = attributes["layer_types"]
    windowed = kinds is not None and kinds != ["full_attention"] * len(kinds)
    # Where layers are named one by one, transformers asks for nothing else.
    if windowed or (kinds is None and attributes["use_sliding_window"] is not False):
        name = "use_sliding_window" if kinds is None else "layer_types"
        return [
            f"{name} is {attributes[name]!r}; layers with windows of the model's own are not "
            "computed yet: choose a checkpoint without them"
        ]
    return []
