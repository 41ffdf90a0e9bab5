"""A sweep's records in the order of the report, whatever order they were made in."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sinkjax.report import canvas, formats
from sinkjax.report.records import Record, grouped, numbers, told_apart


@dataclass(frozen=True)
class Curve:
    """One model on one source under one BOS policy, definition and threshold, at every length.

    Attributes:
      model: as its records describe it.
      model_name, source_name: told apart from others of the same name.
      bos, bos_added: the policy, and whether it put a BOS in front.
      definition, threshold: of a sink.
      cells: records of kind "cell", of increasing length.
      over_lengths: the record of kind "lengths"; None where the sweep has not come that far.
      missing: lengths that the sweep has not come to.
      level: of the sweep's intervals: `95%`.
    """

    model: Mapping[str, Any]
    model_name: str
    source_name: str
    bos: str
    bos_added: bool
    definition: str
    threshold: float
    cells: tuple[Record, ...]
    over_lengths: Record | None
    missing: tuple[int, ...]
    level: str

    @property
    def lengths(self) -> list[int]:
        return [cell["length"] for cell in self.cells]

    @property
    def results(self) -> list[Mapping[str, Any]]:
        """The result at each length."""
        return [cell["result"] for cell in self.cells]

    @property
    def criterion(self) -> str:
        return formats.criterion(self.definition, self.threshold)

    @property
    def num_heads(self) -> int:
        """All heads of all layers."""
        return self.model["num_layers"] * self.model["num_heads"]

    @property
    def group_name(self) -> str:
        """The model and the BOS policy."""
        return f"{self.model_name}, {formats.bos(self.bos, self.bos_added)}"

    def file_name(self, kind: str, *parts: str) -> str:
        """A figure's file name without its suffix, out of names that may hold anything."""
        return canvas.slug(kind, self.model_name, "bos", self.bos, *parts)

    def criterion_file_name(self, kind: str, *parts: str) -> str:
        """The file name of a figure of one definition and threshold."""
        return self.file_name(kind, self.definition, f"{self.threshold:g}", *parts)


@dataclass(frozen=True)
class Group:
    """All curves of one model under one BOS policy: a chapter of the report.

    Attributes:
      curves: by definition, threshold and source, in the order in which the sweep was asked for.
    """

    curves: Sequence[Curve]

    @property
    def criteria(self) -> list[tuple[str, float]]:
        """Definitions with thresholds; the first is the main one."""
        return list(dict.fromkeys((curve.definition, curve.threshold) for curve in self.curves))

    def under(self, definition: str, threshold: float) -> list[Curve]:
        """One curve a source."""
        return [c for c in self.curves if (c.definition, c.threshold) == (definition, threshold)]


@dataclass(frozen=True)
class SweepRecords:
    """Everything that a report shows.

    Attributes:
      specification: of the sweep.
      groups: without the founding study's prompts.
      study: cells of the founding study's prompts, by prompt, model, definition and threshold.
    """

    specification: Mapping[str, Any]
    groups: Sequence[Group]
    study: Sequence[Record]

    def model_name(self, model: Mapping[str, Any]) -> str:
        """The model's name, with its digest where the sweep has another of the same name."""
        return told_apart(model, "model_digest", self.specification["models"])


def arrange(specification: Mapping[str, Any], records: Sequence[Record]) -> SweepRecords:
    """Sorts records, in whatever order they are, into groups and curves."""
    records = sorted(records, key=functools.partial(_order, specification))
    study = [record for record in records if record["source"]["role"] == "study"]
    over_lengths = {_curve_key(record): record for record in records if record["kind"] == "lengths"}
    cells = [r for r in records if r["kind"] == "cell" and r["source"]["role"] != "study"]
    levels = {cell["result"]["sinks"]["share"].get("level") for cell in cells}
    level = "/".join(f"{100 * level:g}%" for level in sorted(levels - {None})) or "interval"
    curves = (
        _curve(specification, of_curve, over_lengths.get(key), level)
        for key, of_curve in grouped(cells, _curve_key).items()
    )
    groups = grouped(curves, lambda curve: (*_model_key(curve.model), curve.bos))
    return SweepRecords(specification, [Group(curves) for curves in groups.values()], study)


def _curve(
    specification: Mapping[str, Any], cells: list[Record], over_lengths: Record | None, level: str
) -> Curve:
    first = cells[0]
    wanted = {
        length
        for source in specification["sources"]
        if _source_key(source) == _source_key(first["source"])
        for length in source.get("lengths", ())
    }
    return Curve(
        **{name: first[name] for name in ("model", "bos", "bos_added", "definition", "threshold")},
        model_name=told_apart(first["model"], "model_digest", specification["models"]),
        source_name=told_apart(first["source"], "sha256", specification["sources"]),
        cells=tuple(cells),
        over_lengths=over_lengths,
        missing=tuple(sorted(wanted - {cell["length"] for cell in cells})),
        level=level,
    )


def _order(specification: Mapping[str, Any], record: Record) -> tuple:
    """A record's place, as the specification lists what it is of; the unlisted come last."""
    study = record["source"]["role"] == "study"
    model = _place(map(_model_key, specification["models"]), _model_key(record["model"]))
    source = _place(map(_source_key, specification["sources"]), _source_key(record["source"]))
    bos = _place(specification["bos"], record["bos"])
    return (
        study,
        *((source, model) if study else (model, bos)),
        _place(specification["definitions"], record["definition"]),
        _place(specification["thresholds"], record["threshold"]),
        source,
        record.get("length", 0),
        record["id"],
    )


def _place(listed: Iterable, value: Any) -> tuple[int, str]:
    values = list(listed)
    return (values.index(value), "") if value in values else (len(values), str(value))


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


def probabilities(conditionals: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The probabilities of a result's conditionals by name, NaN where undefined."""
    names = ("given_sink", "given_not", "base_rate")
    return {name: numbers(c[name] for c in conditionals) for name in names}
