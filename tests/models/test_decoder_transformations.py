"""Specialized models, every path mixed, inside JAX code that is not ours."""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from sinkjax.distributed import make_mesh
from sinkjax.masks.mask import SinkMask
from sinkjax.models.sharding import shard
from sinkjax.specialize.build import specialize
from sinkjax.testing.oracle import reference_logits

MASK = SinkMask.from_text(
    "L0: 2f w(2,5) s(first) w(1,4) f | L1: c(0,0) s(mean) f c(0,2) s(zero) w(1,4)"
)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def baseline():
    return tiny.make(num_layers=2, attention_bias=True)


@pytest.fixture(scope="module")
def fast(baseline):
    return specialize(baseline, MASK, fills=tiny.make_fills(baseline))


@pytest.fixture(scope="module")
def tokens(baseline):
    return tiny.tokens_of(baseline, (4, 9))


@pytest.fixture(scope="module")
def plain(fast, tokens):
    return tiny.call(fast, tokens)


def assert_close(logits, wanted):
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=TOLERANCE)


def test_jit(fast, tokens, plain):
    step = jax.jit(lambda m, x: m(x))
    assert_close(step(fast, tokens), plain)
    step(nnx.clone(fast), tokens)
    assert step._cache_size() == 1  # equal structure, one program


def test_vmap_over_rows_and_over_decoding(fast, tokens, plain):
    row = jax.vmap(lambda m, x: m(x[None])[0], in_axes=(None, 0))
    assert_close(tiny.quick_jit(row)(fast, tokens), plain)

    def last_two(m, x):
        _, cache = m.prefill(x[None, :-1], max_length=9)
        return m.decode(x[None, -1], cache)[0][0]

    mapped = tiny.quick_jit(jax.vmap(last_two, in_axes=(None, 0)))
    assert_close(mapped(fast, tokens), plain[:, -1])


def test_gradients_through_every_path_are_the_oracles(baseline, fast, tokens):
    fills = tiny.make_fills(baseline)

    def loss(logits):
        return jnp.square(logits - 1.0).mean()

    reference = jax.grad(lambda m: loss(reference_logits(m, MASK, tokens, fills=fills)))
    wanted = tiny.quick_jit(reference)(baseline)
    gradients = tiny.quick_jit(jax.grad(lambda m: loss(m(tokens))))(fast)
    shared = dict(nnx.to_flat_state(nnx.state(wanted)))
    compared = 0
    for path, leaf in nnx.to_flat_state(nnx.state(gradients)):
        assert np.isfinite(leaf[...]).all()
        if path in shared and "attention" not in path:
            scale = np.abs(shared[path][...]).max()
            np.testing.assert_allclose(leaf[...], shared[path][...], rtol=0, atol=1e-4 * scale)
            compared += 1
    assert compared > 10
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(nnx.state(gradients)))


def test_scan_over_batches(fast, tokens, plain):
    _, logits = jax.lax.scan(lambda carry, x: (carry, fast(x)), None, tokens.reshape(2, 2, -1))
    assert_close(logits.reshape(plain.shape), plain)


def test_shard_map_over_the_batch(fast, tokens, plain):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, everywhere = PartitionSpec("data"), PartitionSpec()

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(everywhere, rows), out_specs=rows, check_vma=False
    )
    def call(m, x):
        return m(x)

    assert_close(tiny.quick_jit(call)(fast, tokens), plain)

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(everywhere, rows), out_specs=rows, check_vma=False
    )
    def last_two(m, x):
        _, cache = m.prefill(x[:, :-1], max_length=9)
        return m.decode(x[:, -1], cache)[0]

    assert_close(tiny.quick_jit(last_two)(fast, tokens), plain[:, -1])


def test_a_batch_laid_over_devices(fast, tokens, plain):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    laid = jax.device_put(tokens, NamedSharding(mesh, PartitionSpec("data")))
    everywhere = jax.device_put(fast, NamedSharding(mesh, PartitionSpec()))
    _, cache = jax.jit(lambda m, x: m.prefill(x, max_length=9))(everywhere, laid[:, :-1])
    logits, _ = jax.jit(lambda m, x, c: m.decode(x, c))(everywhere, laid[:, -1], cache)
    assert_close(logits, plain[:, -1])


def test_gradients_over_a_mesh_are_the_same_outside_of_jit():
    """What lies on one device yet, as tokens and angles do, could not be laid beside a gradient."""
    model = tiny.make(num_layers=1, vocab_size=64)
    laid, tokens = (
        shard(model, make_mesh({"neurons": 4, "model": 2})),
        tiny.tokens_of(model, (4, 9)),
    )
    gradient = jax.grad(lambda m: jnp.square(m(tokens)).mean())
    wanted = tiny.quick_jit(gradient)(model)
    for ours, theirs in zip(*map(jax.tree.leaves, (gradient(laid), wanted)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_pytree_and_split_round_trips(fast, tokens, plain):
    leaves, structure = jax.tree.flatten(fast)
    assert_close(jax.tree.unflatten(structure, leaves)(tokens), plain)
    assert_close(nnx.merge(*nnx.split(fast))(tokens), plain)
    assert_close(pickle.loads(pickle.dumps(fast))(tokens), plain)
    assert jax.tree.structure(copy.deepcopy(fast)) == structure
    zeroed = jax.tree.map(jnp.zeros_like, fast)
    assert not np.any(zeroed(tokens))


def test_a_layer_without_a_norm_can_be_pickled():
    """As it is sent to another process: one whose heads are all `sink`, one of another family."""
    outer = tiny.make(num_layers=1, inner_norms=False, outer_norms=True)
    sinks = specialize(tiny.make(num_layers=1), SinkMask.from_text("L0: 6s(first)"))
    for model in (outer, sinks):
        again = pickle.loads(pickle.dumps(model))
        assert jax.tree.structure(again) == jax.tree.structure(model)
