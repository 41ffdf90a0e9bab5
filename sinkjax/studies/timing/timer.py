"""Times programs by turns: the baseline, masks, the baseline once more, and the machine."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np

from sinkjax.accounts.limits import Limit, decode_limit, prefill_limit
from sinkjax.distributed import is_first
from sinkjax.errors import naming
from sinkjax.masks.mask import SinkMask
from sinkjax.models.decoder import Llama
from sinkjax.programs.compile import Program, compile
from sinkjax.specialize.build import specialize
from sinkjax.studies.candidates import Candidate
from sinkjax.studies.results import identity
from sinkjax.studies.timing.device_time import device_seconds, trace
from sinkjax.studies.timing.machine import machine_calls
from sinkjax.studies.timing.measured import AGAIN, BASELINE, Measured
from sinkjax.studies.timing.memory import device_memory, resident_kept, resident_rise
from sinkjax.studies.timing.pairs import Call, interleave
from sinkjax.studies.timing.stages import cache_bytes, decode_call, prefill_call

Stage = Literal["prefill", "decode"]
Clock = Literal["auto", "host", "device"]
STAGES: tuple[str, ...] = get_args(Stage)

_TRACED_ROUNDS = 2  # of a trace that is only to be looked at


@dataclasses.dataclass(frozen=True)
class How:
    """How runs are timed: settings of `Timing`. The seed is of tokens, order and resamples."""

    rounds: int
    warmup: int
    steps_per_call: int
    attention: str
    clock: Clock
    seed: int


@dataclasses.dataclass(frozen=True)
class Run:
    """What one record is of: a stage at some sizes.

    Attributes:
      batch_size: B.
      prompt_length: T, of every row.
      generated: tokens of each row that are decoded, one after the other; 0 for prefill alone.
    """

    stage: Stage
    batch_size: int
    prompt_length: int
    generated: int

    @property
    def sizes(self) -> dict[str, int]:
        """All but the stage."""
        return {name: of for name, of in dataclasses.asdict(self).items() if name != "stage"}

    @property
    def tokens_per_row(self) -> int:
        """Tokens that one run takes in, or gives."""
        return self.prompt_length if self.stage == "prefill" else self.generated

    @property
    def slug(self) -> str:
        """`decode-b1-t512-n16`."""
        name = f"{self.stage}-b{self.batch_size}-t{self.prompt_length}"
        return name if self.stage == "prefill" else f"{name}-n{self.generated}"


class Timer:
    """Times runs; what neighbouring ones share is made once."""

    def __init__(
        self, model: Llama, candidates: Sequence[Candidate], how: How, profile: str | None
    ):
        """Prepares to time programs of a model.

        Args:
          profile: folder for traces, one a run that is timed; None for none that stay.
        """
        self._model, self._candidates, self._how = model, candidates, how
        self._profile = None if profile is None else pathlib.Path(profile)
        self._clock = how.clock
        if how.clock == "auto":
            self._clock = "host" if jax.devices()[0].platform == "cpu" else "device"
        dtype = model.embedding[...].dtype
        self._itemsize = dtype.itemsize
        self._machine, self._amounts = machine_calls(dtype, by_jax=self._clock == "device")
        self._models: dict[str, Llama] = {}
        self._programs: tuple[dict[str, int], dict[str, Program]] | None = None

    def __call__(self, run: Run, on_round: Callable[[], None]) -> dict[str, Any]:
        """The "result" of a run's record."""
        how, programs = self._how, self._compiled(run)
        calls, kept = self._calls(run, programs)
        timed = {**calls, AGAIN: calls[BASELINE], **self._machine}
        load = [os.getloadavg()]
        samples = interleave(
            timed, rounds=how.rounds, warmup=how.warmup, seed=how.seed, on_round=on_round
        )
        load.append(os.getloadavg())
        measured = Measured(samples, self._traced(run, timed), self._amounts, how.seed)
        length = run.prompt_length
        masks = {candidate.name: candidate.masks[length] for candidate in self._candidates}
        baseline = self._limit(run, SinkMask.full(self._model.config))
        tokens = run.batch_size * run.tokens_per_row
        results = {}
        for name, program in programs.items():
            limit = self._limit(run, masks[name]) if name in masks else baseline
            executable = program.prefill[length] if run.stage == "prefill" else program.decode
            results[name] = {
                **measured.program(name, limit, baseline, tokens),
                "attention": program.attention[length].name,
                "memory": {
                    "peak": executable.memory.peak,
                    "compiled": dataclasses.asdict(executable.memory),
                    "resident_rise": resident_rise(calls[name]),
                    "cache": cache_bytes(program),
                    "cache_resident": kept.get(name),
                },
                "compile_seconds": executable.compile_seconds,
            }
        return {
            "clock": self._clock,
            "load_average": [list(averages) for averages in load],
            "device_memory": device_memory(),
            "machine": measured.machine(),
            "programs": results,
            "baseline_again": measured.program(AGAIN, baseline, baseline, tokens),
        }

    def _compiled(self, run: Run) -> dict[str, Program]:
        """The programs of a run's sizes, the baseline's first."""
        if self._programs is None or self._programs[0] != run.sizes:
            self._programs = None  # frees what was compiled for another
            models = {BASELINE: self._model} | {
                candidate.name: self._specialized(candidate, run.prompt_length)
                for candidate in self._candidates
            }
            programs = {
                name: compile(
                    model,
                    batch_size=run.batch_size,
                    prefill_lengths=[run.prompt_length],
                    max_length=run.prompt_length + run.generated,
                    steps_per_call=self._how.steps_per_call,
                    attention=self._how.attention,
                )
                for name, model in models.items()
            }
            self._programs = run.sizes, programs
        return self._programs[1]

    def _specialized(self, candidate: Candidate, length: int) -> Llama:
        key = identity({**candidate.describe(length), "name": None})
        if key not in self._models:
            mask = candidate.masks[length]
            self._models[key] = specialize(self._model, mask, fills=candidate.fills.get(mask))
        return self._models[key]

    def _calls(
        self, run: Run, programs: Mapping[str, Program]
    ) -> tuple[dict[str, Call], dict[str, int | None]]:
        """What is timed of each program, all on the same tokens.

        And of what decodes, the resident memory that holding a filled cache takes.
        """
        shape = (run.batch_size, run.prompt_length)
        rng = np.random.default_rng(self._how.seed)
        tokens = rng.integers(self._model.config.vocab_size, size=shape).astype(np.int32)
        if run.stage == "prefill":
            return {name: prefill_call(program, tokens) for name, program in programs.items()}, {}
        calls, kept = {}, {}
        for name, program in programs.items():
            decode = functools.partial(decode_call, program, tokens, run.generated)
            with naming(name):
                calls[name], kept[name] = resident_kept(decode)
        return calls, kept

    def _traced(self, run: Run, calls: Mapping[str, Call]) -> dict[str, list[float]] | None:
        """Seconds on the device, where they count; leaves a trace where one is wanted."""
        on_device = self._clock == "device"
        if not on_device and self._profile is None:
            return None
        rounds = self._how.rounds if on_device else _TRACED_ROUNDS
        folder = self._profile / run.slug if self._profile is not None and is_first() else None
        data = trace(calls, rounds, folder)
        return device_seconds(data) if on_device else None

    def _limit(self, run: Run, mask: SinkMask) -> Limit:
        """The limit of one run: all steps of a decode, each as its middle one."""
        config, rows, length = self._model.config, run.batch_size, run.prompt_length
        if run.stage == "prefill":
            return prefill_limit(config, mask, rows, length, self._itemsize)
        middle = length + (run.generated + 1) // 2
        return decode_limit(config, mask, rows, middle, self._itemsize) * run.generated
