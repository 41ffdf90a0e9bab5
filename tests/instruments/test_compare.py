"""Quality against float64 on whole logits, slow counting, the dense oracle and transformers."""

import dataclasses
import json
import math
import statistics

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from losses import kl_of, nll_of
from scipy import stats as distributions

import sinkjax
from sinkjax import InputError, SinkMask
from sinkjax.instruments import token_losses as tokens_module
from sinkjax.instruments.compare import QualityStats, compare
from sinkjax.instruments.token_losses import OutputHead, compare_tokens, residuals, score_tokens
from sinkjax.models.config import RopeConfig
from sinkjax.specialize.build import specialize
from sinkjax.studies.quality.measure import first_differences
from sinkjax.studies.quality.summary import (
    measured_quality,
    summarize_continuation,
    summarize_quality,
)
from sinkjax.studies.resampling import resample_counts
from sinkjax.testing.oracle import reference_logits

MASK = SinkMask.from_text("L0: 4f 2w(1,3) | L1: 3s(first) 3w(2,9) | L2: c(0,0) 2f s(zero) 2s(mean)")
VOCAB = 211


@pytest.fixture(scope="module")
def model():
    return tiny.make(vocab_size=VOCAB)


@pytest.fixture(scope="module")
def other():
    return tiny.make(seed=7, vocab_size=VOCAB, tie_embeddings=False)


def excerpts_of(model, count=3, length=64):
    """3 x 64 positions: more than one block of them, and no whole number of blocks."""
    return np.asarray(tiny.tokens_of(model, (count, length)))


@pytest.mark.parametrize("score_from", [0, 5])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_stats_are_what_whole_logits_say(model, other, score_from, batch_size):
    tokens = excerpts_of(model)
    stats = compare(model, other, tokens, score_from=score_from, batch_size=batch_size)
    ours, theirs = model(jnp.asarray(tokens)), other(jnp.asarray(tokens))
    np.testing.assert_array_equal(stats.positions, np.arange(score_from, 64))
    np.testing.assert_allclose(stats.kl, kl_of(ours, theirs)[:, score_from:], rtol=1e-5)
    order = [np.argsort(-np.asarray(logits), axis=-1) for logits in (ours, theirs)]
    np.testing.assert_array_equal(
        stats.top1, (order[0][..., 0] == order[1][..., 0])[:, score_from:]
    )
    shared = [
        [len(set(x[:5]) & set(y[:5])) / 5 for x, y in zip(row, its, strict=True)]
        for row, its in zip(*order, strict=True)
    ]
    assert len(np.unique(shared)) > 1
    np.testing.assert_allclose(stats.top5, np.array(shared)[:, score_from:], atol=1e-7)
    for name, logits in (("baseline", ours), ("candidate", theirs)):
        nll, correct = getattr(stats, f"{name}_nll"), getattr(stats, f"{name}_correct")
        np.testing.assert_allclose(nll, nll_of(logits, tokens)[:, score_from:], rtol=1e-5)
        likeliest = np.asarray(logits).argmax(axis=-1)[:, score_from:-1]
        np.testing.assert_array_equal(correct, likeliest == tokens[:, score_from + 1 :])


def test_a_mask_is_compared_as_the_dense_oracle_says(model):
    tokens, fills = excerpts_of(model), tiny.make_fills(model)
    stats = compare(model, specialize(model, MASK, fills=fills), tokens)
    wanted = reference_logits(model, MASK, jnp.asarray(tokens), fills=fills)
    np.testing.assert_allclose(
        stats.kl, kl_of(model(jnp.asarray(tokens)), wanted)[:, 1:], rtol=1e-3, atol=1e-7
    )
    assert stats.kl.mean() > 0.01
    np.testing.assert_allclose(stats.candidate_nll, nll_of(wanted, tokens)[:, 1:], rtol=1e-4)


@pytest.mark.parametrize("rope", [RopeConfig(), RopeConfig(type="dynamic", factor=2.0)])
def test_tokens_after_a_prompt_cost_what_decoding_them_one_by_one_costs(rope):
    """Held to the models' own decode steps and, but for dynamic rope, to the dense oracle."""
    model = tiny.make(vocab_size=VOCAB, rope=rope, max_length=24)
    tokens, fills, prompt = excerpts_of(model, length=32), tiny.make_fills(model), 20
    fast = specialize(model, MASK, fills=fills)
    stats = compare(model, fast, tokens, generated=12, batch_size=2)
    alone = compare(model, fast, tokens[:, :prompt], batch_size=2)
    for name, array in alone.arrays().items():
        if name != "generated_kl":
            np.testing.assert_array_equal(getattr(stats, name), array)
    assert alone.generated_kl.shape == (3, 0)

    prompts = np.full(3, prompt)
    steps = (tiny.decoded(m, jnp.asarray(tokens), prompts, 32)[:, 1:] for m in (model, fast))
    kl = kl_of(*steps)
    assert kl.mean() > 0.01
    np.testing.assert_allclose(stats.generated_kl, kl, rtol=1e-3, atol=1e-6)
    if rope.type != "dynamic":
        wanted = reference_logits(model, MASK, jnp.asarray(tokens), fills=fills)
        whole = kl_of(model(jnp.asarray(tokens)), wanted)
        np.testing.assert_allclose(stats.generated_kl, whole[:, prompt:], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_program_against_itself_costs_exactly_nothing(dtype):
    model = tiny.make(dtype=dtype, vocab_size=VOCAB)
    for candidate in (model, specialize(model, SinkMask.full(model.config))):
        stats = compare(model, candidate, excerpts_of(model), score_from=0)
        assert not stats.kl.any()
        assert stats.top1.all()
        assert (stats.top5 == 1).all()
        np.testing.assert_array_equal(stats.baseline_nll, stats.candidate_nll)


@pytest.mark.parametrize("noise", [1e-4, 1e-2, 0.3])
def test_small_divergences_keep_their_digits_and_none_is_negative(model, noise):
    """KL goes with the square of the change, far below the rounding of a logit."""
    other = nnx.clone(model)
    other.embedding.set_value(
        model.embedding[...] + noise * tiny.make(5, vocab_size=VOCAB).embedding[...]
    )
    tokens = jnp.asarray(excerpts_of(model))
    x = residuals(model, tokens)
    compared = compare_tokens(OutputHead(model), OutputHead(other), x, x, tokens)
    assert (np.asarray(compared.kl) >= 0).all()
    wanted = kl_of(model.logits(x), other.logits(x))
    np.testing.assert_allclose(compared.kl.mean(), wanted.mean(), rtol=max(1e-5, 1e-6 / noise))


def test_far_apart_models_have_a_finite_divergence(model):
    sharp = nnx.clone(model)
    sharp.norm.scale.set_value(model.norm.scale[...] * 100)
    flipped = nnx.clone(model)
    flipped.norm.scale.set_value(model.norm.scale[...] * -100)
    tokens = excerpts_of(model, 1)
    stats = compare(sharp, flipped, tokens, score_from=0)
    wanted = kl_of(sharp(jnp.asarray(tokens)), flipped(jnp.asarray(tokens)))
    assert stats.kl.mean() > 100
    np.testing.assert_allclose(stats.kl, wanted, rtol=1e-4)


def test_memory_does_not_grow_with_the_logits_of_a_text():
    model = tiny.make(vocab_size=20_011)

    def temporary(positions):
        x = jax.ShapeDtypeStruct((1, positions, model.config.embed_dim), jnp.float32)
        tokens = jax.ShapeDtypeStruct((1, positions), jnp.int32)
        compiled = jax.jit(compare_tokens).lower(*[OutputHead(model)] * 2, x, x, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporary(256), temporary(2048)
    logits_of_a_position = 4 * model.config.vocab_size
    assert short > 128 * logits_of_a_position
    assert long - short < 16 * logits_of_a_position  # 1792 positions more


@pytest.mark.default_compilation
def test_the_likeliest_tokens_are_selected_without_sorting_the_vocabulary(model):
    x, tokens = residuals(model, jnp.asarray(excerpts_of(model))), jnp.asarray(excerpts_of(model))
    head = OutputHead(model)
    for function, *arguments in (
        (compare_tokens, head, head, x, x, tokens),
        (score_tokens, head, x, tokens),
    ):
        assert " sort(" not in jax.jit(function).lower(*arguments).compile().as_text()


def test_one_models_scores_are_its_half_of_a_comparison(model, other):
    tokens = jnp.asarray(excerpts_of(model))
    x, y = residuals(model, tokens), residuals(other, tokens)
    heads = OutputHead(model), OutputHead(other)
    both, alone = compare_tokens(*heads, x, y, tokens), score_tokens(heads[1], y, tokens)
    np.testing.assert_allclose(alone.nll, both.candidate.nll, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(alone.correct, both.candidate.correct)


@pytest.mark.parametrize("rope", [RopeConfig(), RopeConfig("dynamic", factor=3.0)])
def test_residuals_are_those_of_the_whole_model(rope):
    """Also of layers that copy earlier ones' attention, in rows of different lengths."""
    baseline = tiny.make(rope=rope, max_length=16)
    fast = specialize(baseline, MASK, fills=tiny.make_fills(baseline))
    tokens, lengths = tiny.tokens_of(baseline, (3, 24)), jnp.array([24, 5, 17], jnp.int32)
    for model in (baseline, fast):
        stream = residuals(model, tokens, lengths)
        wanted = jax.jit(lambda m, x, n: m.hidden(x, lengths=n))(model, tokens, lengths)
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(
                stream[row, :length], wanted[row, :length], rtol=1e-5, atol=1e-5
            )


def test_positions_in_blocks_are_those_of_the_whole():
    x = jnp.arange(3 * 64 * 2, dtype=jnp.float32).reshape(3, 64, 2)
    doubled, sums = tokens_module.by_blocks(lambda x: (2 * x, x.sum(axis=-1)), x)
    np.testing.assert_array_equal(doubled, 2 * x)
    np.testing.assert_array_equal(sums, x.sum(axis=-1))


def test_layers_alike_are_compiled_once():
    model = tiny.make(num_layers=4, vocab_size=VOCAB)
    tokens = tiny.tokens_of(model, (2, 37))  # a shape that no other test has
    before = tokens_module._pass._cache_size()
    residuals(model, tokens)
    assert tokens_module._pass._cache_size() == before + 1
    sinks = SinkMask.from_text("L0-1: 6f | L2-3: 2s(first) 4f")
    residuals(specialize(model, sinks), tokens)
    assert tokens_module._pass._cache_size() == before + 2


def test_what_cannot_be_compared_is_refused(model):
    tokens = excerpts_of(model)
    for bad in (tokens[0], tokens[:0], tokens - VOCAB, tokens + VOCAB):
        with pytest.raises(ValueError, match=r"excerpts have shape|tokens lie between"):
            compare(model, model, bad)
    with pytest.raises(TypeError, match="whole numbers"):
        compare(model, model, tokens.astype(np.float32))
    with pytest.raises(ValueError, match="score_from is 64; the excerpts have positions 0 to 63"):
        compare(model, model, tokens, score_from=64)
    with pytest.raises(ValueError, match="vocabularies have 211 and 61"):
        compare(model, tiny.make(), tokens)
    broken = nnx.clone(model)
    broken.norm.scale.set_value(model.norm.scale[...] * jnp.inf)
    with pytest.raises(InputError, match="not finite at position 1 of excerpt 0"):
        compare(model, broken, tokens)


def stats_of(kl, seed=0):
    """Statistics with this KL, float32 [W, P], and all else drawn."""
    rng = np.random.default_rng(seed)
    count, size = kl.shape
    return QualityStats(
        positions=np.arange(1, size + 1, dtype=np.int32),
        kl=kl,
        top1=rng.random(kl.shape) < 0.5,
        top5=rng.random(kl.shape).astype(np.float32),
        baseline_nll=rng.random((count, size - 1)).astype(np.float32),
        candidate_nll=rng.random((count, size - 1)).astype(np.float32),
        baseline_correct=rng.random((count, size - 1)) < 0.5,
        candidate_correct=rng.random((count, size - 1)) < 0.5,
    )


def resampled(function, *arrays, seed=0):
    """The interval of a function of whole excerpts drawn again, one resample after another."""
    counts = resample_counts(len(arrays[0]), seed).astype(int)
    values = [function(*(np.repeat(a, row, axis=0) for a in arrays)) for row in counts]
    count = len(arrays[0])
    wide = distributions.t.ppf(0.975, count - 3) * (count / (count - 1)) ** 0.5
    return np.quantile(values, [distributions.norm.cdf(-wide), distributions.norm.cdf(wide)])


def assert_estimates(estimate, function, *arrays):
    np.testing.assert_allclose(estimate["value"], function(*arrays), rtol=1e-6, atol=1e-9)
    if estimate["low"] is None:
        each = [function(*(array[n : n + 1] for array in arrays)) for n in range(len(arrays[0]))]
        assert len(set(each)) == 1
        assert estimate["note"] == f"the same in all {len(each)} excerpts: no interval"
        return
    np.testing.assert_allclose(
        [estimate["low"], estimate["high"]], resampled(function, *arrays), rtol=1e-6, atol=1e-9
    )


def assert_lognormal(estimate, each):
    """Cox's interval, or the mean's own if wider, by Python's statistics and tables of t."""
    value, count = statistics.fmean(each), len(each)
    assert estimate["value"] == pytest.approx(value)
    if len(set(each)) == 1:
        assert estimate["low"] is estimate["high"] is None
        return
    relative = statistics.variance(each) / value**2
    spread = math.log(1 + relative) * (count + 8) / count
    if min(each) > 0:
        spread = min(spread, statistics.variance(map(math.log, each)))
    t = {8: 2.756509, 9: 2.612242, 10: 2.516752}[count]  # 98% of 5, 6 and 7 degrees of freedom
    error = math.sqrt(max(spread / count + spread**2 / (2 * count - 2), relative / count))
    factor = math.exp(t * error)
    assert [estimate["low"], estimate["high"]] == pytest.approx([value / factor, value * factor])


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(8, 10), st.integers(2, 9)),
        elements=st.floats(0, 8, width=16),
    )
)
def test_summaries_equal_slow_resampling(kl):
    stats = stats_of(kl)
    summary = summarize_quality(stats, MASK, seed=0)
    json.dumps(summary, allow_nan=False)
    mean = lambda x: x.mean(dtype=np.float64)  # noqa: E731
    assert summary["tokens"] == kl.size
    assert summary["kl"]["max"] == kl.max()
    assert_lognormal(summary["kl"]["mean"], [float(mean(excerpt)) for excerpt in kl])
    for percent in (95, 99):
        percentile = lambda x, q=percent: np.percentile(x, q, method="inverted_cdf")  # noqa: E731
        assert_estimates(summary["kl"][f"p{percent}"], percentile, kl)
    assert_estimates(summary["agreement"]["top1"], mean, stats.top1)
    assert_estimates(summary["agreement"]["top5"], mean, stats.top5)
    both = stats.baseline_nll, stats.candidate_nll
    change = lambda baseline, candidate: mean(candidate) - mean(baseline)  # noqa: E731
    assert_estimates(summary["nll"]["candidate"], mean, both[1])
    assert_estimates(summary["nll"]["change"], change, *both)
    assert_estimates(summary["perplexity"]["baseline"], lambda x: np.exp(mean(x)), both[0])
    assert_estimates(
        summary["perplexity"]["change"],
        lambda baseline, candidate: np.exp(mean(candidate)) / np.exp(mean(baseline)) - 1,
        *both,
    )


def test_positions_are_summed_up_in_spans_that_double():
    kl = np.arange(20, dtype=np.float32)[None, :] * np.ones((3, 1), np.float32)
    spans = summarize_quality(stats_of(kl), MASK, seed=0)["kl_by_position"]
    assert [(span["first"], span["last"]) for span in spans] == [
        (1, 1),
        (2, 3),
        (4, 7),
        (8, 15),
        (16, 20),
    ]
    for span in spans:  # kl is position - 1
        assert span["kl"]["value"] == (span["first"] + span["last"]) / 2 - 1


def test_a_summary_says_what_the_mask_costs_on_the_excerpts_first_tokens():
    """`MASK` acts from position 1 on; two tokens are generated after 40."""
    kl = np.random.default_rng(0).random((3, 41), np.float32)
    stats = dataclasses.replace(stats_of(kl[:, :39]), generated_kl=kl[:, 39:])
    shorter = summarize_quality(stats, MASK, seed=0)["shorter"]
    assert list(shorter) == ["20", "10", "5", "2"]
    parts = shorter["20"]
    spans = {"kl_acting": (1, 20), "kl_late": (15, 20), "kl_generated": (20, 22)}
    for name, (first, end) in spans.items():  # position 1 is column 0
        np.testing.assert_allclose(parts.pop(name), kl[:, first - 1 : end - 1].mean(), rtol=1e-6)
    assert not parts
    later = dataclasses.replace(stats, positions=stats.positions + 1)
    assert summarize_quality(later, MASK, seed=0)["shorter"] == {}


def test_two_tokens_have_a_divergence_and_no_next_token():
    summary = summarize_quality(stats_of(np.array([[0.5]], np.float32)), MASK, seed=0)
    assert summary["kl"]["mean"]["value"] == 0.5
    assert summary["kl"]["mean"]["low"] is None
    assert "a sample of one" in summary["kl"]["mean"]["note"]
    for measure in ("nll", "perplexity"):
        for name in ("baseline", "candidate", "change"):
            assert summary[measure][name]["value"] is None
            assert "no scored position has a next token" in summary[measure][name]["undefined"]


def test_first_differences_count_equal_tokens_from_the_front():
    baseline = np.array([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]])
    candidate = np.array([[1, 2, 3], [9, 2, 3], [1, 9, 3], [1, 2, 9]])
    agreeing = first_differences(baseline, candidate)
    assert agreeing.tolist() == [3, 0, 1, 2]
    few = summarize_continuation(agreeing, 3, seed=0)
    assert few["agreeing"] == {"value": 1.5, "low": None, "high": None, "each": [3, 0, 1, 2]}
    assert few["identical"] == {"value": 0.25, "low": None, "high": None, "each": [1, 0, 0, 0]}
    agreeing = np.tile(agreeing, 2)
    many = summarize_continuation(agreeing, 3, seed=0)
    assert_estimates(many["agreeing"], np.mean, agreeing)
    assert_estimates(many["identical"], np.mean, agreeing == 3)


def test_measured_quality_goes_into_a_masks_file(tmp_path):
    record = {
        "id": "ab",
        "kind": "quality",
        "model": {"name": "m", "model_digest": "cd"},
        "candidate": {"name": "mask.json"},
        "source": {"name": "text", "sha256": "ef", "role": "text"},
        "bos": "never",
        "length": 24,
        "num_windows": 3,
        "score_from": 1,
        "seed": 0,
        "result": summarize_quality(stats_of(np.ones((3, 23), np.float32)), MASK, seed=0),
    }
    quality = {"quality": measured_quality([record])}
    sinkjax.save_mask(tmp_path / "mask.json", SinkMask.from_text("L0-2: 6f"), quality=quality)
    (measured,) = sinkjax.load_mask(tmp_path / "mask.json").quality["quality"]
    assert measured["kl"] == record["result"]["kl"]
    assert measured["length"] == 24
    assert measured["text"] == "text"
    assert measured["record"] == "ab"
    assert measured["kl_by_position"] == record["result"]["kl_by_position"]


def test_perplexity_equals_transformers_on_the_real_model(smollm2, smollm2_tokenizer, hf_smollm2):
    """The first four chunks of 512 tokens of a text, the second half of each scored."""
    from sinkjax.studies.texts import CHOOSE, read_text

    text = read_text(CHOOSE, 1, seed=0).text
    tokens = smollm2_tokenizer(text[:20_000])["input_ids"][: 4 * 512]
    excerpts = np.array(tokens, np.int32).reshape(4, 512)
    stats = compare(smollm2, smollm2, excerpts, score_from=256, batch_size=1)
    assert not stats.kl.any()
    perplexity = summarize_quality(stats, MASK, seed=0)["perplexity"]["baseline"]["value"]
    nll = [nll_of(hf.logits(hf_smollm2, row[None])[:, 256:], row[None, 256:]) for row in excerpts]
    assert np.shape(nll) == (4, 1, 255)
    np.testing.assert_allclose(perplexity, np.exp(np.mean(nll)), rtol=1e-3)
