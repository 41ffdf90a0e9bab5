"""The tables that the terminal and the report show. All their text comes from records."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sinkjax.report import formats
from sinkjax.report.formats import Footnotes
from sinkjax.report.records import Record, grouped
from sinkjax.report.table import Table, column, tabulate
from sinkjax.studies.resampling import FEW_PROMPTS, FEWEST
from sinkjax.studies.sweep.conditional import num_renumberings
from sinkjax.studies.sweep.records import Curve, SweepRecords, arrange

# The founding study's own numbers: tokens, sink heads, P(later | layer 0).
_STUDY = {
    "Hello world": ("2", "366/512 (71.48%)", "74.04%"),
    "complex sentence": ("24", "117/512 (22.85%)", "26.67%"),
}
_SHOWN_HEADS = 12  # of a list of heads in a table
_FEW = f"{FEW_PROMPTS}, in the tables below, too"
_FEWEST_RENUMBERINGS = 40  # of fewer the true one alone is more than the 2.5% above an interval


def summary_tables(specification: Mapping[str, Any], records: Sequence[Record]) -> list[Table]:
    """The founding study's tables, then those of each model and BOS policy.

    There is none of what the sweep has no records for.
    """
    sweep = arrange(specification, records)
    tables = study_tables(sweep)
    for group in sweep.groups:
        for curve in group.curves:
            tables += [sinks_table(curve), conditional_table(curve)]
        tables += over_lengths_tables(group.curves)
    return tables


def study_tables(sweep: SweepRecords) -> list[Table]:
    """The founding study's own table, one for each of its prompts, this sweep's numbers in it."""
    prompts = grouped(sweep.study, lambda cell: cell["source"]["name"].removeprefix("study: "))
    return [_study_table(sweep, prompt, of_prompt) for prompt, of_prompt in prompts.items()]


def _study_table(sweep: SweepRecords, prompt: str, cells: Sequence[Record]) -> Table:
    share = lambda value: formats.percent(value, 2)  # noqa: E731
    theirs = [
        ("Llama-3.2-1B", "> 0.9 (the study)", *numbers, "-", "-", "-")
        for name, numbers in _STUDY.items()
        if prompt.startswith(name)
    ]
    explanations = [
        "The founding study: an unpublished study of Llama-3.2-1B. P(later | layer 0): how often a "
        "head of a later layer is a sink where the head of the same index in layer 0 is a sink. "
        "Base rate: how often a head of a later layer is a sink. Lift: the first by the second; "
        "at 1, layer 0 tells nothing. n: sink heads of layer 0, on which all of it rests. One "
        "prompt, so no interval."
    ]
    if theirs:
        explanations.append("-: the study does not say.")
    if "stand-in" in prompt:
        explanations.append(
            "The study's own sentence is not published: another of 24 tokens stands in for it."
        )

    def sink_heads(cell: Record) -> str:
        sinks, model = cell["result"]["sinks"], cell["model"]
        total = model["num_layers"] * model["num_heads"]
        return (
            f"{formats.count(sinks['count']['value'])}/{total} ({share(sinks['share']['value'])})"
        )

    table = tabulate(
        f"The founding study's prompt, without BOS: {prompt}",
        [{**cell, **layer_0(cell)} for cell in cells],
        (
            column("model", "model", sweep.model_name),
            ("sink if", lambda cell, _: formats.criterion(cell["definition"], cell["threshold"])),
            column("tokens", "length", formats.count),
            ("sink heads", lambda cell, _: sink_heads(cell)),
            column("P(later |\nlayer 0)", "given_sink", share, formats.point),
            column("base\nrate", "base_rate", share, formats.point),
            column("lift", "lift", formats.ratio, formats.point),
            column("n", "n", formats.count),
        ),
        explanations,
        labels=2,
    )
    return dataclasses.replace(table, rows=(*theirs, *table.rows))


def sinks_table(curve: Curve) -> Table:
    """How many heads are sinks, by length."""
    notes = Footnotes()
    holding = curve.over_lengths and curve.over_lengths["result"]["consistent"]["count_up_to"]
    rows = []
    for index, cell in enumerate(curve.cells):
        sinks, best = cell["result"]["sinks"], cell["result"]["best_source"]
        few = f" {notes.mark(_FEW)}" if 1 < cell["num_prompts"] < FEWEST else ""
        lift = formats.point(best["lift"], formats.ratio, notes)
        by_chance = beyond_chance(best["lift"], best["shuffled_best_lift"]) is False
        doubt = f" {notes.mark('no more than the best of shuffled layers')}" if by_chance else ""
        row = (
            formats.count(cell["length"]),
            formats.count(cell["num_prompts"]) + few,
            formats.estimate(sinks["count"], formats.mean_count, notes),
            formats.estimate(sinks["share"], formats.percent, notes),
            lift if best["layer"] is None else f"layer {best['layer']}: {lift}{doubt}",
        )
        rows.append((*row, formats.count(holding[index])) if holding else row)
    columns = [
        "tokens",
        "prompts",
        f"sink heads\nof {curve.num_heads} [{curve.level}]",
        f"share [{curve.level}]",
        "best source\nlayer: lift",
    ]
    explanations = [
        "Sink heads: mean over prompts. In brackets: the interval from resampling prompts. Best "
        "source layer: the one whose sinks raise the share of sinks in the same heads of later "
        "layers most."
    ]
    missing = ", ".join(map(formats.count, curve.missing))
    missing = [f"Not measured yet: {missing} tokens."] if missing else []
    if holding:
        columns.append("sinks at every\nlength so far")
        share = curve.over_lengths["result"]["consistent"]["min_share"]
        explanations.append(
            f"Sinks at every length so far: heads that are sinks in at least "
            f"{formats.percent(share, 0)} of the prompts at this length and at every shorter one."
        )
    return Table(
        title=f"{curve.group_name}; {curve.source_name}: heads with {curve.criterion}",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=(*explanations, *missing, *notes.lines()),
    )


def conditional_table(curve: Curve) -> Table:
    """What layer 0 tells of later layers, by length."""
    level = curve.level
    return tabulate(
        f"{curve.group_name}; {curve.source_name}: layer 0 and later, {curve.criterion}",
        [{"length": cell["length"], **layer_0(cell)} for cell in curve.cells],
        (
            column("tokens", "length", formats.count),
            column("n", "n", formats.count),
            column("P(later |\nlayer 0)", "given_sink", formats.percent, formats.point),
            column("base\nrate", "base_rate", formats.percent, formats.point),
            column("P(later |\nnot)", "given_not", formats.percent, formats.point),
            column(f"lift [{level}]", "lift", formats.ratio, formats.estimate),
            column(f"shuffled\nlift [{level}]", "shuffled.lift", formats.ratio, formats.spread),
            column("phi", "phi", formats.ratio, formats.point),
        ),
        notes=(
            "n: sinks in layer 0 over all prompts. Shuffled: the lift with the heads of layer 0 "
            "renumbered at random, those that share a key/value head staying together; a lift "
            "inside this range is no more than chance gives.",
            *chance_notes(curve),
        ),
    )


def later_layers_tables(curve: Curve) -> list[Table]:
    """What layer 0 tells of layer 1, and of the later layer of which it tells most, by length.

    There is none of records of earlier versions, which pool all later layers.
    """
    level = curve.level
    cells = [cell for cell in curve.cells if "later_layers" in cell["result"]]
    if not cells or not cells[0]["result"]["later_layers"]["layers"]:
        return []

    def rows(cell: Record) -> dict[str, Any]:
        later = cell["result"]["later_layers"]
        pooled = layer_0(cell)
        return {"length": cell["length"], **pooled, "first": later["layers"][0], **later}

    table = tabulate(
        f"{curve.group_name}; {curve.source_name}: layer 0 and each later layer, {curve.criterion}",
        [rows(cell) for cell in cells],
        (
            column("tokens", "length", formats.count),
            column("n", "n", formats.count),
            column("lift, all\nlater layers", "lift", formats.ratio, formats.point),
            column(f"lift,\nlayer 1 [{level}]", "first.lift", formats.ratio, formats.estimate),
            column(f"shuffled\n[{level}]", "first.shuffled.lift", formats.ratio, formats.spread),
            column("best\nlayer", "best.layer", lambda n: "none" if n is None else str(n)),
            column("its lift", "best.lift", formats.ratio, formats.point),
            column(
                f"best of\nshuffled [{level}]",
                "best.shuffled_best_lift",
                formats.ratio,
                formats.spread,
            ),
        ),
        notes=(
            "Pooled over all later layers a link to layer 1 alone would hardly be seen. Shuffled: "
            "with the heads of layer 0 renumbered as above. Best layer: the later layer of the "
            "greatest lift, which is large by chance too: hold it against the best of as many "
            "layers with layer 0 renumbered.",
        ),
    )
    return [table]


def over_lengths_tables(curves: Sequence[Curve]) -> list[Table]:
    """What holds at every length, and where things change most; none without such records."""
    curves = [curve for curve in curves if curve.over_lengths]
    return [_consistent_table(curves), _change_table(curves)] if curves else []


def _consistent_table(curves: Sequence[Curve]) -> Table:
    """The record of consistent heads."""
    rows = []
    for curve in curves:
        heads = curve.over_lengths["result"]["consistent"]["heads"]
        names = ", ".join(formats.head(*head) for head in heads[:_SHOWN_HEADS])
        more = len(heads) - _SHOWN_HEADS
        rows.append(
            (
                curve.source_name,
                curve.criterion,
                formats.lengths(curve.over_lengths["lengths"]),
                f"{len(heads)} of {curve.num_heads}",
                (f"{names} and {more} more" if more > 0 else names) or "none",
            )
        )
    shares = sorted({curve.over_lengths["result"]["consistent"]["min_share"] for curve in curves})
    least = " or ".join(formats.percent(share, 0) for share in shares)
    return Table(
        title=f"{curves[0].group_name}: heads that are sinks at every length",
        columns=("text", "sink if", "lengths", "number", "heads"),
        rows=tuple(rows),
        notes=(
            f"In at least {least} of the prompts at each of the lengths. L3H5: layer 3, head 5, "
            "from 0.",
        ),
        labels=5,
    )


def _change_table(curves: Sequence[Curve]) -> Table:
    """The lengths between which share and lift change most."""
    notes = Footnotes()
    units = {"share": "share, pp", "lift": "lift"}
    rows = []
    for curve in curves:
        result = curve.over_lengths["result"]
        for name, show in (("share", formats.points), ("lift", formats.signed)):
            change = result[f"{name}_change"]
            label = (curve.source_name, curve.criterion, units[name])
            if "undefined" in change:
                mark = f"{formats.UNDEFINED} {notes.mark(change['undefined'])}"
                rows.append((*label, mark, "-", "-", "-"))
                continue
            support = change["support"]
            rows.append(
                (
                    *label,
                    f"{formats.count(change['from'])} to {formats.count(change['to'])}",
                    formats.estimate(change["change"], show, notes),
                    show(change["per_doubling"]),
                    f"none {notes.mark('one prompt at a length: there is nothing to resample')}"
                    if support is None
                    else formats.percent(support),
                )
            )
    return Table(
        title=f"{curves[0].group_name}: where share and lift change most",
        columns=(
            "text",
            "sink if",
            "what",
            "between\ntokens",
            f"change [{curves[0].level}]",
            "a doubling",
            "support",
        ),
        rows=tuple(rows),
        notes=(
            "Between neighbouring lengths of the sweep; pp: percentage points. A doubling: the "
            "change by each doubling of the length between the two. Support: how many resamples of "
            "the prompts agree that it is this step that changes most.",
            *notes.lines(),
        ),
        labels=3,
    )


def beyond_chance(lift: Mapping[str, Any], shuffled: Mapping[str, Any]) -> bool | None:
    """Whether a lift lies above the interval of its shuffled control; None where undefined."""
    if lift["value"] is None or shuffled["value"] is None:
        return None
    return lift["value"] > shuffled["high"]


def too_few_heads(curve: Curve) -> str:
    """Why no lift of the model can lie above its shuffled control; "" where one can."""
    heads, groups = curve.model["num_heads"], curve.model["num_kv_heads"]
    number = num_renumberings(heads, groups)
    if number >= _FEWEST_RENUMBERINGS:
        return ""
    only = f"its {heads} heads have only {number} renumberings" if number > 1 else "it has one head"
    return f"{only}, so that no lift can be beyond chance"


def chance_notes(curve: Curve) -> list[str]:
    """What the shuffled control of the curve's model cannot show, and where it is an older one."""
    heads, groups = curve.model["num_heads"], curve.model["num_kv_heads"]
    notes = []
    if few := too_few_heads(curve):
        notes.append(f"This model cannot be tested: {few}.")
    elif 1 < groups < heads and (number := math.factorial(groups)) < _FEWEST_RENUMBERINGS:
        notes.append(
            f"The {groups} key/value groups stay in place in one of {number} renumberings: that "
            "layers have their sinks in the same group is never beyond chance."
        )
    old = [cell["length"] for cell in curve.cells if "renumbered" not in cell["result"]]
    if old and 1 < groups < heads:
        notes.append(
            f"At {', '.join(map(formats.count, old))} tokens an earlier version renumbered single "
            "heads, and took sinks in the same group for a link. To have all lengths alike, delete "
            "records.jsonl and records.sha256 and give the same command again: it makes the "
            "records anew, of kept scores."
        )
    return notes


def layer_0(cell: Record) -> Mapping[str, Any]:
    """What a cell says of source layer 0, also of a model that has no other layer."""
    result = cell["result"]
    if result["conditional"]:
        return result["conditional"][0]
    nothing = {"value": None, "undefined": result["best_source"]["undefined"]}
    names = ("given_sink", "given_not", "base_rate", "lift", "phi")
    return {
        "n": round(sum(result["per_head"][0]) * cell["num_prompts"]),
        **dict.fromkeys(names, nothing),
        "shuffled": {"given_sink": nothing, "lift": nothing},
    }
