"""The oracle against the formulas, number by number, and against transformers."""

import hf
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Copy, Full, Sink, Window
from sinkjax.testing.oracle import apply_pattern, attention_scores, head_pattern, reference_logits

T, G, K, H = 11, 2, 2, 4
RNG = np.random.default_rng(0)
Q, KEYS, VALUES = (RNG.normal(size=(1, T, heads, H)).astype(np.float32) for heads in (K * G, K, K))


def softmax_over(visible: list[int], query: int, head: int) -> dict[int, float]:
    """Weights of the visible keys, in float64."""
    score = {s: float(Q[0, query, head] @ KEYS[0, s, head // G]) / H**0.5 for s in visible}
    total = sum(np.exp(value) for value in score.values())
    return {s: np.exp(value) / total for s, value in score.items()}


def expected_weights(path, query: int, head: int) -> dict[int, float]:
    """ARCHITECTURE's formulas, one query at a time."""
    match path:
        case Full():
            return softmax_over(list(range(query + 1)), query, head)
        case Window(c, w):
            seen = [s for s in range(query + 1) if s < c or query - w < s]
            return softmax_over(seen, query, head)
        case Sink("first"):
            return {0: 1.0}
        case Sink():
            return {0: 1.0} if query == 0 else {}


@pytest.mark.quick
@pytest.mark.parametrize(
    "path",
    [
        *(Full(), Window(0, 1), Window(2, 3), Window(3, 20), Window(20, 2)),
        *(Sink("first"), Sink("zero"), Sink("mean")),
    ],
    ids=str,
)
def test_patterns_follow_the_formulas(path):
    scores = attention_scores(jnp.asarray(Q), jnp.asarray(KEYS))
    pattern = np.stack([head_pattern(path, scores[:, n], {}) for n in range(K * G)], axis=1)
    outputs = apply_pattern(jnp.asarray(pattern), jnp.asarray(VALUES))
    for head in range(K * G):
        for query in range(T):
            weights = expected_weights(path, query, head)
            row = [weights.get(s, 0.0) for s in range(T)]
            np.testing.assert_allclose(pattern[0, head, query], row, rtol=0, atol=1e-6)
            output = sum((w * VALUES[0, s, head // G] for s, w in weights.items()), np.zeros(H))
            np.testing.assert_allclose(outputs[0, query, head], output, rtol=0, atol=1e-6)


def test_a_copied_pattern_is_the_sources():
    source = jnp.asarray(RNG.normal(size=(1, T, T)).astype(np.float32))
    assert head_pattern(Copy(3, 1), jnp.zeros((1, T, T)), {(3, 1): source}) is source


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_with_every_head_full_it_is_transformers(kv_heads, tmp_path):
    oracle = hf.save_llama(tmp_path, num_key_value_heads=kv_heads, attention_bias=True)
    model, tokens = sinkjax.load(tmp_path), hf.random_tokens((2, 19))
    logits = reference_logits(model, SinkMask.full(model.config), jnp.asarray(tokens))
    np.testing.assert_allclose(logits, hf.logits(oracle, tokens), rtol=0, atol=1e-5)
