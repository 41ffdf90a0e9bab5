"""Slopes at the residual stream against JAX's own derivatives of the model's logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sinkjax import Sink, Window
from sinkjax.distributed import make_mesh
from sinkjax.instruments import sensitivity
from sinkjax.instruments.sensitivity import _slopes, predict_moves
from sinkjax.instruments.token_losses import OutputHead
from sinkjax.models.sharding import shard

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("cap", [None, 0.5])
def test_slopes_are_those_of_the_kl_of_the_nll_and_of_labels(cap):
    model = tiny.make(num_layers=1, logit_cap=cap, logit_scale=1.5)
    x, y = np.random.default_rng(0).normal(size=(2, 2, 5, 40)).astype(np.float32)
    y = x + y / 10

    def log_q(x):
        return jax.nn.log_softmax(model.logits(x))

    def kl(x):
        p, q = log_q(y), log_q(x)
        return jnp.sum((jnp.exp(p) * (p - q))[:, 1:])

    scored = jnp.ones((2, 5), int).at[:, 0].set(0)
    uniform = jax.random.uniform(jax.random.key(0), (2, 4, 4))
    slopes = np.asarray(_slopes(OutputHead(model), y, x, uniform, scored, 1))
    np.testing.assert_allclose(slopes[0], jax.grad(kl)(x), rtol=0, atol=1e-6)
    tokens = np.random.default_rng(1).integers(0, model.config.vocab_size, (2, 5))

    def nll(x):
        of_tokens = jnp.take_along_axis(log_q(x), tokens[..., None], axis=-1)
        return -jnp.sum(of_tokens[:, 1:])

    of_tokens = _slopes(OutputHead(model), tokens, x, uniform, scored, 1)
    np.testing.assert_allclose(of_tokens[0], jax.grad(nll)(x), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(of_tokens[1:], slopes[1:])
    of_labels = np.asarray(jax.jacobian(lambda x: log_q(x[None, None])[0, 0])(x[1, 3]))  # [V, D]
    for slope in slopes[1:, 1, 3]:
        assert np.abs(of_labels - slope).max(axis=1).min() < 1e-6


def test_every_device_of_a_mesh_has_a_batch_as_one_has_alone_and_the_same_draws(monkeypatch):
    """Six excerpts, two at a time on one device, the last eight of four devices filled up."""
    rows = []

    def batches(*of):
        for laid, count in sensitivity_batches(*of):
            rows.append((laid.shape[0], laid.sharding.shard_shape(laid.shape)[0]))
            yield laid, count

    sensitivity_batches = sensitivity.batches
    monkeypatch.setattr(sensitivity, "batches", batches)
    model = tiny.make(max_length=1024, num_layers=2)
    excerpts = np.asarray(tiny.tokens_of(model, (6, 700)))
    scored = np.broadcast_to(np.arange(700) >= 690, excerpts.shape)
    how = {"paths": (Sink("first"), Window(2, 16)), "samples": 2, "scored": scored}
    alone = predict_moves(model, excerpts, **how)
    assert set(rows) == {(2, 2)}
    rows.clear()
    over = predict_moves(shard(model, make_mesh({"data": 4, "model": 2})), excerpts, **how)
    assert set(rows) == {(8, 2)}
    for name in ("linear", "products"):
        of_one, of_many = getattr(alone, name), getattr(over, name)
        np.testing.assert_allclose(of_many, of_one, rtol=0, atol=1e-4 * np.abs(of_one).max())
