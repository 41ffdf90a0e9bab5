"""What the pages of all reports are made of: blocks, pictures of one name each, and a template."""

import base64
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jinja2

from sinkjax.report.canvas import Picture
from sinkjax.report.table import Table


@dataclass(frozen=True)
class Folded:
    """What the reader opens when wanted.

    Attributes:
      summary: what is inside.
      blocks: pictures, tables and more of these.
    """

    summary: str
    blocks: Sequence["Block"]


Block = Picture | Table | Folded


class Names:
    """Gives every picture a name of its own, and keeps them."""

    def __init__(self) -> None:
        self.pictures: list[Picture] = []
        self._taken: set[str] = set()

    def __call__(self, picture: Picture) -> Picture:
        candidates = (f"{picture.name}-{n}" for n in itertools.count(2))
        name = next(n for n in itertools.chain([picture.name], candidates) if n not in self._taken)
        self._taken.add(name)
        self.pictures.append(replace(picture, name=name))
        return self.pictures[-1]


def render_page(template: str, **values: Any) -> str:
    """The HTML of a template of this folder."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sinkjax.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    return environment.get_template(template).render(values)
