"""Parameters laid over devices: where they lie, and the same numbers as on one."""

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from jax.sharding import PartitionSpec as P

import sinkjax
from sinkjax.distributed import make_mesh
from sinkjax.models.abstract import abstract_model
from sinkjax.models.shapes import random_model
from sinkjax.models.sharding import (
    fit_mesh,
    fitting_sizes,
    lay_rows,
    mesh_of,
    parameter_shardings,
    row_shards,
    shard,
)


@pytest.fixture
def mesh():
    return jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))


def specs(model, mesh):
    """The partition of every parameter of the model, by the path's names."""
    shardings = parameter_shardings(model, mesh)
    return {".".join(map(str, path)): sharding.spec for path, sharding in shardings.items()}


def test_heads_neurons_and_words_are_divided(mesh):
    model = tiny.make(vocab_size=62, attention_bias=True, mlp_bias=True, tie_embeddings=False)
    partitions = specs(model, mesh)
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
    assert {name: partitions[name] for name in wanted} == wanted
    assert len(partitions) == len(nnx.to_flat_state(nnx.state(model, nnx.Param)))


def test_what_the_mesh_does_not_divide_is_whole_on_every_device(mesh):
    """61 words, three key/value heads."""
    partitions = specs(tiny.make(num_kv_heads=3), mesh)
    assert partitions["embedding"] == P(None, None)
    assert partitions["layers.0.attention.k"] == P(None, None, None)
    assert partitions["layers.0.attention.q"] == P("model", None, None)


def test_axes_that_the_mesh_lacks_are_whole():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    assert all(not any(spec) for spec in specs(tiny.make(), mesh).values())


def test_abstract_parameters_have_the_same_shardings(mesh):
    model = tiny.make()
    abstract = abstract_model(model.config, jnp.float32)
    assert parameter_shardings(abstract, mesh) == parameter_shardings(model, mesh)


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


def test_a_mesh_with_explicit_axes_is_as_good(mesh, tmp_path):
    """JAX's own default was a ShardingTypeError in call, specialization and program."""
    hf.save_llama(tmp_path)
    explicit = jax.make_mesh((2,), ("model",))
    assert explicit.axis_types == (jax.sharding.AxisType.Explicit,)
    laid, plain = sinkjax.load(tmp_path, mesh=explicit), sinkjax.load(tmp_path)
    tokens = jnp.asarray(hf.random_tokens((2, 20)))
    wanted = sinkjax.load(tmp_path, mesh=mesh)(tokens)
    np.testing.assert_allclose(laid(tokens), wanted, rtol=0, atol=1e-6)
    again = shard(plain, explicit)
    scores = [sinkjax.measure_sinks(model, tokens).score("mean") for model in (again, plain)]
    np.testing.assert_allclose(*scores, rtol=0, atol=1e-5)
    mask = sinkjax.SinkMask.from_scores(scores[0], threshold=0.3, path=sinkjax.Sink("first"))
    fast = sinkjax.specialize(again, mask)
    assert mesh_of(fast).axis_types == (jax.sharding.AxisType.Auto,)
    program = sinkjax.compile(fast, prefill_lengths=(24,), max_length=40)
    new = sinkjax.compile(sinkjax.specialize(plain, mask), prefill_lengths=(24,), max_length=40)
    np.testing.assert_array_equal(
        *(p.generate(np.asarray(tokens)[0], max_new_tokens=8) for p in (program, new))
    )


def test_query_heads_lie_over_a_further_axis_than_key_value_heads():
    model = tiny.make(num_heads=8, num_kv_heads=2, vocab_size=64)
    partitions = specs(model, make_mesh({"model": 2, "sub": 2, "data": 2}))
    assert partitions["layers.0.attention.q"] == P(("model", "sub"), None, None)
    assert partitions["layers.0.attention.k"] == P("model", None, None)
    assert partitions["layers.0.mlp.down"] == P(None, ("model", "sub"))
    # 66 words are divided by two, and not by four.
    assert specs(tiny.make(vocab_size=66), make_mesh({"model": 2, "sub": 4}))["embedding"] == P(
        "model", None
    )


def test_over_neurons_attention_is_whole_and_has_rows_of_its_own():
    """Called as well as measured, and over an axis of heads beside it."""
    model = tiny.make(num_heads=8, num_kv_heads=2, vocab_size=64, num_layers=2)
    mesh = make_mesh({"neurons": 2, "model": 2, "data": 2})
    partitions = specs(model, mesh)
    assert partitions["layers.0.attention.q"] == P("model", None, None)
    assert partitions["layers.0.attention.o"] == P(None, "model", None)
    assert partitions["layers.0.mlp.down"] == P(None, ("model", "neurons"))
    assert partitions["embedding"] == P(("model", "neurons"), None)
    laid, tokens = shard(model, mesh), tiny.tokens_of(model, (4, 12))
    assert row_shards(laid) == 4
    logits = jax.jit(lambda m, x: m(x))
    np.testing.assert_allclose(logits(laid, tokens), logits(model, tokens), rtol=0, atol=1e-5)
    scores = [sinkjax.measure_sinks(m, tokens).score("mean") for m in (laid, model)]
    np.testing.assert_allclose(*scores, rtol=0, atol=1e-5)


def test_rows_lie_over_data_where_it_divides_them():
    laid = shard(tiny.make(), make_mesh({"data": 4, "model": 2}))
    assert (row_shards(laid), row_shards(tiny.make())) == (4, 1)
    rows = lay_rows(laid, np.arange(24).reshape(8, 3))
    assert rows.dtype == jnp.int32
    assert {piece.data.shape for piece in rows.addressable_shards} == {(2, 3)}
    assert lay_rows(laid, np.zeros((6, 3))).sharding.is_fully_replicated


def test_a_mesh_that_does_not_divide_the_heads_is_refused_before_a_weight_is_read(tmp_path):
    hf.save_llama(tmp_path, num_attention_heads=6, num_key_value_heads=2)
    (tmp_path / "model.safetensors").write_bytes(b"")  # which is not looked at
    for axes, texts in {
        (("model", 4),): ["model:4 does not divide 2 key/value heads; data:2,model:2,sub:1 fits"],
        (("model", 2), ("sub", 2)): ["sub:2 does not divide 3 query heads of each"],
        (("rows", 2),): ["axis 'rows' is unknown; known are data, neurons, model, sub"],
    }.items():
        names, sizes = zip(*axes, strict=True)
        with pytest.raises(sinkjax.InputError) as error:
            sinkjax.load(tmp_path, mesh=jax.make_mesh(sizes, names))
        for text, line in zip(texts, error.value.lines(), strict=True):
            assert line.startswith("mesh=")
            assert text in line
    for wrong in ("model:2", jax.sharding.AbstractMesh((2,), ("model",))):
        with pytest.raises(sinkjax.InputError, match=r"mesh=.*model.*: it has to be a"):
            sinkjax.load(tmp_path, mesh=wrong)


def test_a_mesh_that_leaves_a_great_part_whole_on_every_device_is_refused():
    config = tiny.make(num_heads=8, num_kv_heads=4, mlp_dim=51).config
    neurons = 3 * 3 * 40 * 51
    words, heads = 61 * 40, 2 * 3 * 40 * 8 * (8 + 4)
    words *= 1 if config.tie_embeddings else 2
    share = (neurons + words) / (neurons + words + heads)
    with pytest.raises(sinkjax.InputError) as error:
        fit_mesh("model:2,data:4", config, "float32")
    (line,) = error.value.lines()
    assert line.startswith(
        "mesh=model:2,data:4: model:2 does not divide 51 neurons and 61 words: "
        f"{share:.0%} of the parameters would be whole on every device, and at most 25% may be"
    )
    with pytest.raises(
        sinkjax.InputError, match="neurons:8 does not divide 51 neurons and 61 words"
    ):
        fit_mesh("neurons:8", config, "float32")
    for mesh in ("sub:2,data:4", "model:1,sub:2,data:4"):
        with pytest.raises(sinkjax.InputError, match="sub:2 does not divide 51 neurons and 61 wor"):
            fit_mesh(mesh, config, "float32")
    with pytest.raises(sinkjax.InputError, match="data:8,model:1,sub:1 fits as many devices"):
        fit_mesh("model:8", config, "float32")  # nor does model:4, by which heads are divided
    assert fitting_sizes(config, 2, 8) == {"data": 8, "model": 1}
    fit_mesh("model:2,data:4", tiny.make(num_heads=8, num_kv_heads=4).config, "float32")


def test_auto_takes_as_few_devices_for_heads_as_a_model_fits_on():
    config = tiny.make(num_heads=8, num_kv_heads=2).config
    for needed, wanted in {
        0.1: {"data": 8, "model": 1},
        1.5: {"data": 4, "model": 2},
        2.5: {"data": 2, "model": 2, "sub": 2},
        99: {"data": 1, "model": 2, "sub": 4},
    }.items():
        assert fitting_sizes(config, needed, 8) == wanted
    # Of two ways to divide heads by as many as they can be, that with whole key/value heads.
    assert fitting_sizes(config, 99, 6) == {"data": 3, "model": 2}
    assert fitting_sizes(tiny.make(num_kv_heads=3).config, 2, 8) == {
        "data": 4,
        "model": 1,
        "sub": 2,
    }
    assert dict(fit_mesh("auto", config, "float32").shape) == {"data": 8, "model": 1}
    assert fit_mesh(None, config, "float32") is None


def test_random_weights_are_the_same_over_a_mesh():
    config = tiny.make(vocab_size=64).config
    plain, laid = (random_model(config, mesh=m) for m in (None, make_mesh({"data": 4, "model": 2})))
    assert laid.embedding[...].addressable_shards[0].data.shape == (32, config.embed_dim)
    for ours, theirs in zip(jax.tree.leaves(laid), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(ours, theirs)
