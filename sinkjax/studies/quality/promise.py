"""Whether a mask keeps its KL budget, from what was measured of it on text that no choice saw."""

from collections.abc import Mapping, Sequence
from typing import Any

from sinkjax.report import formats
from sinkjax.report.formats import Footnotes
from sinkjax.studies.costs import budgeted

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
      and at which length; and as `not_generated`, where there are any, the texts and lengths that
      had no room for tokens after the excerpts, on which the budget is not whole.
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
    budget = f"a KL of {kept['kl_budget']:g} nats a token{_BUDGETS[kept['budget_on']]}"
    places = [
        f"{text['text']} at {formats.count(text['length'])} tokens"
        for text in kept.get("not_generated", ())
    ]
    unread = (
        f" No generated tokens were read on {', '.join(places)}, which have no room for them: ask "
        "for shorter lengths, or fewer excerpts."
        if places
        else ""
    )
    if not kept["over_budget"]:
        return f"The mask keeps its budget, {budget}, on all judged text.{unread}"
    costs = ", ".join(
        f"{formats.estimate(text['kl'], formats.nats, Footnotes())} on {text['text']} at "
        f"{formats.count(text['length'])} tokens"
        for text in kept["over_budget"]
    )
    return (
        f"THE MASK MISSES ITS BUDGET, {budget}, on judged text: {costs}. "
        f"Search again with a greater margin or more excerpts.{unread}"
    )
