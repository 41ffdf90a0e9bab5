"""A table of text, which a terminal, a page and a file show alike."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
      title: what it is of.
      columns: their headings, with line breaks where they may be broken.
      rows: as many texts each.
      notes: what the numbers mean, and the reasons of what is undefined.
      labels: how many columns, from the left, say what a row is of; the others hold values.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    labels: int = 1
