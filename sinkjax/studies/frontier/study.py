"""What masks of growing size cost, by how they were chosen: methods × sizes × paths × lengths.

Heads are ranked on some windows and every mask is judged on others, by one program for all masks.
Methods that rank heads for one path:

  sink score    the highest `mean` scores first
  own error     the least own error under the path first
  sensitivity   the least predicted KL a head first, beside those before it
  random        the heads of `own error`, drawn anew within each layer: the control

`budget search` are the masks that a search to a KL budget went through, of its own paths, `gates`
those that learned gates chose. Records of copying (`sinkjax.copying`) are taken over as they are,
with the windows that they were made on.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from sinkjax.accounts.formulas import Cost
from sinkjax.accounts.savings import Needs, Workload, read_needs, saved_shares
from sinkjax.errors import InputError
from sinkjax.instruments.judge import Judge
from sinkjax.instruments.own_errors import mean_outputs, own_errors
from sinkjax.instruments.sensitivity import Prediction, predict_moves
from sinkjax.masks.choose import by_ranking, random_control
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Path
from sinkjax.models.config import LlamaConfig
from sinkjax.models.decoder import Llama
from sinkjax.studies.resampling import estimate_mean
from sinkjax.studies.results import Results
from sinkjax.studies.search.budget import make_moves, rank_moves
from sinkjax.studies.search.grow import sink_scores
from sinkjax.studies.store import Store
from sinkjax.studies.sweep.study import (
    Progress,
    Series,
    describe_model,
    describe_source,
    describe_texts,
)

METHODS = ("sink score", "own error", "sensitivity", "random")
SEARCHED, GATES = "budget search", "gates"
COPIES = {"layer_0": "copy layer 0", "adjacent": "copy the layer before", "output": "copy the best"}
"""Methods by the variants of `sinkjax.copying`."""

Saved = Literal["compiled", "by_hand"]
SAVED: tuple[str, ...] = get_args(Saved)

_RECORD_BYTES = 8192  # an upper bound


@dataclasses.dataclass(frozen=True)
class FrontierSettings:
    """What is compared.

    Attributes:
      paths: by length, those for which heads are ranked.
      shares: of all heads, within (0, 1].
      samples: draws of labels for each window, for `sensitivity`.
      generated: tokens after each prompt, for which the cache has room.
      saved: what masks save, as read from the programs that each compiles into, or by the formulas
        that such programs are held to.
      seed: of draws, controls and resamples.
    """

    paths: Mapping[int, tuple[Path, ...]]
    shares: tuple[float, ...]
    samples: int = 2
    generated: int = 64
    saved: Saved = "compiled"
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One point of the frontier.

    Attributes:
      method, path: how it was chosen; the path of its heads, or "any".
      mask: to be judged.
    """

    method: str
    path: str
    mask: SinkMask


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What other experiments found.

    Attributes:
      masks: by length, those that searches went through and gates chose.
      copies: records of `sinkjax.copying.run_copies`.
    """

    masks: Mapping[int, Sequence[Candidate]] = dataclasses.field(default_factory=dict)
    copies: Sequence[Mapping[str, Any]] = ()

    def copied(self, length: int) -> list[Mapping[str, Any]]:
        """The records of copies at one length that have a place on the frontier."""
        return [
            record
            for record in self.copies
            if record["kind"] == "copies"
            and record["variant"] in COPIES
            and record["length"] == length
        ]


def run_frontier(
    chosen_on: Series,
    judged_on: Series,
    settings: FrontierSettings,
    found: Found,
    folder: str,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Appends a record of kind "frontier" for every mask that a folder does not hold yet.

    Args:
      chosen_on, judged_on: windows of one model at the same lengths, of `plan_sweep`.
      settings: what is compared.
      found: what other experiments found.
      folder: for the results; for users, the value of --output_dir.
      on_progress: called after every step.

    Raises:
      InputError: for settings out of their range, masks of another shape, weights that cannot be
        read, or a folder that cannot be used.
    """
    subject = judged_on.subject
    check_frontier(subject.config, settings, found)
    model = subject.load()
    described = describe_model(subject, model)
    on_progress(Progress("model", f"loaded {subject.name}"))
    with Results(folder, _specification(chosen_on, judged_on, settings, found, described)) as out:
        out.reserve(_RECORD_BYTES * count_masks(settings, found))
        store = Store(
            out,
            described["model_digest"],
            lambda what, tokens: on_progress(Progress("measured", what, tokens=tokens)),
        )
        for length in sorted(judged_on.tokens):
            common = {
                **describe_texts(chosen_on, judged_on, length, described),
                "samples": settings.samples,
                "generated": settings.generated,
                "saved_as": settings.saved,
                "seed": settings.seed,
            }
            savings = _Savings(model, length, settings, store)
            windows = chosen_on.tokens[length]
            fills = store("means", windows, lambda w=windows: {"fills": mean_outputs(model, w)})
            fills, judges = fills["fills"], []
            for one in _candidates(model, windows, fills, length, settings, found, store):

                def measured(mask=one.mask, fills=fills, length=length, judges=judges):
                    if not judges:
                        judges.append(Judge(model, judged_on.tokens[length], fills=fills))
                    return {"kl": judges[0](mask)}

                judged = judged_on.tokens[length]
                kl = store("KL", judged, measured, mask=one.mask, fills=fills)["kl"]
                fields = {
                    "kind": "frontier",
                    **common,
                    "method": one.method,
                    "path": one.path,
                    "mask_digest": one.mask.digest,
                }
                out.record(
                    fields,
                    lambda one=one, kl=kl, savings=savings: {
                        "mask": str(one.mask),
                        "heads": one.mask.counts(),
                        "kl": estimate_mean(kl, settings.seed),
                        "saved": savings(one.mask),
                    },
                )
                on_progress(Progress("record", f"{one.method}, {one.path}", records=1))
            for record in found.copied(length):
                fields = _taken_over(record, settings)
                out.record(
                    fields,
                    lambda result=record["result"], savings=savings: {
                        **{name: result[name] for name in ("mask", "heads", "kl")},
                        "saved": savings(SinkMask.from_text(result["mask"])),
                    },
                )
                on_progress(Progress("record", fields["method"], records=1))


def count_masks(settings: FrontierSettings, found: Found) -> int:
    """How many masks are judged."""
    ranked = sum(len(paths) for paths in settings.paths.values())
    return ranked * len(settings.shares) * len(METHODS) + sum(
        len(found.masks.get(length, ())) + len(found.copied(length)) for length in settings.paths
    )


def check_frontier(config: LlamaConfig, settings: FrontierSettings, found: Found) -> None:
    """All that can be refused before any weight is read."""
    problems = [
        f"--shares={share:g}: give shares of all heads, above 0 and at most 1"
        for share in settings.shares
        if not 0 < share <= 1
    ]
    if not settings.shares:
        problems.append("--shares is empty: give at least one, such as 0.5")
    longest = config.max_length - settings.generated
    if settings.saved == "compiled":
        problems += [
            f"--lengths={length}: a program has room for {settings.generated} tokens more, and so "
            f"for prompts of at most {longest}; give less, or --saved=by_hand"
            for length in settings.paths
            if length > longest
        ]
    if settings.seed < 0:
        problems.append(f"--seed={settings.seed}: give 0 or more")
    problems += [
        f"--searches and --gates: some masks are for {length} tokens, which --lengths does not have"
        for length in sorted(set(found.masks) - set(settings.paths))
    ]
    for candidates in found.masks.values():
        for one in candidates:
            try:
                one.mask.check(config)
            except InputError as error:
                problems += error.problems
    if problems:
        raise InputError(*dict.fromkeys(problems))


def _candidates(
    model: Llama,
    windows: np.ndarray,
    fills: np.ndarray,
    length: int,
    settings: FrontierSettings,
    found: Found,
    store: Store,
) -> Iterator[Candidate]:
    """Every mask of one length, by method."""
    paths, full = settings.paths[length], SinkMask.full(model.config)
    for one in dict.fromkeys(found.masks.get(length, ())):
        if one.mask != full:
            yield one
    named = list(map(str, paths))
    scores = sink_scores(model, windows, store)
    errors = store(
        "errors",
        windows,
        lambda: {"errors": own_errors(model, windows, paths, fills=fills)},
        fills=fills,
        paths=named,
    )["errors"]
    how = {"samples": settings.samples, "seed": settings.seed}

    def predicted() -> dict[str, np.ndarray]:
        found = predict_moves(model, windows, paths, fills=fills, **how)
        return {"linear": found.linear, "products": found.products}

    costs = store(
        "sensitivity",
        windows,
        predicted,
        fills=fills,
        passes=2 + 2 * settings.samples,
        paths=named,
        **how,
    )
    for index, path in enumerate(paths):
        own = Prediction(
            full, costs["linear"][[0, 1 + index]], costs["products"][:, [0, 1 + index]]
        )
        moves = rank_moves(full, [path], own, np.ones(1))
        for share in settings.shares:
            count = round(share * scores.size)
            least = by_ranking(-errors[index], [path] * count)
            masks = (
                by_ranking(scores, [path] * count),
                least,
                make_moves(full, moves[:count]),
                random_control(least, seed=settings.seed),
            )
            for method, mask in zip(METHODS, masks, strict=True):
                yield Candidate(method, str(path), mask)


class _Savings:
    """What masks save at one length, each mask's programs compiled and read once."""

    def __init__(self, model: Llama, length: int, settings: FrontierSettings, store: Store):
        self._config, self._dtype = model.config, model.embedding.dtype
        self._workload = Workload(
            length, generated=settings.generated, itemsize=self._dtype.itemsize
        )
        self._saved, self._store = settings.saved, store

    def __call__(self, mask: SinkMask) -> dict[str, float]:
        return saved_shares(self._needs(mask), self._full)

    @functools.cached_property
    def _full(self) -> Needs:
        """The baseline's."""
        return self._needs(SinkMask.full(self._config))

    def _needs(self, mask: SinkMask) -> Needs:
        if self._saved == "by_hand":
            return self._workload.needs(self._config, mask)

        def read() -> dict[str, np.ndarray]:
            needs = dataclasses.asdict(read_needs(self._config, mask, self._workload, self._dtype))
            return {part: np.array(list(cost.values())) for part, cost in needs.items()}

        found = self._store(
            "programs", None, read, mask=mask, workload=dataclasses.asdict(self._workload)
        )
        return Needs(*(Cost(*map(int, found[part])) for part in ("prefill", "decode")))


def _taken_over(record: Mapping[str, Any], settings: FrontierSettings) -> dict[str, Any]:
    """Fields of a record of copying, as those of a point of the frontier."""
    kept = ("model", "chosen_on", "source", "bos", "bos_added", "length", "seed")
    return {
        "kind": "frontier",
        **{name: record[name] for name in kept},
        "generated": settings.generated,
        "saved_as": settings.saved,
        "method": COPIES[record["variant"]],
        "path": "copy",
        "mask_digest": SinkMask.from_text(record["result"]["mask"]).digest,
        "record": record["id"],
    }


def _specification(
    chosen_on: Series,
    judged_on: Series,
    settings: FrontierSettings,
    found: Found,
    described: Mapping[str, Any],
) -> dict[str, Any]:
    """All that defines the records, of JSON values."""
    return {
        "experiment": "frontier",
        "model": dict(described),
        "sources": [
            {**describe_source(one.source), "lengths": sorted(one.tokens)}
            for one in (chosen_on, judged_on)
        ],
        "paths": {str(n): list(map(str, paths)) for n, paths in settings.paths.items()},
        "shares": list(settings.shares),
        "samples": settings.samples,
        "generated": settings.generated,
        "saved_as": settings.saved,
        "seed": settings.seed,
        "found": {
            str(n): [[one.method, one.mask.digest] for one in masks]
            for n, masks in found.masks.items()
        },
        "copies": [record["id"] for record in found.copies],
    }
