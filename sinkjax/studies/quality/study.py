"""Masks × texts × lengths to records of what each mask costs.

A cell is one kind of measurement of one candidate at one length. Windows are measured in chunks;
what a chunk gave is kept before the next one begins, under a name that says what was measured. So a
run that is killed loses at most one chunk's time, and masks that are named twice are measured once.

  plan_quality   all that can be refused before any weight is read
  run_quality    measures what is not there yet, and appends the records
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from sinkjax.errors import InputError
from sinkjax.instruments.batches import batch_rows
from sinkjax.instruments.compare import QualityStats, compare
from sinkjax.instruments.passkeys import hide_passkeys, shortest_window
from sinkjax.masks.mask import SinkMask
from sinkjax.models.decoder import Llama
from sinkjax.models.digest import tokens_digest
from sinkjax.programs.dispatch import Dispatcher
from sinkjax.specialize.build import specialize
from sinkjax.studies.quality.candidate import Candidate
from sinkjax.studies.quality.continuation import compile_continuations, first_differences
from sinkjax.studies.quality.summary import (
    summarize_continuation,
    summarize_passkeys,
    summarize_quality,
)
from sinkjax.studies.results import Results, identity
from sinkjax.studies.sweep.study import Progress, Series, describe_model, describe_source

SCORED = ("all", "second_half")

_RECORD_BYTES, _POSITION_BYTES = 16_384, 24  # upper bounds: of a record, and of a window's position


@dataclasses.dataclass(frozen=True)
class QualitySettings:
    """What is measured, and how.

    Attributes:
      scored: `all` positions but the first, which every mask leaves as it is, or only the
        `second_half` of each window, where every prediction has a long context.
      passkey_depths: where numbers are hidden, each from 0 to 1; none for no retrieval.
      continuation_tokens: of greedy continuations; 0 for none.
      seed: of hidden numbers and resamples.
    """

    scored: Literal["all", "second_half"] = "all"
    passkey_depths: tuple[float, ...] = ()
    continuation_tokens: int = 0
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One measurement.

    Attributes:
      kind: of the record that it makes.
      candidate, series: what is measured on what.
      length: T.
      windows: int32 [W, T], what the models read.
      fields: what the record says of the measurement beside all this.
      answer_tokens: int [W], of `passkey`: how many tokens at each window's end are its number.
    """

    kind: Literal["quality", "passkey", "continuation"]
    candidate: Candidate
    series: Series
    length: int
    windows: np.ndarray
    fields: Mapping[str, Any]
    answer_tokens: np.ndarray | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that go through each of the two models."""
        return self.windows.size + len(self.windows) * self.fields.get("num_tokens", 0)


def plan_quality(
    series: Sequence[Series], candidates: Sequence[Candidate], settings: QualitySettings
) -> list[Cell]:
    """Every cell of a run.

    Args:
      series: of one model, from `sinkjax.studies.sweep.study.plan_sweep`.
      candidates: each with a mask for every length of every series.

    Returns:
      cells by candidate, series and length. Lengths at which no number can be hidden have no cell
      of kind `passkey`.

    Raises:
      InputError: listing settings out of their range, masks of another shape than the model's,
        candidates of one name, continuations beyond the model's context, and retrieval where no
        length has room for it.
    """
    _check(series, candidates, settings)
    measured = [(one, length, windows) for one in series for length, windows in one.tokens.items()]
    seed, retrieval = settings.seed, []
    for one, length, windows in measured if settings.passkey_depths else ():
        if length >= shortest_window(one.subject.tokenizer, len(windows), seed):
            retrieval += [
                (one, length, depth, hide_passkeys(one.subject.tokenizer, windows, depth, seed))
                for depth in settings.passkey_depths
            ]
    if settings.passkey_depths and not retrieval:
        longest = max(measured, key=lambda item: item[1])
        hide_passkeys(longest[0].subject.tokenizer, longest[2], 0.0, seed)  # which says why
    cells = []
    for candidate in candidates:
        for one, length, windows in measured:
            start = max(1, length // 2) if settings.scored == "second_half" else 1
            fields = {"score_from": start}
            cells.append(Cell("quality", candidate, one, length, windows, fields))
        for one, length, depth, passkeys in retrieval:
            fields = {"depth": depth, "score_from": passkeys.score_from}
            cells.append(
                Cell(
                    "passkey",
                    candidate,
                    one,
                    length,
                    passkeys.tokens,
                    fields,
                    passkeys.answer_tokens,
                )
            )
        for one, length, windows in measured if settings.continuation_tokens else ():
            fields = {"num_tokens": settings.continuation_tokens}
            crossing = candidate.crossing(length, settings.continuation_tokens)
            fields |= {} if crossing is None else {"crossing": crossing}
            cells.append(Cell("continuation", candidate, one, length, windows, fields))
    return cells


def run_quality(
    cells: Sequence[Cell],
    settings: QualitySettings,
    folder: str,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Runs what a folder does not hold yet.

    Args:
      cells: of `plan_quality`, for the same settings.
      folder: for the results; for users, the value of --output_dir.
      on_progress: called after every step.

    Returns:
      the specification that the folder now belongs to.

    Raises:
      InputError: for weights that cannot be read, masks without the fills that they need, or a
        folder that cannot be used: another run's, not writable, full.
    """
    subject = cells[0].series.subject
    model = subject.load()
    described = describe_model(subject, model)
    on_progress(Progress("model", f"loaded {subject.name}"))
    specification = _specification(cells, settings, described)
    with Results(folder, specification) as results:
        results.reserve(sum(_RECORD_BYTES + _POSITION_BYTES * cell.num_tokens for cell in cells))
        measure = _Measure(model, described["model_digest"], cells, results, on_progress)
        for cell in cells:
            fields = _fields(cell, settings, described)
            if not results.record(fields, functools.partial(measure, cell, settings.seed)):
                on_progress(Progress("measured", "found", tokens=cell.num_tokens))
            on_progress(Progress("record", f"{cell.kind} of {cell.candidate.name}", records=1))
    return specification


class _Measure:
    """Measures cells, keeping what each step gave; what neighbouring cells share is made once."""

    def __init__(
        self,
        model: Llama,
        digest: str,
        cells: Sequence[Cell],
        results: Results,
        on_progress: Callable[[Progress], None],
    ):
        self._model, self._digest = model, digest
        self._results, self._on_progress = results, on_progress
        self._continued_cells = [cell for cell in cells if cell.kind == "continuation"]
        self._made: tuple[str, Llama] | None = None  # the last mask's digest with its fills'
        self._compiled: dict[str, Dispatcher] = {}  # of the baseline, and of the last candidate

    def __call__(self, cell: Cell, seed: int) -> dict[str, Any]:
        """The "result" of a cell's record."""
        if cell.kind == "continuation":
            num_tokens = cell.fields["num_tokens"]
            agreeing = self._agreeing(cell, num_tokens)
            return summarize_continuation(agreeing, num_tokens, seed=seed)
        stats = QualityStats.join(list(self._compared(cell)))
        if cell.kind == "passkey":
            return summarize_passkeys(stats, cell.answer_tokens, seed=seed)
        return summarize_quality(stats, seed=seed)

    def _compared(self, cell: Cell) -> Iterator[QualityStats]:
        rows, start = batch_rows(cell.windows), cell.fields["score_from"]
        for first in range(0, len(cell.windows), rows):
            chunk = cell.windows[first : first + rows]
            name = self._name(cell, chunk, score_from=start)
            arrays = self._results.arrays(name)
            if arrays is None:
                stats = compare(
                    self._model, self._candidate(cell), chunk, score_from=start, batch_size=rows
                )
                arrays = stats.arrays()
                self._results.put_arrays(name, **arrays)
            self._on_progress(Progress("measured", f"{cell.length} tokens", tokens=chunk.size))
            yield QualityStats(**arrays)

    def _agreeing(self, cell: Cell, num_tokens: int) -> np.ndarray:
        baseline = self._continued(cell, num_tokens, None)
        candidate = self._continued(cell, num_tokens, cell.candidate)
        self._on_progress(Progress("measured", "continued", tokens=cell.num_tokens))
        return first_differences(baseline, candidate)

    def _continued(self, cell: Cell, num_tokens: int, candidate: Candidate | None) -> np.ndarray:
        """Greedy continuations of the windows, int32 [W, num_tokens]; None for the baseline's."""
        crossing = cell.fields.get("crossing")
        # Under `stay` the window's own mask gives every token: they are the same without a plan.
        prefilled = candidate is not None and crossing and crossing["rule"] == "prefill"
        how = {"num_tokens": num_tokens, **({"crossing": crossing} if prefilled else {})}
        name = self._name(cell, cell.windows, baseline=candidate is None, **how)
        arrays = self._results.arrays(name)
        if arrays is None:
            dispatcher = self._dispatcher(candidate, num_tokens)
            tokens = dispatcher.generate(cell.windows, max_new_tokens=num_tokens)
            arrays = {"tokens": np.stack(tokens)}
            self._results.put_arrays(name, **arrays)
        return arrays["tokens"]

    def _dispatcher(self, candidate: Candidate | None, num_tokens: int) -> Dispatcher:
        """Programs for the windows of all lengths, of a candidate or the baseline."""
        key = "baseline" if candidate is None else f"candidate {candidate.name}"
        if key not in self._compiled:
            lengths = sorted({cell.length for cell in self._continued_cells})
            if candidate is None:
                full = SinkMask.full(self._model.config)
                candidate = Candidate("baseline", dict.fromkeys(lengths, full))
            self._free()
            windows = max(len(cell.windows) for cell in self._continued_cells)
            self._compiled[key] = compile_continuations(
                self._model, candidate, lengths, windows, num_tokens
            )
        return self._compiled[key]

    def _name(self, cell: Cell, tokens: np.ndarray, *, baseline: bool = False, **how: Any) -> str:
        """Of what was measured, whatever the candidate is called."""
        described = cell.candidate.describe(cell.length)
        of_mask = {key: described[key] for key in ("mask_digest", "fills_sha256")}
        return identity(
            {
                "model_digest": self._digest,
                **({} if baseline else of_mask),
                "tokens_sha256": tokens_digest(tokens),
                **how,
            }
        )

    def _candidate(self, cell: Cell) -> Llama:
        mask = cell.candidate.masks[cell.length]
        key = identity(cell.candidate.describe(cell.length))
        if self._made is None or self._made[0] != key:
            self._free()
            self._made = key, specialize(self._model, mask, fills=cell.candidate.fills.get(mask))
        return self._made[1]

    def _free(self) -> None:
        """Lets the weights and the programs of the last mask go; the baseline's stay."""
        self._made = None
        self._compiled = {key: d for key, d in self._compiled.items() if key == "baseline"}


def _fields(cell: Cell, settings: QualitySettings, described: Mapping[str, Any]) -> dict[str, Any]:
    """What a cell's record says but for the result: all that decides it."""
    series = cell.series
    return {
        "kind": cell.kind,
        "model": {key: value for key, value in described.items() if key != "max_length"},
        "candidate": cell.candidate.describe(cell.length),
        "source": describe_source(series.source),
        "bos": series.bos,
        "bos_added": series.bos_added,
        "length": cell.length,
        "num_windows": len(cell.windows),
        "tokens_sha256": tokens_digest(cell.windows),
        **cell.fields,
        "seed": settings.seed,
    }


def _specification(
    cells: Sequence[Cell], settings: QualitySettings, described: Mapping[str, Any]
) -> dict[str, Any]:
    """All that defines the cells, of JSON values."""
    candidates = {cell.candidate.name: cell.candidate for cell in cells}
    series = {id(cell.series): cell.series for cell in cells}.values()
    return {
        "experiment": "quality",
        "model": dict(described),
        "candidates": [candidate.specification() for candidate in candidates.values()],
        "sources": [
            {**describe_source(one.source), "bos": one.bos, "lengths": sorted(one.tokens)}
            for one in series
        ],
        **dataclasses.asdict(settings),
        "passkey_depths": list(settings.passkey_depths),
    }


def _check(
    series: Sequence[Series], candidates: Sequence[Candidate], settings: QualitySettings
) -> None:
    problems = []
    if settings.scored not in SCORED:
        problems.append(f"--scored={settings.scored}: use one of {', '.join(SCORED)}")
    if settings.seed < 0:
        problems.append(f"--seed={settings.seed}: give 0 or more")
    if settings.continuation_tokens < 0:
        problems.append(
            f"--continuation_tokens={settings.continuation_tokens}: give 0 for none, or more"
        )
    problems += [
        f"--passkey={depth:g}: depths lie between 0 and 1, both included"
        for depth in settings.passkey_depths
        if not 0 <= depth <= 1
    ]
    names = [candidate.name for candidate in candidates]
    problems += [
        f"--mask: {name} is there twice" for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    for candidate in candidates:
        stages = () if candidate.plan is None else candidate.plan.stages
        for mask in dict.fromkeys([*candidate.masks.values(), *(s.mask for s in stages)]):
            try:
                mask.check(series[0].subject.config)
            except InputError as error:
                problems += [f"{candidate.name}: {problem}" for problem in error.problems]
    config = series[0].subject.config
    if config.rope.type != "dynamic":
        beyond = sorted(
            {
                length
                for one in series
                for length in one.tokens
                if length + settings.continuation_tokens > config.max_length
            }
        )
        if beyond:
            problems.append(
                f"--continuation_tokens={settings.continuation_tokens} after --lengths="
                f"{','.join(map(str, beyond))} goes beyond the model's context of "
                f"{config.max_length} tokens: ask for fewer, or leave these lengths out"
            )
    if problems:
        raise InputError(*problems)
