"""The tables of how well sinks are predicted, from the records of a run of `predict`."""

from collections.abc import Mapping, Sequence
from typing import Any

from sinkjax.report import formats
from sinkjax.report.formats import Footnotes
from sinkjax.report.records import Record, title
from sinkjax.report.table import Table, column, tabulate
from sinkjax.studies.resampling import FEW_PROMPTS, FEWEST, LEVEL

MOST_WRONG = 0.05
"""The largest share of heads that are no sinks, of those that a prediction masks, to act on it."""

MOST_MASKS = 0.1
"""Different masks at a length, as a share of the prompts, that there may be programs for."""

_NAMES = {
    "all": "logistic, all features",
    "no_scores": "logistic, without scores",
    "same_index": "layer 0, same index",
    "rate_at_length": "rate of the head at the length",
    "rate": "rate of the head",
    "shuffled": "logistic, another prompt's features",
    "random": "random",
}
_SPLITS = {
    "prompts_held_out": "held-out prompts, fitted lengths",
    "lengths_held_out": "held-out prompts, held-out lengths",
}


def prediction_tables(records: Sequence[Record]) -> list[Table]:
    """The predictors of each source, definition and threshold, and what acting on them would do."""
    tables = []
    for record in sorted(records, key=_order):
        tables += [_predictors_table(record, split) for split in _SPLITS]
        tables += [_reliability_table(record), _lengths_table(record), _acting_table(record)]
    return tables


def verdict(result: Mapping[str, Any]) -> str:
    """Whether a prediction is good enough to act on, and why, in words.

    Judged at held-out lengths and prompts, at each limit: it has to be wrong in at most
    `MOST_WRONG` of the heads that it masks, and in clearly fewer than a static mask of as many,
    which needs no prediction. And prompts have to share masks, for each mask is a program.
    """
    accurate = ""
    reasons = []
    for acting in result["lengths_held_out"]["acting"]:
        at = f"from a probability of {acting['limit']:g} on"
        wrong, static, change = acting["wrong"], acting["static_wrong"], acting["change"]
        if wrong["value"] is None:
            reasons.append(f"{at}, no head is masked")
            continue
        of_static = "a static mask that masks no head"
        if static["value"] is not None:
            of_static = f"{formats.percent(static['value'])} of as many in a static mask"
        against_static = (
            f"{at}, {formats.percent(wrong['value'])} of the masked heads are no sinks, against "
            f"{of_static}"
        )
        clearly = change.get("high") is not None and change["high"] < 0
        if wrong["value"] > MOST_WRONG or not clearly:
            reasons.append(against_static)
            continue
        if acting["masks"] <= MOST_MASKS:
            return f"Good enough to act on: yes. {against_static}, and prompts share their masks."
        accurate = (
            f"{against_static}. But {formats.percent(acting['masks'], 0)} of the prompts ask for a "
            "mask of their own, and each mask is a program to compile; a static mask needs neither "
            "prediction nor layer 0's scores when a program runs"
        )
    if accurate:
        return f"Accurate enough: yes, {accurate}. Good enough to act on: no."
    return (
        f"Accurate enough: no. {'; '.join(reasons)}. Wanted: at most "
        f"{formats.percent(MOST_WRONG, 0)} wrong, and clearly fewer than the static mask, which "
        "needs no prediction when a program runs. Good enough to act on: no."
    )


def _predictors_table(record: Record, split: str) -> Table:
    of_split, counts = record["result"][split], record["result"]["prompts"]
    return tabulate(
        f"{_title(record)}: {_SPLITS[split]}",
        [{"name": _NAMES[name], **scores} for name, scores in of_split["predictors"].items()],
        (
            column("predictor", "name", str),
            column("AUC", "auc", formats.score, formats.estimate),
            column("AUC within\na head", "auc_within", formats.score, formats.estimate),
            column("Brier score", "brier", formats.brier, formats.estimate),
            column("less that of\nthe rate", "over_rate", formats.signed_nats, formats.estimate),
            column("calibration\nerror", "calibration_error", formats.score, formats.estimate),
        ),
        notes=(
            f"Fitted to {counts['fitted']} prompts at {_lengths(record, False)} tokens, judged on "
            f"{counts['held_out']} others at {_lengths(record, split == 'lengths_held_out')}; "
            f"there, {formats.percent(of_split['share'])} of the heads after layer 0 are sinks. "
            "AUC within a head: over prompts at one length alone, one half for what says the same "
            "of every prompt. Less that of the rate: below 0 is better than each head's share of "
            f"sinks at the length. {_resampled(record)}",
        ),
    )


def _reliability_table(record: Record) -> Table:
    """Rows are bins of probability; columns the two splits."""
    notes = Footnotes()
    splits = [record["result"][split]["predictors"]["all"] for split in _SPLITS]
    by_split = [{entry["low"]: entry for entry in split["reliability"]} for split in splits]
    rows = []
    for low in sorted({low for entries in by_split for low in entries}):
        row = [f"{formats.percent(low, 0)} on"]
        for entries in by_split:
            if entry := entries.get(low):
                row += [
                    formats.count(entry["count"]),
                    formats.percent(entry["predicted"]),
                    formats.estimate(entry["observed"], formats.percent, notes),
                ]
            else:
                row += ["0", "-", "-"]
        rows.append(row)
    columns = [
        f"{split},\n{column}"
        for split in ("fitted lengths", "held-out lengths")
        for column in ("heads", "predicted", "sinks")
    ]
    return Table(
        title=f"{_title(record)}: calibration of {_NAMES['all']}",
        columns=("probability", *columns),
        rows=rows,
        notes=(f"Held-out prompts. {_resampled(record)}", *notes.lines()),
    )


def _lengths_table(record: Record) -> Table:
    return tabulate(
        f"{_title(record)}: by length, held-out prompts",
        record["result"]["by_length"],
        (
            column("tokens", "length", formats.count),
            column("length", "held_out", lambda held: "held out" if held else "fitted to"),
            column("sinks", "share", formats.percent),
            column("Brier,\nlogistic", "brier", formats.brier),
            column("Brier,\nrate", "rate_brier", formats.brier),
            column("change", "over_rate", formats.signed_nats, formats.estimate),
        ),
        notes=(f"Rate: the head's share of sinks at the length. {_resampled(record)}",),
        labels=2,
    )


def _acting_table(record: Record) -> Table:
    return tabulate(
        f"{_title(record)}: acting on {_NAMES['all']}",
        [
            {"split": name, **acting}
            for split, name in _SPLITS.items()
            for acting in record["result"][split]["acting"]
        ],
        (
            column("judged on", "split", str),
            column("from", "limit", lambda limit: f"{limit:g}"),
            column("masked\nheads", "share", formats.percent, formats.estimate),
            column("of all\nsinks", "found", formats.percent, formats.estimate),
            column("wrong", "wrong", formats.percent, formats.estimate),
            column("wrong,\nstatic mask", "static_wrong", formats.percent, formats.estimate),
            column("different\nmasks", "masks", lambda share: formats.percent(share, 0)),
        ),
        notes=(
            "Heads whose probability is at least that. Wrong: of those masked, the heads that "
            "are no sinks; of a static mask, as many heads of the highest rates at the length. "
            f"Different masks: as a share of the prompts. {_resampled(record)}",
            verdict(record["result"]),
        ),
        labels=2,
    )


def _resampled(record: Record) -> str:
    """What stands beside estimates over the held-out prompts."""
    note = f"In brackets: the {LEVEL:.0%} interval from resampling prompts"
    few = record["result"]["prompts"]["held_out"] < FEWEST
    return f"{note}; {FEW_PROMPTS}; in parentheses: the least and the most." if few else f"{note}."


def _order(record: Record) -> tuple[Any, ...]:
    source = record["source"]
    return source["role"], source["name"], record["bos"], record["definition"], record["threshold"]


def _title(record: Record) -> str:
    return f"{title(record)}, {formats.criterion(record['definition'], record['threshold'])}"


def _lengths(record: Record, held_out: bool) -> str:
    """`2, 4 and 8`."""
    lengths = [n for n in record["lengths"] if (n in record["held_out_lengths"]) == held_out]
    *others, last = map(formats.count, lengths)
    return f"{', '.join(others)} and {last}" if others else last
