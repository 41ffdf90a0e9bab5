"""Whether a mask keeps its KL budget, from what was measured of it on text that no choice saw."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sinkjax.masks.file import SavedMask
from sinkjax.report import formats
from sinkjax.report.formats import Footnotes
from sinkjax.report.records import Record
from sinkjax.studies.candidates import Candidate
from sinkjax.studies.costs import budgeted
from sinkjax.studies.fields import UNLIKE
from sinkjax.studies.quality.summary import measured_quality
from sinkjax.studies.quality.tables import excerpts

_BUDGETS = {
    "mean": "",
    "largest": " where it acts, over the last quarter and over generated tokens",
}


def over_budget(
    measured: Sequence[Mapping[str, Any]], kl_budget: float, budget_on: str = "largest"
) -> dict[str, Any]:
    """Whether a mask keeps its budget, for its file.

    Args:
      measured: of one mask, entries as `measured_quality` makes them.
      kl_budget: nats a token.
      budget_on: the `largest` KL of `sinkjax.studies.costs.PARTS`, or the `mean`.

    Returns:
      `kl_budget`, `budget_on`; as `over_budget` the KL of each text on which the mask costs more,
      and at which length; and as `not_generated`, where there are any, the texts and lengths of
      which no tokens after the excerpts were read, on which the budget is not whole.
    """
    over, not_generated = [], []
    for entry in measured:
        at = {entry["length"]: budgeted(entry, budget_on)}
        if budget_on == "largest":
            for length, parts in entry.get("shorter", {}).items():
                at[int(length)] = {"value": max(parts.values()), "low": None, "high": None}
            if entry.get("kl_generated", {}).get("value", 0) is None:
                not_generated.append({"text": entry["text"], "length": entry["length"]})
        over += [
            {"text": entry["text"], "length": length, "kl": kl}
            for length, kl in at.items()
            if kl["value"] > kl_budget
        ]
    kept = {"kl_budget": kl_budget, "budget_on": budget_on, "over_budget": over}
    return {**kept, **({"not_generated": not_generated} if not_generated else {})}


def budget_line(kept: Mapping[str, Any]) -> str:
    """What a study that chose the mask says last of `over_budget`."""
    advice = " Search again with a greater margin or more excerpts." if kept["over_budget"] else ""
    return f"{_sentences(kept, 'The mask keeps', 'THE MASK MISSES')}{advice}"


def promise_lines(candidate: Candidate, records: Sequence[Record]) -> Iterator[str]:
    """What a study that was given masks says of the budget that the file of each promises.

    Of masks without such a file nothing; of another model than the file's, that it is one.

    Args:
      records: of kind "quality", of any candidates.
    """
    for mask, saved in candidate.files.items():
        measured = [
            record
            for record in records
            if record["candidate"]["name"] == candidate.name
            and record["candidate"]["mask_digest"] == mask.digest
        ]
        if not measured or not (promised := _promised(saved)):
            continue
        made_for = saved.provenance.model_digest
        own = [record for record in measured if record["model"]["model_digest"] == made_for]
        if own:
            yield _promise_line(candidate, own, **promised)
        else:
            yield (
                f"{candidate.name}: what its file promises is of another model than this, or of "
                f"another dtype ({saved.provenance.model or 'no name'}, digest {made_for}): "
                "nothing here is held to it."
            )


def _promised(saved: SavedMask) -> dict[str, Any] | None:
    """The budget that a mask's file says it keeps: how much, on what, and from what; or None."""
    quality, longest = saved.quality, max(saved.provenance.lengths, default=0)
    try:
        judged = [of for of in quality["quality"] if of["length"] == longest]
        return {
            "kl_budget": float(quality["kl_budget"]),
            "budget_on": next(on for on in _BUDGETS if on == quality["budget_on"]),
            "longest": longest,
            "generated": max(int(of["generated"]) for of in judged),
            "count": max(int(of["num_windows"]) for of in judged),
        }
    except (*UNLIKE, StopIteration):  # anyone may have written what it says
        return None


def _promise_line(
    candidate: Candidate,
    records: Sequence[Record],
    kl_budget: float,
    budget_on: str,
    longest: int,
    generated: int,
    count: int,
) -> str:
    """Whether records of one mask keep what its file promises.

    Args:
      longest, generated: tokens of the prompts, and after them, that it is promised for.
      count: excerpts of each text that it was judged on.
    """
    name, after = candidate.name, "one" if generated == 1 else formats.count(generated)
    wide = f"up to {formats.count(longest)} tokens and the next {after}"
    fitting = [
        record
        for record in records
        if record["length"] <= longest and (record["generated"] <= generated or candidate.plan)
    ]
    if not fitting:
        return (
            f"{name}: its file promises a KL of {kl_budget:g} nats a token for {wide}, of which "
            f"nothing was measured: set lengths to {longest} and generated to {generated}."
        )
    kept = over_budget(measured_quality(fitting), kl_budget, budget_on)
    at = " and ".join(formats.count(n) for n in sorted({record["length"] for record in fitting}))
    return (
        f"{_sentences(kept, f'{name} keeps', f'{name} MISSES')} Its file promises this for {wide}, "
        f"from {formats.count(count)} excerpts of a text; here are "
        f"{excerpts(fitting)} of {at} tokens."
    )


def _sentences(kept: Mapping[str, Any], keeps: str, misses: str) -> str:
    """What `over_budget` says, of a mask that keeps its budget or misses it."""
    budget = f"a KL of {kept['kl_budget']:g} nats a token{_BUDGETS[kept['budget_on']]}"
    places = [
        f"{text['text']} at {formats.count(text['length'])} tokens"
        for text in kept.get("not_generated", ())
    ]
    unread = (
        f" No generated tokens were read on {', '.join(places)}: where there is no room for them, "
        "ask for shorter lengths, or fewer excerpts."
        if places
        else ""
    )
    if not kept["over_budget"]:
        return f"{keeps} its budget, {budget}, on all judged text.{unread}"
    costs = ", ".join(
        f"{formats.estimate(text['kl'], formats.nats, Footnotes())} on {text['text']} at "
        f"{formats.count(text['length'])} tokens"
        for text in kept["over_budget"]
    )
    return f"{misses} ITS BUDGET, {budget}, on judged text: {costs}.{unread}"
