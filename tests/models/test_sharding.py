"""Parameters laid over two devices: where they lie, and the same numbers as on one."""

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from jax.sharding import PartitionSpec as P

import sinkjax
from sinkjax.models.abstract import abstract_model
from sinkjax.models.sharding import RULES, named_sharding, parameter_shardings, shard


@pytest.fixture
def mesh():
    return jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))


def specs(model, mesh, **rules):
    """The partition of every parameter of the model, by the path's names."""
    shardings = parameter_shardings(model, mesh, {**RULES, **rules})
    return {".".join(map(str, path)): sharding.spec for path, sharding in shardings.items()}


def test_heads_neurons_and_words_are_divided(mesh):
    model = tiny.make(vocab_size=62, attention_bias=True, mlp_bias=True, tie_embeddings=False)
    found = specs(model, mesh)
    wanted = {
        "embedding": P("model", None),
        "head": P("model", None),
        "norm.scale": P(None),
        "layers.1.attention.q": P("model", None, None),
        "layers.1.attention.k": P("model", None, None),
        "layers.1.attention.o": P(None, "model", None),
        "layers.1.attention.v_bias": P("model", None),
        "layers.1.attention.o_bias": P(None),
        "layers.1.mlp.gate": P("model", None),
        "layers.1.mlp.down": P(None, "model"),
        "layers.1.mlp.up_bias": P("model"),
        "layers.1.mlp_norm.scale": P(None),
    }
    assert {name: found[name] for name in wanted} == wanted
    assert len(found) == len(nnx.to_flat_state(nnx.state(model, nnx.Param)))


def test_what_the_mesh_does_not_divide_is_whole_on_every_device(mesh):
    """61 words, three key/value heads."""
    found = specs(tiny.make(num_kv_heads=3), mesh)
    assert found["embedding"] == P(None, None)
    assert found["layers.0.attention.k"] == P(None, None, None)
    assert found["layers.0.attention.q"] == P("model", None, None)


def test_axes_that_the_mesh_lacks_are_whole():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    assert all(not any(spec) for spec in specs(tiny.make(), mesh).values())
    found = specs(tiny.make(), mesh, embed="data")
    assert found["layers.0.attention.q"] == P(None, None, "data")


def test_abstract_parameters_have_the_same_shardings(mesh):
    model = tiny.make()
    abstract = abstract_model(model.config, jnp.float32)
    assert parameter_shardings(abstract, mesh) == parameter_shardings(model, mesh)
    assert named_sharding(abstract.layers[0].mlp.up, mesh).spec == P("model", None)


def test_an_axis_without_a_rule_is_an_error(mesh):
    with pytest.raises(KeyError, match="embed"):
        parameter_shardings(tiny.make(), mesh, {"vocab": "model"})


def test_shards_are_halves_and_the_original_stays_where_it_was(mesh):
    model = tiny.make()
    laid = shard(model, mesh)
    q = laid.layers[0].attention.q[...]
    assert {piece.data.shape for piece in q.addressable_shards} == {(3, 8, 40)}
    assert len(model.layers[0].attention.q[...].sharding.device_set) == 1
    assert laid.config == model.config
    assert laid.layers[0].attention.q.out_sharding == ("heads", "head_dim", "embed")
    for ours, theirs in zip(jax.tree.leaves(laid), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_logits_over_two_devices_equal_those_of_one(kv_heads, mesh):
    model = tiny.make(num_kv_heads=kv_heads, num_layers=2, vocab_size=62, attention_bias=True)
    tokens = tiny.tokens_of(model, (2, 21))
    laid = shard(model, mesh)
    logits = jax.jit(lambda m, x: m(x))
    np.testing.assert_allclose(logits(laid, tokens), logits(model, tokens), rtol=0, atol=1e-5)


def test_logits_over_two_devices_equal_transformers(mesh, tmp_path):
    oracle = hf.save_llama(tmp_path)
    tokens = hf.random_tokens((2, 40))
    laid = sinkjax.load(tmp_path, mesh=mesh)
    q = laid.layers[0].attention.q[...]
    assert len(q.sharding.device_set) == 2
    np.testing.assert_allclose(
        laid(jnp.asarray(tokens)), hf.logits(oracle, tokens), rtol=0, atol=1e-4
    )
