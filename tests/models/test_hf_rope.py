"""Rotary embeddings of configs: every type, in both forms, as transformers computes them."""

import json
import math

import hf
import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from hf import torch

from sinkjax.errors import InputError
from sinkjax.models.config import ROPE_TYPES, LlamaConfig, RopeConfig
from sinkjax.models.hf_config import from_hf_config, to_hf_config
from sinkjax.models.rope import attention_factor, inverse_frequencies, rotary_tables

pytestmark = pytest.mark.quick

modeling_llama = hf.oracle("transformers.models.llama.modeling_llama")

factors = st.floats(1, 50) | st.integers(1, 50)
PARAMETERS = {
    "default": st.fixed_dictionaries({}),
    "linear": st.fixed_dictionaries({"factor": factors}),
    "dynamic": st.fixed_dictionaries({"factor": factors}),
    "yarn": st.fixed_dictionaries(
        {"factor": factors},
        optional={
            "original_max_position_embeddings": st.integers(1, 4096),
            "attention_factor": st.floats(0.1, 3),
            "beta_fast": st.floats(2, 64),
            "beta_slow": st.floats(0.25, 2),
            "mscale": st.floats(0.1, 3),
            "mscale_all_dim": st.floats(0.1, 3),
            "truncate": st.booleans(),
        },
    ),
    "llama3": st.fixed_dictionaries(
        {
            "factor": factors,
            "low_freq_factor": st.floats(0.5, 2),
            "high_freq_factor": st.floats(2.5, 8),
        },
        optional={"original_max_position_embeddings": st.integers(1, 16384)},
    ),
    "longrope": st.fixed_dictionaries(
        {
            "short_factor": st.lists(st.floats(0.5, 4), min_size=8, max_size=8),
            "long_factor": st.lists(st.floats(1, 64), min_size=8, max_size=8),
        },
        optional={
            "factor": factors,
            "original_max_position_embeddings": st.integers(2, 4096),
            "attention_factor": st.floats(0.1, 3),
        },
    ),
}
thetas = st.floats(100, 1e6) | st.integers(100, 1_000_000)
kinds = st.sampled_from(ROPE_TYPES).flatmap(
    lambda kind: PARAMETERS[kind].map(lambda parameters: {"rope_type": kind, **parameters})
)
SHAPE = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 64}


@hypothesis.given(theta=thetas, rope=kinds, old_name=st.booleans())
@hypothesis.settings(deadline=None)
def test_the_old_and_the_new_form_say_the_same(theta, rope, old_name):
    new = from_hf_config(SHAPE | {"rope_parameters": {"rope_theta": theta, **rope}})
    if old_name:
        rope = {"type" if key == "rope_type" else key: value for key, value in rope.items()}
    assert from_hf_config(SHAPE | {"rope_theta": theta, "rope_scaling": rope}) == new
    both = {"rope_parameters": {"rope_type": "default"}, "rope_scaling": rope}
    assert from_hf_config(SHAPE | {"rope_theta": theta} | both) == new


def blend_rounding(rope, head_dim):
    """What two units in the last place of theta's powers make of llama3's frequencies.

    Its blend divides turns by high - low, and takes the larger of its two frequencies that often:
    two right computations differ by more than an ulp where it is nearly the smaller one.
    """
    if rope.type != "llama3":
        return 0.0
    frequencies = rope.theta ** (-np.arange(0, head_dim, 2) / head_dim)
    turns = rope.original_max_length * frequencies / (2 * math.pi)
    blended = (rope.low_freq_factor <= turns) & (turns <= rope.high_freq_factor)
    slope = turns / (rope.high_freq_factor - rope.low_freq_factor) * (1 - 1 / rope.factor)
    return 2 * np.finfo(np.float32).eps * np.where(blended, slope * frequencies, 0)


@hypothesis.given(theta=thetas, rope=kinds, head_dim=st.sampled_from([None, 8, 64, 128]))
@hypothesis.example(  # a blend, 0.3% of it of the larger frequency
    theta=155,
    rope={
        "rope_type": "llama3",
        "factor": 12.0,
        "low_freq_factor": 1.375,
        "high_freq_factor": 3.0,
        "original_max_position_embeddings": 148,
    },
    head_dim=64,
)
@hypothesis.settings(deadline=None, max_examples=200, derandomize=True)
def test_frequencies_are_those_of_transformers(theta, rope, head_dim):
    for key in rope.keys() & {"short_factor", "long_factor"}:
        rope = {**rope, key: np.resize(rope[key], (head_dim or 16) // 2).tolist()}
    attributes = SHAPE | {"head_dim": head_dim, "rope_parameters": {"rope_theta": theta, **rope}}
    ours = from_hf_config(attributes)
    theirs = modeling_llama.LlamaRotaryEmbedding(transformers.LlamaConfig(**attributes))
    frequencies, wanted = inverse_frequencies(ours.rope, ours.head_dim), theirs.inv_freq.numpy()
    tolerance = 1e-6 * wanted + blend_rounding(ours.rope, ours.head_dim)
    assert (abs(frequencies - wanted) <= tolerance).all(), (frequencies, wanted)
    assert math.isclose(attention_factor(ours.rope), theirs.attention_scaling, rel_tol=1e-6)


@pytest.mark.parametrize("length", [7, 64, 65, 200])
@pytest.mark.parametrize(
    "rope",
    [
        {
            "rope_type": "longrope",
            "short_factor": [1.0, 1.5] * 4,
            "long_factor": [1.0, 7.0] * 4,
            "original_max_position_embeddings": 64,
            "factor": 4.0,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_tables_are_those_of_transformers_beyond_the_models_length_too(rope, length):
    attributes = SHAPE | {"rope_parameters": {"rope_theta": 1e4, **rope}}
    theirs = modeling_llama.LlamaRotaryEmbedding(transformers.LlamaConfig(**attributes))
    positions = np.arange(length, dtype=np.int32)[None]
    expected = theirs(torch.zeros(1), torch.as_tensor(positions, dtype=torch.long))
    config = from_hf_config(attributes)
    (tables,) = rotary_tables(config, jnp.asarray(positions), jnp.asarray([length], jnp.int32))
    for table, wanted in zip(tables, expected, strict=True):
        assert table.dtype == jnp.float32
        np.testing.assert_allclose(table, wanted[..., : config.head_dim // 2], atol=2e-5, rtol=0)


# There and back.


@hypothesis.given(theta=thetas, rope=kinds, eos=st.sampled_from([None, 2, [2, 5]]))
@hypothesis.settings(deadline=None)
def test_written_for_transformers_and_read_again_it_is_the_same(theta, rope, eos):
    attributes = SHAPE | {"rope_parameters": {"rope_theta": theta, **rope}, "eos_token_id": eos}
    config = from_hf_config(attributes | {"num_key_value_heads": 2, "mlp_bias": True})
    written = json.loads(json.dumps(to_hf_config(config)))
    assert from_hf_config(written) == config
    through_transformers = transformers.LlamaConfig(**written).to_dict()
    assert from_hf_config(through_transformers) == config
    assert LlamaConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_divisors_have_no_form_in_transformers_but_in_ours():
    rope = {"rope_type": "default", "freq_factors": [1.0, 2.0, 3.0, 8.0]}
    config = from_hf_config(SHAPE | {"head_dim": 8, "rope_parameters": rope})
    np.testing.assert_allclose(
        inverse_frequencies(config.rope, 8),
        inverse_frequencies(RopeConfig(), 8) / np.array([1, 2, 3, 8]),
        rtol=1e-6,
    )
    assert LlamaConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(InputError, match="Orbax"):
        to_hf_config(config)


LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize("inside", [{}, {"original_max_position_embeddings": 32}])
@pytest.mark.parametrize("beside", [{}, {"original_max_position_embeddings": 48}])
def test_the_original_length_is_where_transformers_looks_for_it(inside, beside):
    for kind in ("llama", "phi3"):
        attributes = {**SHAPE, "model_type": kind, "rope_parameters": {**LONG, **inside}, **beside}
        theirs = transformers.AutoConfig.for_model(**json.loads(json.dumps(attributes)))
        theirs.standardize_rope_params()  # as the model does once more
        wanted = theirs.rope_parameters["original_max_position_embeddings"]
        assert from_hf_config(attributes).rope.original_max_length == wanted, kind


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"original_max_position_embeddings": None}, "original_max_position_embeddings is None"),
        ({"original_max_position_embeddings": 2**31}, "original_max_position_embeddings is 2147"),
        ({"rope_parameters": {**LONG, "rope_type": None}}, "rope_type is None; known are"),
        (
            {"model_type": "phi3", "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
            "rope_type is linear; a phi3 has default, longrope",
        ),
    ],
)
def test_what_transformers_has_no_rotary_embedding_for_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        from_hf_config({**SHAPE, "rope_parameters": LONG, **changes})


def test_whole_numbers_and_floats_give_equal_configs():
    whole = {"rope_type": "linear", "factor": 2, "rope_theta": 10_000}
    floats = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    of_whole, of_floats = (
        json.dumps(from_hf_config(SHAPE | {"rope_parameters": rope, "rms_norm_eps": eps}).to_dict())
        for rope, eps in [(whole, 1), (floats, 1.0)]
    )
    assert of_whole == of_floats
