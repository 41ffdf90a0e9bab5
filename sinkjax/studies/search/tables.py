"""The tables of a search, from the records of `sinkjax.studies.search.study`."""

import itertools
from collections.abc import Sequence

from sinkjax.masks.mask import SinkMask
from sinkjax.report import formats
from sinkjax.report.formats import Footnotes
from sinkjax.report.records import Record
from sinkjax.report.table import Table
from sinkjax.studies.resampling import LEVEL


def search_tables(records: Sequence[Record], *, num_kv_heads: int) -> list[Table]:
    """What a search found, then what it costs on each judged text.

    Args:
      records: of one search.
      num_kv_heads: K, of the model.
    """
    (found,) = (record for record in records if record["kind"] == "search")
    quality = [record for record in records if record["kind"] == "quality"]
    key = lambda record: (record["source"]["name"], record["tokens_sha256"])  # noqa: E731
    judged = [_judged_table(found, list(group)) for _, group in itertools.groupby(quality, key=key)]
    return [_rounds_table(found), _mask_table(found, num_kv_heads), *judged]


def _rounds_table(found: Record) -> Table:
    rounds = found["result"]["rounds"]
    rows = []
    for number, step in enumerate(rounds, start=1):
        tried = ", ".join(f"{moves}: {formats.nats(kl)}" for moves, kl in step["tried"])
        rows.append(
            (
                formats.count(number),
                tried or "-",
                formats.count(step["moves"]),
                formats.nats(step["kl"]),
            )
        )
    settings = found["settings"]
    return Table(
        title=f"The search, by {settings['by']}, for KL up to {settings['kl_budget']:.4f}",
        columns=("round", "moves: KL, in the order of measuring", "moves kept", "KL"),
        rows=rows,
        notes=("KL on the windows held back for measuring, in nats a token.",),
        labels=2,
    )


def _mask_table(found: Record, num_kv_heads: int) -> Table:
    mask = SinkMask.from_text(found["result"]["mask"])
    heads, groups = mask.counts(), mask.group_counts(num_kv_heads)
    off = lambda counts: 1 - counts["full"] / sum(counts.values())  # noqa: E731
    size = mask.num_heads // num_kv_heads
    whole = [
        all(path.kind != "full" for path in layer[start : start + size])
        for layer in mask.heads
        for start in range(0, mask.num_heads, size)
    ]
    paths: dict[str, int] = {}
    for path in (str(path) for layer in mask.heads for path in layer):
        paths[path] = paths.get(path, 0) + 1
    rows = [(path, formats.count(number)) for path, number in sorted(paths.items())]
    rows.append(("heads off full", formats.percent(off(heads))))
    rows.append(("key/value groups without a full head", formats.percent(sum(whole) / len(whole))))
    rows.append(("key/value groups on one kind of path off full", _one_kind(groups)))
    return Table(title="The chosen mask", columns=("path", "heads"), rows=rows)


def _one_kind(groups: dict[str, int]) -> str:
    total = sum(groups.values())
    return formats.percent((total - groups["full"] - groups["mixed"]) / total)


def _judged_table(found: Record, records: Sequence[Record]) -> Table:
    notes = Footnotes()
    rows = []
    for record in records:
        result, heads = record["result"], record["candidate"]["heads"]
        total = sum(heads.values())
        rows.append(
            (
                record["candidate"]["name"],
                f"{formats.count(total - heads['full'])}/{formats.count(total)}",
                formats.estimate(result["kl"]["mean"], formats.nats, notes),
                formats.point(result["kl"]["p99"], formats.nats, notes),
                formats.estimate(result["perplexity"]["change"], formats.relative, notes),
                formats.point(result["agreement"]["top1"], formats.percent, notes),
            )
        )
    first = records[0]
    same = first["source"]["sha256"] == found["source"]["sha256"]
    name = first["source"]["name"] + (", other windows" if same else "")
    return Table(
        title=f"Judged on {name}: {first['num_windows']} windows of {first['length']} tokens",
        columns=("mask", "off\nfull", "mean KL", "p99", "perplexity", "top 1"),
        rows=rows,
        notes=(
            "KL in nats a token. In brackets: the "
            f"{formats.percent(LEVEL, 0)} interval from resampling windows. Perplexity: its "
            "change. Top 1: both find the same token likeliest. All masks have as many heads off "
            "full as the chosen one; but for `widest`, also as many on each path.",
            *notes.lines(),
        ),
    )
