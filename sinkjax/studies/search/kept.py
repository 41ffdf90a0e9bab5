"""What a search measures of heads and of masks, kept under names that say what it was."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from sinkjax.instruments.batches import batch_rows, batches
from sinkjax.instruments.compare import QualityStats
from sinkjax.instruments.judge import Judge
from sinkjax.instruments.own_errors import mean_outputs, own_errors
from sinkjax.instruments.sensitivity import Prediction, predict_moves
from sinkjax.instruments.sinks import measure_sinks
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Path
from sinkjax.models.decoder import Llama
from sinkjax.models.digest import tokens_digest
from sinkjax.models.sharding import row_shards
from sinkjax.studies.store import Store


def sink_scores(model: Llama, excerpts: np.ndarray, store: Store) -> np.ndarray:
    """The score `mean` of each head, its mean over excerpts: float64 [L, N]."""

    def measured() -> dict[str, np.ndarray]:
        scores = [
            np.asarray(measure_sinks(model, tokens).score("mean"))[:count]
            for tokens, count in batches(model, excerpts)
        ]
        return {"scores": np.concatenate(scores)}

    return store("sink scores", excerpts, measured)["scores"].mean(axis=0, dtype=np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class KeptCosts:
    """What heads cost on each of P paths, measured once.

    Attributes:
      model: every head `full`.
      excerpts: int32 [W, T], on which it is measured.
      paths: without `full`.
      fills: float32 [L, N, H], of `sink(mean)`; None where no path asks for them.
      store: of what is measured.
      scored: bool [W, T], positions that count; None for all but the first.
      cost: that is predicted, as `predict_moves` has it.
    """

    model: Llama
    excerpts: np.ndarray
    paths: Sequence[Path]
    fills: np.ndarray | None
    store: Store
    scored: np.ndarray | None = None
    cost: Literal["kl", "nll"] = "kl"

    def errors(self, mask: SinkMask | None = None) -> np.ndarray:
        """`own_errors` under a mask, float64 [P, L, N]."""
        of, under = (self.model, self.excerpts, self.paths), {"mask": mask, "fills": self.fills}
        measured = lambda: {"errors": own_errors(*of, **under, scored=self.scored)}  # noqa: E731
        return self.store("errors", self.excerpts, measured, **self._named, **under)["errors"]

    def sensitivity(self, samples: int, seed: int, mask: SinkMask | None = None) -> Prediction:
        """`predict_moves` under a mask."""
        of = self.model, self.excerpts, self.paths
        under = {"mask": mask, "fills": self.fills, "samples": samples, "seed": seed}

        def predicted() -> dict[str, np.ndarray]:
            moves = predict_moves(*of, **under, scored=self.scored, cost=self.cost)
            return {"linear": moves.linear, "products": moves.products}

        how = {"passes": 2 + 2 * samples, **self._named, **under}
        how |= {} if self.cost == "kl" else {"cost": self.cost}
        arrays = self.store("sensitivity", self.excerpts, predicted, **how)
        return Prediction(mask or SinkMask.full(self.model.config), **arrays)

    @property
    def _named(self) -> dict[str, Any]:
        scored = None if self.scored is None else tokens_digest(self.scored)
        return {"paths": list(map(str, self.paths)), "scored": scored}


class KeptJudge:
    """A `Judge` of which what each batch of excerpts gave is kept before the next one begins."""

    def __init__(self, model: Llama, excerpts: np.ndarray, fills: np.ndarray | None, store: Store):
        """Takes the model as it is; nothing runs before something is measured that is not kept.

        Args:
          excerpts: int32 [W, T].
          fills: float32 [L, N, H], for masks with `sink(mean)` heads.
        """
        rows = batch_rows(excerpts, shards=row_shards(model))
        chunks = [excerpts[start : start + rows] for start in range(0, len(excerpts), rows)]
        judge = functools.partial(Judge, model, fills=fills, rows=rows)
        self._judges = [(of, functools.cache(functools.partial(judge, of))) for of in chunks]
        self._fills, self._store = fills, store

    def __call__(self, mask: SinkMask) -> np.ndarray:
        """The KL at every scored position, float32 [W, P], as `Judge` gives it."""
        parts = self._kept("KL", mask, lambda judge: {"kl": judge(mask)})
        return np.concatenate([part["kl"] for part in parts])

    def stats(self, mask: SinkMask, generated: int) -> QualityStats:
        """`Judge.stats`, of which the last `generated` positions are set apart."""
        stats = lambda judge: judge.stats(mask, generated).arrays()  # noqa: E731
        parts = self._kept("quality", mask, stats, generated=generated)
        return QualityStats.join([QualityStats(**part) for part in parts])

    def _kept(
        self, what: str, mask: SinkMask, of: Callable[[Judge], dict[str, np.ndarray]], **how: Any
    ) -> list[dict[str, np.ndarray]]:
        how |= {"mask": mask, "fills": self._fills}
        return [
            self._store(what, chunk, lambda judge=judge: of(judge()), **how)
            for chunk, judge in self._judges
        ]


def kept_means(model: Llama, excerpts: np.ndarray, store: Store) -> np.ndarray:
    """`mean_outputs`, float32 [L, N, H], measured once."""
    return store("means", excerpts, lambda: {"fills": mean_outputs(model, excerpts)})["fills"]
