"""A prompt in pieces gives what it gives at once: logits, and a cache for decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from masks import masks

from sinkjax.attention import stream
from sinkjax.masks.mask import SinkMask
from sinkjax.models.config import RopeConfig
from sinkjax.programs.scan import scanned
from sinkjax.specialize.build import specialize
from sinkjax.testing.oracle import reference_logits

TOLERANCE = 1e-5
MIXED = SinkMask.from_text(
    "L0: 2f w(2,5) s(first) w(0,70) f | L1: c(0,0) s(mean) f c(0,2) s(zero) w(3,4) | "
    "L2: c(0,2) c(0,4) w(2,9) 2s(mean) f"
)


def by_pieces(model, tokens, prompts, first, size, max_length) -> np.ndarray:
    """Logits after each row's prompt and each of the tokens that follow: [B, steps + 1, V].

    The first piece has `first` tokens, the further ones `size` each.
    """
    prompts = np.asarray(prompts, np.int32)
    steps, longest = tokens.shape[1] - max(prompts), max(prompts)
    counts = np.minimum(prompts, first)
    prefill = tiny.quick_jit(
        lambda m, x, n, final: m.prefill(x, lengths=n, max_length=max_length, final_lengths=final)
    )
    extend = tiny.quick_jit(lambda m, x, c, n: m.extend(x, c, lengths=n))
    decode = tiny.quick_jit(lambda m, x, c: m.decode(x, c))
    logits, cache = prefill(model, tokens[:, :first], counts, prompts)
    last = np.asarray(logits)
    for start in range(first, longest, size):
        piece = np.zeros((len(prompts), size), np.int32)
        piece[:, : longest - start] = tokens[:, start : min(start + size, longest)]
        logits, cache = extend(model, jnp.asarray(piece), cache, prompts)
        ends_here = (prompts > start) & (prompts <= start + size)
        last = np.where(ends_here[:, None], logits, last)
    np.testing.assert_array_equal(cache.lengths, prompts)
    out = [last]
    for step in range(steps):
        token = jnp.take_along_axis(tokens, (prompts + step)[:, None], axis=1)[:, 0]
        logits, cache = decode(model, token, cache)
        out.append(np.asarray(logits))
    return np.stack(out, axis=1)


def assert_as_at_once(model, mask, tokens, prompts, first, size, max_length, loops=False) -> None:
    """Against the dense oracle, which knows neither pieces nor caches."""
    fills = tiny.make_fills(model)
    fast = specialize(model, mask, fills=jnp.asarray(fills))
    ours = by_pieces(scanned(fast) if loops else fast, tokens, prompts, first, size, max_length)
    lengths = jnp.asarray(prompts, jnp.int32)
    wanted = reference_logits(model, mask, tokens, fills=fills, prompt_lengths=lengths)
    np.testing.assert_allclose(ours, tiny.after(wanted, prompts), rtol=0, atol=TOLERANCE)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_mask_in_any_pieces_equals_the_oracle(data):
    kv_heads = data.draw(st.sampled_from([1, 2, 3, 6]))
    mask = data.draw(masks(num_layers=2, num_heads=6, num_kv_heads=kv_heads))
    cap, windows = data.draw(st.sampled_from([(None, ()), (1.5, ()), (None, (7, 9))]))
    model = tiny.make(num_layers=2, num_kv_heads=kv_heads, score_cap=cap, layer_windows=windows)
    first, size = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 7))
    prompts = data.draw(st.lists(st.integers(1, 20), min_size=2, max_size=2))
    last = max(first, max(prompts))
    room = first + -(-(last - first) // size) * size  # of the last piece's padding too
    tokens = tiny.tokens_of(model, (2, max(prompts) + 3))
    max_length = max(room, max(prompts) + 3) + data.draw(st.integers(0, 9))
    assert_as_at_once(model, mask, tokens, prompts, min(first, last), size, max_length)


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("loops", [False, True])
def test_pieces_beyond_a_block_equal_the_oracle(kv_heads, loops, monkeypatch):
    monkeypatch.setattr(stream, "STREAMED", 96)  # so that a piece is some blocks and a rest
    cap = 1.5 if kv_heads == 1 else None
    model = tiny.make(num_kv_heads=kv_heads, max_length=512, num_layers=3, score_cap=cap)
    tokens = tiny.tokens_of(model, (3, 423))
    assert_as_at_once(model, MIXED, tokens, [420, 131, 7], 20, 200, 425, loops)


@pytest.mark.parametrize(("first", "size"), [(1, 27), (3, 8)])
def test_first_tokens_in_a_piece_after_which_the_models_own_window_leaves_them(first, size):
    model = tiny.make(layer_windows=(10, None, 10))
    mask = SinkMask.from_text(
        "L0: 2w(4,5) f w(30,6) w(2,3) f | L1: f 2w(4,5) 3s(first) | L2: 2w(4,5) f w(90,5) c(0,0) f"
    )
    assert_as_at_once(model, mask, tiny.tokens_of(model, (2, 30)), [27, 9], first, size, 34)


def test_a_prompt_under_dynamic_rope_turns_by_its_whole_length():
    model = tiny.make(rope=RopeConfig(type="dynamic", theta=1e4, factor=2.0), max_length=16)
    tokens = tiny.tokens_of(model, (2, 30))
    assert_as_at_once(model, MIXED, tokens, [27, 9], 7, 10, 30)


def test_memory_grows_with_the_piece_and_not_with_its_product_with_the_cache():
    def temporary(piece: int, room: int) -> int:
        model = tiny.make(num_layers=1, max_length=room)
        tokens = tiny.tokens_of(model, (1, piece))
        _, cache = jax.eval_shape(lambda m: m.prefill(tokens, max_length=room), model)
        extend = jax.jit(lambda m, x, c, n: m.extend(x, c, lengths=n), donate_argnums=2)
        compiled = extend.lower(model, tokens, cache, jnp.asarray([room])).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporary(256, 2048), temporary(256, 16384)
    scores_of_all = 4 * 6 * 256 * 16384
    assert many - few < scores_of_all / 8
