"""What is held against the baseline: a mask, or a plan of masks by length."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.masks.mask import SinkMask
from sinkjax.programs.dispatch import Plan, Stage


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """What is held against the baseline.

    Attributes:
      name: as the user gave it.
      masks: by length T, the one that serves prompts of T tokens.
      fills: float32 [L, N, H] of each mask that has `sink(mean)` heads.
      plan: that the masks are of; None where one mask serves all lengths.

    Raises:
      ValueError: for several masks without a plan.
    """

    name: str
    masks: Mapping[int, SinkMask]
    fills: Mapping[SinkMask, np.ndarray] = dataclasses.field(default_factory=dict)
    plan: Plan | None = None

    def __post_init__(self) -> None:
        if self.plan is None and len(set(self.masks.values())) > 1:
            raise ValueError(f"{self.name} has several masks, but no plan that says what they are")

    @classmethod
    def of_plan(
        cls, name: str, plan: Plan, lengths: Sequence[int], fills: Mapping[SinkMask, np.ndarray]
    ) -> "Candidate":
        """A plan's mask for each length."""
        return cls(name, {length: plan.mask(length) for length in lengths}, fills, plan)

    def describe(self, length: int) -> dict[str, Any]:
        """The "candidate" of a record."""
        mask = self.masks[length]
        return {"name": self.name, **self._digests(mask), "heads": mask.counts()}

    def specification(self) -> dict[str, Any]:
        """Its entry in the specification of a run."""
        return {
            "name": self.name,
            "masks": {str(length): str(mask) for length, mask in self.masks.items()},
            "described": [self.describe(length) for length in self.masks],
            **({} if self.plan is None else {"plan": self.plan.to_dict()}),
        }

    def crossing(self, length: int, num_tokens: int) -> dict[str, Any] | None:
        """The "crossing" of a record of a continuation; None where it crosses no boundary.

        Returns:
          the plan's `rule`; `boundaries`, the longest lengths of the stages that the text outgrows
          before its last token is drawn; `masks`, those that serve beyond them: under `stay` none.
        """
        if self.plan is None:
            return None
        first, last = self.plan.stage(length), self.plan.stage(length + num_tokens - 1)
        if first == last:
            return None
        later = self.plan.stages[first + 1 : last + 1] if self.plan.crossing == "prefill" else ()
        return {
            "rule": self.plan.crossing,
            "boundaries": [stage.up_to for stage in self.plan.stages[first:last]],
            "masks": [self._digests(stage.mask) for stage in later],
        }

    def reached(self, lengths: Sequence[int], num_tokens: int) -> Plan:
        """What of a plan serves windows of these lengths and what they grow to.

        Stages that none of them comes to are left out: nothing would be compiled for them.
        """
        if self.plan is None:
            return Plan((Stage(self.masks[lengths[0]]),))
        grown = num_tokens if self.plan.crossing == "prefill" else 1
        reached = {
            index
            for length in lengths
            for index in range(self.plan.stage(length), self.plan.stage(length + grown - 1) + 1)
        }
        *stages, last = (self.plan.stages[index] for index in sorted(reached))
        return Plan((*stages, Stage(last.mask)), self.plan.crossing)

    def _digests(self, mask: SinkMask) -> dict[str, str | None]:
        fills_sha256 = None
        if mask in self.fills:
            fills = np.ascontiguousarray(self.fills[mask], np.float32)
            fills_sha256 = hashlib.sha256(fills.tobytes()).hexdigest()
        return {"mask_digest": mask.digest, "fills_sha256": fills_sha256}
