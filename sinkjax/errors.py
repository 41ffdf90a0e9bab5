"""The one exception for what a user gave and the library cannot use, and what it quotes."""

import contextlib
import dataclasses
import operator
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_FOUND = 1_000
"""How many problems are enough to look for no more."""

_MOST_SHOWN = 20
_LONGEST = 2_000  # letters of a line
# Of names of files and tensors: what a terminal obeys, what no encoding has, what ends a line, and
# what turns the direction of the text after it.
_UNPRINTABLE = re.compile(
    "[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong with what a user gave; its text is `field=value: text`.

    It can be shown as it is: what is not `printable` in it is escaped.

    Attributes:
      field: the argument's or setting's name, which a script shows as its flag; None for what is
        wrong with a file, or with several fields.
      value: what it was given, kept as the text that shows it; None where that is missing, or
        would say nothing.
      text: one line: what is wrong, what is allowed, what to do next.
    """

    field: str | None
    value: object
    text: str

    def __post_init__(self) -> None:
        if self.field is not None:  # what a user wrote, of a setting that there is not
            object.__setattr__(self, "field", printable(self.field))
        if self.value is not None:  # as it is shown, so that problems hash, whatever was given
            object.__setattr__(self, "value", printable(_shown(self.value)))
        object.__setattr__(self, "text", printable(self.text))

    def __str__(self) -> str:
        if self.field is None:
            return self.text
        return f"{self.field}{'' if self.value is None else f'={self.value}'}: {self.text}"


class InputError(ValueError):
    """Input that cannot be used, with every problem found in it, of which its text has the first.

    Args:
      problems: one each; plain text for those of no field.

    Attributes:
      problems: a tuple of `Problem`.
    """

    def __init__(self, *problems: Problem | str):
        self.problems = tuple(
            problem if isinstance(problem, Problem) else Problem(None, None, problem)
            for problem in problems
        )
        super().__init__("\n".join(self.lines()))

    def __reduce__(self) -> tuple[type["InputError"], tuple[Problem, ...]]:
        return type(self), self.problems  # as it goes from a process to another

    def lines(self, show: Callable[[Problem], str] = str) -> list[str]:
        """The problems in a line each; of very many the first, and how many more there are."""
        lines = [clipped(show(problem)) for problem in self.problems[:_MOST_SHOWN]]
        more = len(self.problems) - len(lines)
        return [*lines, f"and {more:,} more"] if more else lines


def clipped(line: str) -> str:
    """A line of a length that can be read: of a very long one its begin and its end."""
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]} ... {line[-half:]}"


def check_kind(field: str, value: object, kind: Any, needed: str) -> None:
    """Raises InputError where an argument is of another kind than it has to be."""
    if not isinstance(value, kind):
        text = f"{needed} is needed, not {type(value).__name__}"
        raise InputError(Problem(field, None, text))


def check_path_name(field: str, value: str | os.PathLike[str], what: str) -> pathlib.Path:
    """Returns the path of a name; InputError for what is no name, or an empty one."""
    check_kind(field, value, str | os.PathLike, f"{what}'s name")
    if value == "":  # which would be the folder at hand
        raise InputError(Problem(field, "", f"{what}'s name is needed"))
    return pathlib.Path(value)


def check_whole(field: str, value: Any, least: int, most: int | None = None) -> int:
    """Returns a whole number of any type as Python's; InputError for what is none in the range."""
    count = whole(value)
    if count is None or count < least or (most is not None and count > most):
        text = f"whole numbers from {least} {'on' if most is None else f'to {most:,}'} are allowed"
        raise InputError(Problem(field, value, text))
    return count


def check_items(field: str, values: Any, text: str, least: int = 0) -> tuple[Any, ...]:
    """Returns a tuple of what there is to go over; InputError for what is none, or too few."""
    try:
        items = tuple(values)
    except TypeError:
        raise InputError(Problem(field, values, text)) from None
    if len(items) < least:
        raise InputError(Problem(field, values, text))
    return items


def check_array(field: str, value: Any, kept: type | tuple[()] = ()) -> Any:
    """Returns the array that a value makes, or one of a kind to be kept; InputError for none."""
    try:
        return value if isinstance(value, kept) else np.asarray(value)
    except (TypeError, ValueError) as error:
        advice = "give rows of one length"
        if isinstance(error, TypeError):  # traced
            advice = "give its values, outside of jax.jit"
        text = f"it makes no array: {first_line(error)}; {advice}"
        raise InputError(Problem(field, None, text)) from error


def is_one_of(value: Any, allowed: Collection[str]) -> bool:
    """Returns whether a value is one of these texts; arrays, whose == has no truth, are not."""
    return isinstance(value, str) and value in allowed


def whole(value: Any) -> int | None:
    """Returns a whole number of any type; None for what is none, as True and 2.0 are."""
    try:
        return None if _is_truth(value) else operator.index(value)
    except TypeError:
        return None


def number(value: Any) -> float:
    """Returns a number of any type; NaN for what is none, as True and "1" are."""
    try:
        return np.nan if _is_truth(value) or isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        return np.nan


@contextlib.contextmanager
def about(field: str, value: object = None) -> Iterator[None]:
    """Says of every problem raised inside that it is one with this field."""
    try:
        yield
    except InputError as error:
        raise InputError(
            *(Problem(field, value, str(problem)) for problem in error.problems)
        ) from error


@contextlib.contextmanager
def naming(what: object) -> Iterator[None]:
    """Begins every problem raised inside with what it is one of, such as a file."""
    try:
        yield
    except InputError as error:
        raise InputError(*(f"{what}: {problem}" for problem in error.problems)) from error


@contextlib.contextmanager
def explaining(what: str, advice: str) -> Iterator[None]:
    """Makes a problem of what the system refuses inside: what failed, why, and what to do."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{what} ({error.strerror or error}); {advice}") from error


def each(items: Iterable[Item], function: Callable[[Item], Result]) -> list[Result]:
    """`function` of every item.

    Raises:
      InputError: with the problems of all the items together; of very many, the first.
    """
    results: list[Result] = []
    problems: list[Problem] = []
    for item in items:
        try:
            results.append(function(item))
        except InputError as error:
            problems += error.problems
            if len(problems) > MOST_FOUND:
                break
    if problems:
        raise InputError(*problems)
    return results


def problems_of(check: Callable[[], object]) -> tuple[Problem, ...]:
    """The problems that a call raises; none where it passes."""
    try:
        check()
    except InputError as error:
        return error.problems
    return ()


def printable(text: str) -> str:
    """A text in one line that a terminal shows as it is: what it would not is as in `\\x1b`."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def first_line(error: BaseException) -> str:
    """The first line of what another package's error says; empty if it says nothing."""
    return (str(error).splitlines() or [""])[0]


def _is_truth(value: Any) -> bool:
    """Whether a value is true or false, also as an array."""
    return isinstance(value, bool) or getattr(value, "dtype", None) == np.bool_


def _shown(value: object) -> str:
    """A value as a user writes it: lists with commas."""
    if isinstance(value, list | tuple):
        return ",".join(map(_shown, value))
    if isinstance(value, float) and float(short := f"{value:g}") == value:
        return short
    return str(value)
