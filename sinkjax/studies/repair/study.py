"""How much of a mask's cost does a short training of the remaining weights win back?

  sinkjax repair --mask=mask.json --choose_text=one.txt --judge_text=other.txt
  sinkjax repair --mask='L0: 9f | L1-29: 9w(4,32)' --steps=60

The mask's model is trained to say what the baseline says on --choose_text: of each layer that the
mask changes, the output slices of its heads and the bias alone. The KL to the baseline is measured
on --judge_text, as it was and repaired.

In --output_dir lie, too, checkpoints/ and the repair, MASK.repair.safetensors, for `load_repair` of
sinkjax.studies.repair.repair: keep it beside the mask.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from sinkjax.errors import Problem
from sinkjax.instruments.compare import compare
from sinkjax.masks.mask import SinkMask
from sinkjax.report.records import Record
from sinkjax.specialize.build import specialize
from sinkjax.studies.candidates import MASK, Files, fills_of, is_text, read_mask
from sinkjax.studies.held_out import mask_result
from sinkjax.studies.repair.repair import Repair, save_repair
from sinkjax.studies.settings import setting
from sinkjax.studies.study import Bench, Cell, Size
from sinkjax.studies.training.study import RECORD_BYTES, TrainingStudy, history


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RepairStudy(TrainingStudy):
    """How much of a mask's cost a short training of what is left makes up for."""

    name = "repair"
    title = "What the repair of a mask of {} cost"

    mask: str | None = setting(None, f"{MASK}.")
    steps: int = setting(60, "Steps of the optimizer.")
    learning_rate: float = setting(3e-4, "Learning rate of Adam, at its highest.")

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if not self.mask:
            yield Problem("mask", None, "it is missing: give the file of a mask, or its text form")

    def plan_problems(self) -> Iterator[Problem]:
        yield from super().plan_problems()
        if not self._mask[0].masked.any():
            yield self.wrong("mask", "it masks no head, and so there is nothing to repair")

    @functools.cached_property
    def _mask(self) -> tuple[SinkMask, Files]:
        return read_mask(self.mask, self.subject.config)

    @property
    def mask_name(self) -> str:
        """Name of the mask, for records and for the repair's file."""
        return "mask" if is_text(self.mask) else pathlib.Path(self.mask).stem

    def specification(self) -> dict[str, Any]:
        digest = self._mask[0].digest
        return {**super().specification(), "mask": self.mask_name, "mask_digest": digest}

    def size(self) -> Size:
        judged = self.judged_rows(self.lengths[0])
        return Size(self.training_tokens + 2 * judged.size, 3, 3 * RECORD_BYTES)

    def cells(self, bench: Bench) -> Iterator[Cell]:
        (mask, files), model = self._mask, bench.model
        repair = Repair(specialize(model, mask, fills=fills_of(files).get(mask)))
        fields = self.specification()
        trained = self.distilled(bench, repair.residuals, dict(repair.start))
        file = bench.results.folder / f"{self.mask_name}.json"
        of = {"mask_digest": mask.digest, "model_digest": bench.described["model_digest"]}
        save_repair(file, trained.parameters, **of)
        yield Cell({"kind": "training", **fields}, lambda: history(trained), "training")
        (length,) = self.lengths
        rows, how = self.judged_rows(length), (length, model.config.layer_windows)
        for repaired, changes in ((False, repair.start), (True, trained.parameters)):
            yield Cell(
                {"kind": "repair", **fields, "repaired": repaired},
                lambda changes=changes: mask_result(
                    mask, compare(model, repair.model(changes), rows).kl, *how
                ),
                "judged",
                steps=rows.size,
            )

    def closing(self, folder: str, records: Sequence[Record]) -> list[str]:
        return [f"repair: {folder}/{self.mask_name}.repair.safetensors"]
