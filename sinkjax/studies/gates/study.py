"""Which heads can leave `full`, as learned gates say: trained by distillation, with a price.

  sinkjax gates --choose_text=one.txt --judge_text=other.txt --lengths=256
  sinkjax gates --flagfile=gates.flags

Every head (--units=group: every key/value group) gets a gate between its `full` output and that on
--paths. The gates are trained on --choose_text to keep the model's own predictions, while --price
draws them down. Then, for each of --shares, the heads of the lowest gates are masked; the KL of
that mask to the baseline is measured on --judge_text, beside masks of as many heads by own error
and at random.

Everything goes to --output_dir: records.jsonl, masks/, report.html with the loss, figures/ and
checkpoints/. A run that was stopped goes on from its last checkpoint when the same command is given
again.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from sinkjax.distributed import first
from sinkjax.errors import Problem
from sinkjax.instruments.judge import Judge
from sinkjax.instruments.own_errors import mean_outputs, own_errors
from sinkjax.masks.choose import random_control
from sinkjax.masks.file import Provenance, save_mask
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Path, Sink, Window, parse_paths
from sinkjax.report import formats
from sinkjax.report.records import Record
from sinkjax.studies import settings
from sinkjax.studies.candidates import Candidate
from sinkjax.studies.costs import PARTS
from sinkjax.studies.gates.gates import GatedModel, gates_of, mask_of_gates, start_gates
from sinkjax.studies.held_out import HeldOutStudy, mask_result
from sinkjax.studies.results import Results
from sinkjax.studies.retrieval.asked import joined
from sinkjax.studies.retrieval.keeping import AnswersStudy
from sinkjax.studies.series import Series
from sinkjax.studies.settings import at_least, setting, values
from sinkjax.studies.study import Bench, Cell, Size
from sinkjax.studies.training.study import RECORD_BYTES, TrainingStudy, history

_ANSWER = (
    0.5  # of an answer's KL, in nats, beside that of a token of text: 0.1 and 0.05 are allowed
)

METHODS = ("gates", "own_error", "random")
"""How masks of one size are chosen: by learned gates; by each head's own error under the path; at
random, with as many heads in each layer as by gates."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Gates(AnswersStudy, TrainingStudy):
    """Which heads can be masked, as learned gates say."""

    name = "gates"
    renamed: ClassVar[Mapping[str, str]] = {**HeldOutStudy.renamed, "path": "paths"}

    paths: tuple[Path, ...] = setting(
        (Window(4, 32),),
        "Path of the heads that are masked, a window or a sink; gates are learned for one.",
        parse=functools.partial(parse_paths, kinds=("window", "sink")),
    )
    units: Literal["head", "group"] = setting(
        "head", "What has a gate of its own: each head, or each key/value group."
    )
    price: float = setting(0.1, "What all gates open cost, in nats a token.")
    train_questions: int = setting(
        8, "Questions of each task and depth to train on, beside excerpts of text."
    )
    shares: tuple[float, ...] = setting((0.3, 0.5, 0.7), "Shares of the units that are masked.")

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from settings.shares("shares", self.shares, of="the units")
        yield from at_least(self, train_questions=1)
        if not self.price >= 0:
            yield self.wrong("price", "give 0 nats or more")
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
        if not self.tasks:
            return excerpts, weights
        questions = joined(self.asked_for(self.train_questions, 1))
        of_text = np.full((len(excerpts), excerpts.shape[1] - 1), 1 / (excerpts.shape[1] - 1))
        of_answers = _ANSWER * questions.predicting[:, 1:]
        weights = np.concatenate([of_text, of_answers]).astype(np.float32)
        return np.concatenate([excerpts, questions.tokens]), weights

    def specification(self) -> dict[str, Any]:
        asked = {}
        if self.tasks:
            names = ("tasks", "depths", "train_questions", "judge_questions")
            asked = {"asked": values(self, *names)}
        return {
            **super().specification(),
            **asked,
            "path": str(self.path),
            **values(self, "units", "price", "shares"),
        }

    def size(self) -> Size:
        masks = len(self.shares) * len(METHODS)
        asked = 2 * masks * sum(of.questions.tokens.size for of in self.judged_answers)
        records = 1 + masks * (1 + len(self.judged_answers))
        tokens = self.training_tokens + masks * self.judge_rows.size + asked
        return Size(tokens, records, RECORD_BYTES * records)

    def cells(self, bench: Bench) -> Iterator[Cell]:
        model, config = bench.model, bench.model.config
        fields = self.specification()
        del fields["shares"]
        units = config.num_kv_heads if self.units == "group" else config.num_heads
        fills = mean_outputs(model, self.trained_on) if self.path == Sink("mean") else None
        gated = GatedModel(model, self.path, fills=fills)
        start = start_gates(config.num_layers, units)

        def price(logits: jax.Array) -> jax.Array:
            return self.price * gates_of(logits).mean()

        trained = self.distilled(bench, gated.residuals, start, price=price)
        logits = np.asarray(trained.parameters)
        gates = np.asarray(gates_of(logits)).tolist()
        yield Cell(
            {"kind": "training", **fields}, lambda: {**history(trained), "gates": gates}, "training"
        )
        errors = own_errors(model, self.trained_on, [self.path], fills=fills)[0]
        # The errors of a group's heads add up to its own where they point in different directions.
        errors = np.sqrt(np.square(errors).reshape(*logits.shape, -1).sum(axis=-1))
        judge = Judge(model, self.judge_rows, fills=fills)
        answering = {}
        for share in sorted(self.shares):
            for method, mask in self._masks(share, logits, errors, config.num_heads).items():
                record = {"kind": "gates", **fields, "method": method, "share": share}
                yield Cell(
                    record,
                    lambda mask=mask: mask_result(mask, judge(mask), self.lengths[0], self.seed),
                    f"{method} {share:g}",
                    steps=self.judge_rows.size,
                )
                name = f"{method}, {formats.percent(share, 0)}"
                answering[name] = Candidate.of_mask(name, mask, self.judged_lengths, fills)
                if method == "gates":
                    _save(bench.results, bench.record_id(record), mask, fills)

        yield from self.answer_cells(bench, answering, {})

    def _masks(
        self, share: float, logits: np.ndarray, errors: np.ndarray, num_heads: int
    ) -> dict[str, SinkMask]:
        """Masks of a share of the units, by method."""
        count = round(share * logits.size)
        masks = {
            method: mask_of_gates(ranking, self.path, count, num_heads=num_heads)
            for method, ranking in (("gates", logits), ("own_error", errors))
        }
        kv_heads = logits.shape[1] if self.units == "group" else None
        masks["random"] = random_control(masks["gates"], seed=self.seed, num_kv_heads=kv_heads)
        return masks

    def closing(self, folder: str, records: Sequence[Record]) -> list[str]:
        return [f"masks: {folder}/masks"]


def _save(results: Results, record_id: str, mask: SinkMask, fills: np.ndarray | None) -> None:
    """Writes a mask with what its record says: masks/gates-SHARE.json."""
    record = results.get(record_id)
    how = ("path", "units", "price", "share", "train")
    save = functools.partial(
        save_mask,
        results.folder / "masks" / f"gates-{record['share']:g}.json",
        mask,
        provenance=Provenance.from_records(
            [record],
            text="chosen_on",
            method="learned gates",
            **{name: record[name] for name in how},
        ),
        quality={
            "kl": [
                {
                    "text": record["source"]["name"],
                    "text_sha256": record["source"]["sha256"],
                    "length": record["length"],
                    "num_windows": record["source"]["num_windows"],
                    **record["result"]["kl"],
                    **{name: record["result"][name] for name in PARTS},
                }
            ]
        },
        fills=fills,
    )
    first(save)
