"""The shape of a Llama or a relative of it, read from a Hugging Face config, nothing left over.

The reading is closed-world: an attribute that this file does not know is accepted only at a value
that changes nothing. What is not understood is never ignored; all of it is reported at once.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from sinkjax.errors import InputError
from sinkjax.models.families import FAMILIES
from sinkjax.models.families.family import FULL, WINDOWED, Family

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

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding and its scaling, under transformers' meanings.

    Attributes:
      type: of `ROPE_TYPES`.
      theta: base of the geometric series of wavelengths.
      factor: linear, dynamic, yarn, llama3: how far the context is stretched.
      original_max_length: yarn, llama3: tokens of context before stretching.
      low_freq_factor: llama3: wavelengths above `original_max_length / low_freq_factor` are
        stretched in full.
      high_freq_factor: llama3: wavelengths below `original_max_length / high_freq_factor` are not.
      attention_factor: yarn: multiplies cos and sin; None derives it from factor and the mscales.
      beta_fast, beta_slow: yarn: rotations over the original context that bound the ramp.
      mscale, mscale_all_dim: yarn: weights in the derived attention factor.
      truncate: yarn: whether the bounds of the ramp are rounded outwards to whole dimensions.
      freq_factors: divisors of the inverse frequencies, float [H/2], as GGUF files may store them;
        only with type default. transformers has no such attribute.
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
      max_length: tokens of context that the model is made for.
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
      layer_windows: of each layer the tokens that its queries see, themselves among them, or None
        for all; empty where all layers see all.
      unrotated_layers: those without rotary positions.
      local_rope: rotary embedding of the layers with windows; None for the same as all.
      outer_norms: whether what attention and feed-forward add is normed too.
      norm_offset: added to the stored scales of norms.
      query_scale: multiplies rotated queries, which are divided by sqrt(H) all the same; this and
        the next three None for 1.
      embedding_scale: multiplies rows of the embedding where they enter the residual stream.
      residual_scale: multiplies what attention and feed-forward add to it.
      logit_scale: multiplies the logits.
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
    family: str = "llama"
    output_bias: bool | None = None
    qk_norm: bool = False
    layer_windows: tuple[int | None, ...] = ()
    unrotated_layers: tuple[int, ...] = ()
    local_rope: RopeConfig | None = None
    outer_norms: bool = False
    norm_offset: float = 0.0
    query_scale: float | None = None
    embedding_scale: float | None = None
    residual_scale: float | None = None
    logit_scale: float | None = None

    def __post_init__(self) -> None:
        if self.output_bias is None:
            object.__setattr__(self, "output_bias", self.attention_bias)

    def window(self, layer: int) -> int | None:
        """Returns the tokens that a layer's queries see; None for all."""
        return self.layer_windows[layer] if self.layer_windows else None

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
        plain = {name: getattr(LlamaConfig, name) for name in _OF_RELATIVES}
        plain["output_bias"] = self.attention_bias
        return {k: v for k, v in fields.items() if k not in plain or v != plain[k]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "LlamaConfig":
        fields = dict(fields)
        for name in ("rope", "local_rope"):
            if (rope := fields.get(name)) is not None:
                divisors = rope.get("freq_factors")
                divisors = None if divisors is None else tuple(divisors)
                fields[name] = RopeConfig(**{**rope, "freq_factors": divisors})
        for name in ("eos_token_ids", "unrotated_layers", "layer_windows"):
            fields[name] = tuple(fields.get(name, ()))
        return cls(**fields)


_OF_RELATIVES = (
    "family",
    "qk_norm",
    "layer_windows",
    "unrotated_layers",
    "local_rope",
    "outer_norms",
    "norm_offset",
    "query_scale",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
)


# Attributes of transformers' LlamaConfig that the model is built from: (ours, transformers',
# transformers' default). A default of None is derived below or required there.
_SHAPE = (
    ("vocab_size", "vocab_size", 32000),
    ("num_layers", "num_hidden_layers", 32),
    ("num_heads", "num_attention_heads", 32),
    ("num_kv_heads", "num_key_value_heads", None),
    ("head_dim", "head_dim", None),
    ("embed_dim", "hidden_size", 4096),
    ("mlp_dim", "intermediate_size", 11008),
    ("max_length", "max_position_embeddings", 2048),
    ("norm_eps", "rms_norm_eps", 1e-6),
    ("activation", "hidden_act", "silu"),
    ("attention_bias", "attention_bias", False),
    ("mlp_bias", "mlp_bias", False),
    ("tie_embeddings", "tie_word_embeddings", False),
    ("initializer_range", "initializer_range", 0.02),
)
_ROPE_ATTRIBUTES = frozenset(
    {
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "partial_rotary_factor",
        "original_max_position_embeddings",
    }
)
_TOKEN_IDS = frozenset({"bos_token_id", "eos_token_id", "pad_token_id"})

# Attributes that do not change the logits of one forward pass, whatever their value: names and
# versions, training (dropout, sharding of old checkpoints), what a forward pass returns, and the
# generation defaults that older configs carry.
_INERT = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_internal",
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attn_implementation",
        "auto_map",
        "bad_words_ids",
        "begin_suppress_tokens",
        "chunk_size_feed_forward",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "id2label",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "model_type",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "prefix",
        "pretraining_tp",
        "problem_type",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "typical_p",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
        "is_llama_config",
        "transformers.js_config",
    }
)

_MOST_LAYERS = 9_999  # four digits, as masks write them
_YARN = "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"

# rope_type -> (required, optional) keys of the rope parameters, beside rope_type and rope_theta.
_ROPE_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), {"freq_factors"}),
    "linear": ({"factor"}, set()),
    "dynamic": ({"factor"}, set()),
    "yarn": (set(), {"factor", *_YARN}),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor"}, set()),
}


def from_hf_config(attributes: Mapping[str, Any], name: str = "config") -> LlamaConfig:
    """Reads a Hugging Face config, in the form of its `config.json`.

    Absent attributes take the defaults of transformers' LlamaConfig. The old form of the rotary
    attributes (`rope_theta` and `rope_scaling`, with `type` or `rope_type`) and the new one
    (`rope_parameters`) are both read; where a checkpoint has both, `rope_scaling` wins, as in
    transformers.

    Args:
      attributes: the parsed `config.json`.
      name: what the config belongs to, for messages.

    Raises:
      InputError: listing every attribute that is unknown and away from its default, or that has a
        value no Llama can have.
    """
    problems: list[str] = []
    model_type = attributes.get("model_type", "llama")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(
            f"{name}: model_type is {model_type!r}; models of {', '.join(FAMILIES)} can be read. "
            "Choose a checkpoint of one of these."
        )
    family = FAMILIES[model_type]
    shape: dict[str, Any] = {}
    for ours, theirs, default in _SHAPE:
        value = attributes.get(theirs)
        if value is None and not (theirs in attributes and default is None):
            value = family.defaults.get(theirs, default)
        shape[ours] = value
    if shape["num_kv_heads"] is None:
        shape["num_kv_heads"] = shape["num_heads"]
    for ours, theirs, default in _SHAPE:
        problem = _problem_with(shape[ours], default)
        if problem and not (ours == "head_dim" and shape[ours] is None):
            problems.append(f"{theirs} is {shape[ours]!r}; {problem}")
    if not problems and shape["num_layers"] > _MOST_LAYERS:
        problems.append(f"num_hidden_layers is {shape['num_layers']}; at most {_MOST_LAYERS}")
    if not problems and shape["head_dim"] is None:
        shape["head_dim"], left = divmod(shape["embed_dim"], shape["num_heads"])
        if left:
            problems.append(
                f"hidden_size is {shape['embed_dim']}, which num_attention_heads, "
                f"{shape['num_heads']}, does not divide; head_dim is needed"
            )
    if not problems and shape["num_heads"] % shape["num_kv_heads"]:
        problems.append(
            f"num_key_value_heads is {shape['num_kv_heads']}; "
            f"it has to divide num_attention_heads, {shape['num_heads']}"
        )
    if not problems and shape["head_dim"] % 2:
        problems.append(f"head_dim is {shape['head_dim']}; rotary embeddings need an even number")
    if shape["activation"] not in list(ACTIVATIONS):  # values of JSON may have no hash
        problems.append(
            f"hidden_act is {shape['activation']!r}; known are {', '.join(ACTIVATIONS)}"
        )

    of_all, of_windows = _split_ropes(attributes, family)
    rope = _rope_from_hf(of_all, shape["max_length"], family.defaults, problems)
    local = None
    if of_windows is not None:
        local = _rope_from_hf(of_windows, shape["max_length"], {}, problems)
    divisors = rope.freq_factors
    if not problems and divisors is not None and len(divisors) * 2 != shape["head_dim"]:
        problems.append(
            f"freq_factors has {len(divisors)} values; head_dim {shape['head_dim']} "
            f"needs {shape['head_dim'] // 2}"
        )

    own = {key: attributes.get(key, default) for key, default in family.own.items()}
    own |= {theirs: shape[ours] for ours, theirs, _ in _SHAPE}
    if not problems:
        problems += family.problems(own)
    end_tokens = listed(attributes.get("eos_token_id"))
    for key in sorted(_TOKEN_IDS):
        ids = end_tokens if key == "eos_token_id" else [attributes.get(key) or 0]
        if not all(type(id_) is int for id_ in ids):
            several = ", a list of them" if key == "eos_token_id" else ""
            problems.append(
                f"{key} is {attributes[key]!r}; give the id of a token{several} or null"
            )

    known = set(own) | _ROPE_ATTRIBUTES | _TOKEN_IDS | _INERT
    for key in sorted(set(attributes) - known):
        if not _says_nothing(attributes[key]):
            problems.append(
                f"unknown attribute {key} = {attributes[key]!r}; it may change what the model "
                "computes, and nothing here handles it"
            )
    if problems:
        raise InputError(*(f"{name}: {problem}" for problem in problems))

    shape["norm_eps"] = float(shape["norm_eps"])
    return LlamaConfig(
        **{**shape, **family.read(own)},
        rope=rope,
        local_rope=local,
        family=model_type,
        bos_token_id=attributes.get("bos_token_id"),
        # Without those beyond the vocabulary, which no model ever gives.
        eos_token_ids=tuple(dict.fromkeys(i for i in end_tokens if 0 <= i < shape["vocab_size"])),
        pad_token_id=attributes.get("pad_token_id"),
    )


def listed(value: object) -> list[Any]:
    """What a config gives where one thing, several in a list or none are allowed, as a list."""
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def unlisted(values: Sequence[Any]) -> Any:
    """The reverse of `listed`: None, the one value, or a list of several."""
    return list(values) if len(values) > 1 else values[0] if values else None


def to_hf_config(config: LlamaConfig, dtype: str = "float32") -> dict[str, Any]:
    """Returns the config in the form of a Hugging Face `config.json` (the new rotary form).

    Raises:
      InputError: if the rotary frequencies are of a kind that transformers cannot express.
    """
    if any(rope.freq_factors is not None for rope in config.ropes):
        raise InputError(
            "the rotary frequencies of this model are given one by one (freq_factors, from a "
            "GGUF file's rope_freqs tensor); a Hugging Face config has no attribute for that. "
            "Save an Orbax checkpoint instead: python -m experiments.convert"
        )
    ropes = [_rope_to_hf(rope) for rope in config.ropes]
    fields = {theirs: getattr(config, ours) for ours, theirs, _ in _SHAPE}
    family = FAMILIES[config.family]
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **fields,
        **family.write(config),
        "rope_parameters": ropes[0] if len(ropes) == 1 else {FULL: ropes[0], WINDOWED: ropes[1]},
        "bos_token_id": config.bos_token_id,
        "eos_token_id": unlisted(config.eos_token_ids),
        "pad_token_id": config.pad_token_id,
        "dtype": dtype,
    }


def _problem_with(value: Any, default: Any) -> str | None:
    """Returns what is wrong with a value; a default of None is a whole number's."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false is needed"
    if isinstance(default, str):
        return None if isinstance(value, str) else "a name is needed"
    if isinstance(default, float):
        return None if _is_positive(value) else "a positive number is needed"
    whole = type(value) is int and value > 0
    return None if whole else "a whole number of at least 1 is needed"


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _says_nothing(value: Any) -> bool:
    """Returns whether an unknown attribute is switched off, so that ignoring it loses nothing."""
    return value is None or value is False or value == {} or value == []


def _split_ropes(
    attributes: Mapping[str, Any], family: Family
) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """Returns the attributes of the rope, and of that of layers with windows if it is another.

    Their parameters lie under the kinds of layers, or in older configs beside those of all.
    """
    if family.local_theta is None:
        return attributes, None
    theta = attributes.get("rope_local_base_freq") or family.local_theta
    kinds = attributes.get("rope_parameters")
    if isinstance(kinds, Mapping) and not {FULL, WINDOWED}.isdisjoint(kinds):
        local = {"rope_parameters": kinds.get(WINDOWED), "rope_theta": theta}
        return {**attributes, "rope_parameters": kinds.get(FULL)}, local
    return attributes, {"rope_theta": theta}


def _rope_to_hf(rope: RopeConfig) -> dict[str, Any]:
    required, optional = _ROPE_KEYS[rope.type]
    parameters: dict[str, Any] = {"rope_type": rope.type, "rope_theta": rope.theta}
    for key in sorted(required | (optional - {"freq_factors"})):
        if getattr(rope, key) is not None:
            parameters[key] = getattr(rope, key)
    if rope.type in ("yarn", "llama3"):
        parameters["original_max_position_embeddings"] = rope.original_max_length
    return parameters


def _rope_from_hf(
    attributes: Mapping[str, Any],
    max_length: int,
    defaults: Mapping[str, Any],
    problems: list[str],
) -> RopeConfig:
    """Reads the rotary embedding from either form of the attributes; appends to `problems`."""
    where = "rope_scaling" if attributes.get("rope_scaling") else "rope_parameters"
    parameters = attributes.get(where) or {}
    if not isinstance(parameters, Mapping):
        problems.append(f"{where} is {parameters!r}; a JSON object is needed")
        return RopeConfig()
    parameters = {key: value for key, value in parameters.items() if value is not None}
    if any(isinstance(value, Mapping) for value in parameters.values()):
        problems.append(f"{where} differs by layer type; a Llama has one for all layers")
        return RopeConfig()

    parameters.pop("finetuned", None)  # how the weights came about
    old_name = parameters.pop("type", "default")
    rope_type = parameters.pop("rope_type", old_name)
    theta = attributes.get("rope_theta") or defaults.get("rope_theta", 10_000.0)
    parameters.setdefault("rope_theta", theta)
    partial = parameters.pop("partial_rotary_factor", attributes.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        problems.append(f"partial_rotary_factor is {partial}; a Llama rotates whole heads (1.0)")
    # A value beside the rope parameters wins over one inside them, as in transformers.
    original = attributes.get("original_max_position_embeddings")
    original = original or parameters.get("original_max_position_embeddings") or max_length
    parameters["original_max_position_embeddings"] = original
    if rope_problems := _rope_problems(rope_type, parameters):
        problems += [f"{where}: {problem}" for problem in rope_problems]
        return RopeConfig()

    # As floats, so that equal configs have equal JSON.
    fields: dict[str, Any] = {
        key: tuple(map(float, value)) if key == "freq_factors" else float(value)
        for key, value in parameters.items()
        if key in set.union(*_ROPE_KEYS[rope_type])
    }
    theta = float(parameters["rope_theta"])
    if rope_type == "yarn":
        fields.setdefault("factor", max_length / original)
        fields["truncate"] = parameters.get("truncate", True)
    if rope_type in ("yarn", "llama3"):
        fields["original_max_length"] = original
    return RopeConfig(type=rope_type, theta=theta, **fields)


def _rope_problems(rope_type: Any, parameters: Mapping[str, Any]) -> list[str]:
    """Returns everything that is wrong with the parameters of a rope type."""
    if rope_type not in ROPE_TYPES:
        return [f"rope_type is {rope_type!r}; known are {', '.join(ROPE_TYPES)}"]
    required, _ = _ROPE_KEYS[rope_type]
    problems = [f"rope_type {rope_type} needs {key}" for key in sorted(required - set(parameters))]
    # transformers, too, leaves out what only another type would read.
    numbers = {"rope_theta"}.union(*(keys for kinds in _ROPE_KEYS.values() for keys in kinds))
    for key, value in parameters.items():
        if key == "freq_factors":
            good = isinstance(value, (list, tuple)) and all(map(_is_positive, value))
            wanted = "a list of positive numbers is needed"
        elif key == "truncate":
            good, wanted = isinstance(value, bool), "true or false is needed"
        elif key == "original_max_position_embeddings":
            good, wanted = type(value) is int and value > 0, "a positive whole number is needed"
        else:
            good = key in numbers and _is_positive(value)
            wanted = "a positive number is needed" if key in numbers else "the key is unknown"
        if not good:
            problems.append(f"{key} is {value!r}; {wanted}")
    if rope_type == "llama3" and not problems:
        low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
        if low >= high:
            problems.append(f"low_freq_factor is {low}; below high_freq_factor, {high}, is needed")
    return problems
