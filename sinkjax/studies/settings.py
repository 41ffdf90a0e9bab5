"""The settings of a study: fields that say their default and their help, once."""

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from sinkjax.errors import InputError, Problem

Part = TypeVar("Part")

MOST = 10_000_000
"""The largest count of anything that a study does."""

MOST_DRAWN = 10_000
"""The largest count of what is drawn before anything is measured: questions, random controls."""

MOST_SEED = sys.maxsize  # what jax.random takes


def seed_of_draw(seed: int, draw: int) -> int:
    """The seed of one of the draws of a control, from 0: no draw of another seed has it."""
    return seed * MOST_DRAWN + draw


def setting(
    default: Any,
    help: str,
    *,
    parse: Callable[[str], Any] | None = None,
    repeated: bool = False,
) -> Any:
    """Returns a dataclass field for one setting, of which a script makes a flag.

    Args:
      parse: reads its value from a flag's text, where its type alone does not say how; raises
        ValueError or InputError.
      repeated: whether the flag is given once for each value of a tuple of texts, which may then
        hold commas.
    """
    metadata = {"help": help, "parse": parse, "repeated": repeated}
    return dataclasses.field(default=default, metadata=metadata)


def part(settings: Any, kind: type[Part]) -> Part:
    """A dataclass made of the settings that have the names of its fields."""
    return kind(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(kind)})


def values(settings: Any, *names: str) -> dict[str, Any]:
    """Settings as JSON values, by name."""
    named = {name: getattr(settings, name) for name in names}
    return {n: list(value) if isinstance(value, tuple) else value for n, value in named.items()}


def at_least(settings: Any, *, most: int = MOST, **least: int) -> Iterator[Problem]:
    """The settings that are below a number, by name; None is none.

    Args:
      most: the largest number that any of them may be.

    Raises:
      InputError: for one above `most`: nothing else is looked at, which could count up to it.
    """
    for name, minimum in least.items():
        value = getattr(settings, name)
        if value is None:
            continue
        if value > most:
            raise InputError(Problem(name, value, f"give at most {most:,}"))
        if value < minimum:
            yield Problem(name, value, f"give {minimum} or more")


def some(settings: Any, **example: object) -> Iterator[Problem]:
    """The settings that hold nothing, by name; each with what to give."""
    for name, value in example.items():
        if not getattr(settings, name):
            yield Problem(name, None, f"give at least one, such as {value}")


def each_at_least(settings: Any, **least: int) -> Iterator[Problem]:
    """The members of settings, by name, that are below a number, or above `MOST`."""
    for name, minimum in least.items():
        for value in getattr(settings, name):
            if not minimum <= value <= MOST:
                yield Problem(name, value, f"give {minimum} or more, and at most {MOST:,}")


def above_zero(settings: Any, **needed: str) -> Iterator[Problem]:
    """The settings that are no finite number above 0, by name; each with what it has to be."""
    for name, what in needed.items():
        value = getattr(settings, name)
        if not 0 < value < math.inf:
            yield Problem(name, value, f"give {what}, above 0 and finite")


def twice(settings: Any, *names: str) -> Iterator[Problem]:
    """The settings, by name, in which a value is there twice."""
    for name in names:
        value = getattr(settings, name)
        if len(set(value)) < len(value):
            yield Problem(name, value, "a value is there twice; give each once")


def shares(
    field: str, values: Sequence[float], *, of: str = "all heads", whole: bool = False
) -> Iterator[Problem]:
    """Shares that are none, or missing.

    Args:
      of: what they are shares of.
      whole: whether 1 is a share that can be asked for.
    """
    for share in values:
        if not (0 < share < 1 or (whole and share == 1)):
            most = "at most" if whole else "below"
            yield Problem(field, share, f"give shares of {of}, above 0 and {most} 1")
    if not values:
        yield Problem(field, None, "give at least one, such as 0.5")


def known(field: str, values: Sequence[str], allowed: Sequence[str]) -> Iterator[Problem]:
    """Names that are not among those allowed."""
    for value in values:
        if value not in allowed:
            yield Problem(field, value, f"use one of {', '.join(allowed)}")
