"""A sweep's records in the order of the report, whatever order they were made in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sinkjax.report import canvas, formats
from sinkjax.report.records import Record, told_apart


@dataclass(frozen=True)
class Curve:
    """One model on one source under one BOS policy, definition and threshold, at every length.

    Attributes:
      model, source: as their records describe them.
      source_name: the source's name, told apart from others of the same name.
      bos, bos_added: the policy, and whether it put a BOS in front.
      definition, threshold: of a sink.
      cells: records of kind "cell", of increasing length.
      over_lengths: the record of kind "lengths"; None where the sweep has not come that far.
      missing: lengths that the sweep has not come to.
    """

    model: Mapping[str, Any]
    source: Mapping[str, Any]
    source_name: str
    bos: str
    bos_added: bool
    definition: str
    threshold: float
    cells: tuple[Record, ...]
    over_lengths: Record | None
    missing: tuple[int, ...]

    @property
    def lengths(self) -> list[int]:
        return [cell["length"] for cell in self.cells]

    @property
    def results(self) -> list[Mapping[str, Any]]:
        """Of each length."""
        return [cell["result"] for cell in self.cells]

    @property
    def criterion(self) -> str:
        return formats.criterion(self.definition, self.threshold)

    @property
    def num_heads(self) -> int:
        """All heads of all layers."""
        return self.model["num_layers"] * self.model["num_heads"]


@dataclass(frozen=True)
class Group:
    """All curves of one model under one BOS policy: a chapter of the report.

    Attributes:
      model, model_name: as records describe it, and its name, told apart from others of that name.
      bos, bos_added: the policy, and whether it put a BOS in front.
      curves: by definition, threshold and source, in the order in which the sweep was asked for.
    """

    model: Mapping[str, Any]
    model_name: str
    bos: str
    bos_added: bool
    curves: tuple[Curve, ...]

    @property
    def name(self) -> str:
        return f"{self.model_name}, {formats.bos(self.bos, self.bos_added)}"

    @property
    def criteria(self) -> list[tuple[str, float]]:
        """Definitions with thresholds; the first is the main one."""
        return list(dict.fromkeys((curve.definition, curve.threshold) for curve in self.curves))

    def under(self, definition: str, threshold: float) -> list[Curve]:
        """One curve a source."""
        return [c for c in self.curves if (c.definition, c.threshold) == (definition, threshold)]


@dataclass(frozen=True)
class Sweep:
    """Everything that a report shows.

    Attributes:
      specification: of the sweep.
      groups: without the founding study's prompts.
      study: cells of the founding study's prompts, by prompt, model, definition and threshold.
      num_records: how many there are.
    """

    specification: Mapping[str, Any]
    groups: tuple[Group, ...]
    study: tuple[Record, ...]
    num_records: int

    def model_name(self, model: Mapping[str, Any]) -> str:
        """The model's name, with its digest where the sweep has another of the same name."""
        return told_apart(model, "model_digest", self.specification["models"])

    @property
    def level(self) -> str:
        """Of the intervals: `95%`."""
        values = (
            cell["result"]["sinks"]["share"]
            for group in self.groups
            for curve in group.curves
            for cell in curve.cells
        )
        levels = sorted({value["level"] for value in values if value.get("level")})
        return "/".join(f"{100 * level:g}%" for level in levels) or "interval"


def arrange(specification: Mapping[str, Any], records: Sequence[Record]) -> Sweep:
    """Sorts records into groups and curves.

    Args:
      specification: of the sweep.
      records: in any order.
    """
    order = _Order(specification)
    records = sorted(records, key=order)
    cells = [record for record in records if record["kind"] == "cell"]
    curves: dict[tuple, list[Record]] = {}
    for cell in cells:
        if cell["source"]["role"] != "study":
            curves.setdefault(_curve_key(cell), []).append(cell)
    over_lengths = {_curve_key(record): record for record in records if record["kind"] == "lengths"}
    groups: dict[tuple, list[Curve]] = {}
    for key, of_curve in curves.items():
        curve = _curve(specification, of_curve, over_lengths.get(key))
        groups.setdefault((*_model_key(curve.model), curve.bos), []).append(curve)
    return Sweep(
        specification=specification,
        groups=tuple(
            Group(
                of_group[0].model,
                told_apart(of_group[0].model, "model_digest", specification["models"]),
                of_group[0].bos,
                of_group[0].bos_added,
                tuple(of_group),
            )
            for of_group in groups.values()
        ),
        study=tuple(cell for cell in cells if cell["source"]["role"] == "study"),
        num_records=len(records),
    )


def _curve(
    specification: Mapping[str, Any], cells: list[Record], over_lengths: Record | None
) -> Curve:
    first = cells[0]
    wanted = {
        length
        for source in specification["sources"]
        if _source_key(source) == _source_key(first["source"])
        for length in source.get("lengths", ())
    }
    return Curve(
        model=first["model"],
        source=first["source"],
        source_name=told_apart(first["source"], "sha256", specification["sources"]),
        bos=first["bos"],
        bos_added=first["bos_added"],
        definition=first["definition"],
        threshold=first["threshold"],
        cells=tuple(cells),
        over_lengths=over_lengths,
        missing=tuple(sorted(wanted - {cell["length"] for cell in cells})),
    )


class _Order:
    """Sorts records as the specification lists what they are of; the unlisted come last."""

    def __init__(self, specification: Mapping[str, Any]):
        self._models = [_model_key(model) for model in specification["models"]]
        self._bos = list(specification["bos"])
        self._sources = [_source_key(source) for source in specification["sources"]]
        self._definitions = list(specification["definitions"])
        self._thresholds = list(specification["thresholds"])

    def __call__(self, record: Record) -> tuple:
        model = _place(self._models, _model_key(record["model"]))
        source = _place(self._sources, _source_key(record["source"]))
        study = record["source"]["role"] == "study"
        return (
            study,
            *((source, model) if study else (model, _place(self._bos, record["bos"]))),
            _place(self._definitions, record["definition"]),
            _place(self._thresholds, record["threshold"]),
            source,
            record.get("length", 0),
            record["id"],
        )


def _place(listed: list, value: Any) -> tuple[int, str]:
    return (listed.index(value), "") if value in listed else (len(listed), str(value))


def _curve_key(record: Record) -> tuple:
    return (
        _model_key(record["model"]),
        _source_key(record["source"]),
        record["bos"],
        record["definition"],
        record["threshold"],
    )


def _model_key(model: Mapping[str, Any]) -> tuple[str, str]:
    return model["name"], model["model_digest"]


def _source_key(source: Mapping[str, Any]) -> tuple[str, str]:
    return source["name"], source["sha256"]


def file_name(kind: str, group: Group, *parts: str) -> str:
    """A figure's file name without its suffix, out of names that may hold anything."""
    return canvas.slug(kind, group.model_name, "bos", group.bos, *parts)
