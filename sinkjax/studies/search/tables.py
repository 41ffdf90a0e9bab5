"""The tables of a search, from the records of `sinkjax.studies.search.study`."""

import collections
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from sinkjax.masks.mask import SinkMask
from sinkjax.report import formats
from sinkjax.report.records import Record, grouped, title
from sinkjax.report.table import Table, column, tabulate
from sinkjax.studies.costs import PARTS, PARTS_NOTE, mean_of_draws, over_texts, part_columns
from sinkjax.studies.quality.tables import MASKED
from sinkjax.studies.resampling import DRAWS_NOTE, LEVEL
from sinkjax.studies.retrieval.tables import retrieval_tables
from sinkjax.studies.search.controls import CHOSEN, CONTROLS


def search_tables(records: Sequence[Record]) -> list[Table]:
    """Tables of what a search chose, then of what it costs on each text to judge on."""
    search = search_of(records)
    quality = [record for record in records if record["kind"] == "quality"]
    names = list(dict.fromkeys([CHOSEN, *CONTROLS, *map(control_of, quality)]))
    text = lambda record: (  # noqa: E731
        record["source"]["sha256"] != search["source"]["sha256"],
        record["source"]["name"],
        record["tokens_sha256"],
    )
    quality.sort(key=lambda record: (*text(record), names.index(control_of(record))))
    by_text = [
        [over_draws(list(of_mask)) for _, of_mask in itertools.groupby(of_text, key=control_of)]
        for _, of_text in itertools.groupby(quality, key=text)
    ]
    costs = [_quality_table(search, of_text) for of_text in by_text]
    if len(by_text) > 1:
        costs.append(_texts_table(search, quality_of(records, CHOSEN)))
    answers = retrieval_tables([record for record in records if record["kind"] == "retrieval"])
    over_chips = chips_tables(search["result"]["over_chips"])
    return [_rounds_table(search), _mask_table(search), *over_chips, *costs, *answers]


def search_of(records: Sequence[Record]) -> Record:
    """The record of what was chosen."""
    (search,) = (record for record in records if record["kind"] == "search")
    return search


def quality_of(records: Sequence[Record], name: str) -> list[Record]:
    """The records of what one mask of a search costs, by its name, with all draws of it."""
    quality = [record for record in records if record["kind"] == "quality"]
    return [record for record in quality if control_of(record) == name]


def control_of(record: Record) -> str:
    """The name of a record's mask, without the number of a draw."""
    return record["candidate"]["name"].rstrip(" 0123456789")


def costs_of(records: Sequence[Record], name: str) -> list[dict[str, Any]]:
    """The KL of one mask of a search on each text, for the chosen mask's file."""
    by_text = grouped(quality_of(records, name), lambda record: record["tokens_sha256"])
    return [
        {"text": of_text[0]["source"]["name"], **_costs(over_draws(of_text))}
        for of_text in by_text.values()
    ]


def over_draws(records: Sequence[Record]) -> Record:
    """`mean_of_draws` of a control on one text, under a name that says how many there are."""
    record = mean_of_draws(records)
    if len(records) == 1:
        return record
    name = f"{control_of(record)}, {len(records)} draws"
    return {**record, "candidate": {**record["candidate"], "name": name}}


def _costs(record: Record) -> dict[str, Any]:
    result = record["result"]
    parts = {name: {**result[name]} for name in PARTS}
    for part in parts.values():
        part.pop("by_path", None)
    return {"kl": result["kl"]["mean"], **parts}


def _rounds_table(search: Record) -> Table:
    settings = search["settings"]
    tried = lambda masks: ", ".join(f"{n}: {formats.nats(kl)}" for n, kl in masks)  # noqa: E731
    over = f" on each of {settings['chips']} chips" if "chips" in settings else ""
    budget_on = "the largest KL" if settings["budget_on"] == "largest" else "KL"
    return tabulate(
        f"{title(search)}: the search, by {settings['by']}{over}, for {budget_on} up to "
        f"{settings['kl_budget']:.4f}, the budget less its margin",
        [{"round": n, **step} for n, step in enumerate(search["result"]["rounds"], start=1)],
        (
            column("round", "round", formats.count),
            column("moves: KL, in the order of measuring", "tried", lambda m: tried(m) or "-"),
            column("moves kept", "moves", formats.count),
            column("given back", "returned", formats.count),
            column("KL", "kl", formats.nats),
        ),
        notes=(
            "KL on the excerpts held back for measuring, in nats a token; the largest: of the KL "
            "where the mask acts, over the last quarter, and over generated tokens, at any length "
            "up to the excerpt's. Given back: heads, or groups, that returned to `full`, or "
            "to a window as wide as the questions, because answers cost too much.",
        ),
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


def chips_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """What a mask saves nominally and on the fullest of several chips; none where there is one.

    Args:
      rows: of `sinkjax.accounts.savings.saved_over_chips`, as a record or a mask's file has them.
    """
    if len(rows) < 2:
        return []
    saved = {
        "prefill\nFLOPs": "prefill_operations",
        "decode\nFLOPs": "decode_operations",
        "bytes a\ndecode step": "decode_bytes",
        "cache": "cache_bytes",
    }
    table = tabulate(
        "What it saves on the fullest of several chips",
        rows,
        (
            ("chips", lambda row, _: "1, nominal" if row["chips"] == 1 else f"{row['chips']}"),
            column("masked\nheads", "masked", formats.count),
            *(column(name, f"saved.{of}", formats.percent) for name, of in saved.items()),
        ),
        notes=(
            "By formula, in shares of what the model needs without a mask. Key/value heads are "
            "divided over chips, which wait for the fullest: of heads that do not come out alike "
            "on all of them fewer are masked, as in the mask that is balanced over the chips.",
        ),
    )
    return [table]


def _quality_table(search: Record, records: Sequence[Record]) -> Table:
    first = records[0]
    same = first["source"]["sha256"] == search["source"]["sha256"]
    name = first["source"]["name"] + (", other excerpts" if same else "")
    return tabulate(
        f"Judged on {name}: {first['num_windows']} excerpts of {first['length']} tokens",
        records,
        (
            column("mask", "candidate.name", str),
            MASKED,
            column("mean KL", "result.kl.mean", formats.nats, formats.estimate),
            *part_columns(),
            column("perplexity", "result.perplexity.change", formats.relative, formats.estimate),
            column("top 1", "result.agreement.top1", formats.percent, formats.point),
        ),
        notes=(
            f"KL in nats a token. {PARTS_NOTE} {DRAWS_NOTE} Perplexity: its "
            "change. Top 1: both find the same token likeliest. All masks have as many masked "
            "heads as the chosen mask; but for `widest`, also as many on each path.",
        ),
    )


def _texts_table(search: Record, records: Sequence[Record]) -> Table:
    """The chosen mask's KL over texts."""
    costs = over_texts([record["result"] for record in records], search["settings"]["seed"])
    names = {"mean": "mean KL", **{part: part.removeprefix("kl_") for part in PARTS}}
    columns = [column(names[n], n, formats.nats, formats.estimate) for n in names if n in costs]
    return tabulate(
        f"The chosen mask over {costs['num_texts']} texts",
        [costs],
        [("mask", lambda costs, notes: CHOSEN), *columns],
        notes=(
            "The mean over texts of what each costs. In brackets: the "
            f"{formats.percent(LEVEL, 0)} interval over texts; in parentheses, of fewer "
            "than five: the least and the most.",
        ),
    )
