"""The page of a quality run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sinkjax.report import formats
from sinkjax.report.formats import Footnotes
from sinkjax.report.page import Card, Prose, Section, explanations
from sinkjax.report.records import Record, portions, title
from sinkjax.studies.quality import figures, tables
from sinkjax.studies.resampling import FEWEST, INTERVALS

_OPENED = 5  # masks of which the page's first sentences speak


def openings(records: Sequence[Record]) -> list[Card]:
    """What masks cost on each text."""
    texts = (of_text for of_text in tables.by_text(records) if "quality" in of_text)
    return [Card(_name(of_text), _opening(of_text["quality"])) for of_text in texts]


def sections(specification: Mapping[str, Any], records: Sequence[Record]) -> list[Section]:
    """The page of a quality run, text by text."""
    measured = Prose(explanations(__package__).measured())
    masks = tables.candidates_table(specification["candidates"])
    chapters = map(_chapter, tables.by_text(records))
    return [*chapters, Section("What is measured", [measured, masks])]


def _chapter(of_text: Mapping[str, list[Record]]) -> Section:
    """One text under one BOS policy."""
    explain = explanations(__package__)
    parts: list[tuple[str, str, Callable]] = [
        ("What each mask costs", explain.cost(**INTERVALS, fewest=FEWEST), figures.cost_figure),
        ("Where in the text it costs", explain.positions(), figures.position_figure),
        (
            "How long greedy continuations stay the same",
            explain.continuations(),
            figures.continuation_figure,
        ),
    ]
    sections = []
    for (name, text, draw), (kind, makers) in zip(parts, tables.PARTS, strict=True):
        if records := of_text.get(kind):
            most = figures.MOST_CANDIDATES
            pictures = map(draw, portions(records, lambda r: r["candidate"]["name"], most))
            blocks = [Prose(text), *pictures, *(make(records) for make in makers)]
            sections.append(Section(name, blocks))
    return Section(_name(of_text), sections=sections)


def _name(of_text: Mapping[str, list[Record]]) -> str:
    return title(next(iter(of_text.values()))[0])


def _opening(records: Sequence[Record]) -> list[str]:
    """A sentence for each mask at the greatest length, the cheapest first."""
    last = max(record["length"] for record in records)
    longest = [record for record in records if record["length"] == last]
    longest.sort(key=lambda record: record["result"]["kl"]["mean"]["value"])
    sentences = [_sentence(record) for record in longest[:_OPENED]]
    if len(longest) > _OPENED:
        sentences.append(f"{len(longest) - _OPENED} more masks cost more; see the tables.")
    return sentences


def _sentence(record: Record) -> str:
    result, notes = record["result"], Footnotes()
    masked, total = tables.masked_heads(record).split("/")
    means = result["kl"]["mean"], result["kl_late"]
    kl, late = (formats.estimate(mean, formats.nats, notes) for mean in means)
    perplexity = ""
    if result["perplexity"]["change"]["value"] is not None:
        change = formats.point(result["perplexity"]["change"], formats.relative, notes)
        perplexity = f" The perplexity changes by {change}."
    return (
        f"{record['candidate']['name']} masks {masked} of {total} heads. At "
        f"{formats.count(record['length'])} tokens that costs a KL of {kl} nats a token, and "
        f"{late} over the last quarter; the likeliest token stays the same at "
        f"{formats.point(result['agreement']['top1'], formats.percent, notes)} of the positions."
        f"{perplexity}"
    )
