"""The report of a quality run as one HTML file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sinkjax.report import appendix, formats
from sinkjax.report.canvas import Picture
from sinkjax.report.formats import Footnotes
from sinkjax.report.page import Block, Names, render_page
from sinkjax.report.records import Record, environments
from sinkjax.report.table import Table
from sinkjax.studies.quality import figures as quality_figures
from sinkjax.studies.quality import tables as quality
from sinkjax.studies.resampling import LEVEL, RESAMPLES

_OPENED = 5  # masks of which the page's first sentences speak


@dataclass(frozen=True)
class Chapter:
    """One text under one BOS policy.

    Attributes:
      number: from 1.
      name: of the model, the policy and the text.
      opening: the first sentences to read.
      sections: blocks by the name that the template gives their place.
    """

    number: int
    name: str
    opening: list[str]
    sections: dict[str, list[Block]]


def render_quality(
    specification: Mapping[str, Any], records: Sequence[Record]
) -> tuple[str, list[Picture]]:
    """The report's HTML, and every figure in it under a name of its own.

    Args:
      specification, records: of a quality run, the records in any order.
    """
    names = Names()
    chapters = [
        _chapter(of_text, number, names)
        for number, of_text in enumerate(quality.by_text(records), start=1)
    ]
    model = specification["model"]
    html = render_page(
        "quality.html.jinja",
        title=f"What masks cost {model['name']}",
        chapters=chapters,
        run=[
            _candidates_table(specification["candidates"]),
            appendix.models_table({model["name"]: model}),
            appendix.sources_table(specification["sources"]),
            appendix.settings_table(specification),
            appendix.environments_table(environments(records)),
        ],
        num_records=formats.count(len(records)),
        level=formats.percent(LEVEL, 0),
        resamples=formats.count(RESAMPLES),
    )
    return html, names.pictures


def _chapter(of_text: Mapping[str, list[Record]], number: int, keep: Names) -> Chapter:
    costs = of_text.get("quality", [])
    continued = of_text.get("continuation", [])
    first = next(iter(of_text.values()))[0]

    def tables(kind: str, *makers: Callable[[Sequence[Record]], Table]) -> list[Block]:
        return [make(of_text[kind]) for make in makers] if kind in of_text else []

    def figures(draw: Callable[[Sequence[Record]], Picture], some: list[Record]) -> list[Block]:
        return [keep(draw(batch)) for batch in _batches(some)]

    return Chapter(
        number=number,
        name=quality.title(first),
        opening=_opening(costs),
        sections={
            "cost": [
                *figures(quality_figures.cost_figure, costs),
                *tables("quality", quality.divergence_table, quality.likelihood_table),
            ],
            "positions": [
                *figures(quality_figures.position_figure, costs),
                *tables("quality", quality.position_table),
            ],
            "continuations": [
                *figures(quality_figures.continuation_figure, continued),
                *tables("continuation", quality.continuation_table),
            ],
            "passkeys": tables("passkey", quality.passkey_table),
        },
    )


def _opening(records: Sequence[Record]) -> list[str]:
    """A sentence for each mask at the greatest length, the cheapest first."""
    last = max((record["length"] for record in records), default=0)
    longest = [record for record in records if record["length"] == last]
    longest.sort(key=lambda record: record["result"]["kl"]["mean"]["value"])
    sentences = [_sentence(record) for record in longest[:_OPENED]]
    if len(longest) > _OPENED:
        sentences.append(f"{len(longest) - _OPENED} more masks cost more; see the tables.")
    return sentences


def _sentence(record: Record) -> str:
    result, notes = record["result"], Footnotes()
    heads = record["candidate"]["heads"]
    total = sum(heads.values())
    perplexity = ""
    if result["perplexity"]["change"]["value"] is not None:
        change = formats.point(result["perplexity"]["change"], formats.relative, notes)
        perplexity = f" The perplexity changes by {change}."
    return (
        f"{record['candidate']['name']} takes {formats.count(total - heads['full'])} of "
        f"{formats.count(total)} heads off full attention. At {formats.count(record['length'])} "
        f"tokens that costs a KL of {formats.estimate(result['kl']['mean'], formats.nats, notes)} "
        f"nats a token; the likeliest token stays the same at "
        f"{formats.point(result['agreement']['top1'], formats.percent, notes)} of the positions."
        f"{perplexity}"
    )


def _batches(records: list[Record]) -> Iterator[list[Record]]:
    """The records of so many candidates as one figure tells apart, then those of the next."""
    names = list(dict.fromkeys(record["candidate"]["name"] for record in records))
    most = quality_figures.MOST_CANDIDATES
    for start in range(0, len(names), most):
        yield [r for r in records if r["candidate"]["name"] in names[start : start + most]]


def _candidates_table(candidates: Sequence[Mapping[str, Any]]) -> Table:
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
