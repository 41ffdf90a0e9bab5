"""What may be promised of a mask's answers, from records of what was asked."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scipy import stats

from sinkjax.report import formats
from sinkjax.report.records import Record, by_length

NLL_BUDGET = 0.1
"""The most nats that an answer's NLL may rise by at any depth, unless something else is said."""

_LOSS = 0.05  # below which the upper bound of the share of answers that are lost has to lie
_DEPTHS = 3  # of one task that have to say something
_QUESTIONS = 30  # of each of them
_TAIL = 0.025  # of the upper bound: that of a two-sided interval of 95%


def promises(records: Iterable[Record], nll_budget: float = NLL_BUDGET) -> list[dict[str, Any]]:
    """`promise` of a mask at each length that its records are of, the longest first.

    A run that has the mask under two names has two records of the same questions, which count once.
    """
    once = [
        {(record["task"], record.get("depth")): record for record in of_length}
        for of_length in by_length(records).values()
    ]
    return [promise(list(asked.values()), nll_budget) for asked in reversed(once)]


def promises_of(
    name: str, records: Iterable[Record], nll_budget: float = NLL_BUDGET
) -> list[dict[str, Any]]:
    """`promises` of the mask of this name, from all records of a run; none without questions."""
    asked = (record for record in records if record["kind"] == "retrieval")
    return promises((of for of in asked if of["candidate"]["name"] == name), nll_budget)


def promise(records: Sequence[Record], nll_budget: float = NLL_BUDGET) -> dict[str, Any]:
    """Whether a mask keeps its baseline's answers.

    It does where at every depth of every task the mean rise of an answer's NLL is within its
    budget, and of all answers that were asked for the share that the baseline gives back and the
    mask does not is below 5%, by its upper bound (Clopper and Pearson 1934, 97.5% on one side).
    Where the baseline itself is below the floor nothing is said, and where that leaves no task with
    three depths of 30 questions nothing is promised.

    Args:
      records: of kind "retrieval", of one mask at one length.
      nll_budget: nats.

    Returns:
      of JSON values: `length`, `nll_budget`; `kept`, None where nothing is promised;
      `num_questions`, `lost` and `lost_at_most`, the bound, of what says something; `asked`, each
      task and depth.
    """
    says = [record for record in records if record["result"]["says_something"]]
    asked = lost = 0
    for record in says:
        baseline, masked = (
            record["result"]["per_excerpt"][of]["accuracy"] for of in ("baseline", "candidate")
        )
        asked += len(baseline)
        lost += sum(own > other for own, other in zip(baseline, masked, strict=True))
    rises = [record["result"]["nll"]["change"]["value"] for record in says]
    at_most = float(stats.beta.ppf(1 - _TAIL, lost + 1, asked - lost)) if lost < asked else 1.0
    places = {
        (record["task"], record["depth"])
        for record in says
        if "depth" in record and record["num_windows"] >= _QUESTIONS
    }
    enough = max(collections.Counter(task for task, _ in places).values(), default=0) >= _DEPTHS
    return {
        "length": records[0]["length"],
        "nll_budget": nll_budget,
        "kept": max(rises) <= nll_budget and at_most < _LOSS if enough else None,
        "num_questions": asked,
        "lost": lost,
        "lost_at_most": at_most,
        "asked": [_of_set(record) for record in records],
    }


def promise_line(promised: Mapping[str, Any]) -> str:
    """What studies say of `promise`."""
    says = [of for of in promised["asked"] if of["says_something"]]
    at = f"At {formats.count(promised['length'])} tokens"
    if promised["kept"] is None:
        return (
            f"{at} no promise is made of answers: the baseline itself answers "
            f"{formats.count(len(says))} of {formats.count(len(promised['asked']))} sets of "
            f"questions, and three depths of one task, of {_QUESTIONS} questions each, are needed."
        )
    rise = formats.nats(max(of["nll_rise"]["value"] for of in says))
    lost = f"{promised['lost']} of {promised['num_questions']} answers lost, all depths together"
    bound = f"{formats.percent(promised['lost_at_most'])} at most"
    kept = "keeps" if promised["kept"] else "DOES NOT KEEP"
    return (
        f"{at} the mask {kept} the baseline's answers: {lost} ({bound}), and their NLL rises by "
        f"{rise} at the depth where it rises most; {promised['nll_budget']:g} are allowed, and 5%."
    )


def _of_set(record: Record) -> dict[str, Any]:
    result = record["result"]
    return {
        "task": record["task"],
        "length": record["length"],
        "depth": record.get("depth"),
        "num_windows": record["num_windows"],
        "says_something": result["says_something"],
        "accuracy": {of: result["accuracy"][of]["value"] for of in ("baseline", "candidate")},
        "nll_rise": result["nll"]["change"],
    }
