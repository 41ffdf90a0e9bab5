"""Configs against transformers' LlamaConfig: what it knows is kept, what is unknown is refused."""

import dataclasses
import math

import hf
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

import sinkjax
from sinkjax.checkpoint.names import name_table
from sinkjax.errors import InputError
from sinkjax.models.config import LlamaConfig, RopeConfig
from sinkjax.models.hf_config import from_hf_config, to_hf_config
from sinkjax.programs.compile import longest_context

pytestmark = pytest.mark.quick

modeling_llama = hf.oracle("transformers.models.llama.modeling_llama")

LLAMA_3_2_1B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}


def problems(attributes: dict) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        from_hf_config(attributes, "the/model")
    assert all(str(problem).startswith("the/model: ") for problem in caught.value.problems)
    return tuple(map(str, caught.value.problems))


# Published configs.


@pytest.mark.parametrize(
    ("attributes", "count"),
    [(LLAMA_3_2_1B, 1_235_814_400), (LLAMA_2_7B, 6_738_415_616), (SMOLLM2_135M, 134_515_008)],
    ids=["llama-3.2-1b", "llama-2-7b", "smollm2-135m"],
)
def test_published_models_have_their_published_number_of_parameters(attributes, count):
    config = from_hf_config(attributes)
    assert sum(math.prod(entry.shape) for entry in name_table(config)) == count


def test_a_published_config_is_read_whole():
    assert from_hf_config(LLAMA_3_2_1B) == LlamaConfig(
        vocab_size=128256,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        embed_dim=2048,
        mlp_dim=8192,
        max_length=131072,
        norm_eps=1e-5,
        rope=RopeConfig(
            type="llama3",
            theta=5e5,
            factor=32.0,
            original_max_length=8192,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
        ),
        tie_embeddings=True,
        bos_token_id=128000,
        eos_token_ids=(128001,),
    )
    several = from_hf_config(LLAMA_3_2_1B | {"eos_token_id": [128001, 128008]})
    assert several.eos_token_ids == (128001, 128008)


# The closed world.

# Attributes of transformers' LlamaConfig at other values than the default. What of ours each of
# them changes; None where it changes no logit.
CHANGES = {
    "vocab_size": (11, "vocab_size"),
    "hidden_size": (64, "embed_dim"),
    "intermediate_size": (12, "mlp_dim"),
    "num_hidden_layers": (3, "num_layers"),
    "num_attention_heads": (64, "num_heads"),
    "num_key_value_heads": (8, "num_kv_heads"),
    "hidden_act": ("gelu", "activation"),
    "max_position_embeddings": (99, "max_length"),
    "initializer_range": (0.5, "initializer_range"),
    "rms_norm_eps": (1e-3, "norm_eps"),
    "tie_word_embeddings": (True, "tie_embeddings"),
    "rope_parameters": ({"rope_type": "default", "rope_theta": 7.0}, "rope"),
    "attention_bias": (True, "attention_bias"),
    "mlp_bias": (True, "mlp_bias"),
    "head_dim": (6, "head_dim"),
    "bos_token_id": (5, "bos_token_id"),
    "eos_token_id": (6, "eos_token_ids"),
    "pad_token_id": (7, "pad_token_id"),
    "attention_dropout": (0.5, None),
    "pretraining_tp": (2, None),
    "use_cache": (False, None),
    "output_attentions": (True, None),
    "output_hidden_states": (True, None),
    "return_dict": (False, None),
    "dtype": ("bfloat16", None),
    "architectures": (["LlamaForCausalLM"], None),
    "chunk_size_feed_forward": (4, None),
    "id2label": ({"0": "a"}, None),
    "label2id": ({"a": 0}, None),
    "problem_type": ("regression", None),
    "transformers_version": ("5.0", None),
    "_name_or_path": ("x", None),
}
REFUSED = {"is_encoder_decoder": True, "model_type": "gpt2"}


def test_every_attribute_of_transformers_config_is_accounted_for():
    assert set(transformers.LlamaConfig().to_dict()) == CHANGES.keys() | REFUSED.keys()


def test_transformers_defaults_are_ours():
    theirs = transformers.LlamaConfig().to_dict()
    read = from_hf_config(theirs)
    tokens = {"bos_token_id": 1, "eos_token_ids": (2,)}
    assert read == dataclasses.replace(from_hf_config({}), **tokens)


@pytest.mark.parametrize("name", CHANGES)
def test_every_attribute_changes_what_it_should(name):
    value, ours = CHANGES[name]
    before = from_hf_config({"num_attention_heads": 16, "head_dim": 2})
    after = from_hf_config({"num_attention_heads": 16, "head_dim": 2, name: value})
    changed = {
        field.name
        for field in dataclasses.fields(LlamaConfig)
        if getattr(before, field.name) != getattr(after, field.name)
    }
    others = {"num_heads": {"num_kv_heads"}, "attention_bias": {"output_bias"}}
    consequences = others.get(ours, set())
    assert changed == ({ours} | consequences if ours else set())


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_llama_is_refused(name):
    assert name in problems({name: REFUSED[name]})[0]


def test_everything_unknown_is_listed_at_once():
    listed = problems(
        SMOLLM2_135M
        | {
            "rope_interleaved": True,
            "sliding_window": 4096,
            "quantization_config": {"bits": 4},
            "no_rope_layers": [0, 1],
            "hidden_act": "swiglu",
            "num_key_value_heads": 4,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0, "colour": "red"},
        }
    )
    assert len(listed) == 7
    for mention in (
        "rope_interleaved = True",
        "sliding_window = 4096",
        "quantization_config = {'bits': 4}",
        "no_rope_layers = [0, 1]",
        "hidden_act is 'swiglu'; known are silu",
        "num_key_value_heads is 4; it has to divide num_attention_heads, 9",
        "rope_scaling: colour is 'red'; the key is unknown",
    ):
        assert any(mention in problem for problem in listed), mention


@pytest.mark.parametrize("value", [None, False, {}, []])
def test_what_is_switched_off_is_no_problem(value):
    assert from_hf_config(SMOLLM2_135M | {"sliding_window": value}) == from_hf_config(SMOLLM2_135M)


@pytest.mark.parametrize(
    "attributes",
    [
        {"max_sequence_length": 2048, "max_seq_length": 1, "seq_length": 4096, "n_ctx": 9},
        {"model_max_length": 10**30},
        {"activation": "silu"},
        {"activation": "swiglu"},  # Falcon 3
        {"hidden_act": "gelu", "activation_function": "gelu"},
        {"_flash_attn_2_enabled": True, "_attn_implementation_autoset": True},
        {"use_flash_attn": True, "use_flash_attention_2": True, "flash_attention": True},
        {"gradient_checkpointing": True, "unsloth_version": "2024.9", "unsloth_fixed": True},
        {"hidden_dropout": 0, "resid_pdrop": 0.0, "embd_pdrop": 0.1, "attn_dropout_prob": 0.0},
        {"dropout": 0.0, "classifier_dropout": None},
        {"classifier_dropout": 0.1, "layerdrop": 0.0},
        {"language": ["en"], "license": "mit", "tags": ["a"], "datasets": ["b"]},
        {"attention_bias": True, "bias": True},
        {"bias": False, "sliding_window": None},
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale_all_dim": 0}},
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 0.0, "mscale_all_dim": 0.0}},
        {"is_causal": True, "sliding_window_size": None},
        {"n_layers": 30, "n_heads": 9, "d_model": 576, "layer_norm_eps": 1e-5},
        {"sliding_window": 8192, "use_sliding_window": True, "max_window_layers": 28},
        {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28},
        {"layer_types": ["full_attention"] * 30},
        {"norm_type": "rmsnorm", "position_embedding_type": "rope", "rotary_pct": 1},
        {"full_attn_mod": 1, "interpolate_factor": 1},  # Phi-4-mini
        {"internal_version": "7b-alpha-v2.33.0.30", "transformers_version": "5.0"},  # ALLaM
    ],
    ids=str,
)
def test_what_published_configs_have_beside_is_harmless(attributes):
    bare = {"hidden_act", "attention_bias", "rope_scaling"} & attributes.keys()
    bare = {key: attributes[key] for key in bare}
    if "rope_scaling" in bare:
        bare = {"rope_scaling": {"type": "yarn", "factor": 4.0}}
    assert from_hf_config(SMOLLM2_135M | attributes) == from_hf_config(SMOLLM2_135M | bare)


@pytest.mark.parametrize(
    ("attributes", "mention"),
    [
        ({"activation": "gelu"}, "activation = 'gelu'"),
        ({"bias": True}, "bias = True"),
        ({"n_layers": 31}, "n_layers = 31"),
        ({"hidden_dropout": "yes"}, "hidden_dropout = 'yes'"),
        ({"resid_pdrop": 7}, "resid_pdrop = 7"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types = "),
        ({"sliding_window": 8191}, "below max_position_embeddings; choose"),
        ({"sliding_window": "8192"}, "sliding_window = '8192'"),
        ({"quantization_config": {"bits": 4}}, "choose the checkpoint that it was made from"),
        ({"quantization": {"bits": 4}}, "choose the checkpoint that it was made from"),  # MLX
        ({"compression_config": {"format": "x"}}, "choose the checkpoint that it was made from"),
        ({"new\x1b[31m": 1}, r"'new\x1b[31m' = 1"),
        ({"rotary_pct": 0.25}, "rotary_pct = 0.25"),
        ({"full_attn_mod": 2}, "full_attn_mod = 2"),
        ({"rope_version": 2}, "rope_version = 2"),
        ({"is_causal": False}, "is_causal = False"),
        ({"is_causal": 1}, "is_causal = 1"),
        ({"sliding_window_size": 4096}, "sliding_window_size = 4096"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "attn_factor": 0.878}},
            "attn_factor is 0.878; transformers does not read it",
        ),
        ({"dual_chunk_attention_config": {"chunk_size": 9}}, "texts are computed as without it"),
        ({"colour": 1}, "delete it from the config.json of a copy"),
    ],
)
def test_what_computes_something_else_is_refused_with_a_way_on(attributes, mention):
    (problem,) = problems(SMOLLM2_135M | attributes)
    assert mention in problem


def test_a_long_value_is_cut_in_messages():
    (problem,) = problems(SMOLLM2_135M | {"colour": ["x" * 10_000] * 1000})
    assert len(problem) < 500


@pytest.mark.parametrize("window", [None, 64])
def test_a_mistral_without_a_window_is_a_llama(window, tmp_path):
    hf.torch.manual_seed(0)
    theirs = transformers.MistralForCausalLM(
        transformers.MistralConfig(**hf.TINY, sliding_window=window, attn_implementation="eager")
    ).eval()
    theirs.save_pretrained(tmp_path)
    tokens = hf.random_tokens((2, 20))
    ours = sinkjax.load(tmp_path)(jnp.asarray(tokens))
    np.testing.assert_allclose(ours, hf.logits(theirs.double(), tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers is 1000000000; a whole number"]),
        ({"num_attention_heads": 2**31 - 1, "head_dim": 64}, ["num_attention_heads is 2147483647"]),
        ({"vocab_size": 2**31}, ["at most 2,147,483,647 is needed"]),
        ({"rms_norm_eps": 10**400}, ["rms_norm_eps is 1000"]),
        ({"rope_theta": 10**400}, ["rope_theta is 1000"]),
        ({"rope_theta": 0}, ["rope_theta is 0; a positive number"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers is 0; a whole number of at least 1"]),
        ({"vocab_size": 3.5, "hidden_size": True}, ["vocab_size is 3.5", "hidden_size is True"]),
        ({"rms_norm_eps": "1e-5"}, ["rms_norm_eps is '1e-5'; a positive number"]),
        ({"rms_norm_eps": math.nan}, ["rms_norm_eps is nan"]),
        ({"attention_bias": "no", "mlp_bias": 1}, ["attention_bias is 'no'", "mlp_bias is 1"]),
        ({"hidden_act": ["silu"]}, ["hidden_act is ['silu']; a name", "hidden_act is"]),
        ({"hidden_size": 577}, ["hidden_size is 577, which num_attention_heads, 9, does not"]),
        ({"head_dim": 63}, ["head_dim is 63; rotary embeddings need an even number"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor is 0.5"]),
        ({"rope_scaling": "yarn"}, ["rope_scaling is 'yarn'; a JSON object"]),
        ({"rope_scaling": {"rope_type": "proportional"}}, ["rope_type is 'proportional'; known"]),
        ({"rope_parameters": "", "rope_scaling": None}, ["rope_parameters is ''; a JSON object"]),
        ({"pad_token_id": "", "bos_token_id": False}, ["pad_token_id is ''; give the id", "bos"]),
        ({"rope_scaling": {"type": "linear"}}, ["rope_type linear needs factor"]),
        (
            {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": []}},
            ["original_max_position_embeddings is []; a whole number from 1"],
        ),
        (
            {"rope_scaling": {"type": "llama3", "factor": -2, "low_freq_factor": "1"}},
            ["needs high_freq_factor", "factor is -2; a positive", "low_freq_factor is '1'"],
        ),
        (
            {
                "rope_scaling": {
                    "type": "llama3",
                    "factor": 2,
                    "low_freq_factor": 4,
                    "high_freq_factor": 4,
                }
            },
            ["low_freq_factor is 4; below high_freq_factor, 4"],
        ),
        ({"rope_theta": "big"}, ["rope_theta is 'big'"]),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2, "truncate": 1}},
            ["truncate is 1; true or false"],
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
            ["rope_parameters differs by layer type"],
        ),
        (
            {"rope_parameters": {"freq_factors": [1.0, 0.0]}},
            ["freq_factors is [1.0, 0.0]; a list of positive numbers"],
        ),
        ({"rope_parameters": {"freq_factors": [1.0, 2.0]}}, ["2 values; head_dim 64 needs 32"]),
        (
            {"rope_scaling": {"type": "su", "short_factor": [1.0] * 3, "long_factor": [2.0] * 3}},
            ["short_factor and long_factor have 3 values; head_dim 64 needs 32"],
        ),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": []}},
            ["long_factor has 0 values, short_factor 1; as many are needed"],
        ),
        ({"rope_scaling": {"type": "longrope"}}, ["needs long_factor", "needs short_factor"]),
    ],
)
def test_impossible_values_are_named(changes, mentions):
    listed = problems(SMOLLM2_135M | changes)
    assert len(listed) == len(mentions)
    for mention in mentions:
        assert any(mention in problem for problem in listed), mention


def test_a_yarn_added_by_hand_lengthens_the_context():
    """As Qwen2.5's model card has it, whose config says 32,768 tokens then as before."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    config = from_hf_config(SMOLLM2_135M | {"rope_scaling": yarn, "max_position_embeddings": 2048})
    assert (config.max_length, config.context, longest_context(config)) == (2048, 8192, 8192)
    assert from_hf_config(to_hf_config(config)) == config
    assert from_hf_config(SMOLLM2_135M | {"rope_scaling": {**yarn, "factor": 1e300}}).context
    for rope in ({"type": "linear", "factor": 4.0}, None):  # of which max_position_embeddings tells
        config = from_hf_config(SMOLLM2_135M | {"rope_scaling": rope})
        assert config.context == config.max_length
