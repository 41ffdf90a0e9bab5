"""What every page ends with: what was run, and with what."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sinkjax.report import formats
from sinkjax.report.page import Prose, Section, explanations
from sinkjax.report.records import Record, environments, told_apart
from sinkjax.report.table import Table

_ROLES = {
    "prompts": "prompts, cut from their beginnings",
    "text": "a text, cut into excerpts at seeded places",
    "study": "the founding study's, whole and without BOS",
}


def what_was_run(specification: Mapping[str, Any], records: Sequence[Record]) -> Section:
    """The last section of a page: models, texts, settings, versions and device.

    Args:
      specification, records: of the run. A part of the specification with a `model_digest` is a
        model, one with a `sha256` a text; all else are settings.
    """
    models = list(_parts(specification, "model_digest"))
    texts = list(_parts(specification, "sha256"))
    tables = [
        _models_table(models),
        *([_texts_table(texts, specification.get("length"))] if texts else []),
        _settings_table(specification),
        _environments_table(environments(records)),
    ]
    conventions = Prose(explanations(__package__).conventions())
    return Section("What was run", [conventions, *tables])


def _parts(specification: Mapping[str, Any], key: str) -> Iterator[Mapping[str, Any]]:
    """Values of a specification, or members of its lists, that have a key."""
    for value in specification.values():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, Mapping) and key in part:
                yield part


def _models_table(models: Sequence[Mapping[str, Any]]) -> Table:
    """What identifies each model: a column a model."""
    return Table(
        title="Models",
        columns=("", *(told_apart(model, "model_digest", models) for model in models)),
        rows=_properties(models, without=("name",)),
        notes=(
            "model_digest: sha256 over the parameters and what of the configuration decides the "
            "logits. tokenizer_digest: over the tokenizer's whole definition.",
        ),
        labels=1 + len(models),
    )


def _texts_table(texts: Sequence[Mapping[str, Any]], length: int | None) -> Table:
    """Which texts were used, and at which lengths: their own, or the one of the whole run."""
    rows = (
        (
            text["name"],
            _ROLES.get(text["role"], text["role"]),
            ", ".join(map(formats.count, text.get("lengths", [length] if length else ()))),
            text["sha256"],
        )
        for text in texts
    )
    return Table(
        title="Texts",
        columns=("name", "what it is", "tokens of a prompt", "sha256"),
        rows=tuple(dict.fromkeys(rows)),
        labels=4,
    )


def _settings_table(specification: Mapping[str, Any]) -> Table:
    """Everything else that defines the run; masks have a table of their own."""
    described = ("experiment", "candidates")
    settings = {name: value for name, value in specification.items() if name not in described}
    rows = tuple((name, _text(value)) for name, value in _flattened(settings))
    return Table(title="Settings", columns=("setting", "value"), rows=rows, labels=2)


def _environments_table(environments: Sequence[Mapping[str, Any]]) -> Table:
    """What the records were made with: a column for each environment."""
    numbers = [f"environment {index}" for index in range(1, len(environments) + 1)]
    return Table(
        title="Versions and device",
        columns=("", *(numbers if len(numbers) > 1 else ["all records"])),
        rows=_properties(environments),
        labels=1 + len(environments),
    )


def _properties(
    columns: Sequence[Mapping[str, Any]], without: Sequence[str] = ()
) -> tuple[tuple[str, ...], ...]:
    """A row for each property that any of them has."""
    names = dict.fromkeys(name for column in columns for name in column if name not in without)
    return tuple((name, *(_text(column.get(name)) for column in columns)) for name in names)


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings within settings by dotted names, without models and texts."""
    for name, value in settings.items():
        parts = value if isinstance(value, list) else [value]
        if any(isinstance(p, Mapping) and {"model_digest", "sha256"} & p.keys() for p in parts):
            continue
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {_text(of_name)}" for name, of_name in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "none" if value is None or value == "" else str(value)
