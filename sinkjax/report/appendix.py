"""Tables that only pages have: what was run, and with what."""

from collections.abc import Mapping, Sequence
from typing import Any

from sinkjax.report import formats
from sinkjax.report.table import Table

_ROLES = {
    "prompts": "prompts, cut from their beginnings",
    "text": "a text, cut into windows at seeded places",
    "study": "the founding study's, whole and without BOS",
}


def models_table(models: Mapping[str, Mapping[str, Any]]) -> Table:
    """What identifies each model, as records describe it, by its name: a column a model."""
    return Table(
        title="Models",
        columns=("", *models),
        rows=_properties(list(models.values()), without=("name",)),
        notes=(
            "model_digest: sha256 over the parameters and what of the configuration decides the "
            "logits. tokenizer_digest: over the tokenizer's whole definition.",
        ),
        labels=1 + len(models),
    )


def sources_table(sources: Sequence[Mapping[str, Any]]) -> Table:
    """Which texts were used, and at which lengths."""
    return Table(
        title="Texts",
        columns=("name", "what it is", "tokens of a prompt", "sha256"),
        rows=tuple(
            (
                source["name"],
                _ROLES.get(source["role"], source["role"]),
                ", ".join(map(formats.count, source.get("lengths", ()))),
                source["sha256"],
            )
            for source in sources
        ),
        labels=4,
    )


def settings_table(specification: Mapping[str, Any]) -> Table:
    """Everything else that defines the run."""
    described = ("experiment", "model", "models", "sources", "candidates")
    settings = {name: value for name, value in specification.items() if name not in described}
    return Table(
        title="Settings", columns=("setting", "value"), rows=_properties([settings]), labels=2
    )


def environments_table(environments: Sequence[Mapping[str, Any]]) -> Table:
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


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "none" if value is None or value == "" else str(value)
