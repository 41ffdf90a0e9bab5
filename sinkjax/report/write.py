"""Writes a sweep's report into its folder."""

import os
from pathlib import Path

from sinkjax.errors import InputError
from sinkjax.files import replace_file
from sinkjax.report.html import render
from sinkjax.report.records import arrange
from sinkjax.results import read_records


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Makes report.html and figures/*.png out of a sweep's records, in place of those there.

    The same records give the same bytes, in whatever order they were made. Figures that an earlier
    report left and this one does not have are removed.

    Args:
      folder: the sweep's --output_dir.

    Returns:
      the path of report.html, which needs no other file.

    Raises:
      InputError: where the folder holds no records, or the report cannot be written to it.
    """
    folder = Path(folder)
    sweep = arrange(*read_records(folder))
    if not sweep.num_records:
        raise InputError(
            f"{folder} holds no records yet: run the sweep with --output_dir={folder} first"
        )
    report, figures = folder / "report.html", folder / "figures"
    try:
        figures.mkdir(exist_ok=True)
        html, pictures = render(sweep)
        for picture in pictures:
            replace_file(figures / f"{picture.name}.png", picture.png)
        names = {f"{picture.name}.png" for picture in pictures}
        for path in figures.glob("*.png"):
            if path.name not in names:
                path.unlink()
        replace_file(report, html.encode())
    except OSError as error:
        raise InputError(
            f"--output_dir: the report cannot be written to {folder}: {error.strerror or error}. "
            "Free space there or make it writable, and give the same command again; the records "
            "are there."
        ) from error
    return report
