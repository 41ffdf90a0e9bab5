"""The tables of what masks cost, from the records of `sinkjax.studies.quality`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sinkjax.report import formats
from sinkjax.report.formats import Footnotes
from sinkjax.report.records import Record, grouped, title
from sinkjax.report.table import Table, Text, column, tabulate
from sinkjax.studies.costs import PARTS_NOTE, part_columns
from sinkjax.studies.resampling import EXCERPTS_NOTE

_NAME = 28  # characters of a mask's name


_LABELS = (
    ("mask", lambda record, _: label(record)[0]),
    column("tokens", "length", formats.count),
)


def quality_tables(records: Sequence[Record]) -> list[Table]:
    """Tables of KL, agreement, likelihood, KL by position, and continuations.

    Those of each text and BOS policy are together; what there are no records for has none.
    """
    return [
        make(of_kind)
        for of_text in by_text(records)
        for kind, makers in PARTS
        if (of_kind := of_text.get(kind))
        for make in makers
    ]


def by_text(records: Sequence[Record]) -> list[dict[str, list[Record]]]:
    """The records of each text and BOS policy by their kinds, by candidate and length."""
    ordered = sorted(records, key=lambda r: (r["candidate"]["name"], r["length"]))

    def text(record: Record) -> tuple[str, ...]:
        source = record["source"]
        return source["role"], source["name"], source["sha256"], record["bos"]

    texts = sorted(grouped(ordered, text).items())
    return [grouped(of_text, lambda record: record["kind"]) for _, of_text in texts]


def _table(name: str, note: str, *columns: tuple[str, Text]) -> Callable[..., Table]:
    """What makes a table of a row a record; {} in its note is how many excerpts there are."""

    def make(records: Sequence[Record]) -> Table:
        notes = (note.format(excerpts(records)),)
        return tabulate(f"{title(records[0])}: {name}", records, (*_LABELS, *columns), notes, 2)

    return make


def position_table(records: Sequence[Record]) -> Table:
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
            spans = [cells.get((first, length)) for length in lengths]
            last = max(span["last"] for span in spans if span)
            values = [
                formats.point(span["kl"], formats.nats, notes) if span else "-" for span in spans
            ]
            rows.append((formats.shortened(name, _NAME), formats.span(first, last), *values))
    return Table(
        title=f"{title(records[0])}: KL by position",
        columns=("mask", "positions", *(f"{formats.count(n)} tokens" for n in lengths)),
        rows=rows,
        notes=("Mean KL in nats a token; positions from 0.", *notes.lines()),
        labels=2,
    )


def candidates_table(candidates: Sequence[Mapping[str, Any]]) -> Table:
    """Each mask at each length: how many heads take which path, and its digest."""
    rows = []
    for candidate in candidates:
        rule = candidate["plan"]["crossing"] if "plan" in candidate else "-"
        for length, described in zip(candidate["masks"], candidate["described"], strict=True):
            heads = described["heads"]
            rows.append(
                (
                    candidate["name"],
                    formats.count(int(length)),
                    *(formats.count(heads[path]) for path in ("full", "window", "copy", "sink")),
                    rule,
                    described["mask_digest"],
                )
            )
    return Table(
        title="Masks",
        columns=("mask", "tokens", "full", "window", "copy", "sink", "crossing", "digest"),
        rows=rows,
        notes=(
            "Heads on each path. Crossing: of a plan, the rule for a text that grows beyond the "
            "lengths that a mask serves.",
        ),
        labels=2,
    )


def label(record: Record) -> tuple[str, str]:
    """A row's mask and tokens."""
    return formats.shortened(record["candidate"]["name"], _NAME), formats.count(record["length"])


def masked_heads(record: Record) -> str:
    """`117/270`: the heads from which a mask hides something.

    Of a record of an earlier version, all that are not `full`.
    """
    return formats.masked(record["result"].get("heads", record["candidate"]["heads"]))


MASKED: tuple[str, Text] = "masked\nheads", lambda record, _: masked_heads(record)
"""The column of these."""


def _continued_by(record: Record, notes: Footnotes) -> str:
    """`32`, marked where the text outgrows the lengths that its plan's mask serves."""
    text, crossing = formats.count(record["num_tokens"]), record.get("crossing")
    if crossing is None:
        return text
    beyond = " and ".join(map(formats.count, crossing["boundaries"]))
    rule = {
        "stay": "the prompt's mask stays",
        "prefill": "all tokens are prefilled again with the next mask",
    }[crossing["rule"]]
    return f"{text} {notes.mark(f'beyond {beyond} tokens {rule}')}"


def excerpts(records: Sequence[Record]) -> str:
    """`16 excerpts`, or `4 to 16 excerpts` where not all lengths have as many."""
    counts = [record["num_windows"] for record in records]
    return f"{formats.span(min(counts), max(counts))} excerpts"


_DIVERGENCE = _table(
    "KL to the baseline",
    f"KL in nats a token, of {{}}. {PARTS_NOTE} {EXCERPTS_NOTE}",
    MASKED,
    column("mean", "result.kl.mean", formats.nats, formats.estimate),
    *part_columns(by_path=True),
)
_AGREEMENT = _table(
    "agreement with the baseline",
    f"Percentiles are over the scored positions of {{}}. {EXCERPTS_NOTE} Top 1: both find the same "
    "token likeliest. Top 5: how many of the baseline's five likeliest are among the mask's.",
    column("KL, p95", "result.kl.p95", formats.nats, formats.point),
    column("KL, p99", "result.kl.p99", formats.nats, formats.estimate),
    column("top 1", "result.agreement.top1", formats.percent, formats.estimate),
    column("top 5", "result.agreement.top5", formats.percent, formats.point),
)
_LIKELIHOOD = _table(
    "negative log-likelihood and perplexity",
    f"NLL in nats a token. {EXCERPTS_NOTE}",
    column("NLL,\nbaseline", "result.nll.baseline", formats.nats, formats.point),
    column("NLL,\nmask", "result.nll.candidate", formats.nats, formats.point),
    column("change", "result.nll.change", formats.signed_nats, formats.estimate),
    column("perplexity,\nbaseline", "result.perplexity.baseline", formats.ratio, formats.point),
    column("perplexity,\nmask", "result.perplexity.candidate", formats.ratio, formats.point),
    column("change", "result.perplexity.change", formats.relative, formats.estimate),
)
_CONTINUATIONS = _table(
    "greedy continuations",
    "Tokens until the first one that the baseline continues otherwise, the mean over {}; one that "
    f"never differs counts whole. {EXCERPTS_NOTE}",
    ("continued by", _continued_by),
    column("until they differ", "result.agreeing", formats.mean_count, formats.estimate),
    column("never differ", "result.identical", formats.percent, formats.estimate),
)
PARTS: Sequence[tuple[str, Sequence[Callable[[Sequence[Record]], Table]]]] = (
    ("quality", (_DIVERGENCE, _AGREEMENT, _LIKELIHOOD)),
    ("quality", (position_table,)),
    ("continuation", (_CONTINUATIONS,)),
)
"""The parts of one text: the kind of its records, and what makes its tables of them."""
