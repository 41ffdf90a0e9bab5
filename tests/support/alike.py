"""Holds the records of one run to those of another, made elsewhere."""

from collections.abc import Sequence
from typing import Any

import pytest

_OF_PLACE = ("id", "environment")


def assert_same_results(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> None:
    """The same cells in the same order with the same results, by whatever name the model went."""
    assert len(ours) == len(theirs)
    for number, pair in enumerate(zip(ours, theirs, strict=True)):
        first, second = ({k: v for k, v in r.items() if k not in _OF_PLACE} for r in pair)
        models = [{**record.pop("model"), "name": None} for record in (first, second)]
        assert_alike(*models, f"record {number}.model")
        assert_alike(first, second, f"record {number}")


def assert_alike(ours: Any, theirs: Any, place: str = "", scale: float = 1.0) -> None:
    """The same; numbers within 1e-6, and of a change, of the size of what it is a change of."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), place
        if {"baseline", "candidate", "change"} <= ours.keys():
            scale = max(scale, abs(theirs["baseline"]["value"]))
        for key in ours:
            assert_alike(ours[key], theirs[key], f"{place}.{key}", scale)
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), place
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_alike(*pair, f"{place}[{index}]", scale)
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6 * scale), place
    else:
        assert ours == theirs, place
