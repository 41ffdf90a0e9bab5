"""The page of a retrieval run: heat maps of length by depth, baseline and mask side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from sinkjax.report import canvas, formats
from sinkjax.report.canvas import Scale, Sheet
from sinkjax.report.page import Card, Picture, Prose, Section, explanations
from sinkjax.report.records import Record
from sinkjax.studies.resampling import INTERVALS
from sinkjax.studies.retrieval.measure import FLOOR
from sinkjax.studies.retrieval.tables import SAYS_NOTHING, by_mask, retrieval_tables

_SCALE = Scale(
    matplotlib.colormaps["RdYlBu"].with_extremes(bad=(1, 1, 1, 0)),
    Normalize(0, 1),
    {share: formats.percent(share, 0) for share in (0.0, 0.25, 0.5, 0.75, 1.0)},
)
_LEFT, _GAP, _ROW, _TASK_GAP = 2.3, 0.2, 0.3, 0.14  # inches: room for names, panels, rows, tasks
_WIDEST, _NARROWEST = 0.9, 1.2  # inches: of a length, of a panel


def openings(records: Sequence[Record]) -> list[Card]:
    """Where each mask loses most."""
    return [Card(name, _sentences(panels)) for name, panels in by_mask(records).items()]


def sections(specification: Mapping[str, Any], records: Sequence[Record]) -> list[Section]:
    """The page of a retrieval run: figures, then tables."""
    explain = explanations(__package__)
    maps = Prose(explain.maps(floor=formats.percent(FLOOR, 0)))
    return [
        Section("Length by depth", [maps, *map(heat_maps, by_mask(records).values())]),
        Section("Every number", retrieval_tables(records)),
        Section("What is asked", [Prose(explain.asked(**INTERVALS))]),
    ]


def heat_maps(panels: Mapping[str, Sequence[Record]]) -> Picture:
    """Accuracy by task, depth and length, as the baseline's panel and one for each group.

    Args:
      panels: records of a mask, then of each of its controls, by the title of their panel.
    """
    own = next(iter(panels.values()))
    name = formats.shortened(own[0]["candidate"]["name"])
    lengths = sorted({record["length"] for record in own})
    tasks = list(dict.fromkeys(record["task"] for record in own))
    rows = {task: _depths(own, task) for task in tasks}
    height = sum(_ROW * len(depths) + _TASK_GAP for depths in rows.values())
    sheet = Sheet(
        f"{name}: {_sentence(own)}",
        f"{formats.shortened(own[0]['model']['name'])}; "
        f"{formats.count(own[0]['num_windows'])} excerpts a square",
        body=0.3 + height + 0.45,
        key=0.5,
    )
    sheet.colour_bar("of the answers are right", _SCALE)
    shown = [("baseline", "baseline", own)]
    shown += [(title, "candidate", of_mask) for title, of_mask in panels.items()]
    width = (canvas.WIDTH - _LEFT - canvas.RIGHT + _GAP) / len(shown) - _GAP
    width = min(width, max(_NARROWEST, _WIDEST * len(lengths)))
    for panel, (title, of, of_panel) in enumerate(shown):
        by_cell = {(r["task"], r.get("depth"), r["length"]): r["result"] for r in of_panel}
        top = sheet.top + 0.3
        for task, depths in rows.items():
            first, last = task == tasks[0], task == tasks[-1]
            axes = sheet.axes(_LEFT + panel * (width + _GAP), top, width, _ROW * len(depths))
            results = [[by_cell.get((task, depth, n)) for n in lengths] for depth in depths]
            _draw(axes, results, of, width / len(lengths))
            named = {len(depths) - n - 0.5: _depth(depth) for n, depth in enumerate(depths)}
            canvas.name_squares(axes.yaxis, {} if panel else named)
            ticks = {n + 0.5: formats.count(length) for n, length in enumerate(lengths)}
            canvas.name_squares(axes.xaxis, ticks if last else {})
            canvas.label(axes, "tokens" if last else "")
            if first:
                canvas.panel_title(axes, title, width)
            if not panel:
                sheet.write(0.12, top + 0.06, task, size=canvas.SMALL, weight="bold")
            top += _ROW * len(depths) + _TASK_GAP
    return sheet.picture(
        canvas.slug("retrieval", own[0]["model"]["name"], own[0]["candidate"]["name"]),
        f"Heat maps of accuracy by task, depth and length, of the baseline, {name} and its random "
        "controls.",
        "Depth, from the top down, is how much of the text comes before what is hidden; the lists "
        f"have none. Hatched: {SAYS_NOTHING}.",
    )


def _draw(
    axes: Axes, results: Sequence[Sequence[Mapping[str, Any] | None]], of: str, inches: float
) -> None:
    """A square for each result, row by row from the top; hatched where it says nothing."""
    count = len(results)
    values = np.full((count, len(results[0])), np.nan)
    for row, line in enumerate(results):
        for column, result in enumerate(line):
            if result is None:
                continue
            accuracy, below = result["accuracy"][of]["value"], count - 1 - row
            tells = of == "baseline" or result["says_something"]
            if tells:
                values[below, column] = accuracy
            else:
                hatched = {"facecolor": "#f4f4f4", "edgecolor": canvas.FAINT, "hatch": "////"}
                axes.add_patch(Rectangle((column, below), 1, 1, linewidth=0, **hatched))
            if inches > 0.4:
                middle = tells and 0.2 < accuracy < 0.85  # where the colours are light
                colour = canvas.INK if middle else "white" if tells else canvas.SOFT
                axes.text(
                    column + 0.5,
                    below + 0.5,
                    formats.percent(accuracy, 0),
                    ha="center",
                    va="center",
                    size=canvas.SMALL,
                    color=colour,
                )
    canvas.image(axes, values, _SCALE)
    axes.hlines(np.arange(1, count), 0, len(results[0]), color="white", lw=0.8)
    axes.vlines(np.arange(1, len(results[0])), 0, count, color="white", lw=0.8)
    axes.tick_params(length=0)
    axes.set(xlim=(0, len(results[0])), ylim=(0, count))


def _sentences(panels: Mapping[str, Sequence[Record]]) -> list[str]:
    """One of a mask, and one of each of its controls."""
    return [f"{name[:1].upper()}{name[1:]}: {_sentence(of)}." for name, of in panels.items()]


def _sentence(records: Sequence[Record]) -> str:
    """Where a mask loses most of what the baseline finds."""
    telling = [record for record in records if record["result"]["says_something"]]
    if not telling:
        return f"nothing is known, for the baseline reaches {formats.percent(FLOOR, 0)} nowhere"
    worst = min(telling, key=lambda r: r["result"]["accuracy"]["change"]["value"])
    accuracy = worst["result"]["accuracy"]
    where = f"{worst['task']}, {formats.count(worst['length'])} tokens"
    where += f", depth {_depth(worst['depth'])}" if "depth" in worst else ""
    ours, baselines = (formats.percent(accuracy[of]["value"]) for of in ("candidate", "baseline"))
    return f"at worst {ours} right where the baseline has {baselines} ({where})"


def _depths(records: Sequence[Record], task: str) -> list[float | None]:
    """The depths of a task, from the front of the text on; None where it has none."""
    return sorted({r["depth"] for r in records if r["task"] == task and "depth" in r}) or [None]


def _depth(depth: float | None) -> str:
    return "" if depth is None else formats.percent(depth, 0)
