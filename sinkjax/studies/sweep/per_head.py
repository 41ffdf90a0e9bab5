"""The data of every layer and head, as tables."""

from collections.abc import Callable, Iterable

import numpy as np

from sinkjax.report import formats
from sinkjax.report.table import Table, column, tabulate
from sinkjax.studies.sweep.records import Curve


def layers_table(curve: Curve) -> Table:
    """The share of sinks in each layer at each length."""
    title = f"{curve.source_name}, {curve.criterion}: share of sinks in each layer"
    layers = map(str, range(curve.model["num_layers"]))
    return _by_length(curve, "per_layer", title, "layer", layers, formats.percent)


def heads_table(curve: Curve, quantity: str) -> Table:
    """One number of each head at each length: of `per_head`, `mean_score` or `output_norm`."""
    title, show = {
        "per_head": (
            f", {curve.criterion}: share of prompts in which each head is a sink",
            formats.percent,
        ),
        "mean_score": (f": mean score of each head, {curve.definition}", formats.score),
        "output_norm": (": output norm of each head relative to its layer", formats.ratio),
    }[quantity]
    layers, heads = range(curve.model["num_layers"]), range(curve.model["num_heads"])
    names = [formats.head(layer, number) for layer in layers for number in heads]
    return _by_length(curve, quantity, f"{curve.source_name}{title}", "head", names, show)


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


def _by_length(
    curve: Curve,
    quantity: str,
    title: str,
    heading: str,
    names: Iterable[str],
    show: Callable[[float], str],
) -> Table:
    """One number of each layer or head, [L] or [L][N] in a cell's result, at each length."""
    values = [np.ravel(result[quantity]) for result in curve.results]
    return Table(
        title=title,
        columns=(heading, *(f"{formats.count(length)} tokens" for length in curve.lengths)),
        rows=[(name, *map(show, row)) for name, *row in zip(names, *values, strict=True)],
    )
