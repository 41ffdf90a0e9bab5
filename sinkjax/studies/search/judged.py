"""What a search's masks cost on a text."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sinkjax.instruments.judge import SCORE_FROM
from sinkjax.masks.mask import SinkMask
from sinkjax.studies.candidates import Candidate
from sinkjax.studies.quality.summary import summarize_quality
from sinkjax.studies.search.kept import KeptJudge
from sinkjax.studies.series import Series
from sinkjax.studies.study import Bench, Cell


def judged_cells(
    bench: Bench,
    masks: Mapping[str, SinkMask],
    series: Series,
    excerpts: np.ndarray,
    length: int,
    *,
    fills: np.ndarray | None,
    seed: int,
) -> Iterator[Cell]:
    """Cells of kind "quality", one for each mask, all judged by one program.

    Args:
      masks: by what their candidates are called.
      excerpts: int32 [W, T + M], with the M tokens after each.
      length: T.
      fills: float32 [L, N, H], for masks with `sink(mean)` heads.
    """
    judge = KeptJudge(bench.model, excerpts, fills, bench.keep)
    generated = excerpts.shape[1] - length

    def measure(mask: SinkMask) -> dict[str, Any]:
        hiding = mask.hiding(bench.model.config.layer_windows)
        return summarize_quality(judge.stats(mask, generated), hiding, seed=seed)

    for name, mask in masks.items():
        candidate = Candidate.of_mask(name, mask, (length,), fills)
        fields = {
            "kind": "quality",
            "candidate": candidate.describe(length),
            **series.excerpts(length, excerpts[:, :length]),
            "score_from": SCORE_FROM,
            "generated": generated,
            "seed": seed,
        }
        yield Cell(fields, functools.partial(measure, mask), name, steps=excerpts.size)
