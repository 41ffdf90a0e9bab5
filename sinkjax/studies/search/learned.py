"""Gates that `sinkjax gates` has learned, as a search takes them from its folder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.errors import InputError, Problem
from sinkjax.masks.paths import Path, parse_path
from sinkjax.studies.fields import understood
from sinkjax.studies.results import read_study


@dataclasses.dataclass(frozen=True, eq=False)
class LearnedGates:
    """Learned gates, which rank heads for one path.

    Attributes:
      values: float [L, N], or [L, K] of key/value groups; the lowest leave `full` first.
      path: that they were learned for.
      model_digest: of the model that they were learned on.
      text_sha256: of the text that they were trained on.
      origin: what training they are from, of JSON values.
    """

    values: np.ndarray
    path: Path
    model_digest: str
    text_sha256: str
    origin: Mapping[str, Any]


def read_gates(folder: str) -> LearnedGates:
    """What a training has learned.

    Raises:
      InputError: the folder holds no records of one that has ended.
    """
    records = read_study("gates", folder, "gates")
    with understood(records):
        for record in records:
            if record["kind"] == "training" and "gates" in record["result"]:
                names = ("id", "chosen_on", "length", "path", "units", "price", "train", "asked")
                return LearnedGates(
                    np.array(record["result"]["gates"], float),
                    parse_path(record["path"]),
                    record["model"]["model_digest"],
                    record["chosen_on"]["sha256"],
                    {name: record[name] for name in names if name in record},
                )
    raise InputError(Problem("gates", folder, "the training has not ended; let it, first"))
