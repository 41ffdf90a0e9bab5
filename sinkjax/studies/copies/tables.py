"""The tables of what copying costs, from the records of `sinkjax.studies.copies.study`."""

from collections.abc import Sequence

from sinkjax.report import formats
from sinkjax.report.records import Record, by_length, grouped, title
from sinkjax.report.table import Table, column, tabulate
from sinkjax.studies.costs import LAST, LAST_NOTE, PARTS, PARTS_NOTE, mean_of_draws, part_columns
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
    return tables + [_copies_table(of_length) for of_length in by_length(copies).values()]


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


def _copies_table(records: Sequence[Record]) -> Table:
    of_choice = grouped(records, lambda r: (list(_NAMES).index(r["variant"]), r["share"]))
    source, length = records[0]["source"], formats.count(records[0]["length"])
    return tabulate(
        f"{title(records[0])}, {length} tokens: KL to the baseline of copying",
        [mean_of_draws(of_choice[choice]) for choice in sorted(of_choice)],
        (
            column("heads", "variant", _NAMES.__getitem__),
            column("masked heads", "result.heads", formats.masked),
            column("mean", "result.kl", formats.nats, formats.estimate),
            *part_columns(parts=(*PARTS, LAST)),
        ),
        notes=(
            f"Chosen on {records[0]['chosen_on']['name']}, and judged on {source['num_windows']} "
            f"excerpts. KL in nats a token. {PARTS_NOTE} {LAST_NOTE} {DRAWS_NOTE}",
        ),
        labels=2,
    )
