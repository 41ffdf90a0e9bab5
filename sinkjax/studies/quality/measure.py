"""Measures what masks cost, keeping what each step gave; what neighbours share is made once."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.instruments.batches import batch_rows
from sinkjax.instruments.compare import QualityStats, compare
from sinkjax.instruments.judge import SCORE_FROM
from sinkjax.masks.mask import SinkMask
from sinkjax.models.decoder import Llama
from sinkjax.models.sharding import even_rows, row_shards
from sinkjax.programs.dispatch import Dispatcher, compile_plan
from sinkjax.specialize.build import specialize
from sinkjax.studies.candidates import Candidate
from sinkjax.studies.quality.summary import summarize_continuation, summarize_quality
from sinkjax.studies.store import fills_digest
from sinkjax.studies.study import Bench

CACHE_TOKENS = 16_384
"""Tokens that there is room for in the caches of one call, on each device of `data`."""


class Measure:
    """Measures candidates with one model.

    Excerpts are measured in chunks; what a chunk gave is kept before the next one begins, under a
    name that says what was measured. So masks that are named twice are measured once.
    """

    def __init__(self, bench: Bench, lengths: Sequence[int], rows: int, num_tokens: int):
        """Compiles and measures nothing yet.

        Args:
          lengths: T of all excerpts.
          rows: excerpts of one length, at most.
          num_tokens: of each continuation.
        """
        self._model, self._keep = bench.model, bench.keep
        self._lengths, self._rows, self._num_tokens = lengths, rows, num_tokens
        self._made: tuple[tuple[SinkMask, str | None], Llama] | None = None  # of the last mask
        # Of the baseline, None, and of the last candidate, by name.
        self._compiled: dict[str | None, Dispatcher] = {}

    def quality(
        self, candidate: Candidate, rows: np.ndarray, length: int, seed: int
    ) -> dict[str, Any]:
        """The "result" of a record of kind "quality".

        Args:
          rows: int32 [W, T + M], excerpts, and the text after each, which is read through decoding
            under the masks that serve it.
          length: T.
        """
        at_once = batch_rows(rows[:, :length], shards=row_shards(self._model))
        stats: list[QualityStats] = []
        for mask, first, end in candidate.serving(length, rows.shape[1] - length):
            # Of a later mask of a plan only what comes after the length at which it takes over.
            score_from = first - 1 if stats else SCORE_FROM
            how = (mask, candidate.fills.get(mask), score_from, end - first, at_once)
            chunks = (rows[row : row + at_once, :end] for row in range(0, len(rows), at_once))
            stats.append(QualityStats.join([self._compared(chunk, *how) for chunk in chunks]))
        after = np.concatenate([of_mask.generated_kl for of_mask in stats], axis=1)
        whole = dataclasses.replace(stats[0], generated_kl=after)
        mask = candidate.masks[length].hiding(self._model.config.layer_windows)
        return summarize_quality(whole, mask, seed=seed)

    def continuation(
        self,
        candidate: Candidate,
        excerpts: np.ndarray,
        crossing: Mapping[str, Any] | None,
        seed: int,
    ) -> dict[str, Any]:
        """The "result" of a record of kind "continuation", of excerpts int32 [W, T]."""
        mask = candidate.masks[excerpts.shape[1]]
        # Under `stay` the excerpt's own mask gives every token: they are the same without a plan.
        prefilled = crossing if crossing and crossing["rule"] == "prefill" else None
        how = {"mask": mask, "fills": candidate.fills.get(mask), "crossing": prefilled}
        agreeing = first_differences(
            self._continued(None, excerpts, crossing=None),
            self._continued(candidate, excerpts, **how),
        )
        return summarize_continuation(agreeing, self._num_tokens, seed=seed)

    def _compared(
        self,
        chunk: np.ndarray,
        mask: SinkMask,
        fills: np.ndarray | None,
        score_from: int,
        generated: int,
        rows: int,
    ) -> QualityStats:
        """`compare` of a chunk, with a mask's model."""

        def measure() -> dict[str, np.ndarray]:
            how = {"score_from": score_from, "generated": generated, "batch_size": rows}
            return compare(self._model, self._specialized(mask, fills), chunk, **how).arrays()

        how = {"score_from": score_from, **({"generated": generated} if generated else {})}
        arrays = self._keep("token losses", chunk, measure, mask=mask, fills=fills, **how)
        return QualityStats(**arrays)

    def _continued(
        self, candidate: Candidate | None, excerpts: np.ndarray, **how: Any
    ) -> np.ndarray:
        """Greedy continuations of the excerpts, int32 [W, tokens]; None for the baseline's."""

        def measure() -> dict[str, np.ndarray]:
            programs = self._dispatcher(candidate)
            tokens = programs.generate(excerpts, max_new_tokens=self._num_tokens)
            return {"tokens": np.stack(tokens)}

        how |= {"passes": 0, "num_tokens": self._num_tokens}
        return self._keep("continuations", excerpts, measure, **how)["tokens"]

    def _dispatcher(self, candidate: Candidate | None) -> Dispatcher:
        """Programs for the excerpts of all lengths, of a candidate or the baseline."""
        name = None if candidate is None else candidate.name
        if name not in self._compiled:
            if candidate is None:
                full = SinkMask.full(self._model.config)
                candidate = Candidate("baseline", dict.fromkeys(self._lengths, full))
            self._free()
            self._compiled[name] = compile_continuations(
                self._model, candidate, self._lengths, self._rows, self._num_tokens
            )
        return self._compiled[name]

    def _specialized(self, mask: SinkMask, fills: np.ndarray | None) -> Llama:
        key = mask, fills_digest(fills)
        if self._made is None or self._made[0] != key:
            self._free()
            self._made = key, specialize(self._model, mask, fills=fills)
        return self._made[1]

    def _free(self) -> None:
        """Lets the weights and the programs of the last mask go; the baseline's stay."""
        self._made = None
        self._compiled = {name: of for name, of in self._compiled.items() if name is None}


def compile_continuations(
    model: Llama, candidate: Candidate, lengths: Sequence[int], num_excerpts: int, num_tokens: int
) -> Dispatcher:
    """Programs that continue excerpts of all lengths: a mask has one decode step for all of them.

    Args:
      model: the baseline.
      num_excerpts: of one length, at most.

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
