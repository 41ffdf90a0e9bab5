"""Logits against transformers: tiny random Llamas of every kind, and the real one."""

import functools
import operator

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import sinkjax
from sinkjax.checkpoint import weights

TOLERANCE = 1e-4
LONG = 100  # beyond the 64 positions that the tiny models are made for


@pytest.mark.parametrize("kind", hf.KINDS)
def test_logits_equal_transformers(kind, tmp_path):
    oracle = hf.save_llama(tmp_path, **hf.KINDS[kind])
    model = sinkjax.load(tmp_path)
    for length in (1, 17, LONG):
        tokens = hf.random_tokens((2, length))
        ours = tiny.call(model, jnp.asarray(tokens))
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, hf.logits(oracle, tokens), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_shards_load_to_the_same_float32_model(dtype, tmp_path):
    oracle = hf.save_llama(tmp_path, dtype=dtype)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    tokens = hf.random_tokens((2, 33))
    ours = tiny.call(sinkjax.load(tmp_path), jnp.asarray(tokens))
    np.testing.assert_allclose(ours, hf.logits(oracle, tokens), rtol=0, atol=TOLERANCE)


def test_bfloat16_parameters_give_float32_logits_near_the_float32_ones(tmp_path):
    oracle = hf.save_llama(tmp_path)
    tokens = hf.random_tokens((1, 33))
    ours = tiny.call(sinkjax.load(tmp_path, dtype="bfloat16"), jnp.asarray(tokens))
    assert ours.dtype == jnp.float32
    wanted = hf.logits(oracle, tokens)
    assert np.abs(np.asarray(ours) - wanted).mean() < 0.05 * np.abs(wanted).mean()


@pytest.mark.default_compilation
@pytest.mark.parametrize("rope", ["default", "dynamic"])
def test_padded_rows_equal_the_rows_alone(rope, tmp_path):
    hf.save_llama(tmp_path, rope_parameters=hf.ROPES[rope])
    model = sinkjax.load(tmp_path)
    tokens, lengths = hf.random_tokens((3, LONG)), np.array([5, 70, LONG], np.int32)
    call = jax.jit(lambda model, tokens, lengths: model(tokens, lengths=lengths))
    together = call(model, jnp.asarray(tokens), jnp.asarray(lengths))
    for row, length in enumerate(lengths):
        alone = call(model, jnp.asarray(tokens[row : row + 1, :length]), None)
        # Another shape is another order of sums: how far they part differs from CPU to CPU.
        np.testing.assert_allclose(together[row, :length], alone[0], rtol=1e-5, atol=1e-5)
    behind = np.arange(LONG) >= lengths[:, None]
    other = np.where(behind, (tokens + 1) % tokens.max(), tokens)
    again = call(model, jnp.asarray(other), jnp.asarray(lengths))
    for row, length in enumerate(lengths):  # of one shape: what stands behind changes no bit
        np.testing.assert_array_equal(together[row, :length], again[row, :length])


@pytest.mark.parametrize(
    ("names", "shard_bytes"),
    [
        (("rope_llama3", "attention_bias"), weights._SHARD_BYTES),
        (("rope_dynamic", "tied", "all_kv_heads"), 50_000),
        (("rope_yarn_mscale", "mlp_bias", "explicit_head_dim", "large_eps"), 50_000),
    ],
)
def test_saved_to_safetensors_transformers_gives_the_same_logits(
    names, shard_bytes, tmp_path, monkeypatch
):
    import transformers

    monkeypatch.setattr(weights, "_SHARD_BYTES", shard_bytes)
    oracle = hf.save_llama(
        tmp_path / "theirs", **functools.reduce(operator.or_, (hf.KINDS[name] for name in names))
    )
    sinkjax.save_safetensors(sinkjax.load(tmp_path / "theirs"), tmp_path / "ours")
    assert (len(list((tmp_path / "ours").glob("*.safetensors"))) > 1) == (shard_bytes == 50_000)
    tokens = hf.random_tokens((2, LONG))
    wanted = hf.logits(oracle, tokens)
    back = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager"
    ).eval()
    np.testing.assert_array_equal(hf.logits(back, tokens), wanted)


def test_the_model_runs_inside_the_users_own_transformations(tmp_path):
    hf.save_llama(tmp_path, num_hidden_layers=2)
    model, tokens = sinkjax.load(tmp_path), jnp.asarray(hf.random_tokens((2, 9)))
    plain = model(tokens)
    jitted = jax.jit(lambda m, x: m(x))(model, tokens)
    mapped = jax.jit(jax.vmap(lambda m, x: m(x[None])[0], in_axes=(None, 0)))(model, tokens)
    np.testing.assert_allclose(jitted, plain, rtol=0, atol=1e-5)
    np.testing.assert_allclose(mapped, plain, rtol=0, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda m: jnp.square(m(tokens)).mean()))(model)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def _largest_kl(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest KL(theirs || ours) of a position, nats; logits [B, T, V], in float64."""
    ours, theirs = (
        x.astype(np.float64) - np.logaddexp.reduce(x.astype(np.float64), axis=-1, keepdims=True)
        for x in (ours, theirs)
    )
    return float((np.exp(theirs) * (theirs - ours)).sum(axis=-1).max())


def test_the_real_model_equals_transformers_on_the_same_file(
    smollm2, smollm2_tokenizer, hf_smollm2
):
    """Ours as one padded batch, transformers' each by itself."""
    rows = [smollm2_tokenizer(text)["input_ids"] for text in hf.TEXTS]
    lengths = list(map(len, rows))
    tokens = np.array([row + [0] * (max(lengths) - len(row)) for row in rows], np.int32)
    logits = np.asarray(smollm2(jnp.asarray(tokens), lengths=jnp.asarray(lengths, jnp.int32)))
    for ours, row in zip(logits, rows, strict=True):
        wanted = hf.logits(hf_smollm2, np.array([row]))
        assert _largest_kl(ours[None, : len(row)], wanted) < 1e-6


def test_the_real_model_knows_the_capital_of_france(smollm2, smollm2_tokenizer):
    prompt = smollm2_tokenizer("The capital of France is")["input_ids"]
    tokens = np.zeros((1, len(prompt) + 3), np.int32)
    tokens[0, : len(prompt)] = prompt
    for length in range(len(prompt), tokens.shape[1]):
        logits = smollm2(jnp.asarray(tokens), lengths=jnp.asarray([length], jnp.int32))
        tokens[0, length] = logits[0, length - 1].argmax()
    assert smollm2_tokenizer.decode(tokens[0]).startswith("The capital of France is Paris")


def test_the_real_model_saved_to_safetensors_is_the_same_in_transformers(
    smollm2_gguf, smollm2_tokenizer, hf_smollm2_later, tmp_path
):
    """Each of the three models is gone before the next one is loaded."""
    import transformers

    sinkjax.save_safetensors(sinkjax.load(smollm2_gguf), tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager"
    ).eval()
    tokens = np.array([smollm2_tokenizer(hf.TEXTS[2])["input_ids"]], np.int32)
    logits = hf.logits(back, tokens)
    del back
    np.testing.assert_array_equal(logits, hf.logits(hf_smollm2_later(), tokens))
