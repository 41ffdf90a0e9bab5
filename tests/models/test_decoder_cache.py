"""Prefill and decode of the baseline, against transformers' cached generation."""

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from stores import copies_of_stores

import sinkjax

TOLERANCE = 1e-4
DECODED = [kind for kind in hf.KINDS if "rope" in kind or "kv" in kind or "attention" in kind]


def decoded_logits(model, tokens, lengths, steps, max_length) -> np.ndarray:
    """Ours: row b's prompt has lengths[b] tokens, its next ones are fed one by one."""
    tokens, lengths = jnp.asarray(tokens), jnp.asarray(lengths, jnp.int32)
    padded = int(lengths.max())
    logits, cache = jax.jit(lambda m, x, n: m.prefill(x, lengths=n, max_length=max_length))(
        model, tokens[:, :padded], lengths
    )
    decode = jax.jit(lambda m, x, c: m.decode(x, c), donate_argnums=2)
    out = [logits]
    for step in range(steps):
        token = jnp.take_along_axis(tokens, (lengths + step)[:, None], axis=1)[:, 0]
        logits, cache = decode(model, token, cache)
        out.append(logits)
    np.testing.assert_array_equal(cache.lengths, lengths + steps)
    return np.stack(out, axis=1)


@pytest.mark.parametrize("kind", DECODED)
def test_decoding_equals_transformers_cached_generation(kind, tmp_path):
    oracle = hf.save_llama(tmp_path, **hf.KINDS[kind])
    tokens = hf.random_tokens((2, 72))  # across the 64 positions that the models are made for
    ours = decoded_logits(sinkjax.load(tmp_path), tokens, [60, 60], 12, max_length=80)
    wanted = hf.cached_logits(oracle, tokens, 60)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("rope", ["rope_default", "rope_dynamic"])
@pytest.mark.parametrize("kind", ["one_kv_head", "all_kv_heads"])
def test_ragged_rows_decode_as_the_rows_alone(rope, kind, tmp_path):
    oracle = hf.save_llama(tmp_path, **hf.KINDS[rope], **hf.KINDS[kind])
    tokens, lengths, steps = hf.random_tokens((3, 76)), [1, 30, 66], 9
    ours = decoded_logits(sinkjax.load(tmp_path), tokens, lengths, steps, max_length=75)
    for row, length in enumerate(lengths):
        # A fresh oracle: transformers keeps the frequencies of the longest row it has seen.
        fresh = hf.make_llama(**hf.KINDS[rope], **hf.KINDS[kind])
        fresh.load_state_dict(oracle.state_dict())
        wanted = hf.cached_logits(fresh, tokens[row : row + 1, : length + steps], length)
        np.testing.assert_allclose(ours[row], wanted[0], rtol=0, atol=TOLERANCE)


def test_a_prompt_beyond_max_length_is_refused(tmp_path):
    hf.save_llama(tmp_path)
    model = sinkjax.load(tmp_path)
    with pytest.raises(sinkjax.InputError, match="max_length is 8, but the prompt has 9 tokens"):
        model.prefill(jnp.zeros((1, 9), jnp.int32), max_length=8)


def test_a_piece_that_has_no_room_is_refused(tmp_path):
    hf.save_llama(tmp_path)
    model = sinkjax.load(tmp_path)
    _, cache = model.prefill(jnp.zeros((1, 5), jnp.int32), max_length=8)
    with pytest.raises(sinkjax.InputError, match="max_length is 8, but the prompt has 9 tokens"):
        model.extend(jnp.zeros((1, 4), jnp.int32), cache, lengths=jnp.asarray([9]))
    _, cache = model.extend(jnp.zeros((1, 3), jnp.int32), cache, lengths=jnp.asarray([8]))
    assert cache.lengths.tolist() == [8]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_no_tokens_are_refused(shape, tmp_path):
    hf.save_llama(tmp_path)
    model, nothing = sinkjax.load(tmp_path), jnp.zeros(shape, jnp.int32)
    _, cache = model.prefill(jnp.zeros((1, 2), jnp.int32), max_length=8)
    for call in (
        lambda: model(nothing),
        lambda: model.prefill(nothing, max_length=8),
        lambda: model.extend(nothing, cache, lengths=jnp.asarray([3])),
        lambda: sinkjax.specialize(model, sinkjax.SinkMask.from_text("L0-2: 6s(first)"))(nothing),
    ):
        with pytest.raises(sinkjax.InputError, match="at least one row of one token is needed"):
            call()


@pytest.mark.parametrize(
    "tokens",
    [np.ones(3, int), np.ones((1, 3)), np.ones((1, 3), bool), np.ones((1, 3, 1), int), [[1]]],
)
def test_what_is_no_batch_of_ids_is_refused(tokens):
    with pytest.raises(sinkjax.InputError, match=r"an array \[B, T\] of whole numbers"):
        tiny.make(num_layers=1)(tokens)


def test_ids_outside_the_vocabulary_give_what_is_documented(tmp_path):
    hf.save_llama(tmp_path)
    model = sinkjax.load(tmp_path)
    logits = model(jnp.asarray([[1, 100], [1, -1], [1, 101], [1, -102]], jnp.int32))
    np.testing.assert_array_equal(logits[1], logits[0])
    assert np.isnan(logits[2:, 1]).all()


def test_bfloat16_decodes(tmp_path):
    hf.save_llama(tmp_path)
    tokens = hf.random_tokens((2, 40))
    wanted = decoded_logits(sinkjax.load(tmp_path), tokens, [30, 20], 5, max_length=48)
    model = sinkjax.load(tmp_path, dtype="bfloat16")
    ours = decoded_logits(model, tokens, [30, 20], 5, max_length=48)
    assert ours.dtype == np.float32
    assert np.abs(ours - wanted).mean() < 0.05 * np.abs(wanted).mean()


@pytest.mark.default_compilation
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", ["one_kv_head", "two_kv_heads", "all_kv_heads"])
def test_a_donated_cache_is_updated_in_place(batch, kind, tmp_path):
    hf.save_llama(tmp_path, **hf.KINDS[kind], head_dim=64)  # so that stores dwarf scores
    model, tokens = sinkjax.load(tmp_path), jnp.asarray(hf.random_tokens((batch, 8)))
    _, cache = model.prefill(tokens, max_length=4096)
    decode = jax.jit(lambda m, x, c: m.decode(x, c), donate_argnums=2)
    extend = jax.jit(lambda m, x, c: m.extend(x, c, lengths=c.lengths + 8), donate_argnums=2)
    cache_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    for stage, new in ((decode, tokens[:, 0]), (extend, tokens)):
        compiled = stage.lower(model, new, cache).compile()
        assert copies_of_stores(compiled.as_text(), cache) == []
        memory = compiled.memory_analysis()
        assert memory.alias_size_in_bytes == cache_bytes
        assert memory.temp_size_in_bytes < cache_bytes / 4


def test_the_real_model_decodes_as_transformers(smollm2, smollm2_tokenizer, hf_smollm2):
    text = "In 1969, after eight years of work, two people walked on the Moon while a third"
    tokens = np.array([smollm2_tokenizer(text)["input_ids"]], np.int32)
    prompt = tokens.shape[1] - 6
    ours = decoded_logits(smollm2, tokens, [prompt], 6, max_length=32)
    np.testing.assert_allclose(ours, hf.cached_logits(hf_smollm2, tokens, prompt), atol=2e-4)
