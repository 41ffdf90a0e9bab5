"""The one table between Hugging Face tensor names and the model's parameters.

Both lay a weight out as [out, in]; here heads are axes of their own. Some families store several
parameters in one tensor, one below the other.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping

from sinkjax.checkpoint.stored import Part
from sinkjax.models.abstract import Path
from sinkjax.models.config import LlamaConfig
from sinkjax.models.families import FAMILIES

DERIVED = re.compile(
    r"(.+\.)?(rotary_emb\w*\.(\w*inv_freq|_?cos_cached|_?sin_cached)"
    r"|(attention|attn|self_attn)\.(bias|masked_bias)|masked_bias|position_ids)"
)
"""Buffers of old checkpoints that the config determines: rotary embeddings, masks, positions."""

_PROJECTION = re.compile(r"\w+\.\w+_proj")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter under both names.

    Attributes:
      name: of the tensor in a Hugging Face checkpoint.
      path: of the parameter inside `sinkjax.models.decoder.Llama`.
      shape: of the parameter.
      stored_shape: the tensor's shape in a Hugging Face checkpoint.
      first_row: of the parameter, in a tensor that several share.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    first_row: int = 0

    def stored_part(self, part: Part) -> Part:
        """Returns the part of the tensor that is this part of the parameter.

        Of axes that the tensor has as one, a head's and that of its size, only the first may be
        divided.
        """
        rows = math.prod(self.shape) // math.prod(self.stored_shape[1:])
        axes, stored = iter(zip(self.shape, part, strict=True)), []
        for size in (rows, *self.stored_shape[1:]):
            length, of_axis = next(axes)
            inner = size // length
            start, stop, _ = of_axis.indices(length)
            stored.append(slice(start * inner, stop * inner))
            while inner > 1:
                inner //= next(axes)[0]
        first, *rest = stored
        return (slice(first.start + self.first_row, first.stop + self.first_row), *rest)


def name_table(config: LlamaConfig) -> list[Entry]:
    """Every parameter of a model of this config, in the order of a Hugging Face checkpoint."""
    vocab, embed, mlp = config.vocab_size, config.embed_dim, config.mlp_dim
    heads = (config.num_heads, config.head_dim)
    kv_heads = (config.num_kv_heads, config.head_dim)
    width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    table = []

    def add(name: str, path: Path, shape: tuple[int, ...], stored: tuple[int, ...] | None = None):
        table.append(Entry(name, path, shape, shape if stored is None else stored))

    add("model.embed_tokens.weight", ("embedding",), (vocab, embed))
    for index in range(config.num_layers):
        prefix, at = f"model.layers.{index}", ("layers", index)
        for ours, theirs in _norms(config).items():
            add(f"{prefix}.{theirs}_layernorm.weight", (*at, ours, "scale"), (embed,))
        for letter, of_heads in (("q", heads), ("k", kv_heads)) if config.qk_norm else ():
            path = (*at, "attention", "turn", f"{letter}_norm", "scale")
            shape = of_heads if config.joint_qk_norm else of_heads[1:]
            add(f"{prefix}.self_attn.{letter}_norm.weight", path, shape, (math.prod(shape),))
        inputs = (("q", heads, width), ("k", kv_heads, kv_width), ("v", kv_heads, kv_width))
        for letter, out, flat in inputs:
            name, path = f"{prefix}.self_attn.{letter}_proj", (*at, "attention", letter)
            add(f"{name}.weight", path, (*out, embed), (flat, embed))
            if config.attention_bias:
                add(f"{name}.bias", (*at, "attention", f"{letter}_bias"), out, (flat,))
        name, path = f"{prefix}.self_attn.o_proj", (*at, "attention", "o")
        add(f"{name}.weight", path, (embed, *heads), (embed, width))
        if config.output_bias:
            add(f"{name}.bias", (*at, "attention", "o_bias"), (embed,))
        for part, shape in (("gate", (mlp, embed)), ("up", (mlp, embed)), ("down", (embed, mlp))):
            name, path = f"{prefix}.mlp.{part}_proj", (*at, "mlp", part)
            add(f"{name}.weight", path, shape)
            if config.mlp_bias:
                add(f"{name}.bias", (*at, "mlp", f"{part}_bias"), shape[:1])
    add("model.norm.weight", ("norm", "scale"), (embed,))
    if not config.tie_embeddings:
        add("lm_head.weight", ("head",), (vocab, embed))
    wholes = FAMILIES[config.family].joined
    return _joined(table, wholes) if wholes else table


def _joined(table: list[Entry], wholes: Mapping[str, str]) -> list[Entry]:
    """The table of a family that stores several parameters in one tensor, in the table's order."""
    rows: dict[str, int] = collections.Counter()
    joined = []
    for entry in table:
        name = _PROJECTION.sub(lambda match: wholes.get(match[0], match[0]), entry.name)
        joined.append(dataclasses.replace(entry, name=name, first_row=rows[name]))
        rows[name] += entry.stored_shape[0]
    return [
        dataclasses.replace(entry, stored_shape=(rows[entry.name], *entry.stored_shape[1:]))
        for entry in joined
    ]


def _norms(config: LlamaConfig) -> dict[str, str]:
    """The norms of a layer's residual and of what is added to it, by their names here."""
    before_mlp = "pre_feedforward" if config.outer_norms else "post_attention"
    inner = {"attention_norm": "input", "mlp_norm": before_mlp}
    outer = {"attention_outer_norm": "post_attention", "mlp_outer_norm": "post_feedforward"}
    return (inner if config.inner_norms else {}) | (outer if config.outer_norms else {})
