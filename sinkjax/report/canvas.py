"""What all figures share: paper, colours, axes of tokens, heat maps, and PNG bytes.

Figures are laid out in inches from the top left and drawn through matplotlib's objects alone, so
that no global state (pyplot's figures, rcParams) is read or changed. Colours are those of Okabe and
Ito, "Color Universal Design" (2008), and ColorBrewer's maps that the colour-blind can read.
"""

import functools
import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)
from PIL import Image

from sinkjax.report import formats
from sinkjax.report.page import Picture

DPI = 150
WIDTH = 10.0  # inches of every figure
LEFT, RIGHT = 0.75, 0.2  # margins, the left one holding the layers or the y labels

BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
INK, SOFT, FAINT, GRID = "#1b1b1b", "#555555", "#9a9a9a", "#e4e4e4"
COLOURS = (BLUE, VERMILLION, GREEN, "#AA4499", "#B8860B", "#3B9FD6", INK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

TITLE, TEXT, SMALL = 12.5, 9.5, 8.5  # points

DASHES = (0, (4, 2))

# Colours to six bits a channel: within 2 of 255, and a sixth fewer bytes.
_SIX_BITS = [round(round(value * 63 / 255) * 255 / 63) for value in range(256)]
_STEPS = (1, 2, 4, 5, 8, 10, 16, 20, 32, 40, 50, 64, 100)
_FONT = "DejaVu Sans"  # comes with matplotlib
_PLAIN = {"family": _FONT, "parse_math": False}
_BOLD_CHARACTER = 0.093  # inches that one takes in a panel's title
_TITLE_LINE, _TEXT_LINE = 0.24, 0.19  # inches


class Scale(NamedTuple):
    """What the colours of a heat map mean.

    Attributes:
      colours: a colour map.
      norm: places values, those beyond its ends at the ends.
      ticks: names of values, for a colour bar.
    """

    colours: Colormap
    norm: Normalize
    ticks: Mapping[float, str] = {}


class Sheet:
    """A figure with its headline, laid out from the top."""

    def __init__(self, title: str, subtitle: str, body: float, key: float = 0.0):
        """Makes a figure as high as its parts need.

        Args:
          title: what the figure says.
          subtitle: what it is of.
          body: inches below the headline.
          key: inches between the two, for a legend or a colour bar.
        """
        title_lines = _wrapped(title, TITLE * 0.62)
        text_lines = _wrapped(subtitle, TEXT * 0.56)
        key_top = 0.18 + _TITLE_LINE * len(title_lines) + _TEXT_LINE * len(text_lines)
        self.title = title
        self.key_top = key_top + 0.06
        self.top = key_top + 0.1 + key
        self.height = self.top + body
        self.figure = Figure(figsize=(WIDTH, self.height), dpi=DPI, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)
        self.write(0.12, 0.12, "\n".join(title_lines), size=TITLE, weight="bold")
        below = 0.14 + _TITLE_LINE * len(title_lines)
        self.write(0.12, below, "\n".join(text_lines), size=TEXT, color=SOFT)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes at a place in inches, whole pixels, plainly styled."""
        left, top, width, height = (
            round(inches * DPI) / DPI for inches in (left, top, width, height)
        )
        box = (left / WIDTH, 1 - (top + height) / self.height, width / WIDTH, height / self.height)
        axes = self.figure.add_axes(box)
        axes.tick_params(labelsize=SMALL, length=3, width=0.7, color=FAINT, labelcolor=INK, pad=2)
        for name, spine in axes.spines.items():
            spine.set_visible(name in ("left", "bottom"))
            spine.set(color=FAINT, linewidth=0.7)
        return axes

    def write(self, left: float, top: float, text: str, **style) -> None:
        """Text whose top left corner is at a place in inches."""
        style = {**_PLAIN, "size": TEXT, "color": INK, "va": "top", **style}
        self.figure.text(left / WIDTH, 1 - top / self.height, drawable(text), **style)

    def legend(self, handles: Iterable[Line2D | Patch], columns: int | None = None) -> None:
        """Keys under the headline, in one row or in as many as these columns need."""
        handles = list(handles)
        self.figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(0.06 / WIDTH, 1 - (self.key_top - 0.05) / self.height),
            ncols=columns or len(handles),
            fontsize=TEXT,
            frameon=False,
            handlelength=2.2,
            columnspacing=1.6,
            borderaxespad=0,
        )

    def colour_bar(self, label: str, scale: Scale) -> None:
        """A colour bar under the headline, its label to the right of it."""
        axes = self.axes(0.3, self.key_top + 0.03, 2.6, 0.13)
        mappable = ScalarMappable(norm=scale.norm, cmap=scale.colours)
        bar = self.figure.colorbar(mappable, cax=axes, orientation="horizontal")
        bar.outline.set(linewidth=0.5, edgecolor=FAINT)
        bar.set_ticks(list(scale.ticks), labels=list(scale.ticks.values()))
        bar.ax.xaxis.set_minor_locator(NullLocator())
        self.write(3.15, self.key_top + 0.01, label, color=SOFT)

    def picture(self, name: str, alt: str, caption: str) -> Picture:
        """The figure as PNG; without any metadata, so that the same figure is the same bytes."""
        self.canvas.draw()
        pixels = Image.fromarray(np.asarray(self.canvas.buffer_rgba())).convert("RGB")
        pixels = pixels.point(_SIX_BITS * 3)
        content = io.BytesIO()
        pixels.save(content, "PNG")
        return Picture(name, content.getvalue(), pixels.size, alt, caption)


def key(label: str, **style) -> Line2D:
    """A line or a marker in a legend."""
    return Line2D([], [], label=label, **style)


def panel_title(axes: Axes, text: str, inches: float, detail: str = "") -> None:
    """What a panel is of, above it and no wider; the detail in a lighter second line."""
    style = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom", **_PLAIN}
    text = drawable(formats.shortened(text, max(8, int(inches / _BOLD_CHARACTER))))
    height = 17 if detail else 5
    axes.annotate(text, (0, 1), (0, height), size=TEXT, weight="bold", color=INK, **style)
    if detail:
        axes.annotate(drawable(detail), (0, 1), (0, 5), size=SMALL, color=SOFT, **style)


def label(axes: Axes, x: str = "", y: str = "") -> None:
    """Names the axes, with units."""
    axes.set_xlabel(x, fontsize=TEXT, color=INK, labelpad=3)
    axes.set_ylabel(y, fontsize=TEXT, color=INK, labelpad=4)


def token_axis(axes: Axes, lengths: Sequence[int], inches: float) -> None:
    """A logarithmic axis of tokens with a tick at every length, named where there is room."""
    low, high = min(lengths), max(lengths)
    axes.set_xscale("log", base=2)
    axes.set_xlim(low / 1.25, high * 1.25)
    span = math.log2(high * 1.25) - math.log2(low / 1.25)
    named: list[int] = []
    for length in sorted(lengths):
        # The last one is always named; others need room on both sides.
        room = [abs(math.log2(length / other)) / span * inches for other in (*named[-1:], high)]
        if length == high or min(room) > 0.34:
            named.append(length)
    axes.xaxis.set_major_locator(FixedLocator(sorted(lengths)))
    names = [f"{length:,}" if length in named else "" for length in sorted(lengths)]
    axes.xaxis.set_major_formatter(FixedFormatter(names))
    axes.xaxis.set_minor_locator(NullLocator())


def share_axis(axes: Axes, top: float = 1.0) -> None:
    """A vertical axis of shares, from none to all or to what holds `top`."""
    if top > 0.6:
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    else:
        top = max(1.08 * top, 0.01)
        axes.set_ylim(-0.02 * top, top)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if top > 0.1 else 1))
    grid(axes)


def grid(axes: Axes) -> None:
    """Horizontal lines behind what is drawn."""
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def numbered(axis: Axis, count: int, inches: float, room: float) -> None:
    """An axis of `count` squares, each one unit, its numbers as close as their room allows."""
    name_squares(axis, {n + 0.5: str(n) for n in steps(count, inches, room)})


def name_squares(axis: Axis, names: Mapping[float, str]) -> None:
    """Names at places along an axis, and at no other."""
    axis.set_major_locator(FixedLocator(list(names)))
    axis.set_major_formatter(FixedFormatter(list(names.values())))


def steps(count: int, inches: float, room: float) -> range:
    """Every first, second, fourth, ... of `count` squares, such that labels have room."""
    wanted = room * count / inches
    return range(0, count, next((step for step in _STEPS if step >= wanted), count))


def image(axes: Axes, values: np.ndarray, scale: Scale, start: float = 0.0) -> None:
    """Values [rows, columns], row 0 at the bottom, one unit a square; NaN is left blank."""
    rows, columns = values.shape
    axes.imshow(
        np.ma.masked_invalid(np.clip(values, scale.norm.vmin, scale.norm.vmax)),
        extent=(start, start + columns, 0, rows),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap=scale.colours,
        norm=scale.norm,
    )


def slug(*parts: str) -> str:
    """A file's name out of names that may hold anything."""
    slugs = (re.sub(r"[^a-z0-9._]+", "-", part.lower()).strip("-.")[-40:] for part in parts)
    return "-".join(slug for slug in slugs if slug)


def drawable(text: str) -> str:
    """Text of characters that the font has, none of which breaks a line unasked."""
    characters = _characters()
    return "".join(c if c == "\n" or ord(c) in characters else "□" for c in text)


@functools.cache
def _characters() -> frozenset[int]:
    path = font_manager.findfont(font_manager.FontProperties(family=_FONT))
    return frozenset(font_manager.get_font(path).get_charmap())


def _wrapped(text: str, points: float) -> list[str]:
    """Lines no wider than the figure, a character taken to be as wide as this."""
    return textwrap.wrap(text, int((WIDTH - 0.24) * 72 / points)) or [""]
