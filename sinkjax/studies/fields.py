"""Records as they are read: each part knows its place, so that one that is wrong can be named."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from sinkjax.errors import InputError, first_line
from sinkjax.report.records import grouped

UNLIKE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What is raised over JSON that says other things than what it is read for."""


class Fields(dict):
    """A JSON object of a run's file.

    Attributes:
      place: where it is, for messages: the file, the line, the fields that lead to it.
      last: the place of the field that was read last, of any object.
    """

    place = ""
    last: ClassVar[str] = ""

    def __getitem__(self, key: str) -> Any:
        if key not in self:
            place = self.place.removesuffix(":")
            raise InputError(f"{place}: the field {key} is missing. {_ADVICE}")
        Fields.last = _within(self.place, key)
        return super().__getitem__(key)


_ADVICE = (
    "The file was edited, or is another program's: delete what is wrong (of records.jsonl the "
    "line, and records.sha256 beside it), and give the study's command again, which makes it anew"
)


def placed(value: Any, place: str) -> Any:
    """A JSON value, of which every object is `Fields`.

    Raises:
      ValueError: where it is nested too deeply.
    """
    try:
        return _placed(value, place)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _placed(value: Any, place: str) -> Any:
    if isinstance(value, dict):
        fields = Fields((key, _placed(item, _within(place, key))) for key, item in value.items())
        fields.place = place
        return fields
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return [_placed(item, f"{place}[{index}]") for index, item in enumerate(value)]
    return value


def _within(place: str, key: str) -> str:
    """The place of a field of what is at a place."""
    return f"{place} {key}" if place.endswith(":") else f"{place}.{key}"


@contextlib.contextmanager
def understood(records: Sequence[Fields]) -> Iterator[None]:
    """Makes a problem of what is raised inside over records that have not the fields of others.

    Raises:
      InputError: naming the fields in which a record differs from most of its kind.
    """
    try:
        yield
    except InputError:
        raise
    except UNLIKE as error:
        by_kind = grouped(records, lambda record: str(record.get("kind")))
        odd = list(itertools.chain.from_iterable(map(_odd, by_kind.values())))
        rarest = min((usual for usual, _ in odd), default=1)
        places = [text for _, text in odd if text.startswith(Fields.last)] or [
            *(() if rarest == 0 else [f"{Fields.last} was read last"]),
            *(text for usual, text in odd if usual == rarest),
        ]
        raise InputError(
            f"a record, or run.json, has not what is read from it ({type(error).__name__}: "
            f"{first_line(error)}). {_ADVICE}",
            *places,
        ) from error


def _odd(records: Sequence[Fields]) -> Iterator[tuple[int, str]]:
    """What a record has and most of its kind have not, and how usual that is: 0 for never."""
    shapes = [dict(_shape(record)) for record in records]
    for name in dict.fromkeys(itertools.chain.from_iterable(shapes)):
        counts = Counter(shape.get(name, "missing") for shape in shapes)
        (most, _), *_ = counts.most_common()
        for record, shape in zip(records, shapes, strict=True):
            if (here := shape.get(name, "missing")) != most:
                kinds = {here.split(" of ")[0], most.split(" of ")[0]}
                usual = len(kinds) == 1 or kinds & {"missing", "null"}  # an undefined value is null
                yield (
                    counts[here] if usual else 0,
                    f"{record.place} {name}: {here}, elsewhere {most}",
                )


def _shape(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """What kind of value each field of a record is, by its name."""
    if isinstance(value, Mapping):
        yield name, "an object"
        for key, item in value.items():
            yield from _shape(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        yield name, f"a list of {len(value)}"
        for index, item in enumerate(value):
            yield from _shape(item, f"{name}[{index}]")
    else:
        kinds = {type(None): "null", bool: "true or false", str: "text"}
        yield name, kinds.get(type(value), "a number")
