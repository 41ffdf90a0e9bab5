"""The loss curves and tables of gates and repairs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from sinkjax.report import canvas, formats
from sinkjax.report.canvas import Sheet
from sinkjax.report.page import Picture
from sinkjax.report.records import Record, grouped, title
from sinkjax.report.table import Table, column, tabulate
from sinkjax.studies.costs import PARTS_NOTE, mean_of_draws, part_columns
from sinkjax.studies.resampling import DRAWS_NOTE, EXCERPTS_NOTE
from sinkjax.studies.retrieval.tables import retrieval_tables

_METHODS = {
    "gates": "learned gates",
    "own_error": "own error",
    "random": "random, as many a layer",
}
_OF_QUESTIONS = " In a question the KL is half that of the whole answer."
_SMOOTHED = 10  # steps that a curve is averaged over


def training_tables(records: Sequence[Record]) -> list[Table]:
    """The KL of masks by gates beside other choices, or of a mask before and after its repair."""
    makers = {"gates": _gates_table, "repair": _repair_table}
    judged = (record for record in records if record["kind"] in makers)
    of_text = grouped(judged, lambda record: (record["kind"], record["source"]["sha256"]))
    made = [makers[kind](of) for (kind, _), of in of_text.items()]
    return made + retrieval_tables([r for r in records if r["kind"] == "retrieval"])


def loss_figure(record: Record) -> Picture:
    """The loss of a training, step by step, from a record of kind "training"."""
    result = record["result"]
    curves = {"KL to the baseline": ("kl", canvas.BLUE)}
    if any(result["price"]):
        curves |= {"price": ("price", canvas.VERMILLION), "loss": ("loss", canvas.INK)}
    steps = len(result["kl"])
    sheet = Sheet(
        f"From {formats.nats(result['kl'][0])} to {formats.nats(_smooth(result['kl'])[-1])} nats "
        f"a token in {formats.count(steps)} steps",
        f"{title(record, 'chosen_on')}; thin: each step, on text of its own; thick: the mean of "
        f"{_SMOOTHED} steps",
        body=3.4,
        key=0.28,
    )
    sheet.legend(canvas.key(name, color=colour) for name, (_, colour) in curves.items())
    axes = sheet.axes(canvas.LEFT, sheet.top + 0.1, canvas.WIDTH - canvas.LEFT - canvas.RIGHT, 2.7)
    for name, colour in curves.values():
        values = np.asarray(result[name])
        axes.plot(np.arange(1, steps + 1), values, color=colour, linewidth=0.6, alpha=0.4)
        smooth = _smooth(values)
        axes.plot(np.arange(steps - len(smooth), steps) + 1, smooth, color=colour, linewidth=1.8)
    axes.set_ylim(bottom=0)
    axes.set_xlim(1, max(steps, 2))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    canvas.grid(axes)
    canvas.label(axes, "step", "nats a token")
    return sheet.picture(
        canvas.slug("loss", record["model"]["name"]),
        "Lines of the training loss and its parts against the step.",
        "The loss is the KL to the baseline's predictions, with the price of open gates where "
        f"there are gates.{_OF_QUESTIONS if 'asked' in record else ''}",
    )


def _gates_table(records: Sequence[Record]) -> Table:
    methods = list(_METHODS)
    first = records[0]
    of_choice = grouped(records, lambda record: (record["share"], methods.index(record["method"])))
    over = f", as many on each of {first['chips']} chips" if "chips" in first else ""
    return tabulate(
        f"{title(first)}: KL to the baseline, {first['path']} chosen by gates{over}",
        [mean_of_draws(of_choice[choice]) for choice in sorted(of_choice)],
        (
            column("masked heads", "result.heads", formats.masked),
            column("chosen by", "method", _METHODS.__getitem__),
            column("mean", "result.kl", formats.nats, formats.estimate),
            *part_columns(),
        ),
        notes=(_how_judged(first, DRAWS_NOTE),),
        labels=2,
    )


def _repair_table(records: Sequence[Record]) -> Table:
    return tabulate(
        f"{title(records[0])}: KL to the baseline before and after a repair",
        sorted(records, key=lambda record: record["repaired"]),
        (
            ("mask", lambda r, _: f"{r['mask']}, {'repaired' if r['repaired'] else 'as it is'}"),
            column("masked heads", "result.heads", formats.masked),
            column("mean KL", "result.kl", formats.nats, formats.estimate),
            *part_columns(),
        ),
        notes=(_how_judged(records[0], EXCERPTS_NOTE),),
    )


def _how_judged(record: Record, intervals: str) -> str:
    text = f"{record['chosen_on']['num_windows']} excerpts of {record['chosen_on']['name']}"
    train_on = record["asked"].get("train_on", "both") if "asked" in record else "text"
    trained_on = {"text": text, "tasks": "questions", "both": f"questions and {text}"}[train_on]
    return (
        f"Trained on {trained_on}, {formats.count(record['length'])} tokens each, and judged "
        f"on {record['source']['num_windows']} others. KL in nats a token. "
        f"{PARTS_NOTE} {intervals}"
    )


def _smooth(values: Sequence[float]) -> np.ndarray:
    """The mean over each run of `_SMOOTHED` values, or over all where there are fewer."""
    width = min(_SMOOTHED, len(values))
    return np.convolve(values, np.full(width, 1 / width), mode="valid")
