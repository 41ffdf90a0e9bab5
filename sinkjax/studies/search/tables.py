"""The tables of a search, from the records of `sinkjax.studies.search.study`."""

import collections
import itertools
from collections.abc import Sequence
from typing import Any

from sinkjax.masks.mask import SinkMask
from sinkjax.report import formats
from sinkjax.report.formats import Footnotes
from sinkjax.report.records import Record
from sinkjax.report.table import Table, column, tabulate
from sinkjax.studies.resampling import LEVEL
from sinkjax.studies.search.controls import CHOSEN, CONTROLS


def search_tables(records: Sequence[Record]) -> list[Table]:
    """Tables of what a search chose, then of what it costs on each text to judge on."""
    (search,) = (record for record in records if record["kind"] == "search")
    quality = [record for record in records if record["kind"] == "quality"]
    names = [CHOSEN, *CONTROLS]
    text = lambda record: (  # noqa: E731
        record["source"]["sha256"] != search["source"]["sha256"],
        record["source"]["name"],
        record["tokens_sha256"],
    )
    quality.sort(key=lambda record: (*text(record), names.index(record["candidate"]["name"])))
    by_text = [list(records) for _, records in itertools.groupby(quality, key=text)]
    costs = [_quality_table(search, of_text) for of_text in by_text]
    return [_rounds_table(search), _mask_table(search), *costs]


def quality_of(records: Sequence[Record], name: str) -> list[Record]:
    """The records of what one mask of a search costs, by its name."""
    quality = [record for record in records if record["kind"] == "quality"]
    return [record for record in quality if record["candidate"]["name"] == name]


def costs_of(records: Sequence[Record], name: str) -> list[dict[str, Any]]:
    """The KL of one mask of a search on each text, for the chosen mask's file."""
    return [
        {"text": record["source"]["name"], "kl": record["result"]["kl"]["mean"]}
        for record in quality_of(records, name)
    ]


def over_budget(records: Sequence[Record], kl_budget: float) -> dict[str, Any]:
    """Whether the chosen mask keeps its budget on judged text, for the mask's file.

    Args:
      records: of one search.
      kl_budget: all of it, its margin included, in nats a token.

    Returns:
      `kl_budget`, and as `over_budget` the KL of each judged text on which the mask costs more.
    """
    costs = costs_of(records, CHOSEN)
    over = [cost for cost in costs if cost["kl"]["value"] > kl_budget]
    return {"kl_budget": kl_budget, "over_budget": over}


def budget_line(records: Sequence[Record], kl_budget: float) -> str:
    """What a search says last of `over_budget`: whether the mask keeps its budget."""
    over = over_budget(records, kl_budget)["over_budget"]
    if not over:
        return f"The mask keeps its budget, a KL of {kl_budget:g} nats a token, on all judged text."
    costs = ", ".join(
        f"{formats.estimate(text['kl'], formats.nats, Footnotes())} on {text['text']}"
        for text in over
    )
    return (
        f"THE MASK MISSES ITS BUDGET, a KL of {kl_budget:g} nats a token, on judged text: {costs}. "
        "Search again with a greater margin or more excerpts."
    )


def _rounds_table(search: Record) -> Table:
    settings = search["settings"]
    tried = lambda masks: ", ".join(f"{n}: {formats.nats(kl)}" for n, kl in masks)  # noqa: E731
    return tabulate(
        f"The search, by {settings['by']}, for KL up to {settings['kl_budget']:.4f}, "
        "the budget less its margin",
        [{"round": n, **step} for n, step in enumerate(search["result"]["rounds"], start=1)],
        (
            column("round", "round", formats.count),
            column("moves: KL, in the order of measuring", "tried", lambda m: tried(m) or "-"),
            column("moves kept", "moves", formats.count),
            column("KL", "kl", formats.nats),
        ),
        notes=("KL on the excerpts held back for measuring, in nats a token.",),
        labels=2,
    )


def _mask_table(search: Record) -> Table:
    mask = SinkMask.from_text(search["result"]["mask"])
    groups = mask.group_counts(search["model"]["num_kv_heads"])
    total = sum(groups.values())
    whole = mask.masked.reshape(total, -1).all(axis=1).mean()
    paths = collections.Counter(str(path) for layer in mask.heads for path in layer)
    return Table(
        title="The chosen mask",
        columns=("path", "heads"),
        rows=[
            *((path, formats.count(number)) for path, number in sorted(paths.items())),
            ("masked heads", formats.percent(mask.masked.mean())),
            ("key/value groups without a full head", formats.percent(whole)),
            (
                "key/value groups masked by one kind of path",
                formats.percent((total - groups["full"] - groups["mixed"]) / total),
            ),
        ],
    )


def _quality_table(search: Record, records: Sequence[Record]) -> Table:
    first = records[0]
    same = first["source"]["sha256"] == search["source"]["sha256"]
    name = first["source"]["name"] + (", other excerpts" if same else "")
    return tabulate(
        f"Judged on {name}: {first['num_windows']} excerpts of {first['length']} tokens",
        records,
        (
            column("mask", "candidate.name", str),
            column("masked\nheads", "candidate.heads", formats.masked),
            column("mean KL", "result.kl.mean", formats.nats, formats.estimate),
            column("p99", "result.kl.p99", formats.nats, formats.point),
            column("perplexity", "result.perplexity.change", formats.relative, formats.estimate),
            column("top 1", "result.agreement.top1", formats.percent, formats.point),
        ),
        notes=(
            "KL in nats a token. In brackets: the "
            f"{formats.percent(LEVEL, 0)} interval from resampling excerpts. Perplexity: its "
            "change. Top 1: both find the same token likeliest. All masks have as many masked "
            "heads as the chosen mask; but for `widest`, also as many on each path.",
        ),
    )
