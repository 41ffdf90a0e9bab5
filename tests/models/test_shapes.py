"""Shapes without weights: against the one model of the table that is at hand."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import sinkjax
from sinkjax.distributed import make_mesh
from sinkjax.models import shapes
from sinkjax.models.shapes import SHAPES, random_model

pytestmark = pytest.mark.quick


def test_the_table_agrees_with_the_real_model(smollm2_gguf):
    config = sinkjax.load_config(smollm2_gguf)
    ids = dict(bos_token_id=None, eos_token_ids=(), pad_token_id=None)
    ranges = dict(initializer_range=SHAPES["smollm2-135m"].initializer_range)
    assert dataclasses.replace(config, **ids, **ranges) == SHAPES["smollm2-135m"]


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-2-7b", 6.738),
        ("llama-2-7b-32k", 6.738),
        ("llama-3-8b-1048k", 8.030),
        ("llama-3.1-8b", 8.030),
        ("llama-3.1-70b", 70.554),
        ("llama-3.2-1b", 1.236),
        ("llama-3.2-3b", 3.213),
        ("mistral-7b-v0.2", 7.242),
        ("qwen2.5-coder-0.5b", 0.494 + 0.136),  # the second table: the published one is tied
        ("smollm2-135m", 0.1345),
    ],
)
def test_parameters_add_up_to_the_published_number(name, billions):
    c = SHAPES[name]
    attention = c.embed_dim * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    biases = c.attention_bias * c.head_dim * (c.num_heads + 2 * c.num_kv_heads)
    layer = attention + biases + 3 * c.embed_dim * c.mlp_dim + 2 * c.embed_dim
    tables = (1 if c.tie_embeddings else 2) * c.vocab_size * c.embed_dim
    total = c.num_layers * layer + tables + c.embed_dim
    assert total / 1e9 == pytest.approx(billions, rel=1e-3)


@pytest.fixture
def small():
    sizes = dict(num_layers=1, vocab_size=257, num_heads=8, num_kv_heads=4)
    return dataclasses.replace(SHAPES["smollm2-135m"], **sizes)


def test_random_weights_are_the_same_however_they_lie_and_are_drawn(small, monkeypatch):
    at_once = random_model(small)
    monkeypatch.setattr(shapes, "_DRAWN", 4999)
    for mesh in (None, {"data": 8}, {"data": 2, "model": 4}, {"model": 4, "sub": 2}):
        laid = random_model(small, mesh=mesh and make_mesh(mesh))
        for ours, theirs in zip(jax.tree.leaves(laid), jax.tree.leaves(at_once), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@given(data=st.data(), shape=st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_any_part_is_drawn_as_in_the_whole(data, shape):
    starts = [data.draw(st.integers(0, size - 1)) for size in shape]
    stops = [data.draw(st.integers(start + 1, n)) for start, n in zip(starts, shape, strict=True)]
    part = tuple(map(slice, starts, stops))

    def drawn(part):
        own, count = np.full([of.stop - of.start for of in part], np.nan, np.float32), 0
        for values, numbers in shapes._uniform((0, 1), tuple(shape), part, own):
            values[...], count = numbers, count + numbers.size
        return own, count

    whole, _ = drawn(tuple(slice(0, n) for n in shape))
    own, count = drawn(part)
    np.testing.assert_array_equal(own, whole[part])
    assert count == own.size  # and no others


def test_random_weights_have_the_spread_and_the_seed_asked_for(small):
    model, same, other = (random_model(small, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(model.embedding[...], same.embedding[...])
    assert not np.array_equal(model.embedding[...], other.embedding[...])
    wanted = sinkjax.Llama(small, rngs=nnx.Rngs(0))
    for (path, weights), (_, made) in zip(
        nnx.to_flat_state(nnx.state(model)), nnx.to_flat_state(nnx.state(wanted)), strict=True
    ):
        assert (weights.shape, weights.dtype) == (made.shape, made.dtype), path
        assert np.mean(weights) == pytest.approx(float(np.mean(made)), abs=2e-3), path
        if "scale" not in path:
            assert np.std(weights) == pytest.approx(small.initializer_range, rel=0.02), path
