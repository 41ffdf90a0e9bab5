"""Learns a gate for each head by distillation, and judges masks of the heads of the lowest gates.

  sinkjax gates --choose_text=one.txt --judge_text=other.txt --lengths=256
  sinkjax gates --flagfile=gates.flags
  sinkjax gates --flagfile=gates_both.flags

Every head (--units=group: every key/value group) gets a gate between its `full` output and that on
--paths. The gates are trained on --choose_text to keep the model's own predictions, while --price
draws them down. Then, for each of --shares, the heads of the lowest gates are masked; the KL of
that mask to the baseline is measured on each --judge_text, beside masks of as many heads by own
error and at random.

With --tasks, which are those of `sinkjax retrieval`, gates are trained on questions, too, to keep
the baseline's predictions of the answers' tokens, and masks are judged by other questions, at other
depths: the last lines say which of the gates' masks keep the baseline's answers. --train_on=tasks
leaves the text out, as DuoAttention does, and --train_on=text the questions; both are judged alike.

With --chips=4 masks are for a mesh of which `model` is 4: heads, or groups, of like gates are
masked on each chip at once, since every chip waits for the fullest.

In --output_dir lie, too, masks/ and checkpoints/, from the last of which a run that was stopped
goes on.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from sinkjax.accounts.savings import Workload, saved_over_chips
from sinkjax.distributed import first, to_host
from sinkjax.errors import Problem
from sinkjax.instruments.judge import Judge
from sinkjax.instruments.own_errors import mean_outputs, own_errors
from sinkjax.masks.file import Provenance, save_mask
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Path, Sink, Window, parse_paths
from sinkjax.report.records import Record
from sinkjax.studies import settings
from sinkjax.studies.candidates import Candidate
from sinkjax.studies.costs import GENERATED, PARTS
from sinkjax.studies.gates.gates import GatedModel, gates_of, start_gates
from sinkjax.studies.held_out import mask_result
from sinkjax.studies.results import Results
from sinkjax.studies.retrieval.asked import joined
from sinkjax.studies.retrieval.keeping import AnswersStudy
from sinkjax.studies.retrieval.promise import promise_line, promises_of
from sinkjax.studies.series import Series, describe_texts
from sinkjax.studies.settings import MOST_DRAWN, at_least, seed_of_draw, setting, some, values
from sinkjax.studies.study import Bench, Cell, Size
from sinkjax.studies.texts import JUDGE, TEXT
from sinkjax.studies.training.study import RECORD_BYTES, TrainingStudy, history
from sinkjax.studies.units import ChipsStudy, Units

# What an answer's KL counts beside that of a token of text: 0.1 and 0.05 nats are allowed. It is
# the KL and no NLL, because what is promised of answers is held against the baseline's own.
_ANSWER = 0.5

METHODS = ("gates", "own_error", "random")
"""How masks of one size are chosen: by learned gates; by each head's own error under the path; at
random, with as many heads in each layer as by gates."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Gates(ChipsStudy, AnswersStudy, TrainingStudy):
    """Which heads can be masked, as learned gates say."""

    name = "gates"
    title = "What gates learned on {} cost"
    renamed: ClassVar[Mapping[str, str]] = {**TrainingStudy.renamed, "path": "paths"}

    judge_text: tuple[str, ...] = setting(
        (JUDGE,),
        f"{TEXT} to judge on. Default: the shipped text for judging.",
        repeated=True,
    )
    paths: tuple[Path, ...] = setting(
        (Window(4, 32),),
        "Path of the heads that are masked, a window or a sink; gates are learned for one.",
        parse=functools.partial(parse_paths, kinds=("window", "sink")),
    )
    units: Literal["head", "group"] = setting(
        "head", "What has a gate of its own: each head, or each key/value group."
    )
    price: float = setting(0.1, "Cost of all gates together when they are open, in nats a token.")
    train_questions: int = setting(
        8, "Questions of each task and depth to train on, beside excerpts of text."
    )
    train_on: Literal["both", "text", "tasks"] = setting(
        "both", "What gates are trained on where there are tasks: text, their questions, or both."
    )
    shares: tuple[float, ...] = setting((0.3, 0.5, 0.7), "Shares of the units that are masked.")
    control_draws: int = setting(5, "Draws of the random control of each share.")

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from settings.shares("shares", self.shares, of="the units")
        yield from at_least(self, most=MOST_DRAWN, train_questions=1, control_draws=1)
        if not 0 <= self.price < math.inf:
            yield self.wrong("price", "give nats, 0 or more and finite")
        yield from some(self, judge_text="moby-dick")
        if self.train_on == "tasks" and not self.tasks:
            yield Problem("tasks", None, "train_on=tasks needs some, such as niah_single_1")
        if len(self.paths) != 1:
            yield self.wrong("paths", "give one path, such as window(4,32)")
        elif not isinstance(self.paths[0], Window | Sink):
            yield self.wrong("paths", "give a window or a sink")

    @property
    def path(self) -> Path:
        """Path of the heads that are masked."""
        (path,) = self.paths
        return path

    @property
    def answers_on(self) -> tuple[Series, Series]:
        return self.chosen_on, self.judged_on

    @functools.cached_property
    def training_rows(self) -> tuple[np.ndarray, np.ndarray | None]:
        excerpts, weights = super().training_rows
        if not self.tasks or self.train_on == "text":
            return excerpts, weights
        questions = joined(self.asked_for(self.train_questions, 1, self.lengths))
        of_answers = _ANSWER * questions.predicting[:, 1:].astype(np.float32)
        if self.train_on == "tasks":
            return questions.tokens, of_answers
        of_text = np.full_like(excerpts[:, 1:], 1 / (excerpts.shape[1] - 1), np.float32)
        return np.concatenate([excerpts, questions.tokens]), np.concatenate([of_text, of_answers])

    def specification(self) -> dict[str, Any]:
        more: dict[str, Any] = {}
        if self.tasks:
            names = ("tasks", "depths", "train_questions", "train_on", "judge_questions")
            more["asked"] = values(self, *names)
        if further := self.judged_texts[1:]:
            more["judged"] = [self._texts(series)["source"] for series in further]
        return {
            **super().specification(),
            **more,
            "path": str(self.path),
            **values(self, "units", "price", "shares", "control_draws"),
            **self.over_chips(),
        }

    def size(self) -> Size:
        rows, answers = self._judged_rows, self.judged_answers
        masks = len(self.shares) * (len(METHODS) - 1 + self.control_draws)
        answering = len(self.shares) * len(METHODS)
        records = 1 + masks * len(rows) + answering * len(answers)
        judged = masks * sum(of.size for of in rows) + answering * sum(of.steps for of in answers)
        tokens = self.training_tokens + judged
        return Size(tokens, records, RECORD_BYTES * records)

    @property
    def _judged_rows(self) -> list[np.ndarray]:
        """Excerpts of each text to judge on with the tokens after them, int32 [W, T + M]."""
        return [series.with_following(self.lengths[0], GENERATED) for series in self.judged_texts]

    def _texts(self, judged_on: Series) -> dict[str, Any]:
        """What records of masks say of texts, judged on one of them."""
        return describe_texts(self.chosen_on, judged_on, self.lengths[0])

    def cells(self, bench: Bench) -> Iterator[Cell]:
        model, config = bench.model, bench.model.config
        fields = self.specification()
        del fields["shares"], fields["control_draws"]
        training = {name: of for name, of in fields.items() if name != "chips"}
        training = {"kind": "training", **training}
        fields.pop("judged", None)
        units = config.num_kv_heads if self.units == "group" else config.num_heads
        fills = mean_outputs(model, self.trained_on) if self.path == Sink("mean") else None
        gated = GatedModel(model, self.path, fills=fills)
        start = start_gates(config.num_layers, units)

        def price(logits: jax.Array) -> jax.Array:
            return self.price * gates_of(logits).mean()

        trained = self.distilled(bench, gated.residuals, start, price=price)
        logits = to_host(trained.parameters)
        gates = np.asarray(gates_of(logits)).tolist()
        yield Cell(training, lambda: {**history(trained), "gates": gates}, "training")
        errors = own_errors(model, self.trained_on, [self.path], fills=fills)[0]
        # The errors of a group's heads add up to its own where they point in different directions.
        errors = np.sqrt(np.square(errors).reshape(*logits.shape, -1).sum(axis=-1))
        logits, errors = first(lambda: (logits, errors))  # by which all choose the same masks
        judged = [
            (self._texts(series), rows.size, Judge(model, rows, fills=fills))
            for series, rows in zip(self.judged_texts, self._judged_rows, strict=True)
        ]
        answering, chosen = [], {}
        for share in sorted(self.shares):
            for method, draw, mask in self._masks(share, logits, errors):
                of_mask = {"kind": "gates", **fields, "method": method, "share": share}
                if draw is not None:
                    of_mask["draw"] = draw
                for texts, size, judge in judged:
                    yield Cell(
                        {**of_mask, **texts},
                        lambda mask=mask, judge=judge: mask_result(
                            mask, judge(mask), self.lengths[0], config.layer_windows
                        ),
                        f"{method} {share:g}",
                        steps=size,
                    )
                if draw in (None, 1):  # of draws the first alone is asked
                    candidate = Candidate.of_mask(
                        _name(method, share), mask, self.judged_lengths, fills
                    )
                    answering.append((candidate, None))
                if method == "gates":
                    ids = [bench.record_id({**of_mask, **texts}) for texts, *_ in judged]
                    chosen[share] = mask, ids
        yield from self.answer_cells(bench, answering)
        for share, (mask, ids) in chosen.items():
            self._save(bench.results, share, mask, ids, fills)

    def _masks(
        self, share: float, logits: np.ndarray, errors: np.ndarray
    ) -> Iterator[tuple[str, int | None, SinkMask]]:
        """Masks of a share of the heads, or groups: method, the draw's number from 1, mask.

        Args:
          logits, errors: float [L, N] or [L, K]; of equal ones the first by (layer, unit) goes
            first. Logits of gates stay apart where gates are nearly 0.
        """
        size = self.subject.config.num_heads // logits.shape[1]

        def lowest(ranking: np.ndarray) -> tuple[Units, SinkMask]:
            costs = np.repeat(ranking, size, axis=1)
            units = self.together(costs, self.units)
            count = round(share * costs.size / units.size)
            return units, units.by_ranking(-costs, [self.path] * count)

        units, by_gates = lowest(logits)
        _, by_error = lowest(errors)
        gates, own_error, random = METHODS
        yield gates, None, by_gates
        yield own_error, None, by_error
        for draw in range(self.control_draws):
            yield random, draw + 1, units.random_control(by_gates, seed_of_draw(self.seed, draw))

    def closing(self, folder: str, records: Sequence[Record]) -> list[str]:
        lines = [f"masks: {folder}/masks"]
        for share in sorted(self.shares):
            name = _name("gates", share)
            promised = promises_of(name, records, self.nll_budget)
            lines += [f"{name}: {promise_line(of)}" for of in promised]
        return lines

    def _save(
        self,
        results: Results,
        share: float,
        mask: SinkMask,
        record_ids: Sequence[str],
        fills: np.ndarray | None,
    ) -> None:
        """Writes a mask with what its records say, of a text each: masks/gates-SHARE.json."""
        records = [results.get(record_id) for record_id in record_ids]
        names = ("path", "units", "chips", "price", "share", "train")
        how = {name: records[0][name] for name in names if name in records[0]}
        workload = Workload(self.lengths[0], generated=GENERATED)
        quality: dict[str, Any] = {
            "kl": [_quality(record) for record in records],
            "over_chips": saved_over_chips(self.subject.config, mask, workload),
        }
        if self.tasks:
            how["asked"] = {**records[0]["asked"], "nll_budget": self.nll_budget}
            quality["retrieval"] = promises_of(_name("gates", share), results, self.nll_budget)
        save = functools.partial(
            save_mask,
            results.folder / "masks" / f"gates-{share:g}.json",
            mask,
            provenance=Provenance.from_records(
                records, text="chosen_on", method="learned gates", **how
            ),
            quality=quality,
            fills=fills,
        )
        first(save)


def _name(method: str, share: float) -> str:
    """A mask's, in records of what it answers."""
    return f"{method}, {100 * share:g}%"


def _quality(record: Record) -> dict[str, Any]:
    """What a mask costs on one text, in its file."""
    return {
        "text": record["source"]["name"],
        "text_sha256": record["source"]["sha256"],
        "length": record["length"],
        "num_windows": record["source"]["num_windows"],
        **record["result"]["kl"],
        **{name: record["result"][name] for name in PARTS},
    }
