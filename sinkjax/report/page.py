"""A report's page as data: sections of blocks, which one template renders for every study."""

import base64
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jinja2

from sinkjax.report.table import Table


@dataclass(frozen=True)
class Picture:
    """A figure as the report holds it.

    Attributes:
      name: of its file, without the suffix.
      png: the file.
      size: its pixels, width and height.
      alt: what it shows, for who cannot see it.
      caption: how to read it.
    """

    name: str
    png: bytes
    size: tuple[int, int]
    alt: str
    caption: str


@dataclass(frozen=True)
class Prose:
    """Explanations between pictures and tables.

    Attributes:
      html: of whole paragraphs or lists, from `explanations`; plain text is escaped.
    """

    html: str


@dataclass(frozen=True)
class Folded:
    """What the reader opens when wanted.

    Attributes:
      summary: what is inside.
      blocks: what is shown then.
    """

    summary: str
    blocks: Sequence["Block"]


Block = Picture | Table | Prose | Folded


@dataclass(frozen=True)
class Card:
    """What to read first of a part of the page.

    Attributes:
      sentences: what was found.
      note: what the sentences rest on; may be empty.
    """

    title: str
    sentences: Sequence[str]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page, which the table of contents names.

    Attributes:
      blocks: in the order in which to read them.
      sections: parts of it, after the blocks.
    """

    title: str
    blocks: Sequence[Block] = ()
    sections: Sequence["Section"] = ()


@dataclass(frozen=True)
class Page:
    """A study's report.

    Attributes:
      study: its name, as a user gives it.
      title, lede: the heading, and what the study asks.
      openings: what it found, in short.
      sections: everything else.
    """

    study: str
    title: str
    lede: str
    openings: Sequence[Card]
    sections: Sequence[Section]


def render_page(page: Page) -> tuple[str, list[Picture]]:
    """The page's HTML, which needs no other file, and its pictures, each of a name of its own."""
    pictures: dict[str, Picture] = {}

    def named(picture: Picture) -> Picture:
        others = (f"{picture.name}-{number}" for number in itertools.count(2))
        names = itertools.chain([picture.name], others)
        name = next(name for name in names if name not in pictures)
        pictures[name] = replace(picture, name=name)
        return pictures[name]

    template = _environment("sinkjax.report").get_template("page.html.jinja")
    return template.render(page=page, named=named), list(pictures.values())


def explanations(package: str) -> Any:
    """The macros of a package's explanations.html.jinja: of values, which are escaped, HTML."""
    return _environment(package).get_template("explanations.html.jinja").module


@functools.cache
def _environment(package: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    return environment
