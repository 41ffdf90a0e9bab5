"""What has been measured, kept under names that say what it was."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from sinkjax.distributed import first
from sinkjax.masks.mask import SinkMask
from sinkjax.models.digest import tokens_digest
from sinkjax.studies.results import Results, identity


class Store:
    """Measures once what is asked for again, in this process or in an earlier one."""

    def __init__(self, kept: Results, model_digest: str, on_progress: Callable[[str, int], None]):
        """Keeps what is measured of one model.

        Args:
          on_progress: called with what was measured, or found, and the tokens that it took.
        """
        self._kept, self._model_digest, self._on_progress = kept, model_digest, on_progress
        self.reported = 0

    def report(self, what: str, tokens: int) -> None:
        """Says that this many tokens are done; for what is measuring, as it goes."""
        self.reported += tokens
        self._on_progress(what, tokens)

    def __call__(
        self,
        what: str,
        excerpts: np.ndarray | None,
        measure: Callable[[], dict[str, np.ndarray]],
        *,
        mask: SinkMask | None = None,
        fills: np.ndarray | None = None,
        passes: int = 1,
        **how: Any,
    ) -> dict[str, np.ndarray]:
        """The arrays that `measure` gives for all that is named here.

        Args:
          excerpts: int32 [W, T], on which; None for what needs no text.
          mask, fills: under which.
          passes: how often the tokens go through the model, for progress.
          how: settings, of JSON values.
        """
        name = identity(
            {
                "what": what,
                "model_digest": self._model_digest,
                "tokens_sha256": None if excerpts is None else tokens_digest(excerpts),
                "mask_digest": None if mask is None else mask.digest,
                "fills_sha256": fills_digest(fills),
                **how,
            }
        )
        arrays, before = self._kept.arrays(name), self.reported
        if arrays is None:
            measured = measure()
            arrays = first(lambda: measured)  # so that all decide by the same numbers, to the bit
            self._kept.put_arrays(name, **arrays)
        tokens = 0 if excerpts is None else excerpts.size * passes
        self.report(what, max(0, tokens - (self.reported - before)))
        return arrays


def fills_digest(fills: np.ndarray | None) -> str | None:
    """SHA-256 of fills as float32; None where there are none."""
    if fills is None:
        return None
    return hashlib.sha256(np.ascontiguousarray(fills, np.float32).tobytes()).hexdigest()
