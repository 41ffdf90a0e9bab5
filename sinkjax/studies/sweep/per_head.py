"""The data of every layer and head, as tables."""

from collections.abc import Callable

from sinkjax.report import formats
from sinkjax.report.table import Table, column, tabulate
from sinkjax.studies.sweep.records import Curve


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
    return tabulate(
        f"{curve.source_name}, {curve.criterion}: the conditional of every source layer",
        [
            {"length": cell["length"], **conditional}
            for cell in curve.cells
            for conditional in cell["result"]["conditional"]
        ],
        (
            column("tokens", "length", formats.count),
            column("source layer", "source_layer", str),
            column("n", "n", formats.count),
            column(f"P(later | source) [{level}]", "given_sink", formats.percent, formats.estimate),
            column("base rate", "base_rate", formats.percent, formats.point),
            column("P(later | not)", "given_not", formats.percent, formats.point),
            column(f"lift [{level}]", "lift", formats.ratio, formats.estimate),
            column(f"shuffled lift [{level}]", "shuffled.lift", formats.ratio, formats.estimate),
            column("phi", "phi", formats.ratio, formats.point),
        ),
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
