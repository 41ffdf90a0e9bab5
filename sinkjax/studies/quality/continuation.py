"""Greedy continuations of excerpts, under the mask of their length or by a plan's rule."""

from collections.abc import Sequence

import numpy as np

from sinkjax.models.decoder import Llama
from sinkjax.models.sharding import even_rows, row_shards
from sinkjax.programs.dispatch import Dispatcher, compile_plan
from sinkjax.studies.candidates import Candidate

CACHE_TOKENS = 16_384
"""Tokens that there is room for in the caches of one call, on each device of `data`."""


def compile_continuations(
    model: Llama, candidate: Candidate, lengths: Sequence[int], num_excerpts: int, num_tokens: int
) -> Dispatcher:
    """Programs that continue excerpts of all lengths: a mask has one decode step for all of them.

    Args:
      model: the baseline.
      candidate: whose masks serve.
      lengths: T of all excerpts.
      num_excerpts: of one length, at most.
      num_tokens: of each continuation.

    Raises:
      InputError: for masks without the fills that they need, or a model without room.
    """
    room = max(lengths) + num_tokens
    crossings = filter(None, (candidate.crossing(length, num_tokens) for length in lengths))
    # What grows beyond a stage is prefilled again with one token more than the stage serves.
    again = {
        boundary + 1
        for crossing in crossings
        if crossing["rule"] == "prefill"
        for boundary in crossing["boundaries"]
    }
    return compile_plan(
        model,
        candidate.reached(lengths, num_tokens),
        fills=candidate.fills,
        batch_size=even_rows(num_excerpts, max(1, CACHE_TOKENS // room), row_shards(model)),
        prefill_lengths={*lengths, *again},
        max_length=room,
    )


def first_differences(baseline: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Tokens of each row before the first that differs: int [W, M] twice to int64 [W]."""
    same = np.cumprod(baseline == candidate, axis=1)
    return same.sum(axis=1)
