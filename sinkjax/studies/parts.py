"""Parts of a study: shares of its cells for jobs that run side by side, and what they made.

A part has a folder of its own within the study's, `part-2-of-4`, with its own lock and records;
what the other parts have measured by then it takes from theirs. The study without a part takes over
what its parts made, in the order of one run, and makes what belongs to none of them.
"""

import dataclasses
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sinkjax.errors import InputError, Problem
from sinkjax.files import replace_file
from sinkjax.studies.results import as_json, differences, read_records

_FINISHED = "finished"  # a file that a part has once all its records are there


@dataclasses.dataclass(frozen=True)
class Part:
    """One of a number of parts.

    Attributes:
      number: from 1.
      of: how many there are.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """The part that a text such as `2/4` names, of 9,999 at most.

        Raises:
          InputError: where it names none.
        """
        match = re.fullmatch(r"([1-9]\d{0,3})/([1-9]\d{0,3})", text)
        if match is None or int(match[1]) > int(match[2]):
            advice = "give the part's number, from 1, and how many there are, such as 2/4"
            raise InputError(Problem("part", text, advice))
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def within(self, folder: Path) -> Path:
        """Its folder in that of the study."""
        return folder / f"part-{self.number}-of-{self.of}"

    def all(self) -> list["Part"]:
        """All parts, of which it is one."""
        return [Part(number, self.of) for number in range(1, self.of + 1)]

    def share(self) -> Callable[[Hashable], bool]:
        """Whether it makes a cell, asked of all cells in their order.

        Called with what they are made of: cells that are made of the same count as one, of which it
        makes every n-th; those made of nothing of their own are left to the study without a part.
        """
        places: dict[Hashable, int] = {}

        def makes(made_of: Hashable) -> bool:
            if made_of is None:
                return False
            return places.setdefault(made_of, len(places)) % self.of == self.number - 1

        return makes

    def finish(self, folder: Path) -> None:
        """Says in its folder that all its records are there."""
        replace_file(self.within(folder) / _FINISHED, b"")


def finished_parts(folder: Path) -> list[Part]:
    """The parts whose folders are in that of a study, and those that belong to them.

    Raises:
      InputError: naming all that are not there, or not finished.
    """
    pattern = r"part-(\d{1,4})-of-(\d{1,4})"
    named = (re.fullmatch(pattern, path.name) for path in folder.glob("part-*"))
    counts = {int(match[2]) for match in named if match is not None}
    parts = [part for of in sorted(counts) for part in Part(1, of).all()]
    wrong = [part for part in parts if not (part.within(folder) / _FINISHED).exists()]
    if wrong:
        raise InputError(*(Problem("part", part, _unfinished(part, folder)) for part in wrong))
    return parts


def _unfinished(part: Part, folder: Path) -> str:
    is_there = part.within(folder).exists()
    return (
        f"{'it has not finished' if is_there else 'it was not run'}, and its records are needed. "
        f"Run it with the same settings, then the study without a part again; or delete the "
        f"folders part-*-of-{part.of} in {folder}, to measure all here"
    )


def check_parts(folder: Path, parts: list[Part], specification: Mapping[str, Any]) -> None:
    """Refuses to go on beside parts of another run.

    Args:
      parts: of which some may have no folder.

    Raises:
      InputError: with what differs, by part; and as `read_records`.
    """
    problems = []
    wanted = as_json(specification)
    for part in parts:
        if (part.within(folder) / "run.json").exists():
            kept, _ = read_records(part.within(folder))
            if different := list(differences(kept, wanted)):
                advice = (
                    "it holds the results of another run. Give its settings, another folder, or "
                    f"delete {part.within(folder)} if its results are not needed"
                )
                problems += [Problem("part", part, advice), *different]
    if problems:
        raise InputError(*problems)


def records_of(folder: Path, parts: list[Part]) -> dict[str, dict[str, Any]]:
    """The records of parts, by id."""
    return {
        record["id"]: record for part in parts for record in read_records(part.within(folder))[1]
    }


def beside(folder: Path, part: Part) -> Iterator[Path]:
    """Where a part finds what need not be measured again: the folders of all the others."""
    yield folder
    yield from (other.within(folder) for other in part.all() if other != part)
