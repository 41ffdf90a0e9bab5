"""What every page and table takes from records."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Record = Mapping[str, Any]


def environments(records: Sequence[Record]) -> tuple[Mapping[str, Any], ...]:
    """The different ones in which records were made."""
    found = {str(sorted(r["environment"].items())): r["environment"] for r in records}
    return tuple(found[key] for key in sorted(found))


def numbers(estimates: Iterable[Mapping[str, Any]], side: str = "value") -> np.ndarray:
    """The `value`, `low` or `high` of estimates as records hold them, NaN where there is none."""
    sides = (estimate.get(side) for estimate in estimates)
    return np.array([math.nan if value is None else value for value in sides])
