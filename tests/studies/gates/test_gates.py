"""Gates against the dense oracle."""

import jax.numpy as jnp
import numpy as np
import tiny

from sinkjax import SinkMask, Window
from sinkjax.studies.gates.gates import GatedModel
from sinkjax.testing.oracle import reference_logits


def test_gates_at_their_ends_are_masks():
    path, model = Window(1, 4), tiny.make()
    tokens = tiny.tokens_of(model, (5, 12))
    chosen = np.random.default_rng(0).random((3, 6)) < 0.5
    logits = jnp.where(jnp.asarray(chosen), -50.0, 50.0).astype(jnp.float32)
    gated = model.logits(GatedModel(model, path).residuals(logits, tokens))
    expected = reference_logits(model, SinkMask.where(chosen, path), tokens)
    np.testing.assert_allclose(gated, expected, atol=2e-5)
