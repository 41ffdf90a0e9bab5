"""The tables of how well sinks are predicted, from the records of a run of `predict`."""

from collections.abc import Mapping, Sequence
from typing import Any

from sinkjax.report import formats
from sinkjax.report.formats import Footnotes
from sinkjax.report.records import Record
from sinkjax.report.table import Table
from sinkjax.studies.resampling import LEVEL

MOST_WRONG = 0.05
"""Of the heads that a prediction masks, the share of no sinks that acting on it may have."""

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
_RESAMPLED = f"In brackets: the {formats.percent(LEVEL, 0)} interval from resampling prompts."


def prediction_tables(records: Sequence[Record]) -> list[Table]:
    """What was found, in the order in which to read it.

    Args:
      records: of one run, in any order.

    Returns:
      for each source, definition and threshold the predictors, the calibration of the logistic
      model, its scores by length, and what acting on it would do, with a verdict.
    """
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
        found = (
            f"{at}, {formats.percent(wrong['value'])} of the masked heads are no sinks, against "
            f"{formats.percent(static['value'])} of as many in a static mask"
        )
        clearly = change.get("high") is not None and change["high"] < 0
        if wrong["value"] > MOST_WRONG or not clearly:
            reasons.append(found)
            continue
        if acting["masks"] <= MOST_MASKS:
            return f"Good enough to act on: yes. {found}, and prompts share their masks."
        accurate = (
            f"{found}. But {formats.percent(acting['masks'], 0)} of the prompts ask for a mask of "
            "their own, and each mask is a program to compile; a static mask needs neither "
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
    notes, of_split = Footnotes(), record["result"][split]
    rows = [
        (
            _NAMES[name],
            formats.estimate(found["auc"], formats.score, notes),
            formats.estimate(found["auc_within"], formats.score, notes),
            formats.estimate(found["brier"], formats.brier, notes),
            formats.estimate(found["over_rate"], formats.signed_brier, notes),
            formats.estimate(found["calibration_error"], formats.score, notes),
        )
        for name, found in of_split["predictors"].items()
    ]
    counts = record["result"]["prompts"]
    return Table(
        title=f"{_title(record)}: {_SPLITS[split]}",
        columns=(
            "predictor",
            "AUC",
            "AUC within\na head",
            "Brier score",
            "less that of\nthe rate",
            "calibration\nerror",
        ),
        rows=rows,
        notes=(
            f"Fitted to {counts['fitted']} prompts at {_lengths(record, False)} tokens, judged on "
            f"{counts['held_out']} others at {_lengths(record, split == 'lengths_held_out')}; "
            f"there, {formats.percent(of_split['share'])} of the heads after layer 0 are sinks. "
            "AUC within a head: over prompts at one length alone, one half for what says the same "
            "of every prompt. Less that of the rate: below 0 is better than each head's share of "
            f"sinks at the length. {_RESAMPLED}",
            *notes.lines(),
        ),
    )


def _reliability_table(record: Record) -> Table:
    """Rows are bins of probability; columns the two splits."""
    notes = Footnotes()
    by_split = {
        split: {
            entry["low"]: entry
            for entry in record["result"][split]["predictors"]["all"]["reliability"]
        }
        for split in _SPLITS
    }
    rows = []
    for low in sorted({low for entries in by_split.values() for low in entries}):
        row = []
        for entries in by_split.values():
            entry = entries.get(low)
            row += (
                [
                    formats.count(entry["count"]),
                    formats.percent(entry["predicted"]),
                    formats.estimate(entry["observed"], formats.percent, notes),
                ]
                if entry
                else ["0", "-", "-"]
            )
        rows.append((f"{formats.percent(low, 0)} on", *row))
    columns = [
        f"{split},\n{column}"
        for split in ("fitted lengths", "held-out lengths")
        for column in ("heads", "predicted", "sinks")
    ]
    return Table(
        title=f"{_title(record)}: calibration of {_NAMES['all']}",
        columns=("probability", *columns),
        rows=rows,
        notes=(f"Held-out prompts. {_RESAMPLED}", *notes.lines()),
    )


def _lengths_table(record: Record) -> Table:
    notes = Footnotes()
    rows = [
        (
            formats.count(entry["length"]),
            "held out" if entry["held_out"] else "fitted to",
            formats.percent(entry["share"]),
            formats.brier(entry["brier"]),
            formats.brier(entry["rate_brier"]),
            formats.estimate(entry["over_rate"], formats.signed_brier, notes),
        )
        for entry in record["result"]["by_length"]
    ]
    return Table(
        title=f"{_title(record)}: by length, held-out prompts",
        columns=("tokens", "length", "sinks", "Brier,\nlogistic", "Brier,\nrate", "change"),
        rows=rows,
        notes=(f"Rate: the head's share of sinks at the length. {_RESAMPLED}", *notes.lines()),
        labels=2,
    )


def _acting_table(record: Record) -> Table:
    notes, rows = Footnotes(), []
    for split, name in _SPLITS.items():
        for acting in record["result"][split]["acting"]:
            rows.append(
                (
                    name,
                    f"{acting['limit']:g}",
                    formats.estimate(acting["share"], formats.percent, notes),
                    formats.estimate(acting["found"], formats.percent, notes),
                    formats.estimate(acting["wrong"], formats.percent, notes),
                    formats.estimate(acting["static_wrong"], formats.percent, notes),
                    formats.percent(acting["masks"], 0),
                )
            )
    return Table(
        title=f"{_title(record)}: acting on {_NAMES['all']}",
        columns=(
            "judged on",
            "from",
            "masked\nheads",
            "of all\nsinks",
            "wrong",
            "wrong,\nstatic mask",
            "different\nmasks",
        ),
        rows=rows,
        notes=(
            "Heads whose probability is at least that. Wrong: of those masked, the heads that "
            "are no sinks; of a static mask, as many heads of the highest rates at the length. "
            f"Different masks: as a share of the prompts. {_RESAMPLED}",
            verdict(record["result"]),
            *notes.lines(),
        ),
        labels=2,
    )


def _order(record: Record) -> tuple[Any, ...]:
    source = record["source"]
    return source["role"], source["name"], record["bos"], record["definition"], record["threshold"]


def _title(record: Record) -> str:
    name = formats.shortened(record["source"]["name"])
    return f"{name}, {formats.criterion(record['definition'], record['threshold'])}"


def _lengths(record: Record, held_out: bool) -> str:
    """`2, 4 and 8`."""
    found = [n for n in record["lengths"] if (n in record["held_out_lengths"]) == held_out]
    *others, last = map(formats.count, found)
    return f"{', '.join(others)} and {last}" if others else last
