"""What every page and table takes from records."""

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from sinkjax.report import formats

Record = Mapping[str, Any]
Item = TypeVar("Item")


def environments(records: Sequence[Record]) -> tuple[Mapping[str, Any], ...]:
    """The different environments in which records were made."""
    by_content = {str(sorted(r["environment"].items())): r["environment"] for r in records}
    return tuple(by_content[key] for key in sorted(by_content))


def told_apart(what: Mapping[str, Any], digest: str, among: Sequence[Mapping[str, Any]]) -> str:
    """The name of a model or a text, with its digest where another has the same name.

    Args:
      what: as records describe it.
      digest: the key of its digest.
      among: descriptions of all that it could be taken for.
    """
    same = {other[digest] for other in among if other["name"] == what["name"]} | {what[digest]}
    return what["name"] if len(same) == 1 else f"{what['name']} ({what[digest][:8]})"


def title(record: Record, text: str = "source") -> str:
    """The model, the BOS policy and the text of a record."""
    bos = formats.bos(record["bos"], record["bos_added"])
    names = (formats.shortened(record[what]["name"]) for what in ("model", text))
    return f"{next(names)}, {bos}; {next(names)}"


def numbers(estimates: Iterable[Mapping[str, Any]], side: str = "value") -> np.ndarray:
    """The `value`, `low` or `high` of estimates as records hold them, NaN where there is none."""
    sides = (estimate.get(side) for estimate in estimates)
    return np.array([math.nan if value is None else value for value in sides])


def grouped(items: Iterable[Item], key: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    """Items by what a function says of them, in the order of the first of each group."""
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def by_length(records: Iterable[Record]) -> dict[int, list[Record]]:
    """Records by their length, the shortest first."""
    return dict(sorted(grouped(records, operator.itemgetter("length")).items()))


def portions(items: Sequence[Item], key: Callable[[Item], Any], most: int) -> list[list[Item]]:
    """Items in order, in portions of at most so many groups."""
    groups = list(grouped(items, key))
    return [
        [item for item in items if key(item) in groups[start : start + most]]
        for start in range(0, len(groups), most)
    ]
