"""Hugging Face's configs, read with nothing left over, and written.

The reading is closed-world: an attribute that neither this file nor the family's
(`sinkjax.models.families`) knows is accepted only at a value that changes nothing. What is not
understood is never ignored; all of it is reported at once.
"""

import dataclasses
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from sinkjax.errors import InputError
from sinkjax.models.config import ACTIVATIONS, MOST_SIZE, LlamaConfig
from sinkjax.models.families import FAMILIES
from sinkjax.models.families.family import FULL, WINDOWED, is_positive
from sinkjax.models.hf_rope import ROPE_ATTRIBUTES, rope_from_hf, rope_to_hf, split_ropes

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
_TOKEN_IDS = frozenset({"bos_token_id", "eos_token_id", "pad_token_id"})

# Attributes that do not change the logits of one forward pass, whatever their value.
_INERT = frozenset(
    {
        # Names, versions, and where the checkpoint comes from.
        *("_commit_hash", "_name_or_path", "architectures", "auto_map", "base_model", "datasets"),
        *("dtype", "finetuning_task", "is_llama_config", "language", "library_name", "license"),
        *("model_name", "model_type", "pipeline_tag", "tags", "tokenizer_class", "torch_dtype"),
        "transformers.js_config",
        # How the same is computed, trained or sharded.
        *("_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal"),
        *("attn_implementation", "cache_implementation", "chunk_size_feed_forward", "torchscript"),
        *("gradient_checkpointing", "pretraining_tp", "tf_legacy_loss", "use_bfloat16"),
        *("use_cache", "use_memory_efficient_attention", "use_sdpa", "use_xformers"),
        # What a forward pass returns, and what other heads are for.
        *("id2label", "is_decoder", "keys_to_ignore_at_inference", "label2id", "problem_type"),
        *("output_attentions", "output_hidden_states", "output_scores", "return_dict"),
        *("return_dict_in_generate", "task_specific_params"),
        # Lengths and sides of texts.
        *("max_length", "max_seq_len", "max_seq_length", "max_sequence_length", "min_length"),
        *("model_max_length", "n_ctx", "n_positions", "padding_side", "seq_len", "seq_length"),
        # Tokens of other tasks.
        *("cls_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"),
        *("mask_token_id", "prefix", "sep_token_id", "unk_token_id"),
        # Generation, whose defaults older configs carry.
        *("bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample"),
        *("early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty"),
        *("length_penalty", "max_new_tokens", "no_repeat_ngram_size", "num_beam_groups"),
        *("num_beams", "num_return_sequences", "remove_invalid_values", "repetition_penalty"),
        *("suppress_tokens", "temperature", "top_k", "top_p", "typical_p"),
    }
)
_INERT_KINDS = re.compile(r"_?(use_)?flash_att(entio)?n(_\w+)?|unsloth_\w+")
# Of training alone.
_DROPOUT = re.compile(r"(\w+_)?(dropout|dropout_prob|dropout_rate|pdrop|layerdrop)")

# Other libraries' names for what the model is built from, accepted where they say the same.
_SYNONYMS = {
    other: name
    for name, others in {
        "attention_bias": ("bias",),
        "head_dim": ("head_size", "kv_channels"),
        "hidden_act": ("activation", "activation_function", "hidden_activation"),
        "hidden_size": ("dim", "d_model", "n_embd"),
        "intermediate_size": ("ffn_hidden_size",),
        "num_attention_heads": ("n_head", "n_heads"),
        "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
        "num_key_value_heads": ("n_kv_heads",),
        "rms_norm_eps": ("layer_norm_eps", "layer_norm_epsilon", "norm_eps"),
        "sliding_window": ("sliding_window_size",),  # a Gemma 2's has both
    }.items()
    for other in others
}
_OF_A_LLAMA = {
    "full_attn_mod": 1,  # as Phi-4-mini has it
    "interpolate_factor": 1,
    "norm_type": "rmsnorm",
    "position_embedding_type": "rope",
    "rotary_pct": 1.0,
}
_WINDOW = frozenset({"sliding_window", "use_sliding_window", "max_window_layers"})

_WAYS_ON = {
    "dual_chunk_attention_config": "up to its chunk_size, texts are computed as without it, and "
    "transformers never reads it; delete it from the config.json of a copy of the model's folder",
    # transformers', an older compressed-tensors', MLX's
    **dict.fromkeys(
        ("quantization_config", "compression_config", "quantization"),
        "its weights are quantized; choose the checkpoint that it was made from",
    ),
    "sliding_window": "a Llama attends to all earlier tokens, and this is below "
    "max_position_embeddings; choose a checkpoint without a window",
}
MOST_LAYERS_OR_HEADS = 9_999  # four digits, as masks write them


def from_hf_config(attributes: Mapping[str, Any], name: str = "config") -> LlamaConfig:
    """Reads a Hugging Face config, in the form of its `config.json`.

    Absent attributes take the defaults of transformers' LlamaConfig, or of its MistralConfig: a
    Llama, where its sliding window is off or as long as its context. The old form of the rotary
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
    classes = listed(attributes.get("architectures"))
    named = (name for name, family in FAMILIES.items() if family.architecture in classes)
    model_type = attributes.get("model_type", next(named, "llama"))
    if model_type not in list(FAMILIES):  # values of JSON may have no hash
        raise InputError(
            f"{name}: model_type is {reprlib.repr(model_type)}; models of {', '.join(FAMILIES)} "
            "can be read. Choose a checkpoint of one of these."
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
        most = MOST_LAYERS_OR_HEADS if theirs.startswith("num_") else MOST_SIZE
        problem = _problem_with(shape[ours], default, most)
        if problem and not (ours == "head_dim" and shape[ours] is None):
            problems.append(f"{theirs} is {reprlib.repr(shape[ours])}; {problem}")
    problems += [
        f"{theirs} is null; a whole number is needed, or no such attribute"
        for theirs in family.needed
        if theirs in attributes and attributes[theirs] is None
    ]
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

    of_all, of_windows = split_ropes(attributes, family, problems)
    longest = shape["max_length"]
    if _problem_with(longest, None, MOST_SIZE):  # the ropes may have problems of their own
        longest = 2048
    rope = rope_from_hf(of_all, longest, family.defaults, problems)
    local = None if of_windows is None else rope_from_hf(of_windows, longest, {}, problems)
    parts = [each.part for each in (rope, local) if each is not None and each.part != 1]
    if parts and not family.turns_parts:
        problems.append(
            f"partial_rotary_factor is {parts[0]}; a {model_type} rotates whole heads (1.0)"
        )
    turned = 2 if problems else rope.turned(shape["head_dim"])
    if turned < 2 or turned % 2:
        problems.append(
            f"partial_rotary_factor is {rope.part}, which of head_dim {shape['head_dim']} is "
            f"{turned}; rotary embeddings need an even number"
        )
    divisors, lists = rope.freq_factors, 2 if rope.type == "longrope" else 1
    if not problems and divisors is not None and len(divisors) * 2 != turned * lists:
        names = "short_factor and long_factor have" if lists == 2 else "freq_factors has"
        part = "" if rope.part == 1 else f" times partial_rotary_factor {rope.part}"
        problems.append(
            f"{names} {len(divisors) // lists} values; head_dim {shape['head_dim']}{part} "
            f"needs {turned // 2}"
        )

    own = {key: attributes.get(key, default) for key, default in family.own.items()}
    own |= {theirs: shape[ours] for ours, theirs, _ in _SHAPE}
    for theirs in ("hidden_act", "hidden_activation"):  # a Gemma has both, and computes the second
        if theirs in own and own[theirs] not in list(ACTIVATIONS):
            names = ", ".join(ACTIVATIONS)
            problems.append(f"{theirs} is {reprlib.repr(own[theirs])}; known are {names}")
    if family.ropes is not None and rope.type not in family.ropes:
        problems.append(f"rope_type is {rope.type}; a {model_type} has {', '.join(family.ropes)}")
    if not _problem_with(shape["num_layers"], None, MOST_LAYERS_OR_HEADS):  # else what are layers?
        problems += family.problems(own)
    end_tokens = listed(attributes.get("eos_token_id"))
    for key in sorted(_TOKEN_IDS):
        given = attributes.get(key)
        ids = end_tokens if key == "eos_token_id" else [] if given is None else [given]
        if not all(type(id_) is int for id_ in ids):
            several = ", a list of them" if key == "eos_token_id" else ""
            problems.append(
                f"{key} is {attributes[key]!r:.99}; give the id of a token{several} or null"
            )

    known = set(own) | ROPE_ATTRIBUTES | _TOKEN_IDS | _INERT
    for key in sorted(set(attributes) - known):
        if not _changes_nothing(key, attributes, own):
            way_on = _WAYS_ON.get(
                key,
                "it may change what the model computes, and nothing here handles it. If you know "
                "that it does not, delete it from the config.json of a copy of the model's folder",
            )
            shown = key if key.isprintable() else ascii(key)
            problems.append(
                f"unknown attribute {shown} = {reprlib.repr(attributes[key])}; {way_on}"
            )
    if problems:
        raise InputError(*(f"{name}: {problem}" for problem in problems))

    for name in ("norm_eps", "initializer_range"):
        shape[name] = float(shape[name])
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
    if any(rope.freq_factors is not None and rope.type == "default" for rope in config.ropes):
        raise InputError(
            "the rotary frequencies of this model are given one by one (freq_factors, from a "
            "GGUF file's rope_freqs tensor); a Hugging Face config has no attribute for that. "
            "Save an Orbax checkpoint instead: sinkjax convert --format=orbax"
        )
    names = {"architectures": [FAMILIES[config.family].architecture]}
    return {**names, **_attributes(config), "dtype": dtype}


def _attributes(config: LlamaConfig) -> dict[str, Any]:
    """Returns the attributes from which `from_hf_config` reads the same config."""
    ropes = [rope_to_hf(rope) for rope in config.ropes]
    fields = {theirs: getattr(config, ours) for ours, theirs, _ in _SHAPE}
    family = FAMILIES[config.family]
    return {
        "model_type": family.model_type,
        **fields,
        **family.write(config),
        "rope_parameters": ropes[0] if len(ropes) == 1 else {FULL: ropes[0], WINDOWED: ropes[1]},
        "bos_token_id": config.bos_token_id,
        "eos_token_id": unlisted(config.eos_token_ids),
        "pad_token_id": config.pad_token_id,
    }


def check_config(config: LlamaConfig) -> None:
    """Refuses a config, of a file of ours, that no checkpoint of its family has.

    Raises:
      InputError: listing every value that no model can have, by Hugging Face's names.
    """
    layers = config.num_layers  # before what is said of each is counted
    problem = _problem_with(layers, None, MOST_LAYERS_OR_HEADS)
    if problem and layers is not None:
        raise InputError(f"config: num_hidden_layers is {reprlib.repr(layers)}; {problem}")
    wanted, given = _flat(from_hf_config(_attributes(config))), _flat(config)
    problems = []
    for name in sorted(wanted.keys() | given.keys()):
        value, needed = given.get(name), wanted.get(name)
        if value is None and needed is not None:
            problems.append(f"config: {name} cannot be null")
        elif not (value == needed or _is_close(value, needed)):
            problems.append(
                f"config: {name} is {reprlib.repr(value)}; with the rest of it a {config.family} "
                f"has {reprlib.repr(needed)}"
            )
    if problems:
        raise InputError(*problems)


def _flat(config: LlamaConfig) -> dict[str, Any]:
    """Returns the fields that decide what a model computes, those of ropes by `rope.theta`."""
    fields = dataclasses.asdict(config)
    del fields["eos_token_ids"]  # older files have those beyond the vocabulary
    ropes = {name: fields.pop(name) or {} for name in ("rope", "local_rope")}
    return fields | {f"{rope}.{key}": value for rope in ropes for key, value in ropes[rope].items()}


def _is_close(value: Any, other: Any) -> bool:
    """Returns whether numbers differ by rounding alone: some are multiplied and divided again."""
    return type(value) is type(other) is float and math.isclose(value, other, rel_tol=1e-12)


def _problem_with(value: Any, default: Any, most: int) -> str | None:
    """Returns what is wrong with a value; a default of None is a whole number's, up to `most`."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false is needed"
    if isinstance(default, str):
        return None if isinstance(value, str) else "a name is needed"
    if isinstance(default, float):
        return None if is_positive(value) else "a positive number is needed"
    whole = type(value) is int and 0 < value <= most
    return None if whole else f"a whole number of at least 1 and at most {most:,} is needed"


def _changes_nothing(key: str, attributes: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Returns whether an attribute that is not read computes nothing, or nothing else, as it is.

    `own` are the attributes that are read, with the values of absent ones.
    """
    value = attributes[key]
    if key == "is_causal":  # which transformers reads of every config: without, all is seen
        return value is None or value is True
    if value is None or value is False or value == {} or value == []:  # it is switched off
        return True
    if _DROPOUT.fullmatch(key):
        return type(value) in (int, float) and 0 <= value <= 1
    if key.endswith("_version"):  # of what wrote it, or of the weights
        return isinstance(value, str)
    if key in _SYNONYMS:
        same = {**attributes, **own}.get(_SYNONYMS[key])
        value = {"swiglu": "silu"}.get(value, value) if isinstance(value, str) else value
        return type(value) is type(same) and value == same
    if key in _OF_A_LLAMA:
        return type(value) is not bool and value == _OF_A_LLAMA[key]
    if key in _WINDOW:
        window, in_use = attributes.get("sliding_window"), attributes.get("use_sliding_window")
        off = in_use is False and attributes.get("model_type", "llama") == "llama"
        longest = own["max_position_embeddings"]
        return not window or off or (type(window) is type(longest) is int and window >= longest)
    if key == "layer_types":
        return value == ["full_attention"] * len(value) if isinstance(value, list) else False
    return _INERT_KINDS.fullmatch(key) is not None
