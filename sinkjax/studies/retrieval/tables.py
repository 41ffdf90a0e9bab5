"""The tables of what masks still find, from the records of `sinkjax.studies.retrieval`."""

from collections.abc import Sequence

from sinkjax.report import formats
from sinkjax.report.formats import Footnotes
from sinkjax.report.records import Record
from sinkjax.report.table import Table, column, tabulate
from sinkjax.studies.resampling import LEVEL
from sinkjax.studies.retrieval.measure import FLOOR

NAME = 34  # characters of a mask's name
SAYS_NOTHING = f"says nothing: the baseline itself is below {formats.percent(FLOOR, 0)}"


def retrieval_tables(records: Sequence[Record]) -> list[Table]:
    """A table of each task, in the order of the records."""
    by_task: dict[str, list[Record]] = {}
    for record in records:
        by_task.setdefault(record["task"], []).append(record)
    return [_task_table(of_task) for of_task in by_task.values()]


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
        sorted(records, key=lambda record: (record["length"], record.get("depth", 0))),
        (
            ("mask", lambda record, _: formats.shortened(record["candidate"]["name"], NAME)),
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
            "NLL: of the whole answer, in nats. In brackets: the "
            f"{formats.percent(LEVEL, 0)} interval from resampling excerpts.",
        ),
        labels=3 if depths else 2,
    )


def _accuracy(record: Record, notes: Footnotes) -> str:
    result = record["result"]
    text = formats.point(result["accuracy"]["candidate"], formats.percent, notes)
    return text if result["says_something"] else f"{text} {notes.mark(SAYS_NOTHING)}"
