"""A table of text, which a terminal, a page and a file show alike."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sinkjax.report.formats import Footnotes

Text = Callable[[Any, Footnotes], str]
"""Makes a cell's text of what its row is of; may mark footnotes."""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
      columns: their headings, with line breaks where they may be broken.
      notes: what the numbers mean, and the reasons of what is undefined.
      labels: how many columns, from the left, say what a row is of; the others hold values.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    labels: int = 1


def tabulate(
    title: str,
    items: Iterable[Any],
    columns: Sequence[tuple[str, Text]],
    notes: Sequence[str] = (),
    labels: int = 1,
) -> Table:
    """A table with a row an item.

    Args:
      columns: headings, each with what makes the column's texts; see `column`.
      title, notes, labels: as for `Table`; footnotes come after the notes.
    """
    marks = Footnotes()
    rows = tuple(tuple(text(item, marks) for _, text in columns) for item in items)
    headings = tuple(heading for heading, _ in columns)
    return Table(title, headings, rows, (*notes, *marks.lines()), labels)


def column(
    heading: str,
    place: str,
    show: Callable[[Any], str],
    form: Callable[[Mapping[str, Any], Callable[[Any], str], Footnotes], str] | None = None,
) -> tuple[str, Text]:
    """A column of what records hold.

    Args:
      place: where the value is in an item, as `result.kl.mean`.
      show: writes one value.
      form: `formats.estimate`, `formats.point` or `formats.spread` of an estimate; None for a plain
        value.
    """

    def text(item: Any, marks: Footnotes) -> str:
        for key in place.split("."):
            item = item[key]
        return show(item) if form is None else form(item, show, marks)

    return heading, text
