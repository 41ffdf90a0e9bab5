"""The one table between Hugging Face tensor names and the model's parameters.

Hugging Face stores a projection as [out, in]; here it lies as [in..., out...] with heads as axes of
their own. Both directions are derived from one entry a parameter.
"""

import dataclasses
import math
import re
from typing import Literal

import numpy as np

from sinkjax.config import LlamaConfig

Path = tuple[str | int, ...]

DERIVED = re.compile(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""Tensors of old checkpoints that the config already determines."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter under both names.

    Attributes:
      name: of the tensor in a Hugging Face checkpoint.
      path: of the parameter inside `sinkjax.model.Llama`.
      shape: of the parameter.
      kind: `linear` is stored transposed and flattened to two axes, `vector` flattened to one,
        `table` as it is.
      inputs: how many leading axes of a linear parameter are input axes.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    kind: Literal["linear", "vector", "table"]
    inputs: int = 1

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The tensor's shape in a Hugging Face checkpoint."""
        if self.kind == "table":
            return self.shape
        if self.kind == "vector":
            return (math.prod(self.shape),)
        return (math.prod(self.shape[self.inputs :]), math.prod(self.shape[: self.inputs]))

    def from_stored(self, tensor: np.ndarray) -> np.ndarray:
        """A tensor of `stored_shape` as a parameter of `shape`."""
        return (tensor.T if self.kind == "linear" else tensor).reshape(self.shape)

    def to_stored(self, parameter: np.ndarray) -> np.ndarray:
        """The inverse of `from_stored`."""
        if self.kind == "linear":
            return np.ascontiguousarray(parameter.reshape(self.stored_shape[::-1]).T)
        return parameter.reshape(self.stored_shape)


def name_table(config: LlamaConfig) -> list[Entry]:
    """Every parameter of a model of this config, in the order of a Hugging Face checkpoint."""
    vocab, embed, mlp = config.vocab_size, config.embed_dim, config.mlp_dim
    heads = (config.num_heads, config.head_dim)
    kv_heads = (config.num_kv_heads, config.head_dim)
    table = [Entry("model.embed_tokens.weight", ("embedding",), (vocab, embed), "table")]
    for index in range(config.num_layers):
        prefix, at = f"model.layers.{index}", ("layers", index)
        attention, feed = f"{prefix}.self_attn", f"{prefix}.mlp"
        norms = (("input_layernorm", "attention_norm"), ("post_attention_layernorm", "mlp_norm"))
        for theirs, ours in norms:
            table.append(
                Entry(f"{prefix}.{theirs}.weight", (*at, ours, "scale"), (embed,), "vector")
            )
        for letter, out in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            name, path = f"{attention}.{letter}_proj", (*at, "attention", letter)
            table.append(Entry(f"{name}.weight", path, (embed, *out), "linear"))
            if config.attention_bias:
                biased = (*at, "attention", f"{letter}_bias")
                table.append(Entry(f"{name}.bias", biased, out, "vector"))
        path = (*at, "attention", "o")
        table.append(Entry(f"{attention}.o_proj.weight", path, (*heads, embed), "linear", inputs=2))
        if config.attention_bias:
            path = (*at, "attention", "o_bias")
            table.append(Entry(f"{attention}.o_proj.bias", path, (embed,), "vector"))
        for part, shape in (("gate", (embed, mlp)), ("up", (embed, mlp)), ("down", (mlp, embed))):
            path = (*at, "mlp", part)
            table.append(Entry(f"{feed}.{part}_proj.weight", path, shape, "linear"))
            if config.mlp_bias:
                path = (*at, "mlp", f"{part}_bias")
                table.append(Entry(f"{feed}.{part}_proj.bias", path, shape[1:], "vector"))
    table.append(Entry("model.norm.weight", ("norm", "scale"), (embed,), "vector"))
    if not config.tie_embeddings:
        table.append(Entry("lm_head.weight", ("head",), (embed, vocab), "linear"))
    return table
