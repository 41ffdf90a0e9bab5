"""A study: one question, put to a model, whose answer is records, one a cell; and how it is run.

A study is a frozen dataclass: its fields are its settings, of which a script makes flags. A cell is
a record that is to be: the fields that decide its result, and how the result is measured. What is
costly within is measured through `Bench.keep`, which holds it under a name that says what it was.
So a study that is killed loses what it was measuring, and one that goes on makes the records that
it would have made.
"""

import abc
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from sinkjax.checkpoint.load import Dtype
from sinkjax.distributed import first, parse_mesh, together
from sinkjax.environment import environment
from sinkjax.errors import InputError, Problem, problems_of
from sinkjax.models.decoder import Llama
from sinkjax.report import formats
from sinkjax.report.appendix import what_was_run
from sinkjax.report.page import Block, Card, Page, Section
from sinkjax.report.records import Record
from sinkjax.report.table import Table
from sinkjax.report.write import check_folder, write_page
from sinkjax.studies.fields import understood
from sinkjax.studies.parts import Part, beside, check_parts, finished_parts, records_of
from sinkjax.studies.results import Results, identity, output_folder, read_records
from sinkjax.studies.settings import MOST_SEED, at_least, setting, values
from sinkjax.studies.shared import open_results, take_arrays
from sinkjax.studies.store import Store
from sinkjax.studies.subject import Subject

MODEL = (
    "smollm2-135m, gemma3-270m or qwen2.5-coder-0.5b (fetched once: 93, 238 and 478 MB), a folder "
    "with config.json and safetensors, a .gguf file, a folder that `sinkjax convert` wrote, or a "
    "Hub id such as meta-llama/Llama-3.2-1B"
)


@dataclasses.dataclass(frozen=True)
class Size:
    """How much a study is at most.

    Attributes:
      steps: of work, in `unit`s, that its cells report in all.
      records: that it makes.
      bytes: that records and kept arrays take.
      unit: of its steps.
      flops: floating-point operations of its work, where they are known.
    """

    steps: int
    records: int
    bytes: int
    unit: str = "tokens"
    flops: float = 0.0

    def divided(self, parts: int) -> "Size":
        """The same with about the steps and the records of one of its parts."""
        steps, records = (-(-count // parts) for count in (self.steps, self.records))
        return dataclasses.replace(self, steps=steps, records=records)


OnProgress = Callable[[str, int, int], None]
"""Told what was done, how many steps of the study's work, and how many records were made, or found
made."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A record that is to be.

    Attributes:
      fields: all that decides the result, of JSON values, the model apart.
      measure: gives the result.
      name: for progress.
      steps: of the study's work that the cell is; those that measuring does not report itself are
        reported when the record is there.
      together: equal for cells that are made of the same measurements, which one part of a study
        makes; by default a cell is for itself.
      joins: whether it is made of what other cells measured, and so once all parts are there.
    """

    fields: Mapping[str, Any]
    measure: Callable[[], Mapping[str, Any]]
    name: str
    steps: int = 0
    together: Hashable = None
    joins: bool = False


class Bench:
    """What cells are measured with.

    Attributes:
      subject, model: whose weights are loaded.
      described: the model, as the specification has it.
      results: where records and arrays are kept.
      keep: measures what is not kept yet.
    """

    def __init__(
        self,
        subject: Subject,
        model: Llama,
        described: Mapping[str, Any],
        results: Results,
        on_progress: OnProgress,
        without: Sequence[str],
    ):
        self.subject, self.model, self.described = subject, model, described
        self._identity = {key: value for key, value in described.items() if key not in without}
        self.results = results
        on_steps = lambda text, steps: on_progress(text, steps, 0)  # noqa: E731
        self.keep = Store(results, described["model_digest"], on_steps)

    def complete(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A cell's fields with the model's."""
        return {"model": self._identity, **fields}

    def record_id(self, fields: Mapping[str, Any]) -> str:
        """Returns the id of a cell's record."""
        return identity(self.complete(fields))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Study(abc.ABC):
    """One question with its settings.

    Attributes:
      name: that of its script, `experiments.NAME`, and of its folder here.
      renamed: settings of earlier versions, by name, and what each is called now, or why it is
        gone.
      without: of a model's description, what its records leave out.
      shapes: whether it takes models without a tokenizer and trained weights.
      whole: why its cells cannot be divided into parts; None where they can.
      tables_of: makes the tables of its records.
      title, lede: of its page; {} is the model's name.
    """

    name: ClassVar[str]
    renamed: ClassVar[Mapping[str, str]] = {}
    without: ClassVar[tuple[str, ...]] = ("max_length",)
    shapes: ClassVar[bool] = False
    whole: ClassVar[str | None] = None
    tables_of: ClassVar[Callable[[Sequence[Record]], list[Table]]]
    title: ClassVar[str]
    lede: ClassVar[str]

    model: str | Subject = setting("smollm2-135m", f"Model: {MODEL}.")
    revision: str | None = setting(None, "Branch, tag or commit, where the model is a Hub id.")
    dtype: Dtype = setting("float32", "Type of the parameters, whatever the stored type is.")
    mesh: str | None = setting(
        None,
        "Mesh over all devices, such as model:4,data:2. model divides heads, neurons and words; "
        "data divides prompts; sub divides the query heads of a group; neurons, for masks that are "
        "uneven over model, divides neurons, words and, in attention, prompts. auto is data, and "
        "model as far as memory asks for it. Default: one device.",
    )
    seed: int = setting(0, "Seed of everything that is drawn at random.")

    @abc.abstractmethod
    def problems(self) -> Iterator[Problem]:
        """What is wrong with its settings by themselves."""
        yield from at_least(self, most=MOST_SEED, seed=0)
        if self.mesh is not None:
            yield from problems_of(lambda: parse_mesh(self.mesh))

    def plan_problems(self) -> Iterator[Problem]:
        """What texts, masks and the model's config show, before any weight is read.

        Asked whatever the settings are by themselves; may raise InputError.
        """
        yield from ()

    @abc.abstractmethod
    def specification(self) -> dict[str, Any]:
        """All that defines its cells, of JSON values, the model apart."""

    @abc.abstractmethod
    def size(self) -> Size:
        """How much it is at most."""

    @abc.abstractmethod
    def cells(self, bench: Bench) -> Iterator[Cell]:
        """Its records that are to be, in order. A cell's record is there when the next is asked."""

    @classmethod
    def tables(cls, specification: Mapping[str, Any], records: Sequence[Record]) -> list[Table]:
        """What its records say, in the order in which to read it."""
        return cls.tables_of(records)

    @classmethod
    def blocks(cls, specification: Mapping[str, Any], records: Sequence[Record]) -> Sequence[Block]:
        """What a page of one section shows: the tables, where there are no figures."""
        return cls.tables(specification, records)

    @classmethod
    def sections(
        cls, specification: Mapping[str, Any], records: Sequence[Record]
    ) -> Iterable[Section]:
        """The page but for its last section, what was run."""
        return [Section("What was found", cls.blocks(specification, records))]

    @staticmethod
    def openings(records: Sequence[Record]) -> Sequence[Card]:
        """What the page says first."""
        return ()

    @classmethod
    def page(cls, specification: Mapping[str, Any], records: Sequence[Record]) -> Page:
        """What its records say, as a page."""
        title = cls.title.format(specification["model"]["name"])
        lede = f"{cls.lede} From {formats.count(len(records))} records."
        sections = cls.sections(specification, records)
        run = what_was_run(specification, records)
        return Page(cls.name, title, lede, cls.openings(records), [*sections, run])

    def closing(self, folder: str, records: Sequence[Record]) -> list[str]:
        """The last lines: what else there is to know, and where files for other programs lie."""
        return []

    def planned(self) -> Table:
        """What would be run, for who asks before."""
        size = self.size()
        return Table(
            title=f"{self.name}: nothing run",
            columns=("what", "at most"),
            rows=(
                (size.unit, f"{size.steps:,}"),
                ("records", f"{size.records:,}"),
                ("disk", f"{size.bytes / 1e6:,.1f} MB"),
            ),
        )

    @functools.cached_property
    def subjects(self) -> tuple[Subject, ...]:
        """The models that it is put to."""
        named = self.model if isinstance(self.model, tuple) else (self.model,)
        how = values(self, "revision", "dtype", "seed", "mesh")
        subjects = tuple(
            name if isinstance(name, Subject) else Subject.named(name, **how) for name in named
        )
        for subject in subjects:
            if subject.tokenizer is None and not self.shapes:
                raise InputError(
                    Problem("model", subject.name, "a shape has no tokenizer; name a model")
                )
        return subjects

    @property
    def subject(self) -> Subject:
        """The one model of a study that takes one."""
        (subject,) = self.subjects
        return subject

    def describe(self, subject: Subject, model: Llama) -> dict[str, Any]:
        """A model in the specification."""
        return subject.describe(model)

    def environment(self) -> dict[str, Any]:
        """What a record was measured with."""
        return environment() if self.mesh is None else {**environment(), "mesh": self.mesh}

    def wrong(self, name: str, text: str) -> Problem:
        """A problem with the value that a setting has."""
        return Problem(name, getattr(self, name), text)

    def check(self, part: Part | None = None) -> None:
        """Raises InputError with all of `problems` and of `plan_problems`, and of a part of it.

        Of several processes, each checks what it sees itself, and all raise where one does.
        """
        together(lambda: self._check(part))

    def _check(self, part: Part | None) -> None:
        problems, cause = [*self._unknown(), *self.problems()], None
        if part is not None and self.whole is not None:
            problems.append(Problem("part", part, f"{self.whole}; give the study without a part"))
        try:
            for problem in self.plan_problems():
                problems.append(problem)
        except InputError as error:
            problems += error.problems
        except Exception as error:  # of what cannot be planned with settings that are wrong
            if not problems:
                raise
            cause = error  # shown with them, should it be none of theirs
        if problems:
            raise InputError(*dict.fromkeys(problems)) from cause

    def _unknown(self) -> Iterator[Problem]:
        """Settings that take one of a few values, and have another."""
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                yield self.wrong(name, f"use one of {', '.join(get_args(hint))}")


def run_study(
    study: Study,
    folder: str,
    on_progress: OnProgress = lambda *done: None,
    part: Part | None = None,
) -> tuple[dict[str, Any], list[Record]]:
    """Measures what a folder does not hold yet, and writes the page of all that it holds.

    Args:
      on_progress: called after every step.
      part: whose share of the cells is measured, into a folder of its own and without a page. The
        study without a part takes over what all its parts made.

    Returns:
      the specification that the folder, or the part's, now belongs to, and all its records.

    Raises:
      InputError: for settings out of their range, weights that cannot be read, or a folder that
        cannot be used: another study's, not writable, full, or with a report.html of somebody
        else's; for a part of a study that has none, and without a part where some have not
        finished, or are another run's.
    """
    study.check(part)
    whole = output_folder(folder)
    if part is None:
        with contextlib.suppress(OSError):  # of what cannot be read `open_results` says more
            first(lambda: check_folder(whole))  # now, not after hours of measuring
    parts = first(lambda: finished_parts(whole)) if part is None else part.all()
    described, model = [], None
    for subject in study.subjects:
        model = None  # one model at a time, however many there are
        model = subject.load()
        described.append(study.describe(subject, model))
        on_progress(f"loaded {subject.name}", 0, 0)
    several = isinstance(study.model, tuple)
    specification = {
        "experiment": study.name,
        **({"models": described} if several else {"model": described[0]}),
        **study.specification(),
    }
    first(lambda: check_parts(whole, parts, specification))
    if part is None:
        place, others, share = whole, (), None
        made = first(lambda: records_of(whole, parts))
    else:
        place, others, share, made = part.within(whole), beside(whole, part), part.share(), {}
    with open_results(place, specification, others) as results:
        results.reserve(study.size().bytes)
        for taken in parts if part is None else ():
            take_arrays(results, taken.within(whole))
        for index, subject in enumerate(study.subjects):
            if len(study.subjects) > 1:
                model = None
                model = subject.load()
            bench = Bench(subject, model, described[index], results, on_progress, study.without)
            _record(study, bench, on_progress, made, share)
    if part is not None:
        first(lambda: part.finish(whole))
        return first(lambda: read_records(place))
    return first(lambda: write_report(study, place))


def write_report(study: Study | type[Study], folder: Path) -> tuple[dict[str, Any], list[Record]]:
    """Writes the page of what a folder holds, and gives that: its specification and records."""
    specification, records = read_records(folder)
    with understood(records):
        write_page(folder, study.page(specification, records))
    return specification, records


def _record(
    study: Study,
    bench: Bench,
    on_progress: OnProgress,
    made: Mapping[str, Record],
    share: Callable[[Hashable], bool] | None,
) -> None:
    """Makes the records of one model that are not there yet.

    Args:
      made: by parts, by id.
      share: whether a part makes a cell; None where there are no parts, or they have made theirs.
    """
    for cell in study.cells(bench):
        record_id = bench.record_id(cell.fields)
        if share is not None and not share(None if cell.joins else cell.together or record_id):
            continue
        before = bench.keep.reported
        if record_id not in bench.results:
            record = made.get(record_id) or {
                "id": record_id,
                **bench.complete(cell.fields),
                "result": cell.measure(),
                "environment": study.environment(),
            }
            bench.results.append(record)
        rest = max(0, cell.steps - (bench.keep.reported - before))
        on_progress(cell.name, rest, 1)
