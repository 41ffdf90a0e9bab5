"""The tables of what masks cost, from the records of `sinkjax.quality.run_quality`."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from sinkjax.report import formats
from sinkjax.report.formats import Footnotes
from sinkjax.report.records import Record
from sinkjax.report.tables import Table
from sinkjax.statistics import LEVEL

_LEVEL = formats.percent(LEVEL, 0)
_NAME = 28  # characters of a mask's name
_RESAMPLED = f"In brackets: the {_LEVEL} interval from resampling windows."


def quality_tables(records: Sequence[Record]) -> list[Table]:
    """What was measured, in the order in which to read it.

    Args:
      records: of one run, in any order.

    Returns:
      for each text and BOS policy the tables of KL and agreement, likelihood, KL by position,
      continuations and hidden numbers; none of what there are no records for.
    """
    makers: dict[str, Sequence[Callable[[str, list[Record]], Table]]] = {
        "quality": (_divergence_table, _likelihood_table, _position_table),
        "continuation": (_continuation_table,),
        "passkey": (_passkey_table,),
    }
    order = sorted(records, key=_text)
    tables = []
    for _, group in itertools.groupby(order, key=_text):
        of_text = list(group)
        for kind, of_kind in makers.items():
            if found := sorted((r for r in of_text if r["kind"] == kind), key=_row_order):
                tables += [make(_title(found[0]), found) for make in of_kind]
    return tables


def _divergence_table(title: str, records: list[Record]) -> Table:
    notes = Footnotes()
    rows = [
        (
            *_label(record),
            _off_full(record),
            formats.estimate(record["result"]["kl"]["mean"], formats.nats, notes),
            formats.point(record["result"]["kl"]["p95"], formats.nats, notes),
            formats.estimate(record["result"]["kl"]["p99"], formats.nats, notes),
            formats.estimate(record["result"]["agreement"]["top1"], formats.percent, notes),
            formats.point(record["result"]["agreement"]["top5"], formats.percent, notes),
        )
        for record in records
    ]
    return Table(
        title=f"{title}: KL to the baseline, and agreement with it",
        columns=("mask", "tokens", "off\nfull", "mean KL", "p95", "p99", "top 1", "top 5"),
        rows=rows,
        notes=(
            "KL in nats a token, its mean and percentiles over the scored positions of "
            f"{_windows(records)}. {_RESAMPLED} Top 1: both find the same token likeliest. Top 5: "
            "how many of the baseline's five likeliest are among the mask's.",
            *notes.lines(),
        ),
        labels=2,
    )


def _likelihood_table(title: str, records: list[Record]) -> Table:
    notes = Footnotes()
    rows = []
    for record in records:
        nll, perplexity = record["result"]["nll"], record["result"]["perplexity"]
        rows.append(
            (
                *_label(record),
                formats.point(nll["baseline"], formats.nats, notes),
                formats.point(nll["candidate"], formats.nats, notes),
                formats.estimate(nll["change"], formats.signed_nats, notes),
                formats.point(perplexity["baseline"], formats.ratio, notes),
                formats.point(perplexity["candidate"], formats.ratio, notes),
                formats.estimate(perplexity["change"], formats.relative, notes),
            )
        )
    return Table(
        title=f"{title}: negative log-likelihood and perplexity",
        columns=(
            "mask",
            "tokens",
            "NLL,\nbaseline",
            "NLL,\nmask",
            "change",
            "perplexity,\nbaseline",
            "perplexity,\nmask",
            "change",
        ),
        rows=rows,
        notes=(f"NLL in nats a token. {_RESAMPLED}", *notes.lines()),
        labels=2,
    )


def _position_table(title: str, records: list[Record]) -> Table:
    """Rows are positions of each mask, columns are lengths."""
    notes = Footnotes()
    by_cell: dict[str, dict[tuple[int, int], Any]] = {}
    for record in records:
        for span in record["result"]["kl_by_position"]:
            cells = by_cell.setdefault(record["candidate"]["name"], {})
            cells[span["first"], record["length"]] = span
    lengths = sorted({record["length"] for record in records})
    rows = []
    for name, cells in by_cell.items():
        for first in sorted({first for first, _ in cells}):
            found = [cells.get((first, length)) for length in lengths]
            last = max(span["last"] for span in found if span)
            values = [
                formats.point(span["kl"], formats.nats, notes) if span else "-" for span in found
            ]
            rows.append((formats.shortened(name, _NAME), formats.positions(first, last), *values))
    return Table(
        title=f"{title}: KL by position",
        columns=("mask", "positions", *(f"{formats.count(n)} tokens" for n in lengths)),
        rows=rows,
        notes=("Mean KL in nats a token; positions from 0.", *notes.lines()),
        labels=2,
    )


def _continuation_table(title: str, records: list[Record]) -> Table:
    notes = Footnotes()
    rows = [
        (
            *_label(record),
            formats.count(record["num_tokens"]),
            formats.estimate(record["result"]["agreeing"], formats.mean_count, notes),
            formats.estimate(record["result"]["identical"], formats.percent, notes),
        )
        for record in records
    ]
    return Table(
        title=f"{title}: greedy continuations",
        columns=("mask", "tokens", "continued by", "until they differ", "never differ"),
        rows=rows,
        notes=(
            f"Tokens until the first one that the baseline continues otherwise, the mean over "
            f"{_windows(records)}; one that never differs counts whole. {_RESAMPLED}",
            *notes.lines(),
        ),
        labels=2,
    )


def _passkey_table(title: str, records: list[Record]) -> Table:
    notes = Footnotes()
    rows = []
    for record in records:
        retrieved, nll = record["result"]["retrieved"], record["result"]["nll"]
        rows.append(
            (
                *_label(record),
                formats.percent(record["depth"], 0),
                formats.estimate(retrieved["baseline"], formats.percent, notes),
                formats.estimate(retrieved["candidate"], formats.percent, notes),
                formats.point(nll["baseline"], formats.nats, notes),
                formats.estimate(nll["change"], formats.signed_nats, notes),
            )
        )
    return Table(
        title=f"{title}: a hidden number given back",
        columns=(
            "mask",
            "tokens",
            "depth",
            "by the\nbaseline",
            "by the\nmask",
            "NLL,\nbaseline",
            "change",
        ),
        rows=rows,
        notes=(
            f"The share of {_windows(records)} whose number of five digits greedy decoding gives "
            f"back whole. Depth: how much of the text comes before it. NLL: of the whole number, "
            f"in nats. {_RESAMPLED}",
            *notes.lines(),
        ),
        labels=2,
    )


def _text(record: Record) -> tuple[str, str, str, str]:
    source = record["source"]
    return source["role"], source["name"], source["sha256"], record["bos"]


def _row_order(record: Record) -> tuple[Any, ...]:
    return record["candidate"]["name"], record["length"], record.get("depth", 0)


def _title(record: Record) -> str:
    bos = formats.bos(record["bos"], record["bos_added"])
    names = (record["model"]["name"], record["source"]["name"])
    return f"{formats.shortened(names[0])}, {bos}; {formats.shortened(names[1])}"


def _label(record: Record) -> tuple[str, str]:
    return formats.shortened(record["candidate"]["name"], _NAME), formats.count(record["length"])


def _off_full(record: Record) -> str:
    """`117/270`."""
    heads = record["candidate"]["heads"]
    total = sum(heads.values())
    return f"{formats.count(total - heads['full'])}/{formats.count(total)}"


def _windows(records: Sequence[Record]) -> str:
    """`16 windows`, or `4 to 16 windows` where not all lengths have as many."""
    counts = [record["num_windows"] for record in records]
    most = f"{formats.count(max(counts))} windows"
    return most if min(counts) == max(counts) else f"{formats.count(min(counts))} to {most}"
