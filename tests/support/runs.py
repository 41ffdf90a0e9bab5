"""A run's folder with three records, and what is read and made from one."""

import pathlib
from typing import Any

from sinkjax.studies.results import Results, read_records

SPECIFICATION = {"models": ["tiny"], "lengths": [2, 4], "thresholds": [0.9]}


def record(number: int, **more: Any) -> dict[str, Any]:
    return {"id": f"id{number}", "number": number, **more}


def make(folder: pathlib.Path) -> pathlib.Path:
    """Writes the run's folder into another."""
    with Results(folder / "sweep", SPECIFICATION) as results:
        for number in range(3):
            results.append(record(number))
    return folder / "sweep"


def without_digests(folder: pathlib.Path) -> pathlib.Path:
    """Makes it one of a version that kept no digests."""
    (folder / "records.sha256").unlink()
    return folder


def numbers(folder: pathlib.Path) -> list[int]:
    return [each["number"] for each in read_records(folder)[1]]


def report_of(study: type, folder: pathlib.Path) -> pathlib.Path:
    """The report of a run of the study, made anew out of its records."""
    from sinkjax.studies.study import write_report  # slow to import

    write_report(study, folder)
    return folder / "report.html"
