"""Every family against transformers, and its paths against the dense oracle."""

import collections
import dataclasses
import itertools
import json
import math
import pathlib

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import transformers
from families import KINDS, attributes
from masks import problems_of

import sinkjax
from sinkjax.accounts.compiled import account
from sinkjax.accounts.formulas import Sizes, predict
from sinkjax.checkpoint.names import name_table
from sinkjax.masks.mask import SinkMask
from sinkjax.models.config import LlamaConfig
from sinkjax.models.families import FAMILIES
from sinkjax.models.hf_config import from_hf_config, to_hf_config
from sinkjax.programs.scan import LayerRun, scanned
from sinkjax.testing.oracle import reference_logits

PUBLISHED = json.loads(pathlib.Path(__file__).with_name("published.json").read_text())
"""Configs as the Hub has them, each with its model's number of parameters, tied ones once.

Phi-3.5's factors are made up.
"""

TOLERANCE = 1e-4
LENGTH = 100  # beyond the 64 positions that the tiny models are made for

MIXED = SinkMask.from_text(
    "L0: 2f w(2,5) s(first) w(1,4) w(2,5) | "
    "L1: c(0,0) s(mean) w(3,70) c(0,2) s(zero) w(1,4) | "
    "L2: 2s(first) s(mean) c(1,2) c(0,1) c(0,4)"
)


# Kinds that differ in parts that nothing of ours tells apart are held to transformers alone.
ALIKE = (
    *("llama", "mistral", "mistral_one_kv_head", "qwen2_tied", "qwen3_bias"),
    *(
        "granite_tied",
        "granite_all_kv_heads",
        "granite4_all_kv_heads",
        "gemma2_uncapped",
        "gemma2_all_kv_heads",
    ),
    *("gemma3_all_kv_heads", "olmo2_tied", "olmo2_one_kv_head"),
    *("olmo3_one_kv_head", "olmo3_all_kv_heads"),
    *("phi3", "phi3_windows", "phi3_longrope"),
)
OWN = [kind for kind in KINDS if kind not in ALIKE]


def test_every_family_has_models_of_every_shape():
    """With the Llamas that `test_decoder_parity.py` and `test_decoder_cache.py` hold as well."""
    llamas = [{**hf.TINY, **kind} for kind in hf.KINDS.values()]
    met = collections.defaultdict(set)
    for config in map(from_hf_config, [*map(attributes, KINDS), *llamas]):
        met[config.family] |= {
            f"{config.num_kv_heads} key/value heads",
            "tied" if config.tie_embeddings else "untied",
            "heads of a power of 2" if config.head_dim.bit_count() == 1 else "heads of others",
            "windows" if config.layer_windows else "no windows",
        }
    always = {"1 key/value heads", "2 key/value heads", "6 key/value heads", "tied", "untied"}
    for name, family in FAMILIES.items():
        windows = {"windows"} if "sliding_window" in family.own else set()
        assert met[name] >= always | windows | {"heads of others"}, name


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_decoding_equal_transformers(kind, tmp_path):
    oracle = hf.save_llama(tmp_path, **KINDS[kind])
    model = sinkjax.load(tmp_path)
    tokens = jnp.asarray(hf.random_tokens((2, LENGTH)))
    wanted = hf.logits(oracle, tokens)
    np.testing.assert_allclose(tiny.call(model, tokens), wanted, rtol=0, atol=TOLERANCE)
    prompts = np.array([LENGTH - 20, 10])  # beyond every window, and with all their edges to come
    decoded = tiny.decoded(model, tokens, prompts, LENGTH, steps=20)
    for row, logits, prompt in zip(np.asarray(tokens), decoded, prompts, strict=True):
        wanted = hf.cached_logits(oracle, row[None, : prompt + 20], prompt)
        np.testing.assert_allclose(logits[None], wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_to_safetensors_transformers_gives_the_same_logits(kind, tmp_path):
    oracle = hf.save_llama(tmp_path / "theirs", **KINDS[kind])
    model = sinkjax.load(tmp_path / "theirs")
    sinkjax.save_safetensors(model, tmp_path / "ours")
    back = hf.load_llama(tmp_path / "ours")
    assert type(back) is type(oracle)
    tokens = hf.random_tokens((2, 40))
    # Multipliers are divided and multiplied again on the way.
    np.testing.assert_allclose(hf.logits(back, tokens), hf.logits(oracle, tokens), atol=1e-6)


def tiny_model(kind: str, **changes) -> sinkjax.Llama:
    """Random weights of our own: no PyTorch."""
    return tiny.make(**vars(from_hf_config(attributes(kind, **changes))))


@pytest.mark.parametrize("kind", OWN)
def test_every_path_mixed_equals_the_oracle(kind):
    # Of narrower layers: float32 itself is worth 1e-5 in the logits of those of `hf.TINY`.
    model = tiny_model(kind, num_hidden_layers=3, hidden_size=36, intermediate_size=40)
    tokens, fills, prompts = tiny.tokens_of(model, (2, 90)), tiny.make_fills(model), [50, 80]
    fast = sinkjax.specialize(model, MIXED, fills=fills)
    oracle = tiny.quick_jit(lambda m, x: reference_logits(m, MIXED, x, fills=fills))
    wanted = oracle(model, tokens)
    np.testing.assert_allclose(tiny.call(fast, tokens), wanted, rtol=0, atol=1e-5)
    decoded = tiny.decoded(fast, tokens, np.array(prompts), 90, steps=5)
    np.testing.assert_allclose(decoded, tiny.after(wanted, prompts, 5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", OWN)
def test_layers_as_loops_and_two_devices_change_nothing(kind):
    model = tiny_model(kind, vocab_size=62, hidden_size=36, intermediate_size=40)
    tokens = tiny.tokens_of(model, (2, 41))
    wanted = tiny.call(model, tokens)
    looped = scanned(model)
    runs = [isinstance(layer, LayerRun) for layer in looped.layers]
    config = model.config
    layers = [(config.window(n), config.rope_index(n)) for n in range(config.num_layers)]
    alike = [len(list(run)) for _, run in itertools.groupby(layers)]
    assert runs == [count > 1 for count in alike]
    np.testing.assert_allclose(tiny.call(looped, tokens), wanted, rtol=0, atol=1e-5)
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    laid = sinkjax.models.sharding.shard(model, mesh)
    np.testing.assert_allclose(tiny.call(laid, tokens), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", OWN)
def test_compiled_costs_are_those_of_formulas(kind):
    model = tiny_model(kind, num_hidden_layers=3)
    mask = SinkMask.from_text("L0: 6f | L1: 3w(2,5) 3s(first) | L2: 6s(zero)")
    fast = sinkjax.specialize(model, mask)
    program = sinkjax.compile(fast, batch_size=2, prefill_lengths=(16,), max_length=32)
    for executable, length in ((program.prefill[16], 16), (program.decode, None)):
        counted = account(program, executable).rows
        assert counted == predict(model.config, mask, Sizes(2, length, 32, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_configs_are_read_as_they_are_written(kind):
    config = tiny_model(kind).config
    assert from_hf_config(to_hf_config(config)) == config
    assert type(config).from_dict(config.to_dict()) == config


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_config_does_not_say_is_as_in_transformers(family):
    # By default it has experts, and no layer attends.
    dense = {"num_local_experts": 0, "layer_types": ["attention"] * 32}
    said = {"model_type": family, **(dense if family == "granitemoehybrid" else {})}
    assert but_for_tokens(said) == but_for_tokens(by_transformers(**said))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_as_transformers_reads_them(name):
    parameters, config = PUBLISHED[name]
    read = but_for_tokens(config)
    assert read == but_for_tokens(by_transformers(**config))
    assert sum(math.prod(entry.shape) for entry in name_table(read)) == parameters


def test_a_mistral_that_lists_kinds_of_layers_is_transformers_ministral(tmp_path):
    """As Ministral 8B is published: a Mistral by name, and windows in a part of the layers."""
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    oracle = hf.make_llama(family="ministral", head_dim=8, sliding_window=24, layer_types=kinds)
    oracle.save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "mistral"}))
    model, tokens = sinkjax.load(path.parent), hf.random_tokens((2, LENGTH))
    assert model.config.layer_windows == (None, 24, 24)
    wanted = hf.logits(oracle, tokens)
    np.testing.assert_allclose(tiny.call(model, tokens), wanted, rtol=0, atol=TOLERANCE)
    sinkjax.save_safetensors(model, tmp_path / "ours")
    back = hf.load_llama(tmp_path / "ours")
    assert type(back) is type(oracle)
    np.testing.assert_allclose(hf.logits(back, tokens), wanted, rtol=0, atol=1e-6)


def by_transformers(model_type: str, **config) -> dict:
    """All that transformers makes of a config."""
    return transformers.AutoConfig.for_model(model_type, **config).to_dict()


def but_for_tokens(config: dict) -> LlamaConfig:
    """A config as it is read, but for special tokens, of which transformers has defaults."""
    none = {"bos_token_id": None, "eos_token_ids": (), "pad_token_id": None}
    return dataclasses.replace(from_hf_config(config), **none)


PARTLY_LOCAL = {"sliding_attention": {"rope_type": "default", "partial_rotary_factor": 0.5}}


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("mistral", dict(sliding_window=0), "sliding_window is 0"),
        ("mistral", dict(sliding_window="4096"), "sliding_window is '4096'"),
        ("mistral", dict(sliding_window=2**31), "sliding_window is 2147483648; a whole number fr"),
        ("mistral", dict(layer_types=["sliding_attention"] * 2), "layer_types is"),
        ("mistral", dict(layer_types=["sliding_attention"] * 3), "sliding_window is None; a whole"),
        ("granite", dict(logits_scaling=10**400), "logits_scaling is 1000.*; a positive number"),
        ("qwen2", dict(use_sliding_window=1), "use_sliding_window is 1; true or false"),
        ("qwen2", dict(use_sliding_window=True, max_window_layers=0, sliding_window=0), "w is 0"),
        ("qwen2", dict(use_sliding_window=True, max_window_layers=None), "max_window_layers is No"),
        ("qwen3_windows", dict(layer_types=["sliding_attention"] * 2), "layer_types is"),
        ("qwen3_windows", dict(layer_types=["chunked_attention"] * 3), "layer_types is"),
        ("gemma3", dict(layer_types=[{}, [], "full_attention"]), "layer_types is"),
        ("smollm3_windows", dict(use_sliding_window="no"), "use_sliding_window is 'no'; true or"),
        ("smollm3", dict(no_rope_layers=[1, 0, True, 1]), "no_rope_layers is"),
        ("gemma3_linear", dict(rope_parameters={"full_attention": ""}), "rope_parameters is ''"),
        ("gemma3", dict(rope_parameters={"sliding_attention": False}), "rope_parameters is False"),
        # In no version does transformers read such: for layers of both kinds it has defaults.
        ("gemma3", dict(rope_parameters={"rope_type": "default"}), "has such under full_attention"),
        ("qwen3", dict(layer_types=["sliding_attention"] * 3), "though use_sliding_window is fal"),
        ("gemma2", dict(attn_logit_softcapping=0), "attn_logit_softcapping is 0; a positive num"),
        ("gemma2", dict(hidden_activation="swoosh"), "hidden_activation is 'swoosh'; known are"),
        ("gemma2", dict(use_bidirectional_attention=True), "use_bidirectional_attention is True"),
        ("gemma3", dict(attn_logit_softcapping=30.0), "attn_logit_softcapping is 30.0; null"),
        ("gemma2", dict(sliding_window_size=4096), "unknown attribute sliding_window_size"),
        ("granite4", dict(layer_types=["attention", "mamba", "attention"]), "choose a Granite 4 w"),
        ("granite4", dict(layer_types=None), "layer_types is None; attention is needed"),
        (
            "granite4",
            dict(num_local_experts=8),
            "num_local_experts is 8; 0 is needed: choose a den",
        ),
        ("granite4", dict(position_embedding_type="alibi"), "position_embedding_type is 'alibi'"),
        ("granite4", dict(shared_intermediate_size=0), "shared_intermediate_size is 0; a whole"),
        ("granite4", dict(logits_scaling=0), "logits_scaling is 0; a positive number"),
        ("olmo3", dict(sliding_window=None), "sliding_window is None; a whole number"),
        ("phi3", dict(sliding_window=0), "sliding_window is 0"),
        ("llama", dict(partial_rotary_factor=0.8), "is 0.8; a llama rotates whole heads"),
        ("phi3", dict(partial_rotary_factor=0.75), r"0.75, which of head_dim 10 is 7; rotary"),
        ("phi3", dict(partial_rotary_factor=0.05), r"0.05, which of head_dim 10 is 0; rotary"),
        ("phi3", dict(partial_rotary_factor=1.5), "is 1.5; a number above 0 and at most 1"),
        ("phi3", dict(partial_rotary_factor="0.5"), "is '0.5'; a number above 0 and at most 1"),
        (
            "phi3_longrope",
            dict(partial_rotary_factor=0.5),
            "8 times partial_rotary_factor 0.5 needs 2",
        ),
        ("gemma3", dict(rope_parameters=PARTLY_LOCAL), "is 0.5; a gemma3_text rotates whole"),
        ("gemma3", dict(query_pre_attn_scalar=-1), "query_pre_attn_scalar is -1"),
        ("gemma3", dict(rope_local_base_freq=0), "rope_local_base_freq is 0; a positive number"),
        ("gemma3", dict(rope_local_base_freq=False), "rope_local_base_freq is False; a positive"),
        ("gemma3", dict(layer_types=None, sliding_window_pattern=0.5), "sliding_window_pattern is"),
        ("granite", dict(logits_scaling=0), "logits_scaling is 0; a positive number"),
        ("granite", dict(attention_multiplier="1"), "attention_multiplier is '1'"),
        ("smollm3", dict(no_rope_layers=[1, 2, 0, 1]), r"no_rope_layers is \[1, 2"),
        ("smollm3", dict(no_rope_layer_interval=0), "no_rope_layer_interval is 0"),
        ("llama", dict(sliding_window=9, max_position_embeddings="64"), "unknown attribute slidin"),
        ("gemma2", dict(num_key_value_heads=None), "num_key_value_heads is null; a whole number"),
        ("qwen3", dict(head_dim=None), "head_dim is null; a whole number"),
        ("phi3_longrope", dict(max_position_embeddings=[[]]), "max_position_embeddings is"),
        ("llama", dict(no_rope_layers=[1, 1, 0]), "unknown attribute no_rope_layers"),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused(kind, changes, message):
    with pytest.raises(sinkjax.InputError, match=message):
        from_hf_config(attributes(kind, **changes))


def test_what_a_family_alone_has_is_listed_with_all_else():
    said = attributes("gemma2", sliding_window=0, final_logit_softcapping=0, vocab_size=0, colour=1)
    vocabulary, cap, window, colour = problems_of(from_hf_config, said, "folder")
    assert vocabulary.startswith("folder: vocab_size is 0; a whole number")
    assert cap.startswith("folder: final_logit_softcapping is 0; a positive number")
    assert window.startswith("folder: sliding_window is 0; a whole number")
    assert colour.startswith("folder: unknown attribute colour")


def test_without_a_model_type_the_class_names_the_family():
    said = {**attributes("smollm3"), "architectures": ["SmolLM3ForCausalLM"]}
    assert from_hf_config({k: said[k] for k in said if k != "model_type"}) == from_hf_config(said)


def test_a_window_that_is_said_twice_is_read_once():
    said = attributes("gemma2")
    again = {**said, "sliding_window_size": said["sliding_window"]}  # as Gemma 2 9B has it
    assert from_hf_config(again) == from_hf_config(said)


def test_an_unknown_family_is_refused_with_those_that_are_known():
    (problem,) = problems_of(from_hf_config, {"model_type": "gpt2"}, "folder")
    assert problem.startswith(
        "folder: model_type is 'gpt2'; models of gemma2, gemma3_text, granite"
    )
