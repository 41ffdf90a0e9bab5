"""Arguments of public functions that are of another kind than they have to be, from Python."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import sinkjax
from sinkjax import InputError, Plan, SinkMask, Stage

pytestmark = pytest.mark.quick

MASK = SinkMask.from_text("L0: 3f w(2,6) 2s(mean)")


@pytest.fixture(scope="module")
def model():
    return tiny.make(num_layers=1)


@pytest.mark.parametrize("given", [None, "L0: 6f", 3, {}])
def test_what_is_no_mask_no_plan_and_no_model_is_named(given, model, tmp_path):
    kind = type(given).__name__
    for call, named in (
        (lambda: sinkjax.specialize(model, given), "mask: "),
        (lambda: sinkjax.specialize(given, MASK), "model: "),
        (lambda: sinkjax.save_mask(tmp_path / "mask.json", given), "mask: "),
        (lambda: sinkjax.compile(given), "model: "),
        (lambda: sinkjax.compile_plan(model, given), "plan: "),
        (lambda: sinkjax.compile_plan(given, Plan((Stage(MASK),))), "model: "),
        (lambda: Plan((Stage(given),)), "stage 0: mask: "),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert str(error.value).startswith(named)
        assert f"is needed, not {kind}" in str(error.value)
    with pytest.raises(InputError, match="a plan is made of stages"):
        Plan((given,))


@pytest.mark.parametrize("given", [None, 3, MASK])
def test_what_is_no_text_and_no_file_is_named(given, tmp_path):
    kind = type(given).__name__
    with pytest.raises(InputError, match=f"^path: a mask's file or name is needed, not {kind}$"):
        sinkjax.load_mask(given)
    with pytest.raises(InputError, match=f"^path: a file's name is needed, not {kind}$"):
        sinkjax.save_mask(given, MASK)
    with pytest.raises(InputError, match=f"^text: a mask's text, .* is needed, not {kind}$"):
        SinkMask.from_text(given)


def test_fills_may_be_lists(model):
    fills = tiny.make_fills(model)
    tokens = tiny.tokens_of(model, (1, 4))
    found, wanted = (
        tiny.call(sinkjax.specialize(model, MASK, fills=of), tokens)
        for of in (fills.tolist(), fills)
    )
    np.testing.assert_array_equal(found, wanted)
    with pytest.raises(ValueError, match=r"fills have shape \(2,\)"):
        sinkjax.specialize(model, MASK, fills=[1, 2])


@pytest.mark.parametrize("lengths", [3, [3], [3, 3, 3], [[3, 3]], [1.5, 2.0], [True, True]])
def test_lengths_of_other_rows_than_the_tokens_are_refused(lengths, model):
    """They were broadcast, or cut to whole numbers."""
    tokens = tiny.tokens_of(model, (2, 4))
    for call in (
        lambda: model(tokens, lengths=lengths),
        lambda: model.prefill(tokens, lengths=lengths, max_length=8),
    ):
        with pytest.raises(InputError, match=r"lengths: they are .*; a whole number for each row"):
            call()


@pytest.mark.parametrize("tokens", [[[1, 2]], "text", None, jnp.ones((1, 2))])
def test_every_call_of_a_model_refuses_what_is_no_batch_of_ids(tokens, model):
    _, cache = model.prefill(tiny.tokens_of(model, (1, 2)), max_length=8)
    for call in (
        lambda: model.prefill(tokens, max_length=8),
        lambda: model.extend(tokens, cache, lengths=[4]),
    ):
        with pytest.raises(InputError, match=r"an array \[B, T\] of whole numbers"):
            call()
