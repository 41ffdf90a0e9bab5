"""Tables that only reports have: what was run, and the data of every layer and head."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sinkjax.report import formats
from sinkjax.report.formats import Footnotes
from sinkjax.report.records import Curve
from sinkjax.report.tables import Table

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


def layers_table(curve: Curve) -> Table:
    """The share of sinks in each layer at each length."""
    shares = [result["per_layer"] for result in curve.results]
    return Table(
        title=f"{curve.source_name}, {curve.criterion}: share of sinks in each layer",
        columns=("layer", *_tokens(curve)),
        rows=tuple(
            (str(layer), *(formats.percent(share[layer]) for share in shares))
            for layer in range(curve.model["num_layers"])
        ),
    )


def head_shares_table(curve: Curve) -> Table:
    """The share of prompts in which each head is a sink, at each length."""
    title = f"{curve.source_name}, {curve.criterion}: share of prompts in which each head is a sink"
    return _heads_table(curve, "per_head", title, formats.percent)


def head_scores_table(curve: Curve) -> Table:
    """The mean score of each head at each length."""
    title = f"{curve.source_name}: mean score of each head, {curve.definition}"
    return _heads_table(curve, "mean_score", title, formats.score)


def output_norms_table(curve: Curve) -> Table:
    """The output norm of each head, relative to its layer's mean, at each length."""
    title = f"{curve.source_name}: output norm of each head relative to its layer"
    return _heads_table(curve, "output_norm", title, formats.ratio)


def source_layers_table(curve: Curve, level: str) -> Table:
    """The conditional of every source layer at each length."""
    notes = Footnotes()
    rows = []
    for cell in curve.cells:
        for conditional in cell["result"]["conditional"]:
            rows.append(
                (
                    formats.count(cell["length"]),
                    str(conditional["source_layer"]),
                    formats.count(conditional["n"]),
                    formats.estimate(conditional["given_sink"], formats.percent, notes),
                    formats.point(conditional["base_rate"], formats.percent, notes),
                    formats.point(conditional["given_not"], formats.percent, notes),
                    formats.estimate(conditional["lift"], formats.ratio, notes),
                    formats.estimate(conditional["shuffled"]["lift"], formats.ratio, notes),
                    formats.point(conditional["phi"], formats.ratio, notes),
                )
            )
    return Table(
        title=f"{curve.source_name}, {curve.criterion}: the conditional of every source layer",
        columns=(
            "tokens",
            "source layer",
            "n",
            f"P(later | source) [{level}]",
            "base rate",
            "P(later | not)",
            f"lift [{level}]",
            f"shuffled lift [{level}]",
            "phi",
        ),
        rows=tuple(rows),
        notes=notes.lines(),
        labels=2,
    )


def _heads_table(curve: Curve, name: str, title: str, show: Callable[[float], str]) -> Table:
    """One number of each head, [L][N] in a cell's result, at each length."""
    values = [result[name] for result in curve.results]
    return Table(
        title=title,
        columns=("head", *_tokens(curve)),
        rows=tuple(
            (formats.head(layer, number), *(show(value[layer][number]) for value in values))
            for layer in range(curve.model["num_layers"])
            for number in range(curve.model["num_heads"])
        ),
    )


def _tokens(curve: Curve) -> list[str]:
    return [f"{formats.count(length)} tokens" for length in curve.lengths]


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
