"""Layouts and stores, held against a cache that keeps everything; what a mask leaves in a cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import copies_of_stores

from sinkjax.attention import cache as caches
from sinkjax.attention.cache import Band, Ring, Whole, layout_of, view_layout
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Full, Window
from sinkjax.specialize.build import specialize

K, H = 2, 3


def seen(window: Window, t: int) -> list[int]:
    native = t + 1 if window.within is None else window.within
    return [
        s for s in range(t + 1) if (s < window.sinks or s > t - window.recent) and s > t - native
    ]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_every_view_of_every_store_has_just_what_its_window_sees(data):
    """A prompt is stored, more tokens are written, and views are taken at every step."""
    spans = st.builds(Window, st.integers(0, 15), st.integers(1, 6))
    head = data.draw(spans)
    if data.draw(st.booleans()):  # a layer with a window of its own
        head = dataclasses.replace(head, within=head.recent + data.draw(st.integers(1, 4)))
    span = data.draw(
        st.sampled_from(
            [
                Full(),
                head,
                Window(head.sinks + data.draw(st.integers(0, 2)), head.recent + 2, head.within),
            ]
        )
    )
    max_length, steps = data.draw(st.integers(12, 14)), 4
    lengths = np.array(data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=2)))
    # Position s of row b is the number 100 b + s, in every place of its key and value.
    numbers = 100.0 * np.arange(len(lengths))[:, None] + np.arange(max_length)
    everything = np.broadcast_to(numbers[:, :, None, None], (*numbers.shape, K, H))
    prompt = jnp.asarray(everything[:, :8], jnp.float32)
    layout = layout_of(span, max_length)
    view = view_layout(head, layout, max_length)
    store = caches.new_store(prompt, layout, jnp.asarray(lengths))
    for step in range(steps):
        t = lengths + step
        new = np.take_along_axis(everything, t[:, None, None, None], axis=1).astype(np.float32)
        at = jnp.asarray(t, jnp.int32)
        store = caches.write_store(store, jnp.asarray(new), layout, at)
        slots = np.asarray(caches.view_store(store, layout, view, at))
        slots = slots.reshape(len(t), K, view.size, H)
        positions = np.asarray(view.positions(at))
        for row, now in enumerate(t):
            filled = positions[row] <= now
            assert sorted(positions[row][filled]) == seen(head, now)
            wanted = 100 * row + positions[row][filled]
            for place in slots[row].swapaxes(1, 2).reshape(K * H, view.size):
                np.testing.assert_array_equal(place[filled], wanted)


@pytest.mark.parametrize("layout", [Ring(2, 6), Band(2, 6)])
@pytest.mark.parametrize("view", [Ring(2, 6), Band(2, 6)])
@pytest.mark.parametrize("t", [0, 1, 3, 5, 6, 11])
def test_weights_move_with_their_positions_from_layout_to_layout(layout, view, t):
    at = jnp.array([t, t + 1], jnp.int32)
    weights = 1.0 + layout.positions(at).astype(jnp.float32)[:, None, :]
    moved = np.asarray(caches.view_weights(weights, layout, view, at))[:, 0]
    positions = np.asarray(view.positions(at))
    filled = positions <= np.asarray(at)[:, None]
    np.testing.assert_array_equal(moved[filled], 1.0 + positions[filled])
    if layout != view:
        assert not moved[~filled].any()


def test_a_window_as_long_as_the_cache_is_the_whole_of_it():
    assert layout_of(Window(4, 12), 16) == Whole(16) == view_layout(Window(4, 12), Whole(16), 16)
    assert layout_of(Window(4, 11), 16) == Ring(4, 15)
    assert view_layout(Window(4, 11), Whole(16), 16) == Band(4, 15)


def store_shapes(text: str, batch: int = 2, max_length: int = 32):
    """Shapes of keys and values by block, and of the bias, in the last layer's cache."""
    model = tiny.make()
    fast = specialize(model, SinkMask.from_text(text), fills=tiny.make_fills(model))
    tokens = tiny.tokens_of(model, (batch, 4))
    _, cache = jax.eval_shape(lambda m: m.prefill(tokens, max_length=max_length), fast)
    last = cache.layers[-1]
    keys = [None if store is None else store.shape for store in last.keys]
    return keys, [store.shape for store in last.values], last.bias and last.bias.shape


@pytest.mark.parametrize(
    ("layer", "keys", "values", "bias"),
    [
        ("6f", [(2, 2, 32, 8)], [(2, 2, 32, 8)], None),
        ("6w(2,5)", [(2, 2, 7, 8)], [(2, 2, 7, 8)], None),
        ("6w(2,30)", [(2, 2, 32, 8)], [(2, 2, 32, 8)], None),
        ("3f 3w(2,5)", [(2, 32, 8), (2, 7, 8)], [(2, 32, 8), (2, 7, 8)], None),
        ("2f 4w(2,5)", [(2, 32, 8), (2, 7, 8)], [(2, 32, 8), (2, 7, 8)], None),
        ("w(1,9) w(2,5) s(zero) 3s(zero)", [(2, 11, 8)], [(2, 11, 8)], None),
        ("3f 3s(first)", [(2, 32, 8)], [(2, 32, 8)], (2, 40)),
        ("6s(first)", [], [], (2, 40)),
        ("6s(mean)", [], [], (2, 40)),
        ("6s(zero)", [], [], None),
        ("6c(0,0)", [None], [(2, 2, 32, 8)], None),
        ("6c(0,1)", [None], [(2, 2, 5, 8)], None),
        ("2c(0,0) f 3c(0,1)", [(2, 32, 8), None], [(2, 32, 8), (2, 5, 8)], None),
        ("2c(0,0) w(1,2) 3f", [(2, 3, 8), (2, 32, 8)], [(2, 32, 8), (2, 32, 8)], None),
    ],
)
def test_the_cache_holds_what_the_mask_needs_and_no_more(layer, keys, values, bias):
    assert store_shapes(f"L0: f w(1,4) 4f | L1: 6f | L2: {layer}") == (keys, values, bias)


@pytest.mark.default_compilation
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_a_donated_cache_is_updated_in_place_on_every_path(batch, kv_heads):
    model = tiny.make(num_kv_heads=kv_heads, head_dim=64, max_length=4096)
    mask = SinkMask.from_text(
        "L0: 2f w(2,500) s(first) w(2,500) w(1,400) | L1: 6w(2,500) | "
        "L2: c(0,0) 2f c(0,2) s(mean) f"
    )
    fast = specialize(model, mask, fills=tiny.make_fills(model))
    tokens = tiny.tokens_of(model, (batch, 8))
    _, cache = jax.eval_shape(lambda m: m.prefill(tokens, max_length=2048), fast)
    decode = jax.jit(lambda m, x, c: m.decode(x, c), donate_argnums=2)
    compiled = decode.lower(fast, tokens[:, 0], cache).compile()
    assert copies_of_stores(compiled.as_text(), cache) == []
    cache_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    assert compiled.memory_analysis().alias_size_in_bytes == cache_bytes
