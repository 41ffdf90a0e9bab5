"""Digests: equal for what is equal, whatever it came from; different for all that matters."""

import copy
import dataclasses

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

import sinkjax
from sinkjax.models.digest import model_digest, tokenizer_digest, tokens_digest
from sinkjax.models.sharding import shard

pytestmark = pytest.mark.quick


def test_a_model_has_one_digest_from_every_source_and_on_every_mesh(tmp_path):
    hf.save_llama(tmp_path / "hf")
    model = sinkjax.load(tmp_path / "hf")
    digest = model_digest(model)
    assert len(digest) == 64
    sinkjax.save_orbax(model, tmp_path / "orbax")
    sinkjax.save_safetensors(model, tmp_path / "again")
    assert model_digest(sinkjax.load(tmp_path / "orbax")) == digest
    assert model_digest(sinkjax.load(tmp_path / "again")) == digest
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    assert model_digest(shard(model, mesh)) == digest


def test_every_parameter_changes_the_digest():
    model = tiny.make(attention_bias=True, mlp_bias=True)
    graph, state = nnx.split(model)
    flat = nnx.to_flat_state(state)
    digests = {model_digest(model)}
    for changed, _ in flat:
        nudged = [
            (path, leaf.replace(leaf[...].at[(0,) * leaf[...].ndim].add(1e-3)))
            if path == changed
            else (path, leaf)
            for path, leaf in flat
        ]
        digests.add(model_digest(nnx.merge(graph, nnx.from_flat_state(nudged))))
    assert len(digests) == 1 + len(flat)


def test_dtype_and_layout_change_the_digest():
    digests = {model_digest(tiny.make(dtype=dtype)) for dtype in (jnp.float32, jnp.bfloat16)}
    # The same bytes as other heads: 6 of 8 and 3 of 16 have equal parameters but for their shapes.
    zeros = [
        jax.tree.map(jnp.zeros_like, tiny.make(num_heads=heads, num_kv_heads=heads, head_dim=size))
        for heads, size in [(6, 8), (3, 16)]
    ]
    digests |= {model_digest(model) for model in zeros}
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"norm_eps": 1e-3}, False),
        ({"activation": "gelu"}, False),
        ({"rope": tiny.LLAMA3}, False),
        ({"max_length": 128}, False),
        ({"initializer_range": 0.5}, True),
        ({"bos_token_id": 7}, True),
        ({"eos_token_ids": (1, 2)}, True),
        ({"pad_token_id": 3}, True),
    ],
)
def test_the_config_counts_where_logits_follow_from_it(change, same):
    model, other = tiny.make(), tiny.make()
    other.config = dataclasses.replace(other.config, **change)
    assert (model_digest(model) == model_digest(other)) is same


def test_a_tokenizer_keeps_its_digest_through_use(smollm2_tokenizer):
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    digest = tokenizer_digest(tokenizer)
    tokenizer(["a b c d e", "a"], padding=True, truncation=True, max_length=3)
    assert tokenizer_digest(tokenizer) == digest


def test_what_a_tokenizer_does_otherwise_changes_its_digest(smollm2_tokenizer):
    digests = {tokenizer_digest(smollm2_tokenizer)}
    added = copy.deepcopy(smollm2_tokenizer)
    added.add_tokens(["sinkhead"])
    digests.add(tokenizer_digest(added))
    other_bos = copy.deepcopy(smollm2_tokenizer)
    other_bos.bos_token = "<|endoftext|>"
    digests.add(tokenizer_digest(other_bos))
    assert len(digests) == 3


def test_tokens_digest_is_of_shape_and_ids():
    tokens = np.arange(6).reshape(2, 3)
    digest = tokens_digest(tokens)
    assert digest == tokens_digest(tokens.astype(np.int32))
    assert digest == tokens_digest(np.asfortranarray(tokens))
    assert digest != tokens_digest(tokens.reshape(3, 2))
    assert digest != tokens_digest(tokens + 1)
