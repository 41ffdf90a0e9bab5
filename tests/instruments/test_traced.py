"""Traced paths against static masks: the same numbers from one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from masks import masks, problems_of

from sinkjax import SinkMask
from sinkjax.instruments.traced import traced_layer, traced_paths, traced_residuals
from sinkjax.masks.paths import Full, Sink, Window
from sinkjax.testing.oracle import reference_logits

pytestmark = pytest.mark.quick

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model():
    return tiny.make()


@pytest.fixture(scope="module")
def fills(model):
    return tiny.make_fills(model)


def traced_logits(model, mask, tokens, fills=None, lengths=None):
    paths = traced_paths(mask, model.config, fills=fills)
    return model.logits(traced_residuals(model, tokens, paths, lengths=lengths))


def without_copies(mask: SinkMask) -> SinkMask:
    return SinkMask(
        tuple(
            tuple(path if isinstance(path, Full | Sink | Window) else Full() for path in layer)
            for layer in mask.heads
        )
    )


@settings(max_examples=25, deadline=None)
@given(mask=masks(3, 6, 2, max_recent=12))
def test_every_mask_equals_the_oracle_and_none_compiles_anew(mask, model, fills):
    mask, tokens = without_copies(mask), tiny.tokens_of(model, (2, 12))
    logits = traced_logits(model, mask, tokens, fills)
    wanted = reference_logits(model, mask, tokens, fills=jnp.asarray(fills))
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())
    compiled = traced_layer._cache_size()
    other = SinkMask(((Window(1, 3), *mask.heads[0][1:]), *mask.heads[1:]))
    traced_logits(model, other, tokens, fills)
    assert traced_layer._cache_size() == compiled


def test_blocks_of_queries_and_ragged_rows_equal_the_oracle():
    model = tiny.make(attention_bias=True, mlp_bias=True, max_length=512, score_cap=1.5)
    tokens, fills = tiny.tokens_of(model, (2, 300)), tiny.make_fills(model)
    mask = SinkMask.from_text(
        "L0: 2f w(2,5) s(first) w(0,150) f | L1: 6w(4,128) | "
        "L2: 2s(mean) s(zero) f w(1,64) s(first)"
    )
    lengths = jnp.asarray([300, 131])
    logits = traced_logits(model, mask, tokens, fills, lengths)
    wanted = reference_logits(model, mask, tokens, lengths=lengths, fills=fills)
    for row, length in enumerate(lengths.tolist()):
        difference = np.abs(logits[row, :length] - wanted[row, :length]).max()
        assert difference < TOLERANCE * np.abs(wanted[row]).max()


def test_a_gate_mixes_the_path_and_the_fill(model):
    tokens, mask = tiny.tokens_of(model, (2, 9)), SinkMask.from_text("L0-2: 6s(first)")
    sinks = traced_paths(mask, model.config)
    full = traced_paths(SinkMask.full(model.config), model.config)
    half = full.replace(attends=jnp.full((3, 6), 0.5), first=sinks.first)

    def loss(attends):
        residual = traced_residuals(model, tokens, half.replace(attends=attends))
        return jnp.sum(jnp.square(residual - traced_residuals(model, tokens, full)))

    assert loss(full.attends) == 0
    slope = jax.grad(loss)(half.attends)
    assert np.isfinite(slope).all()
    assert (np.abs(slope) > 0).all()


def test_what_traced_paths_cannot_say_is_refused(model):
    copies = SinkMask.from_text("L0: 6f | L1-2: 5f c(0,0)")
    assert "copy" in problems_of(traced_paths, copies, model.config)[0]
    means = SinkMask.from_text("L0-2: 6s(mean)")
    assert "fills" in problems_of(traced_paths, means, model.config)[0]
