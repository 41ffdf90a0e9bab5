"""What studies that train share: how to train, and what they say of it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from sinkjax.errors import Problem
from sinkjax.report.page import Block
from sinkjax.report.records import Record
from sinkjax.studies.held_out import HeldOutStudy
from sinkjax.studies.resampling import LEVEL
from sinkjax.studies.series import describe_texts
from sinkjax.studies.settings import part, setting
from sinkjax.studies.study import Bench
from sinkjax.studies.training.page import loss_figure, training_tables
from sinkjax.studies.training.train import Parameters, Trained, TrainSettings, distil

RECORD_BYTES = 65_536  # an upper bound


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TrainingStudy(HeldOutStudy):
    """A study that trains on one text and judges on another, at one length.

    The KL to the baseline is over all positions but the first, which every mask leaves as it is.
    The training's checkpoints are in the folder, checkpoints/, by Orbax: a run that was stopped
    goes on where it was.
    """

    whole = "all its records follow from one training"
    renamed: ClassVar[Mapping[str, str]] = {**HeldOutStudy.renamed, "warmup": "warmup_share"}
    tables_of = staticmethod(training_tables)
    lede = (
        "Trained to say what the baseline says on one set of excerpts, and judged on another. "
        f"Intervals over excerpts cover {LEVEL:.0%}."
    )

    choose_excerpts: int = setting(128, "Number of excerpts to train on, at most.")
    judge_excerpts: int = setting(8, "Number of excerpts to judge on, at most.")
    steps: int = setting(100, "Steps of the optimizer.")
    learning_rate: float = setting(0.2, "Learning rate of Adam, at its highest.")
    warmup_share: float = setting(0.1, "Share of the steps over which the learning rate rises.")
    rows: int = setting(1, "Excerpts in a step.")
    save_every: int = setting(10, "Steps between checkpoints.")

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from self.train.problems()
        if len(self.lengths) != 1:
            yield self.wrong("lengths", "it is trained at one length; give one")

    @property
    def train(self) -> TrainSettings:
        """How to train."""
        return part(self, TrainSettings)

    @property
    def trained_on(self) -> np.ndarray:
        """Excerpts to train on, int32 [W, T]."""
        (excerpts,) = self.chosen_on.tokens.values()
        return excerpts

    @property
    def training_rows(self) -> tuple[np.ndarray, np.ndarray | None]:
        """What is trained on, int32 [W, T], and the weights of positions, as `distil` has them."""
        return self.trained_on, None

    def distilled(
        self, bench: Bench, forward: Callable[..., jax.Array], start: Parameters, **price: Callable
    ) -> Trained:
        """What came of `distil` with this model, `forward`, `start` and, where given, `price`."""
        excerpts, weights = self.training_rows
        where = (excerpts, self.train, bench.results.folder / "checkpoints")
        report = functools.partial(bench.keep.report, "trained")
        how = {"weights": weights, "on_step": report, **price}
        return distil(bench.model, forward, start, *where, **how)

    @property
    def training_tokens(self) -> int:
        """Tokens that training takes."""
        count, length = self.training_rows[0].shape
        return self.steps * min(self.rows, count) * length

    def specification(self) -> dict[str, Any]:
        (length,) = self.lengths
        return {
            **describe_texts(self.chosen_on, self.judged_on, length),
            "train": self.train.describe(),
        }

    @classmethod
    def blocks(cls, specification: Mapping[str, Any], records: Sequence[Record]) -> list[Block]:
        losses = [loss_figure(record) for record in records if record["kind"] == "training"]
        return [*losses, *training_tables(records)]


def history(trained: Trained) -> dict[str, Any]:
    """The losses of a training, in its record."""
    return {name: array.astype(float).tolist() for name, array in trained.history.items()}
