"""Makes a study's page out of its output folder, and writes it there."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sinkjax.errors import InputError
from sinkjax.report.page import Page
from sinkjax.report.records import Record
from sinkjax.report.write import write_page
from sinkjax.studies.copies.page import page as copies
from sinkjax.studies.frontier.page import page as frontier
from sinkjax.studies.predict.page import page as predict
from sinkjax.studies.quality.page import page as quality
from sinkjax.studies.results import read_records
from sinkjax.studies.search.page import page as search
from sinkjax.studies.sweep.page import page as sweep
from sinkjax.studies.timing.page import page as timing
from sinkjax.studies.training.page import page as training

PAGES: dict[str, Callable[[Mapping[str, Any], Sequence[Record]], Page]] = {
    "sweep": sweep,
    "predict": predict,
    "copies": copies,
    "search": search,
    "frontier": frontier,
    "gates": training,
    "repair": training,
    "quality": quality,
    "timing": timing,
}
"""By the name of a study, what makes its page of a specification and records in any order."""


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Makes report.html and figures/*.png out of a run's records, as `write_page` writes them.

    The same records give the same bytes, in whatever order they were made.

    Args:
      folder: the output folder of a study.

    Returns:
      the path of report.html, which needs no other file.

    Raises:
      InputError: where the folder holds no records, or those of an unknown study, or the report
        cannot be written to it.
    """
    folder = Path(folder)
    specification, records = read_records(folder)
    experiment = specification.get("experiment", "sweep")
    if experiment not in PAGES:
        raise InputError(
            f"{folder} holds the records of experiments.{experiment}; reports are made of "
            f"{' and '.join(f'experiments.{name}' for name in PAGES)}"
        )
    if not records:
        raise InputError(
            f"{folder} holds no records yet: run experiments.{experiment} into it first"
        )
    return write_page(folder, PAGES[experiment](specification, records))
