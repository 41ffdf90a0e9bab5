"""The frontier as figures, tables and a page: KL against how much of a model masks take away."""

import math
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from sinkjax.report import canvas, formats
from sinkjax.report.canvas import Sheet
from sinkjax.report.formats import Footnotes
from sinkjax.report.page import Picture, Prose, Section, explanations
from sinkjax.report.records import Record, by_length, grouped, numbers, title
from sinkjax.report.table import Table, column, tabulate
from sinkjax.studies.costs import LAST, LAST_NOTE, PARTS, PARTS_NOTE, mean_of_draws, part_columns
from sinkjax.studies.resampling import DRAWS_NOTE, LEVEL

RANDOM = "random"
METHODS = ("sink score", "own error", "sensitivity", RANDOM)
"""The ways to choose heads that are held against each other, beside those of other studies."""
SEARCHED, GATES = "budget search", "gates"
COPIES = {
    "layer_0": "copy layer 0",
    "adjacent": "copy the layer before",
    "output": "copy the best",
    "sinks": "sinks copy layer 0",
}
"""Methods by the variants of `sinkjax copies`."""

_STYLES: dict[str, dict[str, Any]] = {  # beside lines of 1.6 points
    SEARCHED: {"color": canvas.VERMILLION, "marker": "o", "ls": "none"},  # of several searches
    GATES: {"color": "#E69F00", "marker": "P"},
    "sensitivity": {"color": canvas.BLUE, "marker": "s"},
    "own error": {"color": canvas.GREEN, "marker": "^"},
    "sink score": {"color": "#AA4499", "marker": "D"},
    RANDOM: {"color": canvas.FAINT, "marker": "v"},
    **{
        name: {"color": "#B8860B", "marker": marker, "lw": 1, "ls": canvas.DASHES}
        for name, marker in zip(COPIES.values(), canvas.MARKERS, strict=False)
    },
}
_ORDER = tuple(_STYLES)
_BUDGET = 0.05  # nats a token, that of the recommended masks
_FLOOR, _CEILING = 1e-4, 10.0  # nats; what lies beyond is drawn there
_HEIGHT, _GAP = 2.9, 0.7  # inches
_COLUMNS, _KEYS = 3, 6  # panels, and keys, of a row
_PANEL = (canvas.WIDTH - canvas.LEFT - canvas.RIGHT - (_COLUMNS - 1) * _GAP) / _COLUMNS  # inches

_SAVED_AS = {
    "compiled": "as read from the programs that each mask compiles into",
    "formula": "by formulas of a mask's heads",
}


def _saved_as(record: Record) -> str:
    """How savings are known, and of what, by a record or a specification."""
    how = _SAVED_AS[record["saved_as"]]
    return f"{how}, on the fullest of {record['chips']} chips" if "chips" in record else how


_AXES: tuple[tuple[str, Callable[[Record], float]], ...] = (
    ("masked heads", lambda record: masked_share(record)),
    ("FLOPs of the prefill saved", lambda r: r["result"]["saved"]["prefill_operations"]),
    ("bytes of a decode step saved", lambda r: r["result"]["saved"]["decode_bytes"]),
)


def sections(specification: Mapping[str, Any], records: Sequence[Record]) -> Iterator[Section]:
    """The page of a frontier: all at once, and length by length."""
    yield Section("All at once", [overview_figure(records)])
    for length, of_length in by_length(records).items():
        figures = [frontier_figure(path, some) for path, some in _by_path(of_length).items()]
        heading = f"{formats.count(length)} tokens"
        yield Section(heading, [*figures, frontier_table(of_length)])
    methods = explanations(__package__).methods(f"{LEVEL:.0%}", saved_as=_saved_as(specification))
    yield Section("How heads are chosen", [Prose(methods)])


def overview_figure(records: Sequence[Record]) -> Picture:
    """KL against masked heads, all lengths and paths in one picture: a panel each."""
    first, panels, most = records[0], {}, []
    for length, of_length in by_length(records).items():
        most.append(f"{formats.percent(_most(of_length), 0)} at {formats.count(length)} tokens")
        for path, some in _by_path(of_length).items():
            panels[f"{formats.count(length)} tokens, {path}"] = _lines(some)
    methods = [name for name in _ORDER if any(name in lines for lines in panels.values())]
    rows, above, below = math.ceil(len(panels) / _COLUMNS), 0.3, 0.55
    sheet = Sheet(
        f"Masked heads within a KL of {_BUDGET:g}, at best: {', '.join(most)}",
        f"{first['model']['name']}, {first['source']['name']}: excerpts that no choice saw. Bands "
        f"are {formats.percent(LEVEL, 0)} intervals over excerpts",
        body=rows * (above + _HEIGHT + below),
        key=0.28 * math.ceil(len(methods) / _KEYS),
    )
    _legend(sheet, methods)
    drawn = []
    for index, (heading, lines) in enumerate(panels.items()):
        row, column = divmod(index, _COLUMNS)
        top = sheet.top + above + row * (above + _HEIGHT + below)
        drawn.append(_panel(sheet, column, top, lines, *_AXES[0]))
        canvas.panel_title(drawn[-1], heading, _PANEL)
    bottom = min(axes.get_ylim()[0] for axes in drawn)
    top = max(axes.get_ylim()[1] for axes in drawn)
    for axes in drawn:
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom, top)
    return sheet.picture(
        "frontier",
        f"KL against masked heads for every way to choose them: {'; '.join(panels)}.",
        "Ranked heads take the path in the title; what budget search found may take several, and "
        "so is in each panel of its length, as copies are. All panels have the same axes.",
    )


def frontier_figure(path: str, records: Sequence[Record]) -> Picture:
    """KL against masked heads, FLOPs and bytes: a panel each, a line a method.

    Args:
      path: that heads were ranked for.
      records: of one length and of that path, with those of any path.
    """
    first, lines = records[0], _lines(records)
    sheet = Sheet(
        _headline(lines),
        f"{first['model']['name']}, {first['source']['name']}: "
        f"{first['source']['num_windows']} excerpts of {formats.count(first['length'])} tokens "
        f"that no choice saw. Ranked heads take {path}; bands are "
        f"{formats.percent(LEVEL, 0)} intervals over excerpts",
        body=0.3 + _HEIGHT + 0.6,
        key=0.28 * math.ceil(len(lines) / _KEYS),
    )
    _legend(sheet, lines)
    for place, (name, of) in enumerate(_AXES):
        _panel(sheet, place, sheet.top + 0.3, lines, name, of)
    return sheet.picture(
        f"frontier-{first['length']}-{path}".replace("(", "-").replace(")", "").replace(",", "-"),
        f"Lines of KL against masked heads, FLOPs and bytes saved, at {first['length']} "
        f"tokens, for heads on {path}.",
        "Further right is more saved, further down is cheaper. The control draws as many heads of "
        "each layer at random. What budget search found may take several paths, and so is in "
        f"each figure of a length. The dashed line is a KL of {_BUDGET:g}.",
    )


def frontier_table(records: Sequence[Record]) -> Table:
    """Every mask of one length: its size, what it saves and what it costs."""
    own = next((r["source"] for r in records if "record" not in r), None)

    def chosen_by(record: Record, notes: Footnotes) -> str:
        """Marked where the KL is of other excerpts than the table's, as that of copies may be."""
        source = record["source"]
        if source == own:
            return record["method"]
        of = f"{formats.count(source['num_windows'])} excerpts of {source['name']}"
        return f"{record['method']} {notes.mark(f'the KL is of other excerpts: {of}')}"

    return tabulate(
        f"{title(records[0])}, {formats.count(records[0]['length'])} tokens: every mask",
        sorted(
            _merged(records), key=lambda r: (_ORDER.index(r["method"]), r["path"], masked_share(r))
        ),
        (
            ("chosen by", chosen_by),
            column("path", "path", str),
            ("masked\nheads", lambda record, _: formats.percent(masked_share(record))),
            column("prefill\nFLOPs", "result.saved.prefill_operations", formats.percent),
            column("decode\nbytes", "result.saved.decode_bytes", formats.percent),
            column("cache", "result.saved.cache_bytes", formats.percent),
            column("mean KL", "result.kl", formats.nats, formats.estimate),
            *part_columns(formats.point, parts=(*PARTS, LAST)),
        ),
        notes=(
            "FLOPs, bytes and cache: what is saved, in shares of the baseline's, "
            f"{_saved_as(records[0])}. KL in nats a token. {PARTS_NOTE} {LAST_NOTE} {DRAWS_NOTE}",
        ),
        labels=2,
    )


def masked_share(record: Record) -> float:
    """The share of masked heads."""
    heads = record["result"]["heads"]
    return 1 - heads["full"] / sum(heads.values())


def _merged(records: Sequence[Record]) -> list[Record]:
    """The same with the draws of a random control as one record, the mean of the draws."""

    def of_mask(record: Record) -> Hashable:
        if record["method"] == RANDOM:
            return record["length"], record["path"], masked_share(record)
        return record["method"], record["id"]

    return list(map(mean_of_draws, grouped(records, of_mask).values()))


def _by_path(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by the path that heads were ranked for, each with those of no single path."""
    shared = [record for record in records if record["path"] in ("any", "copy")]
    paths = dict.fromkeys(r["path"] for r in records if r["path"] not in ("any", "copy"))
    return {path: [r for r in records if r["path"] == path] + shared for path in paths}


def _lines(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Points by method."""
    merged = _merged(records)
    by_method = {name: [r for r in merged if r["method"] == name] for name in _ORDER}
    return {name: points for name, points in by_method.items() if points}


def _most(records: Sequence[Record]) -> float:
    """The largest share of masked heads that stays within the budget; 0 where none does."""
    within = (r for r in records if r["result"]["kl"]["value"] <= _BUDGET)
    return max(map(masked_share, within), default=0.0)


def _headline(lines: Mapping[str, Sequence[Record]]) -> str:
    """How many heads each method masks within a KL of 0.05."""
    most = {name: _most(points) for name, points in lines.items()}
    best = max(most, key=lambda name: most[name])
    if not most[best]:
        return f"No measured mask stays within a KL of {_BUDGET:g}"
    taken = formats.percent(most[best], 0)
    text = f"Within a KL of {_BUDGET:g}, {best} masks {taken} of the heads"
    if "sink score" in most and best != "sink score":
        text += f", the sink score {formats.percent(most['sink score'], 0)}"
    return text


def _legend(sheet: Sheet, methods: Collection[str]) -> None:
    keys = (canvas.key(name, ms=5, **{"lw": 1.6} | _STYLES[name]) for name in methods)
    sheet.legend(keys, columns=min(len(methods), _KEYS))


def _panel(
    sheet: Sheet,
    column: int,
    top: float,
    lines: Mapping[str, Sequence[Record]],
    name: str,
    of: Callable[[Record], float],
) -> Axes:
    """KL of every method against one of `_AXES`."""
    axes = sheet.axes(canvas.LEFT + column * (_PANEL + _GAP), top, _PANEL, _HEIGHT)
    for method, points in lines.items():
        _draw(axes, method, sorted(points, key=of), of)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, _FLOOR / 1.5), min(high, _CEILING * 1.5))
    axes.yaxis.set_major_locator(LogLocator(10, numticks=8))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.axhline(_BUDGET, color=canvas.SOFT, lw=0.8, ls=canvas.DASHES)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    decimals = 0 if name == _AXES[0][0] else None
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=decimals))
    canvas.grid(axes)
    canvas.label(axes, x=name, y="KL, nats a token" if column == 0 else "")
    return axes


def _draw(axes: Axes, method: str, points: Sequence[Record], of: Callable[[Record], float]) -> None:
    places = np.array([of(point) for point in points])
    ends = [_ends(point["result"]["kl"]) for point in points]
    kl, low, high = (
        np.clip(numbers(ends, side), _FLOOR, _CEILING) for side in ("value", "low", "high")
    )
    style = {"lw": 1.6} | _STYLES[method]
    axes.plot(places, kl, ms=4.5, **style)
    if style.get("ls") == "none":
        axes.vlines(places, low, high, color=style["color"], lw=1.2)
    else:
        axes.fill_between(places, low, high, color=style["color"], alpha=0.16, lw=0)


def _ends(kl: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same with the least and the most of several draws, or of few excerpts, as its ends."""
    each = kl.get("each")
    return {**kl, "low": min(each), "high": max(each)} if each else kl
