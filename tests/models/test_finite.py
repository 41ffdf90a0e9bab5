"""What is not finite is refused by everything that measures a model, in the same words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

import sinkjax
from sinkjax.instruments.answers import score_answers
from sinkjax.instruments.compare import compare
from sinkjax.instruments.judge import Judge
from sinkjax.instruments.own_errors import mean_outputs, own_errors
from sinkjax.instruments.sensitivity import predict_moves
from sinkjax.instruments.tasks import Questions
from sinkjax.masks.paths import Copy, Full, Sink
from sinkjax.models.finite import check_finite
from sinkjax.studies.copies.fit import fit_sources

EXCERPTS = np.arange(24, dtype=np.int32).reshape(2, 12)
SINKS = sinkjax.SinkMask.from_text("L0-2: 6s(first)")
COPIES = sinkjax.SinkMask(((Full(),) * 6, (Copy(0, 0), *(Full(),) * 5), (Full(),) * 6))

QUESTIONS = Questions(EXCERPTS, np.array([12, 12]), np.array([3, 3]), (("",),) * 2, 3)

MEASURES = {
    "sinks": lambda model: sinkjax.measure_sinks(model, jnp.asarray(EXCERPTS)),
    "compare": lambda model: compare(model, sinkjax.specialize(model, SINKS), EXCERPTS),
    "answers": lambda model: score_answers(model, QUESTIONS, SINKS),
    "judge": lambda model: Judge(model, EXCERPTS)(SINKS),
    "judge of copies": lambda model: Judge(model, EXCERPTS)(COPIES),
    "judge's scores": lambda model: Judge(model, EXCERPTS).stats(SINKS),
    "own errors": lambda model: own_errors(model, EXCERPTS, [Sink("first")]),
    "means": lambda model: mean_outputs(model, EXCERPTS),
    "sensitivity": lambda model: predict_moves(model, EXCERPTS, [Sink("first")], samples=1),
    "sources": lambda model: fit_sources(model, EXCERPTS),
}


@pytest.fixture(scope="module")
def sound():
    return tiny.make()


@pytest.mark.parametrize("name", MEASURES)
def test_a_damaged_weight_is_told(name, sound):
    MEASURES[name](sound)
    damaged = nnx.clone(sound)
    weight = damaged.layers[0].mlp.down
    weight.set_value(weight[...].at[3, 4].set(jnp.nan))
    with pytest.raises(sinkjax.InputError, match=r"not finite.*: activations outgrow .* damaged"):
        MEASURES[name](damaged)


@pytest.mark.parametrize("name", MEASURES)
def test_an_overflow_of_float16_is_told(name, sound):
    narrow = jax.tree.map(lambda x: x.astype(jnp.float16), sound)
    weight = narrow.layers[0].mlp.down
    weight.set_value(jnp.full_like(weight[...], 6e4))
    with pytest.raises(sinkjax.InputError, match="with dtype float16, use bfloat16 or float32"):
        MEASURES[name](narrow)


def test_the_first_that_is_not_finite_has_its_place():
    values = np.array([[1.0, 2.0], [np.inf, np.nan]])
    with pytest.raises(sinkjax.InputError, match="scores are not finite in row 1, column 0: "):
        check_finite("scores", values, " in row {}, column {}".format)
    check_finite("scores", values[0])
    jax.jit(lambda x: check_finite("scores", x))(values)
