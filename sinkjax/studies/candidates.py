"""What is held against the baseline: masks, plans of masks by length, and how users name them."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax import shipped
from sinkjax.errors import InputError, Problem, about, each, problems_of
from sinkjax.files import parse_json, read_file
from sinkjax.masks.file import SavedMask, load_mask
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Sink
from sinkjax.models.config import LlamaConfig
from sinkjax.programs.dispatch import Plan, Stage
from sinkjax.studies.store import fills_digest

MASK = "File of a mask, name of a shipped one, hf://USER/NAME[@REVISION], or a mask's text form"
"""What names a mask, for who sets it."""

MASKS = (
    "Mask files, names of shipped masks or hf://USER/NAME[@REVISION], with commas between them, or "
    "a mask's text form, whose windows may grow with the length, as w(4,32+L/16)."
)
"""What `read_masks` reads, for who sets it."""

PLANS = "File of a plan, or the name of a shipped one."
"""What `read_plan` reads."""

_SHIPPED = "plans", ".json"

Fills = Mapping[SinkMask, np.ndarray]
"""float32 [L, N, H] of each mask that has `sink(mean)` heads."""

Files = Mapping[SinkMask, SavedMask]
"""What the file of each mask says; masks from their text form have none."""


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """What is held against the baseline.

    Attributes:
      name: as the user gave it.
      masks: by length T, the one that serves prompts of T tokens.
      fills: of the masks.
      plan: that the masks are of; None where one mask serves all lengths.
      files: that masks were read from.
    """

    name: str
    masks: Mapping[int, SinkMask]
    fills: Fills = dataclasses.field(default_factory=dict)
    plan: Plan | None = None
    files: Files = dataclasses.field(default_factory=dict)

    def describe(self, length: int) -> dict[str, Any]:
        """The "candidate" of a record."""
        mask = self.masks[length]
        return {"name": self.name, **self._digests(mask), "heads": mask.counts()}

    @classmethod
    def of_mask(
        cls, name: str, mask: SinkMask, lengths: Iterable[int], fills: np.ndarray | None
    ) -> "Candidate":
        """A mask with its fills, if it has any, for excerpts of these lengths."""
        return cls(name, dict.fromkeys(lengths, mask), {} if fills is None else {mask: fills})

    @classmethod
    def of_masks(
        cls, name: str, masks: Mapping[int, SinkMask], files: Files | None = None
    ) -> "Candidate":
        """What has a mask for each length, which may all be one."""
        plan = Plan.by_length(masks) if len(set(masks.values())) > 1 else None
        return cls(name, masks, fills_of(files or {}), plan, files or {})

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

    def serving(self, length: int, num_tokens: int) -> list[tuple[SinkMask, int, int]]:
        """Which masks serve a prompt and the tokens after it.

        Args:
          length: T, of the prompt.
          num_tokens: M, after it.

        Returns:
          each mask with the first position that it decodes and that after its last one, from T to
          T + M in all; where that is none, the prompt's mask with T twice.
        """
        mask, end = self.masks[length], length + num_tokens
        if self.plan is None or self.plan.crossing == "stay":
            return [(mask, length, end)]
        stages = self.plan.stages
        # A position p is decoded where the text has p + 1 tokens.
        ends = [min(end, stage.up_to or end) for stage in stages[self.plan.stage(length) :]]
        masks = [stage.mask for stage in stages[self.plan.stage(length) :]]
        starts = [length, *ends[:-1]]
        served = list(zip(masks, starts, ends, strict=True))
        return served[:1] + [(m, first, last) for m, first, last in served[1:] if first < last]

    def reached(self, lengths: Sequence[int], num_tokens: int) -> Plan:
        """`Plan.reached`, of one stage where there is no plan."""
        if self.plan is None:
            return Plan((Stage(self.masks[lengths[0]]),))
        return self.plan.reached(lengths, num_tokens)

    def _digests(self, mask: SinkMask) -> dict[str, str | None]:
        return {"mask_digest": mask.digest, "fills_sha256": fills_digest(self.fills.get(mask))}


def candidates(
    masks: Sequence[str | Candidate],
    plans: Sequence[str],
    config: LlamaConfig,
    lengths: Sequence[int],
) -> list[Candidate]:
    """What users name as `mask` and `plan`, to be held against the baseline at each length.

    Args:
      masks: as for `read_masks`, or what has been read.
      plans: as for `read_plan`.
      lengths: T of all excerpts.
    """
    named = [mask for mask in masks if isinstance(mask, Candidate)]
    texts = [mask for mask in masks if not isinstance(mask, Candidate)]
    longest = max(lengths, default=None)
    for name, (mask, files) in read_masks(texts, config, length=longest).items():
        of_length = dict.fromkeys(lengths, mask)
        if is_text(name):  # whose windows may grow
            of_length = {length: SinkMask.from_text(name, length) for length in lengths}
        named.append(Candidate.of_masks(name, of_length, files))
    for name in plans:
        plan, files = read_plan(name, config)
        of_length = {length: plan.mask(length) for length in lengths}
        named.append(Candidate(name, of_length, fills_of(files), plan, files))
    return named


def check_candidates(
    candidates: Sequence[Candidate], config: LlamaConfig, taken: Sequence[str] = ()
) -> Iterator[Problem]:
    """Masks of another shape than the model's, and names that are there twice or taken."""
    names = [*taken, *(candidate.name for candidate in candidates)]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield Problem("mask", name, "the name is taken, or there twice")
    for candidate in candidates:
        stages = () if candidate.plan is None else candidate.plan.stages
        for mask in dict.fromkeys([*candidate.masks.values(), *(s.mask for s in stages)]):
            for problem in problems_of(functools.partial(mask.check, config)):
                yield Problem("mask", candidate.name, str(problem))


def read_masks(
    values: Sequence[str], config: LlamaConfig, length: int | None = None
) -> dict[str, tuple[SinkMask, Files]]:
    """The masks that users name, each with what its file says.

    Args:
      values: each is files, or names of shipped masks, with commas between them, or one mask's text
        form.
      config: of the model that they are for.
      length: for which windows are that grow with it; None where there is no single one.

    Returns:
      by what the user wrote, a text in one line.

    Raises:
      InputError: listing all files that cannot be read, texts that are no mask, and masks for
        another model.
    """
    names = [
        name
        for value in values
        for name in ([" ".join(value.split())] if is_text(value) else value.split(","))
    ]
    masks = each(names, functools.partial(read_mask, config=config, length=length))
    return dict(zip(names, masks, strict=True))


def fills_of(files: Files) -> Fills:
    """The fills that files of masks hold."""
    return {mask: saved.fills for mask, saved in files.items() if saved.fills is not None}


def is_text(name: str) -> bool:
    """Whether a user wrote a mask itself, or tried to, and no name of one."""
    return re.match(r"L\d+(-\d+)? *:", name, re.IGNORECASE) is not None


def read_plan(name: str, config: LlamaConfig) -> tuple[Plan, Files]:
    """A plan's file, for a model of this config, and the mask files that it names.

    Args:
      name: of a JSON file as `Plan.to_dict` makes them, in which each mask is its text form or the
        name of its file, counted from the plan's folder; or of a plan that ships:
        "smollm2-135m-10-sinks".

    Raises:
      InputError: for a file that cannot be read, is no possible plan, or is for another model.
    """
    path = shipped.find(name, *_SHIPPED)
    files: dict[SinkMask, SavedMask] = {}
    with about("plan", name):
        try:
            fields = parse_json(read_file(path))
        except (OSError, ValueError) as error:
            known = ", ".join(shipped.names(*_SHIPPED))
            text = f"give a JSON file, or the name of a plan that ships: {known}"
            raise InputError(f"it cannot be read ({error}); {text}") from error
        if not isinstance(fields, dict):
            raise InputError('it holds no JSON object with "crossing" and "stages"')
        for stage in fields["stages"] if isinstance(fields.get("stages"), list) else ():
            if isinstance(stage, dict) and str(stage.get("mask")).endswith(".json"):
                saved = load_mask(path.parent / stage["mask"])
                saved.check(config)
                stage["mask"] = str(saved.mask)
                files[saved.mask] = saved
        plan = Plan.from_dict(fields)
        for stage in plan.stages:
            _check(stage.mask, config, fills_of(files))
        return plan, files


def read_mask(
    name: str, config: LlamaConfig, length: int | None = None, field: str = "mask"
) -> tuple[SinkMask, Files]:
    """A mask from its text form or its file, for a model of this config.

    Args:
      name, length: as for `read_masks`, of one mask.
      field: which problems are said to be with.
    """
    with about(field, name):
        if not name:
            raise InputError("it is empty: give files, or names of shipped masks, between commas")
        if not is_text(name):
            saved = load_mask(name)
            saved.check(config)
            return saved.mask, {saved.mask: saved}
        mask = SinkMask.from_text(name, length)
        _check(mask, config, {})
        return mask, {}


def _check(mask: SinkMask, config: LlamaConfig, fills: Fills) -> None:
    mask.check(config)
    if mask not in fills and any(path == Sink("mean") for layer in mask.heads for path in layer):
        text = "s(mean) needs calibrated means, which only a mask's file has: give one"
        raise InputError(text)
