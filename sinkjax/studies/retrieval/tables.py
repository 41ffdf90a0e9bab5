"""The tables of what masks still find, from the records of `sinkjax.studies.retrieval`."""

from collections.abc import Sequence
from typing import Any

from sinkjax.instruments.tasks import TASKS
from sinkjax.report import formats
from sinkjax.report.formats import Footnotes
from sinkjax.report.records import Record, grouped
from sinkjax.report.table import Table, column, tabulate
from sinkjax.studies.resampling import EXCERPTS_NOTE
from sinkjax.studies.retrieval.measure import FLOOR

SAYS_NOTHING = f"says nothing: the baseline itself is below {formats.percent(FLOOR, 0)}"
"""Why a cell is marked."""

_NAME = 28  # characters of a mask's name


def retrieval_tables(records: Sequence[Record]) -> list[Table]:
    """A table of each task: of each mask, and then of its controls, lengths and depths."""
    by_task = grouped(sorted(records, key=_place), lambda record: record["task"])
    return [_task_table(by_task[task]) for task in TASKS if task in by_task]


def by_mask(records: Sequence[Record]) -> dict[str, dict[str, list[Record]]]:
    """The records of each mask and of its controls, by the mask's name and by `panel`."""
    masks = grouped(sorted(records, key=_place), _mask)
    return {mask: grouped(of_mask, panel) for mask, of_mask in masks.items()}


def panel(record: Record) -> str:
    """`mask`, or of a random control how its name goes on: `at random`."""
    name = record["candidate"]["name"]
    return name.removeprefix(_mask(record)).strip(", ") or "mask"


def _mask(record: Record) -> str:
    """The mask that a record is of, or of whose control."""
    candidate = record["candidate"]
    return candidate.get("control_of", candidate["name"])


def _place(record: Record) -> tuple[Any, ...]:
    """Where a record stands among others, in whatever order they were made."""
    task = list(TASKS).index(record["task"])
    control = panel(record) != "mask"
    where = task, record["length"], record.get("depth", 0)
    return _mask(record), control, record["candidate"]["name"], *where


def _label(record: Record, notes: Footnotes) -> str:
    own = panel(record)
    return formats.shortened(_mask(record), _NAME) if own == "mask" else f"its control, {own}"


def _task_table(records: Sequence[Record]) -> Table:
    first = records[0]
    accuracy, nll = "result.accuracy", "result.nll"
    depths = "depth" in first
    bos = formats.bos(first["bos"], first["bos_added"])
    filler = f", in {formats.shortened(first['source']['name'])}" if "source" in first else ""
    measure = (
        "whose answer greedy decoding gives back whole"
        if depths
        else "of the words asked for that stand in what greedy decoding writes"
    )
    excerpts = f"{formats.count(first['num_windows'])} excerpts"
    return tabulate(
        f"{formats.shortened(first['model']['name'])}, {bos}: {first['task']}{filler}",
        records,
        (
            ("mask", _label),
            column("tokens", "length", formats.count),
            *([column("depth", "depth", lambda d: formats.percent(d, 0))] if depths else []),
            column("baseline", f"{accuracy}.baseline", formats.percent, formats.point),
            ("mask", _accuracy),
            column("change,\npoints", f"{accuracy}.change", formats.points, formats.estimate),
            column("NLL,\nbaseline", f"{nll}.baseline", formats.ratio, formats.point),
            column("change", f"{nll}.change", formats.signed, formats.estimate),
        ),
        notes=(
            f"The share {measure}; n = {excerpts} a row. "
            f"{'Depth: how much of the text comes before it. ' if depths else ''}"
            f"NLL: of the whole answer, in nats. {EXCERPTS_NOTE}",
        ),
        labels=3 if depths else 2,
    )


def _accuracy(record: Record, notes: Footnotes) -> str:
    result = record["result"]
    text = formats.point(result["accuracy"]["candidate"], formats.percent, notes)
    return text if result["says_something"] else f"{text} {notes.mark(SAYS_NOTHING)}"
