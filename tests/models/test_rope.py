"""Rotary tables against transformers' for every scaling, within and beyond the original length."""

import hf
import jax.numpy as jnp
import numpy as np
import pytest
from hf import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkjax.models.hf_config import from_hf_config
from sinkjax.models.rope import attention_factor, inverse_frequencies, rotary_tables, rotate

pytestmark = pytest.mark.quick

modeling_llama = hf.oracle("transformers.models.llama.modeling_llama")


def configs(rope):
    theirs = hf.make_llama(rope_parameters=hf.ROPES[rope]).config
    return theirs, from_hf_config(theirs.to_dict())


def their_tables(config, length):
    """cos, sin: float32 [T, H]."""
    embedding = modeling_llama.LlamaRotaryEmbedding(config)
    cos, sin = embedding(torch.zeros(1, length, 1), torch.arange(length)[None])
    return cos[0].numpy(), sin[0].numpy()


def our_tables(config, length, lengths=None):
    """cos, sin: float32 [rows, T, H/2]."""
    lengths = [length] if lengths is None else lengths
    positions = jnp.arange(length, dtype=jnp.int32)[None]
    return rotary_tables(config, positions, jnp.asarray(lengths, jnp.int32))[0]


@pytest.mark.parametrize("rope", hf.ROPES)
@pytest.mark.parametrize("length", [1, 64, 65, 500])
def test_tables_equal_transformers(rope, length):
    """Up to 64 positions are the original length of all, 16 or 32 of some."""
    theirs, ours = configs(rope)
    for table, wanted in zip(our_tables(ours, length), their_tables(theirs, length), strict=True):
        assert table.dtype == jnp.float32
        assert table.shape == (1, length, 4)
        # An angle of 500 rad is known to 3e-5 in float32; frequencies are the same bits.
        np.testing.assert_allclose(np.tile(table[0], 2), wanted, rtol=0, atol=5e-5)


@pytest.mark.parametrize("rope", [rope for rope in hf.ROPES if rope != "dynamic"])
def test_frequencies_are_those_of_transformers_to_the_last_bits(rope):
    theirs, ours = configs(rope)
    embedding = modeling_llama.LlamaRotaryEmbedding(theirs)
    frequencies = inverse_frequencies(ours.rope, ours.head_dim)
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, embedding.inv_freq.numpy(), rtol=2e-7)
    assert attention_factor(ours.rope) == pytest.approx(embedding.attention_scaling, rel=1e-12)


def test_dynamic_angles_follow_each_rows_own_length():
    theirs, ours = configs("dynamic")
    lengths = [30, 64, 100, 200]
    tables = our_tables(ours, 200, lengths)
    for row, length in enumerate(lengths):
        for table, wanted in zip(tables, their_tables(theirs, length), strict=True):
            np.testing.assert_allclose(np.tile(table[row, :length], 2), wanted, rtol=0, atol=5e-5)
    np.testing.assert_array_equal(tables[0][0], tables[0][1])  # both within the original length


def test_rotate_equals_transformers():
    theirs, ours = configs("llama3")
    x = np.random.default_rng(0).normal(size=(2, 40, 6, 8)).astype(np.float32)
    cos, sin = (torch.as_tensor(table)[None] for table in their_tables(theirs, 40))
    wanted, _ = modeling_llama.apply_rotary_pos_emb(
        torch.as_tensor(x).transpose(1, 2), torch.as_tensor(x).transpose(1, 2), cos, sin
    )
    rotated = rotate(jnp.asarray(x), our_tables(ours, 40))
    np.testing.assert_allclose(rotated, wanted.transpose(1, 2), rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(near=st.integers(0, 40), apart=st.integers(0, 40), shift=st.integers(0, 40))
def test_scores_depend_on_distance_alone(near, apart, shift):
    """What rotary embeddings are for; the property holds for each type, here for the plain one."""
    _, config = configs("default")
    q, k = np.random.default_rng(1).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def score(query, key):
        rotated = [
            rotate(
                jnp.asarray(x),
                *rotary_tables(config, jnp.array([[place]], jnp.int32), jnp.array([1], jnp.int32)),
            )
            for x, place in ((q, query), (k, key))
        ]
        return float((rotated[0] * rotated[1]).sum())

    here, there = score(near + apart, near), score(near + apart + shift, near + shift)
    assert here == pytest.approx(there, abs=2e-5)


def test_rotate_keeps_the_dtype_and_computes_in_float32():
    _, config = configs("default")
    x = np.random.default_rng(0).normal(size=(1, 30, 2, 8)).astype(np.float32)
    exact = rotate(jnp.asarray(x), our_tables(config, 30))
    half = rotate(jnp.asarray(x, jnp.bfloat16), our_tables(config, 30))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), exact, rtol=0.02, atol=0.02)
