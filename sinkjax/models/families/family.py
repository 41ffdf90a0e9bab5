"""What a family's file says of it, and what several families say alike."""

import dataclasses
import reprlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

Attributes = Mapping[str, Any]
"""Attributes of a `config.json`."""


@runtime_checkable
class Metadata(Protocol):
    """A GGUF file's metadata under its architecture, each key to be taken once."""

    def count(self, key: str, default: int | None = None) -> int: ...

    def number(self, key: str, default: float | None = None) -> float: ...

    def has(self, key: str, unsaid: int = 0) -> bool: ...

    def kinds(self, layers: int, every: int) -> list[str]: ...


@dataclasses.dataclass(frozen=True)
class Gguf:
    """How llama.cpp's files have a family.

    Attributes:
      architecture: their `general.architecture`.
      pairs: whether the two of a rotary pair are neighbours among the rows of queries and keys,
        as Meta published Llama, and not half a head apart.
      norm_offset: added to norms' scales in the file.
      neutral: values of keys that change the computation of this family, and at which it is that of
        Hugging Face.
      names: tensors of a layer by what Hugging Face calls them, beside a Llama's or in place of it.
      read: attributes of `config.json` from the metadata and the attributes that all families have.
    """

    architecture: str
    pairs: bool = False
    norm_offset: float = 0.0
    neutral: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    read: Callable[[Metadata, Attributes], dict[str, Any]] = lambda metadata, attributes: {}


@dataclasses.dataclass(frozen=True)
class Family:
    """What checkpoints of one architecture have that a Llama's have not.

    Attributes:
      model_type: in `config.json`.
      architecture: the class of transformers that reads and writes them.
      defaults: values of absent attributes, where they are not those of transformers' LlamaConfig.
      own: attributes that only this family has, with the values of absent ones. Together with
        those that all have they are what `problems` and `read` are given.
      problems: a line for everything in them that the decoder does not compute. Of what all have,
        num_hidden_layers alone can be relied on: the rest may have problems of its own.
      read: the fields of `sinkjax.LlamaConfig` that they decide.
      write: the attributes, of a `sinkjax.LlamaConfig`.
      joined: of projections that lie below each other in one tensor, that tensor's name.
      gguf: None where llama.cpp has it as another family.
      local_theta: base of the rotary embedding that layers with windows have for themselves, where
        the config names none; None where all layers have the same.
      ropes: types of rotary embeddings that transformers reads; None for all.
      needed: attributes that may be absent, but not null.
      turns_parts: whether a part of each head may have rotary positions and the rest none.
    """

    model_type: str
    architecture: str
    defaults: Attributes = dataclasses.field(default_factory=dict)
    own: Attributes = dataclasses.field(default_factory=dict)
    problems: Callable[[Attributes], list[str]] = lambda attributes: []
    read: Callable[[Attributes], dict[str, Any]] = lambda attributes: {}
    write: Callable[[Any], dict[str, Any]] = lambda config: {}
    joined: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gguf: Gguf | None = None
    local_theta: float | None = None
    ropes: tuple[str, ...] | None = None
    needed: tuple[str, ...] = ()
    turns_parts: bool = False


QK_NORMS = {f"attn_{x}_norm.weight": f"self_attn.{x}_norm.weight" for x in "qk"}
"""`Gguf.names` of families with norms of queries and keys."""

OUTER_NORMS = {
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
}
"""`Gguf.names` of families with norms of what attention and feed-forward add."""

FULL, WINDOWED = "full_attention", "sliding_attention"
"""What `layer_types` calls the two kinds of layers."""

shown = reprlib.repr
"""What is wrong as messages show it: never a page."""

MOST = 1_000_000_000
"""The largest whole number that a family may name: as many tokens as a window may have."""

WHOLE = f"a whole number from 1 to {MOST:,} is needed"
"""What messages say where `is_whole` fails."""


def is_whole(value: Any) -> bool:
    """Returns whether a value is a whole number from 1 to `MOST`."""
    return type(value) is int and 0 < value <= MOST


def is_positive(value: Any) -> bool:
    """Returns whether a value is a number above 0 that a float can hold."""
    return type(value) in (int, float) and 0 < value <= sys.float_info.max


def windowed_but_one_in(every: int, layers: int) -> list[str]:
    """Returns kinds of layers of which all have windows but for the last of each so many."""
    return [WINDOWED if (layer + 1) % every else FULL for layer in range(layers)]


def window_problems(attributes: Attributes, kinds: Any) -> list[str]:
    """Returns what is wrong with the kinds of layers and the window of those that have one."""
    used = attributes.get("use_sliding_window", True)
    if not isinstance(used, bool):
        return [f"use_sliding_window is {shown(used)}; true or false is needed"]
    allowed = isinstance(kinds, list) and all(kind in (FULL, WINDOWED) for kind in kinds)
    if not allowed or len(kinds) != attributes["num_hidden_layers"]:
        return [f"layer_types is {shown(kinds)}; {FULL} or {WINDOWED} is needed for each layer"]
    window = attributes["sliding_window"]
    if WINDOWED in kinds and not is_whole(window):
        return [f"sliding_window is {shown(window)}; {WHOLE}"]
    return []


def windows_of(kinds: list[str], window: int) -> dict[str, Any]:
    """Returns the field `layer_windows` of kinds of layers."""
    windows = tuple(window if kind == WINDOWED else None for kind in kinds)
    return {"layer_windows": windows if any(windows) else ()}


def written_windows(config: Any) -> dict[str, Any]:
    """Returns `layer_types` and `sliding_window` of a `sinkjax.LlamaConfig`."""
    windows = [config.window(layer) for layer in range(config.num_layers)]
    return {
        "layer_types": [FULL if window is None else WINDOWED for window in windows],
        "sliding_window": next((window for window in windows if window is not None), None),
    }
