"""The data of every layer and head, as tables."""

import numpy as np

from sinkjax.report import formats
from sinkjax.report.table import Table, column, tabulate
from sinkjax.studies.sweep.records import Curve


def numbers_table(curve: Curve, quantity: str) -> Table:
    """One number of each layer or head at each length: [L] or [L][N] in a cell's result."""
    of_sinks = f"{curve.source_name}, {curve.criterion}"
    title, show = {
        "per_layer": (f"{of_sinks}: share of sinks in each layer", formats.percent),
        "per_head": (
            f"{of_sinks}: share of prompts in which each head is a sink",
            formats.percent,
        ),
        "mean_score": (
            f"{curve.source_name}: mean score of each head, {curve.definition}",
            formats.score,
        ),
        "output_norm": (
            f"{curve.source_name}: output norm of each head relative to its layer",
            formats.ratio,
        ),
    }[quantity]
    layers, heads = range(curve.model["num_layers"]), range(curve.model["num_heads"])
    of_heads = [formats.head(layer, number) for layer in layers for number in heads]
    of, names = ("layer", map(str, layers)) if quantity == "per_layer" else ("head", of_heads)
    values = [np.ravel(result[quantity]) for result in curve.results]
    return Table(
        title=title,
        columns=(of, *(f"{formats.count(length)} tokens" for length in curve.lengths)),
        rows=[(name, *map(show, row)) for name, *row in zip(names, *values, strict=True)],
    )


def source_layers_table(curve: Curve) -> Table:
    """The conditional of every source layer at each length."""
    level = curve.level
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


def later_layers_table(curve: Curve) -> Table:
    """Layer 0's conditional on every later layer alone, at each length; no rows of old records."""
    level = curve.level
    return tabulate(
        f"{curve.source_name}, {curve.criterion}: layer 0 and every later layer alone",
        [
            {"length": cell["length"], **later}
            for cell in curve.cells
            for later in cell["result"].get("later_layers", {"layers": ()})["layers"]
        ],
        (
            column("tokens", "length", formats.count),
            column("later layer", "layer", str),
            column(
                f"P(later | layer 0) [{level}]", "given_sink", formats.percent, formats.estimate
            ),
            column("base rate", "base_rate", formats.percent, formats.point),
            column(f"lift [{level}]", "lift", formats.ratio, formats.estimate),
            column(f"shuffled lift [{level}]", "shuffled.lift", formats.ratio, formats.estimate),
        ),
        labels=2,
    )
