"""The mask that serves each length: plans, and the programs that carry them out.

The founding study's hybrid is one line, `Plan.hybrid(mask, up_to=10)`: the mask's program for
prompts of up to ten tokens, the baseline's for longer ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import jax

from sinkjax.errors import InputError, check_items, check_kind, check_whole, is_one_of
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Full
from sinkjax.models.decoder import Llama, check_model
from sinkjax.programs.compile import choose_sizes, compile, size_problems
from sinkjax.programs.generate import Generator, OnTokens, Program, Request, Row, run
from sinkjax.specialize.build import specialize

Crossing = Literal["stay", "prefill"]
CROSSINGS: tuple[str, ...] = get_args(Crossing)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One mask and the lengths that it serves.

    Attributes:
      mask: of its programs.
      up_to: the longest length, in tokens; the shortest follows the stage before. None for all
        that are longer.
    """

    mask: SinkMask
    up_to: int | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The mask for each prompt length, and what happens where text grows from one into the next.

    Attributes:
      stages: by ascending `up_to`; the last one's is None.
      crossing: the rule for a text that grows beyond its stage while it is decoded.
        `stay`: the mask of the prompt's length serves to the end.
        `prefill`: all tokens so far are prefilled again with the next stage's mask. Every token is
        then what the mask for the number of tokens before it gives for them.

    Raises:
      InputError: naming every stage out of order or of another shape, and an unknown rule.
    """

    stages: tuple[Stage, ...]
    crossing: Crossing = "stay"

    def __post_init__(self) -> None:
        text = "a sequence of stages is needed, such as [Stage(mask)]"
        object.__setattr__(self, "stages", check_items("stages", self.stages, text))
        if problems := list(_plan_problems(self)):
            raise InputError(*problems)

    @classmethod
    def hybrid(cls, mask: SinkMask, *, up_to: int, crossing: Crossing = "stay") -> Plan:
        """The founding study's plan: a mask up to a length, every head `full` beyond."""
        check_kind("mask", mask, SinkMask, "a SinkMask")
        baseline = SinkMask(((Full(),) * mask.num_heads,) * mask.num_layers)
        return cls((Stage(mask, up_to), Stage(baseline)), crossing)

    def stage(self, length: int) -> int:
        """The index of the stage that serves a length."""
        length = check_whole("length", length, 0)
        return next(
            i for i, stage in enumerate(self.stages) if stage.up_to is None or length <= stage.up_to
        )

    def mask(self, length: int) -> SinkMask:
        """The mask that serves a length."""
        return self.stages[self.stage(length)].mask

    def reached(self, lengths: Iterable[int], num_tokens: int) -> Plan:
        """The plan for prompts of these lengths and so many tokens after them.

        Stages that none of them comes to are left out: nothing would be compiled for them.
        """
        lengths = check_items("lengths", lengths, "one length or more is needed, in a list", 1)
        num_tokens = check_whole("num_tokens", num_tokens, 0)
        grown = num_tokens if self.crossing == "prefill" else 1
        reached = {
            index
            for length in lengths
            for index in range(self.stage(length), self.stage(length + grown - 1) + 1)
        }
        *stages, last = (self.stages[index] for index in sorted(reached))
        return Plan((*stages, Stage(last.mask)), self.crossing)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form that `from_dict` reads back."""
        return {
            "crossing": self.crossing,
            "stages": [{"up_to": stage.up_to, "mask": str(stage.mask)} for stage in self.stages],
        }

    @classmethod
    def by_length(cls, masks: Mapping[int, SinkMask]) -> Plan:
        """Returns the plan of masks for single lengths, the longest's serving what is longer."""
        text = "a mask for each length is needed, such as {64: mask}"
        check_items("masks", masks if isinstance(masks, Mapping) else (), text, 1)
        by_length = {check_whole("masks", length, 1): mask for length, mask in masks.items()}
        *shorter, last = sorted(by_length)
        stages = [Stage(by_length[length], length) for length in shorter]
        return cls((*stages, Stage(by_length[last])))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Plan:
        """Reads what `to_dict` wrote, or a person.

        A person may give a stage several lengths, which makes as many stages of it, and windows
        that grow with the stage's length, `w(4,32+L/16)`.

        Raises:
          InputError: naming what is missing, unknown, or no possible plan.
        """
        problems = []
        fields = fields if isinstance(fields, Mapping) else {}
        stages = fields.get("stages")
        if set(fields) != {"crossing", "stages"} or not isinstance(stages, list):
            raise InputError(
                f'a plan has "crossing" and a list of "stages", and nothing else; here are '
                f"{', '.join(map(repr, fields)) or 'none'}"
            )
        read = []
        for index, stage in enumerate(stages):
            if not isinstance(stage, Mapping) or set(stage) != {"up_to", "mask"}:
                problems.append(f'stage {index} is {stage!r}; it has "up_to" and "mask"')
                continue
            up_to, text = stage["up_to"], stage["mask"]
            if isinstance(up_to, list) and not up_to:
                advice = "give a length, several in a list, or null in the last stage"
                problems.append(f"stage {index}: up_to is []; {advice}")
            if not isinstance(text, str):
                problems.append(f"stage {index}: mask is {text!r:.99}; give its text")
                continue
            try:
                for longest in up_to if isinstance(up_to, list) else [up_to]:
                    length = longest if type(longest) is int else None
                    read.append(Stage(SinkMask.from_text(text, length), longest))
            except InputError as error:
                problems += [f"stage {index}: {problem}" for problem in error.problems]
        if problems:
            raise InputError(*problems)
        return cls(tuple(read), fields["crossing"])


@dataclasses.dataclass(frozen=True, eq=False)
class Dispatcher(Generator):
    """The programs of a plan; each prompt is continued by the stages that its length asks for.

    Attributes:
      plan: the mask of each length.
      programs: one for each stage.
      max_length: tokens that a prompt and its new tokens may have together.
    """

    plan: Plan
    programs: tuple[Program, ...]
    max_length: int

    @property
    def compile_seconds(self) -> float:
        """Lowering and compiling of all executables of all stages, together."""
        return sum(program.compile_seconds for program in self.programs)

    def _sizes(self) -> tuple[int, int]:
        return self.programs[0].model.config.vocab_size, self.max_length

    def _run(self, request: Request, rows: list[Row], on_tokens: OnTokens | None) -> None:
        for index, (stage, program) in enumerate(zip(self.plan.stages, self.programs, strict=True)):
            up_to = stage.up_to if self.plan.crossing == "prefill" else None
            own = [row for row in rows if row.budget and self.plan.stage(row.length) == index]
            run(program, own, request, on_tokens, up_to=up_to)


def compile_plan(
    model: Llama,
    plan: Plan,
    *,
    fills: Mapping[SinkMask, jax.Array] | None = None,
    prefill_lengths: Iterable[int] | None = None,
    max_length: int | None = None,
    **options: Any,
) -> Dispatcher:
    """Compiles a program for each stage of a plan, with the buckets and the room that it needs.

    Args:
      model: the baseline, whose arrays all stages share as far as their masks leave them whole.
      plan: masks for this model.
      fills: float32 [L, N, H] for each mask that has `sink(mean)` heads, as for `specialize`.
      prefill_lengths, max_length: as for `compile`.
      options: `batch_size`, `steps_per_call`, `layers` and `attention`, as for `compile`.

    Returns:
      the programs behind one `generate`, as a `Program` has it.

    Raises:
      InputError: as `specialize` and `compile` do, and for stages that no prompt reaches.
    """
    check_model(model, values=True)
    check_kind("plan", plan, Plan, "a Plan, such as Plan.hybrid makes of a mask,")
    check_kind("fills", fills, Mapping | None, "an array for each mask, or none,")
    lengths, max_length = choose_sizes(model, prefill_lengths, max_length)
    if problems := size_problems(max_length=[max_length], prefill_lengths=lengths):
        raise InputError(*problems)
    buckets = tuple(lengths)
    models: dict[SinkMask, Any] = {}
    programs = []
    needs = _stage_needs(plan, buckets, max_length)
    for stage, (own_buckets, room) in zip(plan.stages, needs, strict=True):
        if stage.mask not in models:
            models[stage.mask] = specialize(model, stage.mask, fills=(fills or {}).get(stage.mask))
        programs.append(
            compile(models[stage.mask], prefill_lengths=own_buckets, max_length=room, **options)
        )
    return Dispatcher(plan, tuple(programs), max_length)


def _stage_needs(
    plan: Plan, buckets: tuple[int, ...], max_length: int
) -> list[tuple[tuple[int, ...], int]]:
    """The buckets and the room, in tokens, that each stage needs of the whole."""
    needs, problems = [], []
    shortest = 1
    for stage in plan.stages:
        longest = max_length if stage.up_to is None else min(stage.up_to, max_length)
        below = (0, *buckets[:-1])  # a bucket serves what is longer than the one below it
        own = tuple(
            bucket
            for low, bucket in zip(below, buckets, strict=True)
            if low < longest and bucket >= shortest
        )
        own = own or buckets[-1:]  # longer prompts come in pieces of this length
        if longest < shortest:
            problems.append(
                f"the stage from {shortest} tokens on is beyond max_length, {max_length}: give "
                "more, or leave the stage out"
            )
        # Under `prefill` the cache never holds more than the stage serves; its buckets have to fit.
        room = max(longest, *own, 1) if plan.crossing == "prefill" else max_length
        needs.append((own, room))
        shortest = longest + 1
    if problems:
        raise InputError(*problems)
    return needs


def _plan_problems(plan: Plan) -> Iterable[str]:
    if not all(isinstance(stage, Stage) for stage in plan.stages):
        yield "a plan is made of stages, such as Stage(mask, up_to=10)"
        return
    for index, stage in enumerate(plan.stages):
        if not isinstance(stage.mask, SinkMask):
            kind = type(stage.mask).__name__
            yield f"stage {index}: mask: a SinkMask is needed, not {kind}"
            return
    if not is_one_of(plan.crossing, CROSSINGS):
        yield f"crossing is {plan.crossing!r}; allowed are {', '.join(CROSSINGS)}"
    if not plan.stages or plan.stages[-1].up_to is not None:
        yield "the last stage has to serve all longer lengths: its up_to has to be None"
    before = 0
    for index, stage in enumerate(plan.stages[:-1]):
        if type(stage.up_to) is not int or stage.up_to <= before:
            yield (
                f"stage {index}: up_to is {stage.up_to}; it has to be a whole number above {before}"
            )
        else:
            before = stage.up_to
    shapes = {(stage.mask.num_layers, stage.mask.num_heads) for stage in plan.stages}
    if len(shapes) > 1:
        listed = ", ".join(f"{layers} layers of {heads} heads" for layers, heads in sorted(shapes))
        yield f"the masks are for models of different shapes: {listed}"
