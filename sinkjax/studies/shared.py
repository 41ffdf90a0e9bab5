"""A run's results over several processes, of which the first reads and writes for all."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sinkjax.distributed import first, process_count
from sinkjax.studies.results import Results, read_arrays


def open_results(
    folder: str | os.PathLike[str], specification: Mapping[str, Any], beside: Iterable[Path] = ()
) -> Results:
    """Opens a run's folder in this process, or in the first of several for all of them."""
    kind = Results if process_count() == 1 else _SharedResults
    return kind(folder, specification, beside)


def take_arrays(results: Results, folder: str | os.PathLike[str]) -> None:
    """Copies what another run measured and these results do not hold: names say of what it is.

    What is damaged there is left there.
    """
    for path in first(lambda: sorted(Path(folder, "measured").glob("*.npz"))):
        if results.arrays(path.stem) is None:
            arrays = first(lambda name=path.stem: read_arrays(Path(folder), name))
            if arrays is not None:
                results.put_arrays(path.stem, **arrays)


def _told(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that the first process runs, and of which all have the result."""

    @functools.wraps(method)
    def call(self: Results, *arguments: Any, **named: Any) -> Any:
        return first(lambda: method(self, *arguments, **named))

    return call


class _SharedResults(Results):
    """Results in a folder that the first of several processes alone opens, for all of them."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        specification: Mapping[str, Any],
        beside: Iterable[Path],
    ):
        self.folder = Path(folder)
        self._resources = contextlib.ExitStack()
        first(lambda: Results.__init__(self, folder, specification, beside))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(first(lambda: list(Results.__iter__(self))))

    __contains__ = _told(Results.__contains__)
    __len__ = _told(Results.__len__)
    get = _told(Results.get)
    append = _told(Results.append)
    put_arrays = _told(Results.put_arrays)
    arrays = _told(Results.arrays)
    reserve = _told(Results.reserve)
