"""Writes a page and its figures into a folder, and takes away nothing that is not its own."""

import re
from collections.abc import Set
from pathlib import Path

from sinkjax.errors import InputError, Problem
from sinkjax.files import replace_file
from sinkjax.report.page import Page, render_page

_LIST = ".report"
"""File that names the figures of the report beside it, one a line."""

_NOT_OURS = (
    "is there and was not written by an earlier report. Move it away, or give another folder."
)
_NOT_WRITABLE = (
    "Free space there or make it writable, and give the same command again; the records are there."
)
_OURS = '<p class="kicker">sinkjax '
_NAME = r"[a-z0-9._-]+\.png"


def check_folder(folder: Path, figures: Set[str] = frozenset()) -> None:
    """Checks that a page may be written into a folder, which need not be there yet.

    Args:
      figures: names of files that it needs beside report.html, and no earlier report wrote.

    Raises:
      InputError: where something that no report wrote has a name that the page needs.
    """
    if foreign := _foreign(folder, figures):
        raise InputError(*(_problem(folder, f"{path} {_NOT_OURS}") for path in foreign))


def write_page(folder: Path, page: Page) -> None:
    """Writes report.html and figures/*.png in place of those that an earlier report left.

    The same page gives the same bytes. Figures of the earlier report that this one does not have
    are removed; other files stay.

    Args:
      folder: which is there.

    Raises:
      InputError: where the folder holds something that no report wrote under a name that this one
        needs, or cannot be written.
    """
    html, pictures = render_page(page)
    figures = {f"{picture.name}.png": picture.png for picture in pictures}
    try:
        earlier = _earlier(folder)
        check_folder(folder, figures.keys() - earlier)
        (folder / "figures").mkdir(exist_ok=True)
        # What is listed may be replaced: a run that is killed here goes on later.
        _write_list(folder, earlier | figures.keys())
        for name, content in figures.items():
            replace_file(folder / "figures" / name, content)
        for name in earlier - figures.keys():
            (folder / "figures" / name).unlink(missing_ok=True)
        replace_file(folder / "report.html", html.encode())
        _write_list(folder, figures.keys())
    except OSError as error:
        reason = error.strerror or error
        raise InputError(_problem(folder, f"{reason}. {_NOT_WRITABLE}")) from error


def _problem(folder: Path, reason: str) -> Problem:
    return Problem("output_dir", folder, f"the report cannot be written: {reason}")


def _foreign(folder: Path, names: Set[str]) -> list[Path]:
    """What no report wrote, but stands in the place of this one's files."""
    report, figures = folder / "report.html", folder / "figures"
    foreign = sorted(figures / name for name in names if (figures / name).exists())
    if report.exists() and not _page(report):
        foreign.append(report)
    if figures.exists() and not figures.is_dir():
        foreign.append(figures)
    return foreign


def _page(report: Path) -> str:
    """The HTML of an earlier report; nothing where there is none, or it is something else."""
    html = report.read_bytes().decode(errors="replace") if report.is_file() else ""
    return html if _OURS in html else ""


def _earlier(folder: Path) -> set[str]:
    """Names of the figures of the report that the folder holds."""
    if (folder / _LIST).is_file():
        listed = (folder / _LIST).read_bytes().decode(errors="replace")
        return set(re.findall(rf"^{_NAME}$", listed, re.MULTILINE))
    # Version 0.1.0 left no list; its page names its figures.
    named = rf'<span class="file">figures/({_NAME})</span>'
    return set(re.findall(named, _page(folder / "report.html")))


def _write_list(folder: Path, names: Set[str]) -> None:
    replace_file(folder / _LIST, "".join(f"{name}\n" for name in sorted(names)).encode())
