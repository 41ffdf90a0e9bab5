"""Writes a run's report into its folder."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sinkjax.errors import InputError, Problem
from sinkjax.files import replace_file
from sinkjax.report.canvas import Picture
from sinkjax.report.records import Record
from sinkjax.studies.frontier.page import render_frontier
from sinkjax.studies.quality.page import render_quality
from sinkjax.studies.results import read_records
from sinkjax.studies.sweep.page import render
from sinkjax.studies.sweep.records import arrange
from sinkjax.studies.training.page import render_training


def _render_sweep(
    specification: Mapping[str, Any], records: Sequence[Record]
) -> tuple[str, list[Picture]]:
    return render(arrange(specification, records))


_RENDERERS = {
    "sweep": _render_sweep,
    "quality": render_quality,
    "frontier": render_frontier,
    "gates": render_training,
    "repair": render_training,
}


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Makes report.html and figures/*.png out of a run's records, in place of those there.

    The same records give the same bytes, in whatever order they were made. Figures that an earlier
    report left and this one does not have are removed.

    Args:
      folder: the output folder of a sweep, a quality run, a frontier, gates or a repair.

    Returns:
      the path of report.html, which needs no other file.

    Raises:
      InputError: where the folder holds no records, or those of an experiment that has no report,
        or the report cannot be written to it.
    """
    folder = Path(folder)
    specification, records = read_records(folder)
    experiment = specification.get("experiment", "sweep")
    if experiment not in _RENDERERS:
        raise InputError(
            f"{folder} holds the records of experiments.{experiment}; reports are made of "
            f"{' and '.join(f'experiments.{name}' for name in _RENDERERS)}"
        )
    if not records:
        raise InputError(
            f"{folder} holds no records yet: run experiments.{experiment} into it first"
        )
    report, figures = folder / "report.html", folder / "figures"
    try:
        figures.mkdir(exist_ok=True)
        html, pictures = _RENDERERS[experiment](specification, records)
        for picture in pictures:
            replace_file(figures / f"{picture.name}.png", picture.png)
        names = {f"{picture.name}.png" for picture in pictures}
        for path in figures.glob("*.png"):
            if path.name not in names:
                path.unlink()
        replace_file(report, html.encode())
    except OSError as error:
        raise InputError(
            Problem(
                "output_dir",
                folder,
                f"the report cannot be written: {error.strerror or error}. Free space there or "
                "make it writable, and give the same command again; the records are there.",
            )
        ) from error
    return report
