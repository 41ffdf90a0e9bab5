"""Times the programs of masks beside the baseline's, prefill and decode apart.

  sinkjax timing --mask=mask.json --lengths=512 --batch_sizes=1,8
  sinkjax timing --model=shape:llama-3.2-1b --lengths=512 --generated=16
  sinkjax timing --flagfile=timing.flags

--model=shape:NAME has random weights, which take as long as trained ones. Of a --plan the mask for
each prompt length is timed. Without masks and plans, the baseline is timed alone.

All programs of a cell, the baseline twice, and two measurements of what the machine can read and
multiply are timed by turns in this one process. The time of a prefill is the time to the first
token. Compiling is never in a time. The baseline against itself says what the others' ratios are
worth: where its interval does not hold 1, the machine was too restless, or the rounds too few.
"""

import dataclasses
import datetime
import functools
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from sinkjax.distributed import first, is_first
from sinkjax.environment import environment
from sinkjax.errors import Problem, about, explaining
from sinkjax.files import replace_file
from sinkjax.models.decoder import Llama
from sinkjax.models.digest import model_digest
from sinkjax.models.shapes import SHAPES
from sinkjax.programs.compile import DEFAULT_STEPS_PER_CALL
from sinkjax.programs.options import DEFAULT_ATTENTION, Attention
from sinkjax.report.records import Record
from sinkjax.report.table import Table
from sinkjax.studies.candidates import MASKS, PLANS, Candidate, candidates, check_candidates
from sinkjax.studies.quality.tables import candidates_table
from sinkjax.studies.settings import at_least, each_at_least, known, part, setting, some
from sinkjax.studies.study import MODEL, Bench, Cell, Size, Study
from sinkjax.studies.subject import Subject
from sinkjax.studies.timing.google_benchmark import google_benchmark
from sinkjax.studies.timing.measured import AGAIN, BASELINE
from sinkjax.studies.timing.tables import timing_tables
from sinkjax.studies.timing.timer import STAGES, Clock, How, Run, Timer

_RECORD_BYTES, _ROUND_BYTES = 8192, 128  # upper bounds: of a program's, and of each round's


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Timing(Study):
    """How long masks' programs take, beside the baseline's."""

    name = "timing"
    whole = "what is timed on machines of several jobs cannot be compared"
    tables_of = staticmethod(timing_tables)
    title = "How fast masks of {} run"
    lede = (
        "How long each mask's programs take beside the baseline's, timed by turns, and how much of "
        "what could be saved they save."
    )
    renamed: ClassVar[Mapping[str, str]] = {"prompt_lengths": "lengths"}
    without: ClassVar[tuple[str, ...]] = ("config",)
    shapes: ClassVar[bool] = True

    model: str | Subject = setting(
        "smollm2-135m",
        f"Model: {MODEL}; or, without weights to fetch, shape:NAME or shape:FOLDER, which has a "
        f"config.json; names are {', '.join(SHAPES)}.",
    )
    mask: tuple[str | Candidate, ...] = setting((), MASKS, repeated=True)
    plan: tuple[str, ...] = setting((), PLANS, repeated=True)
    batch_sizes: tuple[int, ...] = setting((1,), "Rows of a batch.")
    lengths: tuple[int, ...] = setting((512,), "Tokens of every row's prompt.")
    generated: tuple[int, ...] = setting(
        (16,), "Tokens that are decoded after the prompt; 0 for prefill alone."
    )
    stages: tuple[str, ...] = setting(STAGES, "What is timed, each by itself: prefill, decode.")
    rounds: int = setting(15, "Samples of each program.")
    warmup: int = setting(2, "Runs of each program before its samples.")
    steps_per_call: int = setting(DEFAULT_STEPS_PER_CALL, "Decode steps per device call.")
    attention: Attention = setting(
        DEFAULT_ATTENTION,
        "What computes a prompt's attention: xla anywhere; splash, a kernel for TPUs; pallas, one "
        "for NVIDIA GPUs; auto, the platform's kernel for each prompt length that it can compute, "
        "and xla for others.",
    )
    clock: Clock = setting(
        "auto", "Clock: the host's, or the device's by the profiler; auto is the host's on a CPU."
    )
    google_benchmark: str | None = setting(
        None, "File for the times, too, in the JSON of google-benchmark."
    )
    profile: str | None = setting(None, "Folder for a trace of each cell that is timed, for XProf.")

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from at_least(self, rounds=2, warmup=1, steps_per_call=1)
        yield from some(self, batch_sizes=1, lengths=512, generated=16, stages="prefill")
        yield from each_at_least(self, batch_sizes=1, lengths=1, generated=0)
        yield from known("stages", self.stages, STAGES)
        if set(self.stages) == {"decode"} and not any(self.generated):
            yield self.wrong("generated", "nothing is decoded: give tokens, or the stage prefill")
        if is_first():
            yield from self._output_problems("google_benchmark", "a file", os.path.isfile)
            yield from self._output_problems("profile", "a folder", os.path.isdir)

    def _output_problems(
        self, name: str, wanted: str, is_fine: Callable[[str], bool]
    ) -> Iterator[Problem]:
        path = getattr(self, name)
        if path is None:
            return
        if not path:
            yield Problem(name, path, "it has no name; give one, or leave it out")
        elif not pathlib.Path(path).absolute().parent.is_dir():
            yield Problem(name, path, "there is no such folder to put it into; make it")
        elif os.path.exists(path) and not is_fine(path):
            yield Problem(name, path, f"it exists and is not {wanted}; give another")

    def plan_problems(self) -> Iterator[Problem]:
        config = self.subject.config
        for length, generated in itertools.product(self.lengths, self.generated):
            if length + generated > config.context and config.rope.type != "dynamic":
                context = f"the model's context, {config.context} tokens"
                text = (
                    f"with generated={generated} it is more than {context}: ask for less of either"
                )
                yield Problem("lengths", length, text)
        yield from check_candidates(self.candidates, config, taken=(BASELINE, AGAIN))

    @functools.cached_property
    def candidates(self) -> list[Candidate]:
        """What is timed beside the baseline; none for the baseline alone."""
        return candidates(self.mask, self.plan, self.subject.config, self.lengths)

    @functools.cached_property
    def runs(self) -> list[Run]:
        """Every stage at all sizes; prefill of a batch and a length once."""
        runs: dict[str, Run] = {}
        all_sizes = itertools.product(self.batch_sizes, self.lengths, self.generated)
        for sizes, stage in itertools.product(all_sizes, self.stages):
            run = Run(stage, *sizes)
            if run.tokens_per_row:
                runs.setdefault(run.slug, run)
        return list(runs.values())

    @property
    def how(self) -> How:
        """How runs are timed."""
        return part(self, How)

    @property
    def _over(self) -> dict[str, str]:
        """The mesh, where there is one: times belong to it."""
        return {} if self.mesh is None else {"mesh": self.mesh}

    def describe(self, subject: Subject, model: Llama) -> dict[str, Any]:
        return {
            "name": subject.name,
            "model_digest": model_digest(model),
            "config": subject.config.to_dict(),
            "dtype": model.embedding[...].dtype.name,
        }

    def environment(self) -> dict[str, Any]:
        """What else decides speed: how memory is handed out, and who goes first."""
        policy = None if not hasattr(os, "sched_getscheduler") else os.sched_getscheduler(0)
        return {
            **environment(),
            "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
            "scheduler": policy,
            "nice": os.getpriority(os.PRIO_PROCESS, 0),
        }

    def specification(self) -> dict[str, Any]:
        return {
            "candidates": [candidate.specification() for candidate in self.candidates],
            "workloads": list({str(run.sizes): run.sizes for run in self.runs}.values()),
            "stages": list(self.stages),
            **dataclasses.asdict(self.how),
            **self._over,
        }

    def size(self) -> Size:
        record = _RECORD_BYTES + _ROUND_BYTES * self.rounds
        return Size(
            len(self.runs) * self.rounds,
            len(self.runs),
            record * len(self.runs) * (len(self.candidates) + 4),
            unit="rounds",
        )

    def cells(self, bench: Bench) -> Iterator[Cell]:
        timer = Timer(bench.model, self.candidates, self.how, self.profile)
        for run in self.runs:
            fields = {
                "kind": "timing",
                **dataclasses.asdict(run),
                "candidates": [of.describe(run.prompt_length) for of in self.candidates],
                **dataclasses.asdict(self.how),
                **self._over,
            }
            on_round = functools.partial(bench.keep.report, run.slug, 1)
            measure = functools.partial(timer, run, on_round)
            yield Cell(fields, measure, run.slug, steps=self.rounds)
        if self.google_benchmark is not None:
            records = list(bench.results)
            first(lambda: self._write_google(records))

    @classmethod
    def blocks(cls, specification: Mapping[str, Any], records: Sequence[Record]) -> list[Table]:
        sizes, stages = specification["workloads"], specification["stages"]

        def order(record: Record) -> tuple[int, int]:
            of_record = {name: record[name] for name in sizes[0]}
            return sizes.index(of_record), stages.index(record["stage"])

        masks = specification["candidates"]
        tables = timing_tables(sorted(records, key=order))
        return [*tables, candidates_table(masks)] if masks else tables

    def _write_google(self, records: Sequence[Record]) -> None:
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        content = google_benchmark(records, date=now, executable="sinkjax timing")
        path, advice = pathlib.Path(self.google_benchmark), "free space, or give another"
        with about("google_benchmark", path), explaining("it cannot be written", advice):
            replace_file(path, json.dumps(content, indent=2).encode())
