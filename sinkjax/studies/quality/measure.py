"""Takes measurements of masks, keeping what each step gave; what neighbours share is made once."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from sinkjax.instruments.batches import batch_rows
from sinkjax.instruments.compare import QualityStats, compare
from sinkjax.masks.mask import SinkMask
from sinkjax.models.decoder import Llama
from sinkjax.models.sharding import row_shards
from sinkjax.programs.dispatch import Dispatcher
from sinkjax.specialize.build import specialize
from sinkjax.studies.candidates import Candidate
from sinkjax.studies.quality.continuation import compile_continuations, first_differences
from sinkjax.studies.quality.summary import (
    summarize_continuation,
    summarize_quality,
)
from sinkjax.studies.series import Series
from sinkjax.studies.store import fills_digest
from sinkjax.studies.study import Bench


@dataclasses.dataclass(frozen=True, eq=False)
class Measurement:
    """One kind of measurement of one candidate on one text, at one length.

    Attributes:
      kind: of the record that it makes.
      candidate, series: what is measured on what.
      length: T.
      excerpts: int32 [W, T], what the models read.
      following: int32 [W, M], the text after each excerpt, read through decoding; None for none.
      fields: what the record says of the measurement beside all this.
    """

    kind: Literal["quality", "continuation"]
    candidate: Candidate
    series: Series
    length: int
    excerpts: np.ndarray
    fields: Mapping[str, Any]
    following: np.ndarray | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that go through each of the two models."""
        new = self.fields.get("num_tokens", 0) + self.fields.get("generated", 0)
        return self.excerpts.size + len(self.excerpts) * new


class Measure:
    """Takes measurements with one model.

    Excerpts are measured in chunks; what a chunk gave is kept before the next one begins, under a
    name that says what was measured. So masks that are named twice are measured once.
    """

    def __init__(self, bench: Bench, measurements: Sequence[Measurement]):
        self._model, self._keep = bench.model, bench.keep
        self._continuations = [m for m in measurements if m.kind == "continuation"]
        self._made: tuple[tuple[SinkMask, str | None], Llama] | None = None  # of the last mask
        self._compiled: dict[str, Dispatcher] = {}  # of the baseline, and of the last candidate

    def __call__(self, measurement: Measurement, seed: int) -> dict[str, Any]:
        """The "result" of a measurement's record."""
        if measurement.kind == "continuation":
            agreeing = first_differences(
                self._continued(measurement, None),
                self._continued(measurement, measurement.candidate),
            )
            num_tokens = measurement.fields["num_tokens"]
            return summarize_continuation(agreeing, num_tokens, seed=seed)
        stats = self._compared(measurement)
        mask = _mask_of(measurement)[0].hiding(self._model.config.layer_windows)
        return summarize_quality(stats, mask, seed=seed)

    def _compared(self, measurement: Measurement) -> QualityStats:
        """Scores of the excerpts, and of what follows under the masks that serve it."""
        excerpts, length, start = (
            measurement.excerpts,
            measurement.length,
            measurement.fields["score_from"],
        )
        rows = batch_rows(excerpts, shards=row_shards(self._model))
        if measurement.following is not None:
            excerpts = np.concatenate([excerpts, measurement.following], axis=1)
        generated = excerpts.shape[1] - length
        stats: list[QualityStats] = []
        for mask, first, end in measurement.candidate.serving(length, generated):
            # Of a later mask of a plan only what comes after the length at which it takes over.
            score_from = first - 1 if stats else start
            chunks = [excerpts[row : row + rows, :end] for row in range(0, len(excerpts), rows)]
            fills = measurement.candidate.fills.get(mask)
            parts = [
                self._kept(chunk, mask, fills, score_from, end - first, rows) for chunk in chunks
            ]
            stats.append(QualityStats.join(parts))
        after = np.concatenate([of_mask.generated_kl for of_mask in stats], axis=1)
        return dataclasses.replace(stats[0], generated_kl=after)

    def _kept(
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

    def _continued(self, measurement: Measurement, candidate: Candidate | None) -> np.ndarray:
        """Greedy continuations of the excerpts, int32 [W, tokens]; None for the baseline's."""
        num_tokens, crossing = (measurement.fields.get(n) for n in ("num_tokens", "crossing"))
        # Under `stay` the excerpt's own mask gives every token: they are the same without a plan.
        prefilled = candidate is not None and crossing and crossing["rule"] == "prefill"
        mask, fills = (None, None) if candidate is None else _mask_of(measurement)

        def measure() -> dict[str, np.ndarray]:
            dispatcher = self._dispatcher(candidate, num_tokens)
            tokens = dispatcher.generate(measurement.excerpts, max_new_tokens=num_tokens)
            return {"tokens": np.stack(tokens)}

        return self._keep(
            "continuations",
            measurement.excerpts,
            measure,
            mask=mask,
            fills=fills,
            passes=0,
            num_tokens=num_tokens,
            crossing=crossing if prefilled else None,
        )["tokens"]

    def _dispatcher(self, candidate: Candidate | None, num_tokens: int) -> Dispatcher:
        """Programs for the excerpts of all lengths, of a candidate or the baseline."""
        key = "baseline" if candidate is None else f"candidate {candidate.name}"
        if key not in self._compiled:
            lengths = sorted({m.length for m in self._continuations})
            if candidate is None:
                full = SinkMask.full(self._model.config)
                candidate = Candidate("baseline", dict.fromkeys(lengths, full))
            self._free()
            rows = max(len(m.excerpts) for m in self._continuations)
            self._compiled[key] = compile_continuations(
                self._model, candidate, lengths, rows, num_tokens
            )
        return self._compiled[key]

    def _specialized(self, mask: SinkMask, fills: np.ndarray | None) -> Llama:
        key = mask, fills_digest(fills)
        if self._made is None or self._made[0] != key:
            self._free()
            self._made = key, specialize(self._model, mask, fills=fills)
        return self._made[1]

    def _free(self) -> None:
        """Lets the weights and the programs of the last mask go; the baseline's stay."""
        self._made = None
        self._compiled = {key: d for key, d in self._compiled.items() if key == "baseline"}


def _mask_of(measurement: Measurement) -> tuple[SinkMask, np.ndarray | None]:
    """A measurement's mask, and the fills that it needs."""
    mask = measurement.candidate.masks[measurement.length]
    return mask, measurement.candidate.fills.get(mask)
