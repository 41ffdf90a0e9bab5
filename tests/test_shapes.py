"""Shapes without weights: against the one model of the table that is at hand."""

import dataclasses

import pytest

import sinkjax
from sinkjax.shapes import SHAPES


def test_the_table_agrees_with_the_real_model(smollm2_gguf):
    found = sinkjax.load_config(smollm2_gguf)
    ids = dict(bos_token_id=None, eos_token_ids=(), pad_token_id=None)
    ranges = dict(initializer_range=SHAPES["smollm2-135m"].initializer_range)
    assert dataclasses.replace(found, **ids, **ranges) == SHAPES["smollm2-135m"]


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-2-7b", 6.738),
        ("llama-3.1-8b", 8.030),
        ("llama-3.1-70b", 70.554),
        ("llama-3.2-1b", 1.236),
        ("llama-3.2-3b", 3.213),
        ("smollm2-135m", 0.1345),
    ],
)
def test_parameters_add_up_to_the_published_number(name, billions):
    c = SHAPES[name]
    attention = c.embed_dim * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    layer = attention + 3 * c.embed_dim * c.mlp_dim + 2 * c.embed_dim
    tables = (1 if c.tie_embeddings else 2) * c.vocab_size * c.embed_dim
    total = c.num_layers * layer + tables + c.embed_dim
    assert total / 1e9 == pytest.approx(billions, rel=1e-3)
