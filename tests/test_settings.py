"""Under the settings that a process of JAX's may have, programs and models are what they were."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import sinkjax
from sinkjax.errors import InputError
from sinkjax.instruments.compare import compare
from sinkjax.models.sampling import draw, make_sampler
from sinkjax.models.sharding import mesh_of, parameter_shardings, shard

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
        stats = sinkjax.measure_sinks(model, np.asarray(tokens))
    jax.tree.map(np.testing.assert_array_equal, stats, wanted)


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


@contextlib.contextmanager
def divided(is_set: bool):
    """Weights and rows over a mesh as JAX makes one, which is set or not."""
    mesh = jax.make_mesh((4, 2), ("model", "data"))
    assert mesh.axis_types == (jax.sharding.AxisType.Explicit,) * 2
    with jax.set_mesh(mesh) if is_set else contextlib.nullcontext():
        yield mesh


# A layer that chips divide by heads, and one that they divide by rows.
DIVIDED = sinkjax.SinkMask.from_text(
    "L0: f w(2,6) f w(2,6) f w(2,6) f w(2,6) | L1: 3f w(2,6) f s(first) s(zero) s(mean)"
)


def steps(model: sinkjax.Llama, tokens: jax.Array):
    """What a model's own methods give."""
    _, cache = model.prefill(tokens[:, :4], max_length=8)
    further, cache = model.extend(tokens[:, 4:6], cache, lengths=jnp.full_like(tokens[:, 0], 6))
    logits, cache = model.decode(tokens[:, 6], cache)
    return model(tokens), model.hidden(tokens), further, logits, cache.lengths


def loss(model: sinkjax.Llama, tokens: jax.Array) -> jax.Array:
    return jnp.square(model(tokens)).mean()


def of_all(model: sinkjax.Llama, fast: sinkjax.Llama, tokens: np.ndarray):
    """What is measured and compared, and what programs generate."""
    scores = sinkjax.measure_sinks(model, tokens).score("mean")
    return scores, compare(model, fast, np.tile(tokens, (1, 2))).kl, generated(fast)


@pytest.fixture(scope="module")
def on_one():
    """A model, fills, tokens, and what they give on one device."""
    model = tiny.make(num_heads=8, num_kv_heads=4, num_layers=2, vocab_size=64)
    fills = tiny.make_fills(model)
    fast = sinkjax.specialize(model, DIVIDED, fills=fills)
    tokens = np.random.default_rng(3).integers(0, 64, (2, 8)).astype(np.int32)
    slope = jax.jit(jax.grad(loss))(fast, tokens).embedding[...]
    return model, fills, tokens, (of_all(model, fast, tokens), jax.jit(steps)(fast, tokens), slope)


@pytest.mark.parametrize(("is_set", "by"), [(True, "user"), (True, "library"), (False, "user")])
def test_weights_over_explicit_axes(is_set, by, on_one):
    model, fills, tokens, (wanted, of_steps, slope) = on_one
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    with divided(is_set) as mesh:
        laid = shard(model, mesh) if by == "library" else put_over(model, mesh)
        assert laid.layers[0].attention.k[...].addressable_shards[0].data.shape[0] == 1
        masked = sinkjax.specialize(laid, DIVIDED, fills=fills)
        assert mesh_of(masked) == mesh_of(laid)
        jax.tree.map(close, of_all(laid, masked, tokens), wanted)
        rows = jax.device_put(tokens, NamedSharding(mesh, PartitionSpec("data")))
        for function in (steps, jax.jit(steps)):
            outputs = function(masked, rows)
            jax.tree.map(close, outputs, of_steps)
            assert outputs[0].sharding.spec == PartitionSpec("data", None, "model")
        _, cache = jax.jit(lambda m, x: m.prefill(x, max_length=8))(masked, rows)
        keys = cache.layers[0].keys[0]
        assert AxisType.Explicit in jax.typeof(keys).sharding.mesh.axis_types
        assert keys.sharding.spec[:2] == ("data", "model")
        # Outside of `jit` it is JAX that takes no gradients where no mesh is set.
        for function in (jax.jit(jax.grad(loss)), jax.grad(loss))[: 1 + is_set]:
            close(function(masked, rows).embedding[...], slope)


def put_over(model: sinkjax.Llama, mesh: jax.sharding.Mesh) -> sinkjax.Llama:
    """Parameters by `jax.device_put`, as a user's own code lays them."""
    shardings = parameter_shardings(model, mesh)

    def put(path, parameter):
        over = NamedSharding(mesh, shardings[path].spec)
        return parameter.replace(jax.device_put(parameter[...], over))

    graph, state = nnx.split(model)
    return nnx.merge(graph, nnx.map_state(put, state))


def test_what_does_not_serve_explicit_axes_says_what_to_do(on_one):
    model, fills, tokens, _ = on_one
    with divided(is_set=False) as mesh:
        laid = put_over(model, mesh)
        with pytest.raises(InputError, match=r"explicit axes.*in.* of jax.jit: specialize"):
            jax.jit(lambda m: sinkjax.specialize(m, DIVIDED, fills=fills))(laid)
        with pytest.raises(InputError, match=r"explicit axes, model, data, .*shard\(model, mesh\)"):
            laid.enter(tokens)


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
        drawn, other = (
            draw(logits, make_sampler([first, 2, 3], temperature=3.0), positions).tolist()
            for first in (1, 9)
        )
    assert drawn[1:] == other[1:]
