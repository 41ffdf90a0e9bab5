"""The tables of what copying costs, from the records of `sinkjax.studies.copies.study`."""

from collections.abc import Sequence

from sinkjax.report import formats
from sinkjax.report.formats import Footnotes
from sinkjax.report.records import Record, by_length, grouped, title
from sinkjax.report.table import Table, column, tabulate
from sinkjax.studies.costs import LAST, over_draws
from sinkjax.studies.resampling import DRAWS_NOTE

_NAMES = {
    "layer_0": "copy of layer 0, same index",
    "adjacent": "copy of the layer before, best head",
    "pattern": "copy of the earlier head of the nearest pattern",
    "output": "copy of the earlier head of the least error",
    "shuffled": "the same heads, sources at random",
    "sinks": "heads of the highest sink scores, copy of layer 0, same index",
    "random": "heads at random, copy of layer 0, same index",
    "sink": "sink(first), no pattern at all",
}
_WHERE = {
    "kl": ("", "all positions but the first"),
    LAST: (" at the last position", "the last positions"),
}
_SOURCES = {
    "layer_0": "layer 0, same index",
    "adjacent": "layer before, best head",
    "any": "any earlier head",
}


def copying_tables(records: Sequence[Record]) -> list[Table]:
    """Tables of what there is to copy, and of the KL of copying by every variant."""
    sources = sorted((r for r in records if r["kind"] == "sources"), key=lambda r: r["length"])
    copies = [record for record in records if record["kind"] == "copies"]
    tables = [_sources_table(sources)] if sources else []
    return tables + [_copies_table(kl, copies) for kl in _WHERE if copies]


def _sources_table(records: Sequence[Record]) -> Table:
    return tabulate(
        f"{title(records[0], 'chosen_on')}: how well the best source serves a head",
        [
            {"length": record["length"], "name": name, **record["result"][source]}
            for record in records
            for source, name in _SOURCES.items()
        ],
        (
            column("tokens", "length", formats.count),
            column("source", "name", str),
            column("error that is left", "output", formats.percent),
            column("worse than nothing", "worse", formats.percent),
        ),
        notes=(
            "Error that is left: of the head's own output when it copies, relative to that of "
            "leaving the head out, the median over heads after layer 0. Worse than nothing: the "
            "share of heads for which it is above 100%.",
        ),
        labels=2,
    )


def _copies_table(kl: str, records: Sequence[Record]) -> Table:
    """Rows are variants at each length, columns are shares; `kl` is the KL of results."""
    notes = Footnotes()
    shares = sorted({record["share"] for record in records})
    rows = []
    for length, of_length in by_length(records).items():
        by_cell = grouped(of_length, lambda record: (record["variant"], record["share"]))

        def text(draws: Sequence[Record]) -> str:
            estimate = over_draws([draw["result"][kl] for draw in draws])
            return formats.estimate(estimate, formats.nats, notes)

        for variant, name in _NAMES.items():
            of_shares = [by_cell.get((variant, share)) for share in shares]
            if any(of_shares):
                values = (text(draws) if draws else "-" for draws in of_shares)
                rows.append((formats.count(length), name, *values))
    counts = [record["source"]["num_windows"] for record in records]
    return Table(
        title=f"{title(records[0], 'source')}: KL to the baseline of copying{_WHERE[kl][0]}",
        columns=("tokens", "heads", *(f"{formats.percent(share, 0)} of heads" for share in shares)),
        rows=rows,
        notes=(
            f"Chosen on {records[0]['chosen_on']['name']}. KL in nats a token, the mean over "
            f"{_WHERE[kl][1]} of {formats.span(min(counts), max(counts))} excerpts. {DRAWS_NOTE}",
            *notes.lines(),
        ),
        labels=2,
    )
