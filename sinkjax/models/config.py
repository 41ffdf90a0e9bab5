"""The shape of a Llama or of a relative of it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from sinkjax.errors import check_kind

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jax.numpy.tanh,
}
"""The feed-forward activations, by transformers' names."""

MOST_SIZE = 2**31 - 1
"""The largest size or position: they are int32 in a program."""

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding and its scaling, under transformers' meanings.

    Attributes:
      type: of `ROPE_TYPES`.
      theta: base of the geometric series of wavelengths.
      factor: all but default: how far the context is stretched.
      original_max_length: yarn, llama3, longrope: tokens of context before stretching.
      low_freq_factor: llama3: wavelengths above `original_max_length / low_freq_factor` are
        stretched in full.
      high_freq_factor: llama3: wavelengths below `original_max_length / high_freq_factor` are not.
      attention_factor: yarn, longrope: multiplies cos and sin; None derives it from factor and
        the mscales, or the original length.
      beta_fast, beta_slow: yarn: rotations over the original context that bound the ramp.
      mscale, mscale_all_dim: yarn: weights in the derived attention factor.
      truncate: yarn: whether the bounds of the ramp are rounded outwards to whole dimensions.
      freq_factors: divisors of the inverse frequencies. With type default float [H/2], as GGUF
        files may store them; transformers has no such attribute. With longrope float [H], those
        of texts within the original length before those of longer ones.
      part: of each head's numbers that turn, the first ones. `H` above is as many.
    """

    type: str = "default"
    theta: float = 10_000.0
    factor: float | None = None
    original_max_length: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    freq_factors: tuple[float, ...] | None = None
    part: float = 1.0

    def turned(self, head_dim: int) -> int:
        """Returns how many of a head's numbers turn."""
        return int(head_dim * self.part)


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama.

    Attributes:
      vocab_size: V.
      num_layers: L.
      num_heads: N, query heads a layer.
      num_kv_heads: K, key/value heads a layer; divides N.
      head_dim: H.
      embed_dim: D.
      mlp_dim: F.
      max_length: tokens of context that the checkpoint says it is made for; see `context`.
      norm_eps: epsilon of every RMS norm.
      rope: rotary embedding.
      activation: of the gated feed-forward; one of `ACTIVATIONS`.
      attention_bias: whether q, k and v projections have biases.
      output_bias: whether o projections have; None as `attention_bias`.
      mlp_bias: whether gate, up and down projections have biases.
      tie_embeddings: whether the output head is the embedding's transpose.
      initializer_range: standard deviation of random weights.
      bos_token_id, eos_token_ids, pad_token_id: as the checkpoint names them; the model does not
        use them.
      family: whose checkpoints these are, of `sinkjax.models.families.FAMILIES`.
      qk_norm: whether each head's queries and keys have an RMS norm.
      joint_qk_norm: whether that norm is one over all heads of a layer together.
      layer_windows: of each layer the tokens that its queries see, themselves among them, or None
        for all; empty where all layers see all.
      unrotated_layers: those without rotary positions.
      local_rope: rotary embedding of the layers with windows; None for the same as all.
      inner_norms: whether attention and feed-forward read the norm of the residual.
      outer_norms: whether what they add to it is normed.
      norm_offset: added to the stored scales of norms.
      query_scale: multiplies rotated queries, which are divided by sqrt(H) all the same; this and
        the next three None for 1.
      embedding_scale: multiplies rows of the embedding where they enter the residual stream.
      residual_scale: multiplies what attention and feed-forward add to it.
      logit_scale: multiplies the logits.
      score_cap: attention's scores are cap · tanh(score / cap); None for no cap.
      logit_cap: the same of logits.
    """

    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    embed_dim: int
    mlp_dim: int
    max_length: int
    norm_eps: float
    rope: RopeConfig = RopeConfig()
    activation: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    # From here on what only relatives of Llama have: see `to_dict`.
    family: str = "llama"
    output_bias: bool | None = None
    qk_norm: bool = False
    joint_qk_norm: bool = False
    layer_windows: tuple[int | None, ...] = ()
    unrotated_layers: tuple[int, ...] = ()
    local_rope: RopeConfig | None = None
    inner_norms: bool = True
    outer_norms: bool = False
    norm_offset: float = 0.0
    query_scale: float | None = None
    embedding_scale: float | None = None
    residual_scale: float | None = None
    logit_scale: float | None = None
    score_cap: float | None = None
    logit_cap: float | None = None

    def __post_init__(self) -> None:
        if self.output_bias is None:
            object.__setattr__(self, "output_bias", self.attention_bias)

    def window(self, layer: int) -> int | None:
        """Returns the tokens that a layer's queries see; None for all."""
        return self.layer_windows[layer] if self.layer_windows else None

    @property
    def context(self) -> int:
        """Tokens that the model is made for.

        Where YaRN is added by hand, as Qwen's model cards have it, `max_length` stays what it was
        and the rope says how far it goes.
        """
        rope = self.rope
        if rope.type != "yarn" or rope.factor is None or rope.original_max_length is None:
            return self.max_length
        return max(self.max_length, int(min(rope.factor * rope.original_max_length, MOST_SIZE)))

    @property
    def ropes(self) -> tuple[RopeConfig, ...]:
        """The rotary embeddings that layers have."""
        return (self.rope,) if self.local_rope is None else (self.rope, self.local_rope)

    def rope_index(self, layer: int) -> int | None:
        """Returns which of `ropes` a layer has; None for none."""
        if layer in self.unrotated_layers:
            return None
        return int(self.local_rope is not None and self.window(layer) is not None)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON-able form that `from_dict` reads back.

        What only relatives of Llama have is left out where a model has none of it, so that digests
        and files of Llamas are what they were before there were such fields.
        """
        fields = dataclasses.asdict(self)
        for rope in filter(None, (fields["rope"], fields["local_rope"])):
            if rope["part"] == RopeConfig.part:
                del rope["part"]
        names = list(fields)
        of_relatives = names[names.index("family") :]
        plain = {name: getattr(LlamaConfig, name) for name in of_relatives}
        plain["output_bias"] = self.attention_bias
        return {k: v for k, v in fields.items() if k not in plain or v != plain[k]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "LlamaConfig":
        """Returns the config of a JSON-able form, unchecked but for the names of its fields."""
        check_kind("fields", fields, Mapping, "what to_dict gives,")
        fields = dict(fields)
        for name in ("rope", "local_rope"):
            if (rope := fields.get(name)) is not None:
                rope = RopeConfig(**rope)
                divisors = rope.freq_factors
                divisors = tuple(divisors) if isinstance(divisors, list) else divisors
                fields[name] = dataclasses.replace(rope, freq_factors=divisors)
        for name in ("eos_token_ids", "unrotated_layers", "layer_windows"):
            fields[name] = tuple(fields.get(name, ()))
        return cls(**fields)
