"""Answers scored in one pass, held to generation and to whole logits."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from losses import nll_of

from sinkjax import InputError, SinkMask, specialize
from sinkjax.distributed import make_mesh
from sinkjax.instruments import answers
from sinkjax.instruments.answers import score_answers
from sinkjax.instruments.tasks import Questions
from sinkjax.models.sharding import shard

MASKS = {
    "baseline": None,
    "windows and sinks": "L0: 6f | L1: 3w(1,2) 2s(zero) f | L2: 6s(first)",
    "copies": "L0: 6f | L1: 3c(0,1) 3w(1,2) | L2: 6f",
}


@pytest.fixture(scope="module")
def model():
    return tiny.make()


@pytest.mark.parametrize("name", MASKS)
def test_an_answer_is_given_back_exactly_if_greedy_decoding_says_it(model, name):
    """Excerpts of several lengths end in what greedy decoding says, but for a token in some."""
    mask = MASKS[name] and SinkMask.from_text(MASKS[name])
    masked = model if mask is None else specialize(model, mask)
    call = tiny.quick_jit(lambda model, tokens: model(tokens))
    lengths, sizes = np.array([12, 9, 14, 11, 14]), np.array([4, 2, 5, 3, 5])
    tokens = np.array(tiny.tokens_of(model, (5, 14)))
    for step in range(5):  # greedy decoding, a row's answer from where its prompt ends
        at = lengths - sizes + step
        drawn = np.asarray(call(masked, jnp.asarray(tokens))).argmax(axis=-1)
        for row in np.flatnonzero(step < sizes):
            tokens[row, at[row]] = drawn[row, at[row] - 1]
    tokens[0, 11] = (tokens[0, 11] + 1) % 61  # an answer's last token
    tokens[3, 8] = (tokens[3, 8] + 1) % 61  # an answer's first token
    questions = Questions(tokens, lengths, sizes, (("",),) * 5, 5)
    scores = score_answers(model, questions, mask)
    assert scores["given_back"].tolist() == [False, True, True, False, True]
    nll = nll_of(call(masked, jnp.asarray(tokens)), tokens)
    ends = zip(nll, lengths - 1, sizes, strict=True)
    whole = [row[end - size : end].sum() for row, end, size in ends]
    np.testing.assert_allclose(scores["nll"], whole, rtol=1e-4)


def test_questions_in_parts_and_batches_have_the_same_scores(model):
    tokens = np.array(tiny.tokens_of(model, (5, 12)))
    sizes = np.array([3, 2, 4, 4, 1])
    questions = Questions(tokens, np.array([12, 9, 12, 11, 12]), sizes, (("",),) * 5, 4)
    whole = score_answers(model, questions)
    part = score_answers(model, questions.part(slice(1, 4)), rows=2)
    np.testing.assert_allclose(part["nll"], whole["nll"][1:4], rtol=1e-5)


def test_every_device_of_a_mesh_has_as_many_questions_as_one_has_alone(monkeypatch):
    """They were as few for all devices together, and each had all of them."""
    rows = set()

    def batches(*of):
        for laid, count in answers_batches(*of):
            rows.add((laid.shape[0], laid.sharding.shard_shape(laid.shape)[0]))
            yield laid, count

    answers_batches = answers.batches
    monkeypatch.setattr(answers, "batches", batches)
    model = tiny.make(max_length=1024, num_layers=1)
    tokens = np.asarray(tiny.tokens_of(model, (6, 700)))
    questions = Questions(tokens, np.full(6, 700), np.full(6, 3), (("",),) * 6, 3)
    alone = score_answers(model, questions)["nll"]
    assert rows == {(2, 2)}
    rows.clear()
    over = score_answers(shard(model, make_mesh({"data": 4, "model": 2})), questions)["nll"]
    assert rows == {(8, 2)}
    np.testing.assert_allclose(over, alone, rtol=1e-5)


def test_tokens_that_the_model_does_not_know_are_told(model):
    tokens = np.array(tiny.tokens_of(model, (2, 9)))
    tokens[1, 4] = model.config.vocab_size
    with pytest.raises(InputError, match=r"tokens lie between \d+ and 61; "):
        score_answers(model, Questions(tokens, np.array([9, 9]), np.array([2, 2]), (("",),) * 2, 2))


def test_what_stands_behind_an_excerpt_is_not_seen(model):
    tokens = np.asarray(tiny.tokens_of(model, (2, 12)))
    questions = Questions(tokens, np.array([9, 9]), np.array([3, 2]), (("",),) * 2, 3)
    padded = np.where(np.arange(12) < 9, tokens, 7).astype(np.int32)
    other = dataclasses.replace(questions, tokens=padded)
    ours, theirs = (score_answers(model, of)["nll"] for of in (questions, other))
    np.testing.assert_array_equal(ours, theirs)
