"""Where a mask's KL is counted: where it acts, late in the prompt, and in generated tokens.

A mean over all positions promises too little. A `window(4,128)` head is exact up to position 131,
so that a quarter of 512 positions cost nothing, and the others cost more than the mean says.

  kl_acting     the positions of the prompt at which a masked head's output can differ; masks are
                without windows that hide nothing in their layer, as of `SinkMask.hiding`
  kl_late       the last quarter of the prompt
  kl_generated  the tokens after the prompt
  kl_last       the prompt's last position, the only one that a prefill returns
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.instruments.judge import SCORE_FROM
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Copy
from sinkjax.report import formats
from sinkjax.report.formats import Footnotes
from sinkjax.report.records import Record
from sinkjax.report.table import Text
from sinkjax.studies.resampling import estimate_kl, estimate_mean, resample_counts

PARTS = ("kl_acting", "kl_late", "kl_generated")
LAST = "kl_last"
"""The KL of one position an excerpt, and so of many short ones. No budget is on it."""

GENERATED = 64
"""Tokens after an excerpt over which the KL is counted."""

_SHORTEST = 2  # tokens

_UNDEFINED = (
    "no masked head acts before the end of the prompt",
    "",  # a prompt always has a last quarter
    "no tokens after the excerpts were read: none were asked for, or there is no room for them in "
    "the text or in the model's context",
)


def late_from(prompt: int) -> int:
    """The first position of the last quarter of a prompt of T tokens, one position at least."""
    return prompt - max(1, prompt // 4)


def acting_from(mask: SinkMask) -> dict[str, int]:
    """The first position at which each path of a mask acts, the earliest first; of `full` none.

    All copies are one path, `copy`, whatever they copy.
    """
    paths = {path for layer in mask.heads for path in layer}
    acting = {
        path.kind if isinstance(path, Copy) else str(path): path.acts_from
        for path in paths
        if path.acts_from is not None
    }
    return dict(sorted(acting.items(), key=lambda item: (item[1], item[0])))


def part_means(kl: np.ndarray, mask: SinkMask, prompt: int) -> dict[str, float]:
    """The mean of each part that is there.

    Args:
      kl: float [W, P], nats, of the positions from `SCORE_FROM` on: those of the prompt, then those
        of generated tokens, if any.
      mask: whose KL it is.
      prompt: T.
    """
    return {
        name: float(kl[:, start - SCORE_FROM : stop - SCORE_FROM].mean(dtype=np.float64))
        for name, (start, stop) in _spans(mask, prompt, SCORE_FROM, kl.shape[1]).items()
        if start < stop
    }


def lengths_up_to(prompt: int) -> list[int]:
    """Lengths at which a mask for prompts of up to T tokens is judged: T, its half, to 2 or 3."""
    halves = [prompt >> power for power in range(prompt.bit_length())]
    return [length for length in halves if length == prompt or length >= _SHORTEST]


def parts_up_to(kl: np.ndarray, mask: SinkMask, prompt: int) -> dict[int, dict[str, float]]:
    """`part_means` at each of `lengths_up_to`: the first tokens of an excerpt are an excerpt too.

    Args:
      kl, mask, prompt: as of `part_means`.
    """
    generated = kl.shape[1] + SCORE_FROM - prompt
    return {
        length: part_means(kl[:, : length + generated - SCORE_FROM], mask, length)
        for length in lengths_up_to(prompt)
    }


def summarize_parts(
    kl: np.ndarray, mask: SinkMask, prompt: int, score_from: int = SCORE_FROM
) -> dict[str, dict[str, Any]]:
    """Estimates of `PARTS`, as records hold them.

    Args:
      kl, mask, prompt: as of `part_means`.
      score_from: the first position of `kl`.

    Returns:
      each with `first`, its first position, and `LAST` as them; `kl_acting` with `by_path` too, the
      same for each path from where on it acts.
    """

    def of(start: int, stop: int, undefined: str) -> dict[str, Any]:
        if start >= stop:
            return {"value": None, "undefined": undefined}
        columns = kl[:, start - score_from : stop - score_from]
        return {"first": start, **estimate_kl(columns)}

    spans = _spans(mask, prompt, score_from, kl.shape[1])
    parts = {name: of(*spans[name], why) for name, why in zip(PARTS, _UNDEFINED, strict=True)}
    parts["kl_acting"]["by_path"] = [
        {"path": path, **of(max(first, score_from), prompt, _UNDEFINED[0])}
        for path, first in acting_from(mask).items()
    ]
    return {**parts, LAST: of(prompt - 1, prompt, "")}


def over_draws(estimates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of what several draws of a control cost, each beside it in an interval's place.

    Of a single one, it itself.
    """
    if len(estimates) == 1:
        return dict(estimates[0])
    each = [estimate["value"] for estimate in estimates]
    if None in each:
        return dict(estimates[0])
    return {"value": float(np.mean(each)), "low": None, "high": None, "each": each}


def mean_of_draws(draws: Sequence[Record]) -> Record:
    """One record, as tables read it, of several draws of a control: the mean of their results.

    Of a single record, it itself.
    """

    def mean(results: Sequence[Any]) -> Any:
        first = results[0]
        if isinstance(first, Mapping) and "value" in first:
            return over_draws(results)
        if isinstance(first, Mapping):
            shared = [name for name in first if all(name in result for result in results)]
            return {name: mean([result[name] for result in results]) for name in shared}
        return float(np.mean(results)) if isinstance(first, float) else first

    first = draws[0]
    return first if len(draws) == 1 else {**first, "result": mean([r["result"] for r in draws])}


def budgeted(result: Mapping[str, Any], budget_on: str) -> Mapping[str, Any]:
    """The estimate that a budget on the `largest` part, or on the `mean`, is held against.

    Args:
      result: of a record of kind "quality"; one of an earlier version has the mean alone.
    """
    parts = [part for name in PARTS if (part := result.get(name)) and part["value"] is not None]
    if budget_on == "mean" or not parts:
        return result["kl"]["mean"]
    return max(parts, key=lambda part: part["value"])


def over_texts(results: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """The mean over texts of what each of them says, with an interval over texts.

    Five texts are enough for one, fewer than excerpts have to be: each is a mean of many.

    Args:
      results: of records of kind "quality" of one mask, of a text each.

    Returns:
      `num_texts`, `mean` and those of `PARTS` that every text has.
    """
    weights = resample_counts(len(results), seed)
    estimates = {"mean": [result["kl"]["mean"] for result in results]}
    estimates |= {name: [result.get(name, {"value": None}) for result in results] for name in PARTS}
    values = {name: [e["value"] for e in of_texts] for name, of_texts in estimates.items()}
    return {
        "num_texts": len(results),
        **{
            name: estimate_mean(np.array(of_texts), weights, fewest=5)
            for name, of_texts in values.items()
            if None not in of_texts
        },
    }


def part_columns(
    form: Callable[..., str] = formats.estimate,
    *,
    parts: Sequence[str] = PARTS,
    by_path: bool = False,
) -> list[tuple[str, Text]]:
    """Columns of a table of records: each part, `-` where a record of an earlier version has none.

    Args:
      form: of an estimate, as of `column`.
      parts: of `PARTS` and `LAST`.
      by_path: whether a footnote tells what each of several paths costs where it acts.
    """

    def text(name: str) -> Text:
        def of_record(record: Record, notes: Footnotes) -> str:
            part = record["result"].get(name)
            if part is None:
                return "-"
            shown, paths = form(part, formats.nats, notes), part.get("by_path", ())
            if not by_path or len(paths) < 2:
                return shown
            told = (
                f"{path['path']} from position {path['first']}: {formats.nats(path['value'])}"
                for path in paths
                if path["value"] is not None
            )
            return f"{shown} {notes.mark(', '.join(told))}"

        return of_record

    return [(name.removeprefix("kl_"), text(name)) for name in parts]


PARTS_NOTE = (
    "Acting: over the positions at which a masked head's output can differ, late: over the last "
    "quarter of the excerpt, generated: over the tokens after it, read as decoding reads them."
)
"""The note of a table with `part_columns`."""
LAST_NOTE = "Last: at the last position of the excerpt."
"""Beside it, of a table that has `LAST` too."""


def _spans(mask: SinkMask, prompt: int, score_from: int, count: int) -> dict[str, tuple[int, int]]:
    """The first position of each part, and that after its last, of `count` scored ones."""
    acting = min(acting_from(mask).values(), default=prompt)
    firsts = (acting, prompt), (late_from(prompt), prompt), (prompt, score_from + count)
    return {
        name: (max(first, score_from), stop)
        for name, (first, stop) in zip(PARTS, firsts, strict=True)
    }
