"""Rotary scaling in GGUF files: what llama.cpp means by it, in Hugging Face's words."""

import math

import gguf
import hf
import numpy as np
import pytest
import transformers
from gguf import GGMLQuantizationType as Type
from gguf_files import SHAPE, add_llama, assert_refused, finish
from hf import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sinkjax.checkpoint.gguf import open_gguf

pytestmark = pytest.mark.quick


def rope_of(writer, model, **changes) -> dict:
    add_llama(writer, model)
    for key, value in changes.items():
        key = "llama.rope." + key.replace("__", ".")
        {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](
            key, value
        )
    return open_gguf(finish(writer)).config["rope_parameters"]


DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, DEFAULT),
        ({"scaling__type": "none", "scaling__factor": 4.0}, DEFAULT),
        ({"scaling__type": "linear"}, DEFAULT),
        ({"scaling__finetuned": 1}, DEFAULT),
        ({"scaling__attn_factor": 1.0}, DEFAULT),
        (
            {"scaling__type": "linear", "scaling__factor": 2.5},
            DEFAULT | {"rope_type": "linear", "factor": 2.5},
        ),
        # llama.cpp takes a factor without a type for a linear one.
        ({"scaling__factor": 2.5}, DEFAULT | {"rope_type": "linear", "factor": 2.5}),
        ({"scale_linear": 2.5}, DEFAULT | {"rope_type": "linear", "factor": 2.5}),
        (
            {"scale_linear": 8.0, "scaling__factor": 2.5},
            DEFAULT | {"rope_type": "linear", "factor": 2.5},
        ),
        (
            {
                "scaling__type": "yarn",
                "scaling__factor": 4.0,
                "scaling__original_context_length": 16,
                "scaling__yarn_beta_fast": 16.0,
                "scaling__yarn_beta_slow": 2.0,
                "scaling__yarn_attn_factor": 1.3,
            },
            DEFAULT
            | {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "attention_factor": 1.3,
            },
        ),
        # The original length is the context's where there is none.
        (
            {"scaling__type": "yarn", "scaling__factor": 4.0},
            DEFAULT | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
    ],
)
def test_rotary_scaling(writer, model, changes, expected):
    assert rope_of(writer, model, **changes) == expected


def test_llama_cpps_attention_factor_multiplies_the_recommended_one(writer, model):
    rope = rope_of(
        writer, model, scaling__type="yarn", scaling__factor=4.0, scaling__attn_factor=0.5
    )
    without = model.config.to_dict() | {
        "rope_parameters": {k: v for k, v in rope.items() if k != "attention_factor"}
    }
    _, recommended = ROPE_INIT_FUNCTIONS["yarn"](transformers.LlamaConfig(**without), "cpu")
    assert math.isclose(rope["attention_factor"], 0.5 * recommended)


def llama3_divisors(theta: float, head_dim: int, original_length: int, factor: float):
    """transformers' own: how much lower than the plain ones its llama3 frequencies are."""
    config = transformers.LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original_length,
        },
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    return (plain / scaled).numpy(), config.rope_parameters


@pytest.mark.parametrize(("head_dim", "factor"), [(64, 32.0), (128, 8.0)])
def test_llama3_scaling_is_recovered_from_its_divisors(writer, head_dim, factor):
    model = hf.make_llama(
        **SHAPE,
        head_dim=head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )
    divisors, parameters = llama3_divisors(500000.0, head_dim, 8192, factor)
    writer.add_tensor("rope_freqs.weight", divisors)
    assert rope_of(writer, model) == parameters


@pytest.mark.parametrize("type_", [Type.F32, Type.F16])
def test_other_divisors_are_kept_as_they_are(writer, model, type_):
    divisors, _ = llama3_divisors(10000.0, 16, 100, 8.0)
    divisors = gguf.quantize(divisors, type_)
    writer.add_tensor("rope_freqs.weight", divisors)
    assert rope_of(writer, model) == DEFAULT | {"freq_factors": divisors.tolist()}


def test_divisors_of_one_are_no_scaling(writer, model):
    writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32))
    linear = {"scaling__type": "linear", "scaling__factor": 2.0}
    assert rope_of(writer, model, **linear)["rope_type"] == "linear"


@pytest.mark.parametrize(
    "divisors", [np.ones(4), np.ones((2, 4)), np.full(8, np.nan), np.r_[np.ones(7), 0]]
)
def test_impossible_divisors_are_refused(writer, model, divisors):
    add_llama(writer, model)
    writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
    assert_refused(finish(writer), "rope_freqs.weight", "8 positive finite numbers")


def test_two_rotary_scalings_are_refused(writer, model):
    add_llama(writer, model)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(2.0)
    writer.add_tensor("rope_freqs.weight", np.full(8, 2, np.float32))
    assert_refused(finish(writer), "rope_freqs.weight", "'linear'")
