"""Masks × workloads to records of what each mask's programs take, beside the baseline's.

For each workload the baseline and every candidate are compiled; then prefill, and decode apart, are
timed by turns with the baseline a second time, as if it were a candidate, and with what measures
the machine. The baseline against itself says what the others' ratios are worth: where its interval
does not hold 1, the machine was too restless, or the rounds too few.

  plan_timing   all that can be refused before any weight is read
  run_timing    times what is not there yet, and appends the records
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np

from sinkjax.accounts.limits import Limit, decode_limit, prefill_limit
from sinkjax.environment import environment
from sinkjax.errors import InputError
from sinkjax.masks.mask import SinkMask
from sinkjax.models.config import LlamaConfig
from sinkjax.models.decoder import Llama
from sinkjax.models.digest import model_digest
from sinkjax.programs.compile import DEFAULT_STEPS_PER_CALL, Program, compile
from sinkjax.programs.executable import Executable
from sinkjax.programs.options import ATTENTION, DEFAULT_ATTENTION
from sinkjax.specialize.build import specialize
from sinkjax.studies.quality.candidate import Candidate
from sinkjax.studies.results import Results, identity
from sinkjax.studies.timing.device_time import device_seconds, trace
from sinkjax.studies.timing.machine import Machine
from sinkjax.studies.timing.measured import AGAIN, BASELINE, Measured
from sinkjax.studies.timing.memory import device_memory, resident_kept, resident_rise
from sinkjax.studies.timing.pairs import Call, interleave
from sinkjax.studies.timing.stages import cache_bytes, decode_call, prefill_call

Stage = Literal["prefill", "decode"]
Clock = Literal["auto", "host", "device"]
STAGES: tuple[str, ...] = get_args(Stage)
CLOCKS: tuple[str, ...] = get_args(Clock)

_TRACED_ROUNDS = 2  # of a trace that is only to be looked at
_RECORD_BYTES, _ROUND_BYTES = 8192, 128  # upper bounds: of a program's, and of each round's


@dataclasses.dataclass(frozen=True)
class Workload:
    """The sizes of what is timed.

    Attributes:
      batch_size: B.
      prompt_length: T, of every row.
      generated: tokens of each row that are decoded, one after the other; 0 for prefill alone.
    """

    batch_size: int
    prompt_length: int
    generated: int

    @property
    def max_length(self) -> int:
        """Tokens that the cache has room for: no more than are there at the end."""
        return self.prompt_length + self.generated


@dataclasses.dataclass(frozen=True)
class TimingSettings:
    """How it is timed.

    Attributes:
      stages: `prefill`, `decode` or both.
      rounds: samples of each program.
      warmup: runs of each program before them.
      steps_per_call: decode steps of one call.
      attention: what computes a prompt's, as for `sinkjax.compile`.
      clock: the host's, or the device's by JAX's profiler; `auto` is the device's on accelerators.
      seed: of tokens, order and resamples.
    """

    stages: tuple[str, ...] = STAGES
    rounds: int = 15
    warmup: int = 2
    steps_per_call: int = DEFAULT_STEPS_PER_CALL
    attention: str = DEFAULT_ATTENTION
    clock: Clock = "auto"
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class TimingCell:
    """What one record is of: a stage of a workload, by the baseline and every candidate."""

    stage: Stage
    workload: Workload
    candidates: tuple[Candidate, ...]

    @property
    def tokens_per_row(self) -> int:
        """Tokens that one run takes in, or gives."""
        workload = self.workload
        return workload.prompt_length if self.stage == "prefill" else workload.generated

    @property
    def slug(self) -> str:
        """`decode-b1-t512-n16`."""
        workload = self.workload
        name = f"{self.stage}-b{workload.batch_size}-t{workload.prompt_length}"
        return name if self.stage == "prefill" else f"{name}-n{workload.generated}"


def plan_timing(
    config: LlamaConfig,
    candidates: Sequence[Candidate],
    workloads: Sequence[Workload],
    settings: TimingSettings,
) -> list[TimingCell]:
    """Every cell of a run; prefill of a batch and a length once.

    Args:
      config: of the model.
      candidates: each with a mask for every prompt length; none for the baseline alone.
      workloads: in this order.

    Raises:
      InputError: listing sizes and settings out of their range, workloads beyond the model's
        context, masks of another shape, and names that are taken.
    """
    _check(config, candidates, workloads, settings)
    cells: dict[str, TimingCell] = {}
    for workload in workloads:
        for stage in settings.stages:
            cell = TimingCell(stage, workload, tuple(candidates))
            if cell.tokens_per_row:
                cells.setdefault(cell.slug, cell)
    return list(cells.values())


def run_timing(
    model: Llama,
    name: str,
    cells: Sequence[TimingCell],
    settings: TimingSettings,
    folder: str,
    *,
    profile: str | None = None,
    on_rounds: Callable[[TimingCell, int], None] = lambda cell, rounds: None,
) -> dict[str, Any]:
    """Times what a folder does not hold yet.

    Args:
      model: the baseline.
      name: of the model, as the user gave it.
      cells: of `plan_timing`, for the same settings.
      folder: for the results; for users, the value of --output_dir.
      profile: folder for traces, one a cell that is timed; None for none that stay.
      on_rounds: called with a cell and how many of its rounds are done more.

    Returns:
      the specification that the folder now belongs to.

    Raises:
      InputError: for masks without the fills that they need, or a folder that cannot be used:
        another run's, not writable, full.
    """
    described = _describe_model(model, name)
    specification = _specification(cells, settings, described)
    bench = _Bench(model, settings, profile)
    with Results(folder, specification) as results:
        size = _RECORD_BYTES + _ROUND_BYTES * settings.rounds
        results.reserve(sum(size * (len(cell.candidates) + 4) for cell in cells))
        for cell in cells:
            fields = _fields(cell, settings, described)
            record_id = identity(fields)
            if record_id not in results:
                result = bench(cell, functools.partial(on_rounds, cell, 1))
                record = {"id": record_id, **fields, "result": result}
                results.append({**record, "environment": _environment()})
            else:
                on_rounds(cell, settings.rounds)
    return specification


class _Bench:
    """Times cells; what neighbouring cells share is made once."""

    def __init__(self, model: Llama, settings: TimingSettings, profile: str | None):
        self._model, self._settings = model, settings
        self._profile = None if profile is None else pathlib.Path(profile)
        self._clock = settings.clock
        if settings.clock == "auto":
            self._clock = "host" if jax.devices()[0].platform == "cpu" else "device"
        dtype = model.embedding[...].dtype
        self._itemsize = dtype.itemsize
        self._machine = Machine.here(dtype, by_jax=self._clock == "device")
        self._models: dict[str, Llama] = {}
        self._programs: tuple[Workload, dict[str, Program]] | None = None

    def __call__(self, cell: TimingCell, on_round: Callable[[], None]) -> dict[str, Any]:
        """The "result" of a cell's record."""
        settings, programs = self._settings, self._compiled(cell)
        calls, kept = self._calls(cell, programs)
        timed = {**calls, AGAIN: calls[BASELINE], **self._machine.calls}
        load = [os.getloadavg()]
        samples = interleave(
            timed,
            rounds=settings.rounds,
            warmup=settings.warmup,
            seed=settings.seed,
            on_round=on_round,
        )
        load.append(os.getloadavg())
        found = Measured(samples, self._traced(cell, timed), self._machine.amounts, settings.seed)
        limits = {name: self._limit(cell, mask) for name, mask in self._masks(cell).items()}
        memory = {
            name: {
                "peak": _executable(program, cell).memory.peak,
                "compiled": dataclasses.asdict(_executable(program, cell).memory),
                "resident_rise": resident_rise(calls[name]),
                "cache": cache_bytes(program),
                "cache_resident": kept.get(name),
            }
            for name, program in programs.items()
        }
        tokens = cell.workload.batch_size * cell.tokens_per_row
        return {
            "clock": self._clock,
            "load_average": [list(averages) for averages in load],
            "device_memory": device_memory(),
            "machine": found.machine(),
            "programs": {
                name: {
                    **found.program(name, limits[name], limits[BASELINE], tokens),
                    "attention": program.attention[cell.workload.prompt_length].name,
                    "memory": memory[name],
                    "compile_seconds": _executable(program, cell).compile_seconds,
                }
                for name, program in programs.items()
            },
            "baseline_again": found.program(AGAIN, limits[BASELINE], limits[BASELINE], tokens),
        }

    def _compiled(self, cell: TimingCell) -> dict[str, Program]:
        """The programs of a cell's workload, the baseline's first."""
        workload = cell.workload
        if self._programs is None or self._programs[0] != workload:
            self._programs = None  # frees what was compiled for another
            models = {BASELINE: self._model} | {
                candidate.name: self._specialized(candidate, workload.prompt_length)
                for candidate in cell.candidates
            }
            self._programs = (
                workload,
                {
                    name: compile(
                        model,
                        batch_size=workload.batch_size,
                        prefill_lengths=[workload.prompt_length],
                        max_length=workload.max_length,
                        steps_per_call=self._settings.steps_per_call,
                        attention=self._settings.attention,
                    )
                    for name, model in models.items()
                },
            )
        return self._programs[1]

    def _specialized(self, candidate: Candidate, length: int) -> Llama:
        key = identity({**candidate.describe(length), "name": None})
        if key not in self._models:
            mask = candidate.masks[length]
            self._models[key] = specialize(self._model, mask, fills=candidate.fills.get(mask))
        return self._models[key]

    def _calls(
        self, cell: TimingCell, programs: Mapping[str, Program]
    ) -> tuple[dict[str, Call], dict[str, int | None]]:
        """What is timed of each program, all on the same tokens.

        And of what decodes, the resident memory that holding a filled cache takes.
        """
        workload = cell.workload
        shape = (workload.batch_size, workload.prompt_length)
        rng = np.random.default_rng(self._settings.seed)
        tokens = rng.integers(self._model.config.vocab_size, size=shape).astype(np.int32)
        if cell.stage == "prefill":
            return {name: prefill_call(program, tokens) for name, program in programs.items()}, {}
        calls, kept = {}, {}
        for name, program in programs.items():
            decode = functools.partial(decode_call, program, tokens, workload.generated)
            calls[name], kept[name] = resident_kept(decode)
        return calls, kept

    def _traced(self, cell: TimingCell, calls: Mapping[str, Call]) -> dict[str, list[float]] | None:
        """Seconds on the device, where they count; leaves a trace where one is wanted."""
        on_device = self._clock == "device"
        if not on_device and self._profile is None:
            return None
        rounds = self._settings.rounds if on_device else _TRACED_ROUNDS
        folder = None if self._profile is None else self._profile / cell.slug
        data = trace(calls, rounds, folder)
        return device_seconds(data) if on_device else None

    def _masks(self, cell: TimingCell) -> dict[str, SinkMask]:
        length = cell.workload.prompt_length
        candidates = {candidate.name: candidate.masks[length] for candidate in cell.candidates}
        return {BASELINE: SinkMask.full(self._model.config), **candidates}

    def _limit(self, cell: TimingCell, mask: SinkMask) -> Limit:
        """Of one run: all steps of a decode, each as its middle one."""
        workload, config = cell.workload, self._model.config
        if cell.stage == "prefill":
            return prefill_limit(
                config, mask, workload.batch_size, workload.prompt_length, self._itemsize
            )
        middle = workload.prompt_length + (workload.generated + 1) // 2
        step = decode_limit(config, mask, workload.batch_size, middle, self._itemsize)
        return step * workload.generated


def _environment() -> dict[str, Any]:
    """What else decides speed: how memory is handed out, and who goes first."""
    policy = None if not hasattr(os, "sched_getscheduler") else os.sched_getscheduler(0)
    return {
        **environment(),
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "scheduler": policy,
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
    }


def _executable(program: Program, cell: TimingCell) -> Executable:
    if cell.stage == "prefill":
        return program.prefill[cell.workload.prompt_length]
    return program.decode


def _describe_model(model: Llama, name: str) -> dict[str, Any]:
    config = model.config
    return {
        "name": name,
        "model_digest": model_digest(model),
        "config": config.to_dict(),
        "dtype": model.embedding[...].dtype.name,
    }


def _fields(
    cell: TimingCell, settings: TimingSettings, described: Mapping[str, Any]
) -> dict[str, Any]:
    """What a cell's record says but for the result: all that decides what is timed, and how."""
    length = cell.workload.prompt_length
    how = dataclasses.asdict(settings)
    del how["stages"]
    return {
        "kind": "timing",
        "model": {key: value for key, value in described.items() if key != "config"},
        "stage": cell.stage,
        **dataclasses.asdict(cell.workload),
        "candidates": [candidate.describe(length) for candidate in cell.candidates],
        **how,
    }


def _specification(
    cells: Sequence[TimingCell], settings: TimingSettings, described: Mapping[str, Any]
) -> dict[str, Any]:
    """All that defines the cells, of JSON values."""
    candidates = {candidate.name: candidate for cell in cells for candidate in cell.candidates}
    return {
        "experiment": "timing",
        "model": dict(described),
        "candidates": [candidate.specification() for candidate in candidates.values()],
        "workloads": [
            dataclasses.asdict(workload)
            for workload in dict.fromkeys(cell.workload for cell in cells)
        ],
        **dataclasses.asdict(settings),
        "stages": list(settings.stages),
    }


def _check(
    config: LlamaConfig,
    candidates: Sequence[Candidate],
    workloads: Sequence[Workload],
    settings: TimingSettings,
) -> None:
    problems = []
    for name, least in (("rounds", 2), ("warmup", 1), ("steps_per_call", 1), ("seed", 0)):
        value = getattr(settings, name)
        if value < least:
            problems.append(f"--{name}={value}: give {least} or more")
    if not settings.stages:
        problems.append(f"--stages is empty: give one or more of {', '.join(STAGES)}")
    problems += [
        f"--stages={stage}: use {' or '.join(STAGES)}"
        for stage in settings.stages
        if stage not in STAGES
    ]
    if settings.attention not in ATTENTION:
        problems.append(f"--attention={settings.attention}: use one of {', '.join(ATTENTION)}")
    if settings.clock not in CLOCKS:
        problems.append(f"--clock={settings.clock}: use one of {', '.join(CLOCKS)}")
    if not workloads:
        problems.append(
            "there is nothing to time: give a batch size, a length and what to generate"
        )
    for workload in workloads:
        problems += _workload_problems(config, workload)
    names = [BASELINE, AGAIN, *(candidate.name for candidate in candidates)]
    problems += [f"--mask={name}: the name is taken" for name in names if names.count(name) > 1]
    for candidate in candidates:
        for mask in dict.fromkeys(candidate.masks.values()):
            try:
                mask.check(config)
            except InputError as error:
                problems += [f"{candidate.name}: {problem}" for problem in error.problems]
    if problems:
        raise InputError(*dict.fromkeys(problems))


def _workload_problems(config: LlamaConfig, workload: Workload) -> Iterator[str]:
    for flag, value, least in (
        ("batch_sizes", workload.batch_size, 1),
        ("prompt_lengths", workload.prompt_length, 1),
        ("generated", workload.generated, 0),
    ):
        if value < least:
            yield f"--{flag}={value}: give {least} or more"
    if workload.max_length > config.max_length and config.rope.type != "dynamic":
        yield (
            f"--prompt_lengths={workload.prompt_length} with --generated={workload.generated} is "
            f"more than the model's context, {config.max_length} tokens: ask for less of either"
        )
