"""Configs of every family, against their definition in a few lines and transformers' reading."""

import contextlib
import dataclasses
import json
import pathlib
from typing import Any

import families
import tiny
import transformers

import sinkjax
from sinkjax.errors import InputError
from tests.fuzz.format import Format

_CONFIG = {
    "vocab_size": "vocab_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "hidden_size": "embed_dim",
    "intermediate_size": "mlp_dim",
    "max_position_embeddings": "max_length",
    "rms_norm_eps": "norm_eps",
    "hidden_act": "activation",
    "attention_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
    "tie_word_embeddings": "tie_embeddings",
    "initializer_range": "initializer_range",
    "bos_token_id": "bos_token_id",
    "pad_token_id": "pad_token_id",
}
_LLAMA3 = {
    "rope_type": "type",
    "rope_theta": "theta",
    "original_max_position_embeddings": "original_max_length",
    **{name: name for name in ("factor", "low_freq_factor", "high_freq_factor")},
}
# transformers' own where a config does not say; of tokens, none.
_DEFAULTS: dict[str, Any] = dict(
    vocab_size=32000,
    num_hidden_layers=32,
    num_attention_heads=32,
    hidden_size=4096,
    intermediate_size=11008,
    max_position_embeddings=2048,
    rms_norm_eps=1e-6,
    hidden_act="silu",
    attention_bias=False,
    mlp_bias=False,
    tie_word_embeddings=False,
    initializer_range=0.02,
    bos_token_id=None,
    pad_token_id=None,
)


def config(folder: pathlib.Path) -> Format:
    model = tiny.make(num_layers=2, rope=tiny.LLAMA3, bos_token_id=1, eos_token_ids=(2, 3))
    sinkjax.save_safetensors(model, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5], "top_k": 4}))

    def read(folder: pathlib.Path) -> dict[str, Any]:
        config = dataclasses.asdict(sinkjax.load_config(folder))
        with contextlib.suppress(InputError):  # tensors of other shapes
            sinkjax.load(folder)
        return config

    def expected(folder: pathlib.Path, original: dict[str, Any]) -> dict[str, Any]:
        said = json.loads((folder / "config.json").read_bytes())
        generation = folder / "generation_config.json"
        more = json.loads(generation.read_bytes()) if generation.exists() else {}
        assert said.get("model_type", "llama") in ("llama", "mistral")
        shape = {**_DEFAULTS, **{key: said[key] for key in _CONFIG if said.get(key) is not None}}
        heads = shape["num_attention_heads"]
        if shape.get("num_key_value_heads") is None:
            shape["num_key_value_heads"] = heads
        if shape.get("head_dim") is None:
            shape["head_dim"] = shape["hidden_size"] // heads
        rope = {
            "rope_type": "default",
            "rope_theta": 10000.0,
            **{k: v for k, v in (said.get("rope_parameters") or {}).items() if v is not None},
        }
        if rope["rope_type"] == "default":  # which has no more
            rope = {name: rope[name] for name in ("rope_type", "rope_theta")}
        else:
            rope.setdefault("original_max_position_embeddings", shape["max_position_embeddings"])
        ends = [*_listed(said.get("eos_token_id")), *_listed(more.get("eos_token_id"))]
        tokens = [token for token in ends if token is not None]
        tokens = tuple(dict.fromkeys(t for t in tokens if 0 <= t < shape["vocab_size"]))
        # Whole numbers beyond float64's are read as the nearest of its.
        of_rope = {name: _number(rope.get(key)) for key, name in _LLAMA3.items()}
        return {
            **original,
            **{name: _number(shape[key]) for key, name in _CONFIG.items()},
            "rope": {**original["rope"], **of_rope},
            "eos_token_ids": tokens,
        }

    return Format(("config.json", "config.json", "generation_config.json"), read, expected)


def family_configs(folder: pathlib.Path) -> Format:
    """A folder for each kind of a relative of Llama, whose config transformers reads, too."""
    kinds = list(families.KINDS)
    for kind in kinds:
        (folder / kind).mkdir()
        (folder / kind / "config.json").write_text(json.dumps(families.attributes(kind)))

    def read(folder: pathlib.Path) -> dict[str, Any]:
        return {kind: dataclasses.asdict(sinkjax.load_config(folder / kind)) for kind in kinds}

    def expected(folder: pathlib.Path, original: dict[str, Any]) -> dict[str, Any]:
        said = {kind: json.loads((folder / kind / "config.json").read_bytes()) for kind in kinds}
        return {kind: original[kind] | by_transformers(said[kind]) for kind in kinds}

    return Format(tuple(f"{kind}/config.json" for kind in kinds), read, expected)


_OF_RELATIVES = (
    *("family", "qk_norm", "joint_qk_norm", "inner_norms", "outer_norms", "norm_offset"),
    *("local_rope", "unrotated_layers", "score_cap", "logit_cap"),
    *("query_scale", "embedding_scale", "residual_scale", "logit_scale"),
)
_FLOATS = {  # which transformers reads as no whole number
    *("rms_norm_eps", "initializer_range", "embedding_multiplier", "residual_multiplier"),
    *("attention_multiplier", "logits_scaling"),
    *("attn_logit_softcapping", "final_logit_softcapping"),
}


def by_transformers(said: dict[str, Any]) -> dict[str, Any]:
    """The fields that a family decides, of transformers' reading of a config."""
    given = {key: said[key] for key in said if said[key] is not None or key not in _DEFAULTS}
    given |= {key: _number(given[key]) for key in _FLOATS & given.keys()}
    of_kind = transformers.CONFIG_MAPPING[given.pop("model_type", "llama")]
    width = given.get("hidden_size", of_kind.hidden_size)
    if given.get("head_dim") and width:  # which transformers checks as if heads' sizes made it up
        heads = given.get("num_attention_heads", of_kind.num_attention_heads)
        given["hidden_size"] = given["head_dim"] * heads
    if of_kind.model_type == "granitemoehybrid":  # what is held against the width, and not used
        given |= {"mamba_n_heads": 1, "mamba_d_head": "auto", "mamba_expand": 2}
    spread = given.pop("initializer_range", 0.02)  # above 1, which transformers refuses, harmless
    its = of_kind(**given)
    its.hidden_size, its.initializer_range = width, spread
    its.standardize_rope_params()  # as the model does once more
    kind, layers = its.model_type, range(its.num_hidden_layers)
    own = {ours: getattr(its, theirs) for theirs, ours in _CONFIG.items() if hasattr(its, theirs)}
    if kind == "llama":  # of a relative's parts it has none
        plain = {field.name: field.default for field in dataclasses.fields(sinkjax.LlamaConfig)}
        own = {**{name: plain[name] for name in _OF_RELATIVES}, **own}
    own["head_dim"] = getattr(its, "head_dim", None) or its.hidden_size // its.num_attention_heads
    if "attention_bias" in own:
        own["output_bias"] = own["attention_bias"]
    own |= {name: said.get(name) for name in ("bos_token_id", "pad_token_id")}  # by default none
    own["eos_token_ids"] = tuple(t for t in _listed(said.get("eos_token_id")) if t is not None)
    windows = tuple(
        its.sliding_window if kind == "sliding_attention" else None
        for kind in getattr(its, "layer_types", None) or ()
    )
    if kind in ("mistral", "phi3"):
        windows = (its.sliding_window,) * len(layers)
    own["layer_windows"] = windows if any(windows) else ()
    if kind == "smollm3":
        own["unrotated_layers"] = tuple(i for i in layers if not its.no_rope_layers[i])
    if kind == "granitemoehybrid":
        own["mlp_dim"] = its.shared_intermediate_size
        own["unrotated_layers"] = () if its.position_embedding_type == "rope" else tuple(layers)
    if kind in ("granite", "granitemoehybrid"):
        own["embedding_scale"] = its.embedding_multiplier
        own["residual_scale"] = its.residual_multiplier
        own["query_scale"] = its.attention_multiplier * own["head_dim"] ** 0.5
        own["logit_scale"] = 1 / said.get("logits_scaling", 1.0)
    ropes = its.rope_parameters
    if kind in ("gemma3_text", "olmo3"):
        ropes, local = ropes["full_attention"], ropes["sliding_attention"]
        own["local_rope"] = _rope(local, its.max_position_embeddings)
    if kind == "gemma2":
        own["score_cap"] = its.attn_logit_softcapping
    if kind in ("gemma2", "gemma3_text"):
        scale = (own["head_dim"] / its.query_pre_attn_scalar) ** 0.5
        own |= {"activation": its.hidden_activation, "embedding_scale": its.hidden_size**0.5}
        own |= {"query_scale": None if scale == 1 else scale}
        own["logit_cap"] = its.final_logit_softcapping
    return {**own, "rope": _rope(ropes, its.max_position_embeddings)}


def _rope(parameters: dict[str, Any], longest: int) -> dict[str, Any]:
    names = {"rope_type": "type", "rope_theta": "theta", "partial_rotary_factor": "part"}
    if parameters["rope_type"] not in ("default", None):
        names["factor"] = "factor"
    given = {key: value for key, value in parameters.items() if value is not None}
    if parameters["rope_type"] == "longrope":
        names["attention_factor"] = "attention_factor"
        lists = [*given["short_factor"], *given["long_factor"]]
        original = given["original_max_position_embeddings"]
        given.setdefault("factor", longest / original)
        more = {"freq_factors": tuple(map(float, lists)), "original_max_length": original}
    else:
        more = {}
    said = {ours: _number(given[key]) for key, ours in names.items() if key in given}
    return {**dataclasses.asdict(sinkjax.RopeConfig()), **said, **more}


def _number(value: Any) -> Any:
    return float(value) if type(value) is int else value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
