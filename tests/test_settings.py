"""Under the settings that a process of JAX's may have, programs and models are what they were."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax import export
from jax.sharding import NamedSharding, PartitionSpec

import sinkjax
from sinkjax.models.sampling import draw, make_sampler

MASK = sinkjax.SinkMask.from_text(
    "L0: 3f w(2,6) 2w(0,5) | L1: c(0,0) c(0,3) w(2,6) 3s(first) | L2: f 2s(mean) 3s(zero)"
)


@pytest.fixture(scope="module")
def fast():
    model = tiny.make()
    return sinkjax.specialize(model, MASK, fills=tiny.make_fills(model))


def generated(model: sinkjax.Llama) -> list[list[int]]:
    """Drawn tokens of two prompts, one of them in pieces."""
    program = sinkjax.compile(
        model, batch_size=2, prefill_lengths=(8,), max_length=32, steps_per_call=4
    )
    prompts = np.random.default_rng(3).integers(0, model.config.vocab_size, (2, 20)).tolist()
    settings = dict(max_new_tokens=6, temperature=1.5, top_k=40, top_p=0.9)
    return [row.tolist() for row in program.generate([prompts[0], prompts[1][:5]], **settings)]


@pytest.fixture(scope="module")
def plain(fast):
    return generated(fast)


@contextlib.contextmanager
def setting(name: str, value: object):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_transfer_guard", "disallow"),
    ],
)
def test_generated_tokens_are_the_same_under(name, value, fast, plain):
    with setting(name, value):
        assert generated(fast) == plain


def test_a_model_without_jit_and_with_strict_numbers_of_64_bits(fast):
    """Operation by operation, where JAX makes whole numbers of 64 bits unless it is told."""
    tokens = tiny.tokens_of(fast, (2, 6))
    wanted = tiny.call(fast, tokens)
    with jax.enable_x64(True), jax.disable_jit():
        np.testing.assert_allclose(fast(tokens), wanted, rtol=0, atol=1e-5)
        sampler = make_sampler([1, 2], temperature=1.5, top_k=3, top_p=0.9)
        assert draw(wanted[:, -1], sampler, jnp.arange(2, dtype=jnp.int32)).dtype == jnp.int32


def test_sink_scores_with_strict_numbers_of_64_bits():
    model = tiny.make(num_layers=1)
    tokens = tiny.tokens_of(model, (2, 6))
    wanted = sinkjax.measure_sinks(model, tokens)
    with jax.enable_x64(True):
        found = sinkjax.measure_sinks(model, np.asarray(tokens))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.fixture
def explicit():
    """A mesh as JAX makes one, set for all that follows, as a script of training does."""
    mesh = jax.make_mesh((2,), ("data",))
    assert mesh.axis_types == (jax.sharding.AxisType.Explicit,)
    with jax.set_mesh(mesh):
        yield mesh


def test_all_that_is_made_of_a_model_under_a_mesh_that_is_set(explicit, plain):
    model = tiny.make()
    fast = sinkjax.specialize(model, MASK, fills=tiny.make_fills(model))
    assert generated(fast) == plain
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model)
    of_shapes = sinkjax.specialize(abstract, MASK, fills=tiny.make_fills(model))
    assert jax.tree.structure(of_shapes) == jax.tree.structure(fast)
    tokens = np.random.default_rng(3).integers(0, model.config.vocab_size, (2, 6))
    assert np.isfinite(sinkjax.measure_sinks(model, tokens).score("mean")).all()


def test_rows_over_explicit_axes(explicit, fast, plain):
    """Weights whole on each device, rows divided: a call, pieces, decode steps, gradients."""

    def steps(model, tokens):
        _, cache = model.prefill(tokens[:, :4], max_length=8)
        further, cache = model.extend(tokens[:, 4:6], cache, lengths=jnp.full_like(tokens[:, 0], 6))
        return model(tokens), further, model.decode(tokens[:, 6], cache)[0]

    def loss(model, tokens):
        return jnp.square(model(tokens)).mean()

    tokens = np.random.default_rng(3).integers(0, fast.config.vocab_size, (2, 8)).astype(np.int32)
    rows = jax.device_put(tokens, NamedSharding(explicit, PartitionSpec("data")))
    laid = jax.device_put(fast, NamedSharding(explicit, PartitionSpec()))
    baseline = jax.device_put(tiny.make(), NamedSharding(explicit, PartitionSpec()))
    again = sinkjax.specialize(baseline, MASK, fills=tiny.make_fills(fast))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    for function, of in ((steps, laid), (steps, again), (jax.grad(loss), laid)):
        jax.tree.map(close, jax.jit(function)(of, rows), jax.jit(function)(fast, tokens))
    assert generated(laid) == plain


def test_arrays_of_numpy_are_weights_too(fast, plain):
    """As `jax.device_get` and a checkpoint's restoring give them."""
    assert generated(jax.device_get(fast)) == plain


def test_any_number_of_rows_in_one_exported_file(fast):
    def steps(weights, tokens):
        model = jax.tree.unflatten(structure, weights)
        _, cache = model.prefill(tokens[:, :4], max_length=8)
        return model.decode(tokens[:, 4], cache)[0]

    weights, structure = jax.tree.flatten(fast)
    (rows,) = export.symbolic_shape("rows")
    shape = jax.ShapeDtypeStruct((rows, 5), jnp.int32)
    exported = export.export(jax.jit(steps))(weights, shape)
    for count in (1, 3):
        tokens = tiny.tokens_of(fast, (count, 5))
        wanted = tiny.call(fast, tokens)[:, -1]
        np.testing.assert_allclose(exported.call(weights, tokens), wanted, rtol=0, atol=1e-5)


def test_a_row_draws_by_its_own_seed_whatever_kind_of_keys_is_the_default():
    """Under `rbg` all rows drew by the first one's."""
    logits = jax.random.normal(jax.random.key(0), (3, 43))  # of a size that nothing has traced
    positions = jnp.arange(3, dtype=jnp.int32)
    with setting("jax_default_prng_impl", "rbg"):
        one, other = (
            draw(logits, make_sampler([first, 2, 3], temperature=3.0), positions).tolist()
            for first in (1, 9)
        )
    assert one[1:] == other[1:]
