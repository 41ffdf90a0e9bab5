"""Where a mask's KL is counted: where it acts, late in the prompt, and in generated tokens.

A mean over all positions promises too little. A `window(4,128)` head is exact up to position 131,
so that a quarter of 512 positions cost nothing, and the others cost more than the mean says.

  kl_acting     the positions of the prompt at which a masked head's output can differ
  kl_late       the last quarter of the prompt
  kl_generated  the tokens after the prompt
"""

from typing import Any

import numpy as np

from sinkjax.instruments.judge import SCORE_FROM
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Path
from sinkjax.report import formats
from sinkjax.report.formats import Footnotes
from sinkjax.report.records import Record
from sinkjax.report.table import Text
from sinkjax.studies.resampling import estimate_mean

PARTS = ("kl_acting", "kl_late", "kl_generated")

_UNDEFINED = (
    "no masked head acts before the end of the prompt",
    "",  # a prompt always has a last quarter
    "no tokens after the excerpts were read: none asked for, no text left, or the model's context ends",
)


def late_from(prompt: int) -> int:
    """The first position of the last quarter of a prompt of T tokens, one position at least."""
    return prompt - max(1, prompt // 4)


def acting_from(mask: SinkMask) -> dict[Path, int]:
    """The first position at which each path of a mask acts, the earliest first; of `full` none."""
    first = {path: path.acts_from for layer in mask.heads for path in layer}
    acting = [(path, at) for path, at in first.items() if at is not None]
    return dict(sorted(acting, key=lambda item: (item[1], str(item[0]))))


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


def summarize_parts(
    kl: np.ndarray, mask: SinkMask, prompt: int, weights: np.ndarray, score_from: int = SCORE_FROM
) -> dict[str, dict[str, Any]]:
    """Estimates of `PARTS`, as records hold them.

    Args:
      kl, mask, prompt: as of `part_means`.
      weights: of the excerpts, `resample_counts`.
      score_from: the first position of `kl`.

    Returns:
      each with `first`, its first position; `kl_acting` with `by_path` too, the same for each path
      from where on it acts.
    """

    def of(start: int, stop: int, undefined: str) -> dict[str, Any]:
        if start >= stop:
            return {"value": None, "undefined": undefined}
        columns = kl[:, start - score_from : stop - score_from]
        return {"first": start, **estimate_mean(columns, weights)}

    spans = _spans(mask, prompt, score_from, kl.shape[1])
    parts = {name: of(*spans[name], why) for name, why in zip(PARTS, _UNDEFINED, strict=True)}
    parts["kl_acting"]["by_path"] = [
        {"path": str(path), **of(max(first, score_from), prompt, _UNDEFINED[0])}
        for path, first in acting_from(mask).items()
    ]
    return parts


def part_columns() -> list[tuple[str, Text]]:
    """Columns of a table of records: each part, `-` where a record of an earlier version has none.

    What each path costs where it acts is a footnote, where a mask has several.
    """

    def text(name: str) -> Text:
        def of_record(record: Record, notes: Footnotes) -> str:
            part = record["result"].get(name)
            if part is None:
                return "-"
            shown, by_path = formats.estimate(part, formats.nats, notes), part.get("by_path", ())
            if len(by_path) < 2:
                return shown
            paths = (
                f"{of_path['path']} from position {of_path['first']}: "
                f"{formats.nats(of_path['value'])}"
                for of_path in by_path
                if of_path["value"] is not None
            )
            return f"{shown} {notes.mark(', '.join(paths))}"

        return of_record

    return [(name.removeprefix("kl_"), text(name)) for name in PARTS]


PARTS_NOTE = (
    "Acting: over the positions at which a masked head's output can differ, late: over the last "
    "quarter of the excerpt, generated: over the tokens after it, read as decoding reads them."
)
"""The note of a table with `part_columns`."""


def _spans(mask: SinkMask, prompt: int, score_from: int, count: int) -> dict[str, tuple[int, int]]:
    """The first position of each part, and that after its last, of `count` scored ones."""
    acting = min(acting_from(mask).values(), default=prompt)
    firsts = (acting, prompt), (late_from(prompt), prompt), (prompt, score_from + count)
    return {
        name: (max(first, score_from), stop)
        for name, (first, stop) in zip(PARTS, firsts, strict=True)
    }
