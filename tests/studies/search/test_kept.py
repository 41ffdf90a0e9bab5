"""What a search keeps of what it measures: batch by batch, and to the bit what was not kept."""

import numpy as np
import pytest
import tiny
from searches import store_in

from sinkjax import SinkMask
from sinkjax.instruments.judge import Judge
from sinkjax.studies.search.kept import KeptJudge

LENGTH = 700  # of which two make a batch
MASK = SinkMask.from_text("L0: 3s(mean) 3f | L1: 6w(2,40)")


class StoppedError(Exception):
    """As a run is by its user."""


@pytest.mark.parametrize("judged", ["KL", "quality"])
def test_a_judge_that_is_stopped_goes_on_after_the_batch_that_it_had_done(judged):
    model = tiny.make(num_layers=2, max_length=LENGTH)
    excerpts, fills = tiny.tokens_of(model, (5, LENGTH)), tiny.make_fills(model)
    kept, done = {}, []

    def judge(store) -> dict[str, np.ndarray]:
        of = KeptJudge(model, excerpts, fills, store)
        return {"kl": of(MASK)} if judged == "KL" else of.stats(MASK, 8).arrays()

    def stopping(what: str, tokens: int) -> None:
        done.append(tokens)
        if len(done) == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        judge(store_in(kept, stopping))
    assert done == [2 * LENGTH, 2 * LENGTH]
    assert len(kept) == 2
    before = {name: arrays.copy() for name, arrays in kept.items()}
    found = judge(store_in(kept))
    assert len(kept) == 3
    assert all(kept[name] == of for name, of in before.items())
    whole = Judge(model, excerpts, fills=fills)
    expected = {"kl": whole(MASK)} if judged == "KL" else whole.stats(MASK, 8).arrays()
    assert found.keys() == expected.keys()
    assert found["kl"].any()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
