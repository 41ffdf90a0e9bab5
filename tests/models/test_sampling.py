"""Drawing tokens: against distributions computed by hand, and against transformers' own filters."""

import hf
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf import torch

import sinkjax
from sinkjax.models import sampling
from sinkjax.models.sampling import make_sampler
from sinkjax.programs.options import choose

pytestmark = pytest.mark.quick

logits_process = hf.oracle("transformers.generation.logits_process")

VOCAB = 29
DRAWS = 4000

draw = jax.jit(sampling.draw)


def _logits(rows: int = 1, seed: int = 0, vocab: int = VOCAB) -> jax.Array:
    return 2 * jax.random.normal(jax.random.key(seed), (rows, vocab), jnp.float32)


def _positions(rows: int, start: int = 0) -> jax.Array:
    return jnp.arange(start, start + rows, dtype=jnp.int32)


def _many(logits: jax.Array, **settings) -> np.ndarray:
    """Draws of one row at many positions."""
    sampler = make_sampler([0] * DRAWS, **settings)
    rows = jnp.broadcast_to(logits, (DRAWS, logits.shape[-1]))
    return np.asarray(draw(rows, sampler, _positions(DRAWS)))


def _allowed(logits: np.ndarray, top_k: int | None, top_p: float | None) -> np.ndarray:
    """transformers' probabilities after its own filters, float64 [V]."""
    scores = torch.tensor(np.asarray(logits), dtype=torch.float64)
    if top_k is not None:
        scores = logits_process.TopKLogitsWarper(top_k)(None, scores)
    if top_p is not None:
        scores = logits_process.TopPLogitsWarper(top_p)(None, scores)
    return torch.softmax(scores, dim=-1).numpy()[0]


def test_temperature_zero_takes_the_likeliest_and_the_lower_id_among_equals():
    logits = jnp.asarray([[0.0, 3.0, 1.0, 3.0], [5.0, 1.0, 5.0, 5.0]], jnp.float32)
    tokens = draw(logits, make_sampler([1, 2]), _positions(2))
    assert tokens.tolist() == [1, 0]
    assert tokens.dtype == jnp.int32


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, None), (0.6, None, None), (1.0, 5, None), (1.0, None, 0.7), (1.7, 9, 0.8)],
)
def test_draws_follow_the_filtered_distribution(temperature, top_k, top_p):
    logits = _logits(seed=3)
    wanted = _allowed(np.asarray(logits) / temperature, top_k, top_p)
    tokens = _many(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    seen = np.bincount(tokens, minlength=VOCAB) / DRAWS
    assert (seen[wanted == 0] == 0).all()
    error = np.sqrt(wanted * (1 - wanted) / DRAWS)
    assert (np.abs(seen - wanted) <= 5 * error + 1e-12).all()


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    seed=st.integers(0, 2**16), top_k=st.integers(1, VOCAB + 3), top_p=st.floats(0.01, 1.0)
)
def test_no_token_is_drawn_that_transformers_would_filter(seed, top_k, top_p):
    logits = _logits(8, seed)
    sampler = make_sampler([seed] * 8, temperature=1.0, top_k=top_k, top_p=top_p)
    for row, token in enumerate(draw(logits, sampler, _positions(8))):
        # transformers drops from the tail up to 1 - p, so a share equal to p may fall either way.
        slack = _allowed(logits[row : row + 1], min(top_k, VOCAB), min(1.0, top_p + 1e-6))
        assert slack[int(token)] > 0


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(
    tokens=st.lists(
        st.tuples(st.sampled_from([-2.5, -1.0, -0.0, 0.0, 1e-30, 3.0]), st.integers(0, 3)),
        min_size=40,
        max_size=40,
    ),
    limit=st.integers(1, 70),
)
def test_the_first_tokens_up_to_a_weight_are_those_of_a_stable_sort(tokens, limit):
    values, weights = (np.array([column], np.float32) for column in zip(*tokens, strict=True))
    order = np.argsort(-values[0], kind="stable")
    before = weights[0, order].cumsum() - weights[0, order]
    wanted = sorted(order[before < limit].tolist())
    first = jax.jit(lambda v, w, n: sampling._first(sampling._keys(v), w, n))
    taken = first(jnp.asarray(values), jnp.asarray(weights), jnp.full(1, limit, jnp.float32))
    assert np.flatnonzero(taken[0]).tolist() == wanted


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-40, 1.1e-38, 1e-37, 1e-9])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.5}, {"top_p": 1e-45}])
def test_a_temperature_of_almost_nothing_takes_the_likeliest(temperature, filters):
    """Whatever the device makes of numbers below the least normal one."""
    logits = _logits(50, vocab=200) + 40  # over such temperatures beyond float32
    sampler = make_sampler(range(50), temperature=temperature, **filters)
    for compiled in (draw, _compiled_as_programs_are(logits, sampler)):
        tokens = compiled(logits, sampler, _positions(50))
        np.testing.assert_array_equal(tokens, logits.argmax(axis=-1))


def test_a_temperature_of_almost_nothing_draws_among_equals():
    logits = jnp.asarray([[1.0, 3.0, 2.0, 3.0]], jnp.float32)
    assert set(_many(logits, temperature=1e-40).tolist()) == {1, 3}


@pytest.mark.parametrize("temperature", [1e38, 1e39, 1e300])
def test_the_likeliest_tokens_stay_so_at_any_temperature(temperature):
    logits = _logits(seed=4)
    likeliest = np.argsort(-np.asarray(logits[0]))[:3]
    assert set(_many(logits, temperature=temperature, top_k=3).tolist()) == set(likeliest.tolist())
    assert len(set(_many(logits, temperature=temperature).tolist())) == VOCAB


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 2}])
def test_nothing_is_drawn_from_logits_that_are_not_finite(value, settings):
    """In a vocabulary so wide that reductions are vectorized, which lost NaN in a maximum."""
    logits = _logits(3, vocab=20_000)
    damaged = logits.at[1, 777].set(value)
    sampler = make_sampler(range(3), **settings)
    wanted = np.where([False, True, False], sampling.NO_TOKEN, draw(logits, sampler, _positions(3)))
    for compiled in (draw, _compiled_as_programs_are(logits, sampler)):
        np.testing.assert_array_equal(compiled(damaged, sampler, _positions(3)), wanted)


def _compiled_as_programs_are(logits: jax.Array, sampler: sampling.Sampler):
    lowered = draw.lower(logits, sampler, _positions(len(logits)))
    return lowered.compile(compiler_options=dict(choose("cpu", 1).decode_options))


def test_a_filter_that_removes_nothing_changes_no_draw():
    logits, positions = _logits(50), _positions(50)
    plain = draw(logits, make_sampler(range(50), temperature=0.9), positions)
    almost = make_sampler(range(50), temperature=0.9, top_k=VOCAB, top_p=1.0 - 1e-7)
    np.testing.assert_array_equal(draw(logits, almost, positions), plain)


def test_a_row_draws_the_same_alone_and_among_others():
    logits = _logits(6)
    together = draw(logits, make_sampler(range(10, 16), temperature=1.0), _positions(6, 40))
    for row in range(6):
        alone = make_sampler([10 + row], temperature=1.0)
        token = draw(logits[row : row + 1], alone, _positions(1, 40 + row))
        assert int(token[0]) == int(together[row])


def test_seeds_and_positions_both_matter():
    logits = jnp.zeros((1, 5_000), jnp.float32)

    def token(seed: int, position: int) -> int:
        return int(draw(logits, make_sampler([seed], temperature=1.0), _positions(1, position))[0])

    assert len({token(0, 0), token(1, 0), token(0, 1), token(2**32 - 1, 0)}) == 4
    assert token(7, 3) == token(7, 3)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": -1.0}, ["temperature"]),
        (
            {"temperature": float("nan"), "top_k": 0, "top_p": 1.5},
            ["temperature", "top_k", "top_p"],
        ),
        ({"temperature": 1.0, "top_p": 0.0}, ["top_p"]),
        ({"top_k": 5}, ["top_k and top_p would change nothing"]),
    ],
)
def test_settings_out_of_range_are_all_named(settings, named):
    with pytest.raises(sinkjax.InputError) as error:
        make_sampler([0], **settings)
    assert len(error.value.problems) == len(named)
    for problem, name in zip(map(str, error.value.problems), named, strict=True):
        assert name in problem
