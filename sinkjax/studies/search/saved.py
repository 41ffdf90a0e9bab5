"""What a search says: in its record, and in its mask's file."""

from collections.abc import Mapping, Sequence
from typing import Any

from sinkjax.accounts.savings import Workload, saved_over_chips
from sinkjax.masks.file import Provenance
from sinkjax.masks.mask import SinkMask
from sinkjax.models.config import LlamaConfig
from sinkjax.report import formats
from sinkjax.studies.costs import over_texts
from sinkjax.studies.quality.promise import over_budget
from sinkjax.studies.quality.summary import measured_quality
from sinkjax.studies.retrieval.measure import FLOOR
from sinkjax.studies.retrieval.promise import promise_line, promises_of
from sinkjax.studies.search.controls import CHOSEN, CONTROLS
from sinkjax.studies.search.grow import SearchOutcome
from sinkjax.studies.search.tables import costs_of, quality_of, search_of


def summarize_search(
    outcome: SearchOutcome,
    masks: Mapping[str, SinkMask],
    config: LlamaConfig,
    workload: Workload,
) -> dict[str, Any]:
    """The "result" of a record of kind "search"."""
    return {
        "mask": str(outcome.mask),
        "heads": outcome.mask.counts(),
        "held_kl": outcome.kl,
        "savings": outcome.savings.max(axis=1).tolist(),
        "asked_at": outcome.asked_at,
        "nll_rises": list(outcome.rises),
        "over_chips": saved_over_chips(config, outcome.mask, workload),
        "rounds": [
            {
                "tried": [list(pair) for pair in step.tried],
                "moves": step.number,
                "returned": len(step.returned),
                "kl": step.kl,
                "mask": str(step.mask),
            }
            for step in outcome.rounds
        ],
        "controls": {name: str(mask) for name, mask in masks.items() if name != CHOSEN},
    }


def saved_search(records: Sequence[Mapping[str, Any]]) -> tuple[Provenance, dict[str, Any]]:
    """Provenance and quality of a search's chosen mask, for `sinkjax.save_mask`."""
    outcome = search_of(records)
    asked = outcome.get("asked", {})
    provenance = Provenance.from_records(
        [outcome],
        method="KL budget",
        **outcome["settings"],
        num_windows=outcome["num_windows"],
        held_kl=outcome["result"]["held_kl"],
        **({"asked": asked} if asked else {}),
    )
    controls = {name: costs_of(records, name) for name in CONTROLS}
    measured = measured_quality(quality_of(records, CHOSEN))
    quality = {
        "quality": measured,
        "texts": over_texts(measured, outcome["settings"]["seed"]),
        "controls": controls,
        "over_chips": outcome["result"]["over_chips"],
    }
    return provenance, {**quality, **({"retrieval": answers_of(records)} if asked else {})}


def answer_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a search says last of answers; nothing if none were asked for."""
    lines = [promise_line(promised) for promised in answers_of(records)]
    rises = search_of(records)["result"].get("nll_rises", [])
    if rises and set(rises) == {None}:
        lines.append(
            "NO ANSWER BORE ON THE CHOICE: of each set of questions to choose on, of any length, "
            f"the baseline itself answers fewer than {formats.percent(FLOOR, 0)}. Give other "
            "tasks, or shorter lengths."
        )
    return lines


def answers_of(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is promised of the chosen mask's answers, the longest length first; nothing if none
    were asked for."""
    asked = search_of(records).get("asked")
    return promises_of(CHOSEN, records, asked["nll_budget"]) if asked else []


def budget_of(
    records: Sequence[Mapping[str, Any]], kl_budget: float, budget_on: str
) -> dict[str, Any]:
    """`over_budget` of the chosen mask, the margin of its budget included."""
    return over_budget(measured_quality(quality_of(records, CHOSEN)), kl_budget, budget_on)
