"""Pages in folders: what is theirs is replaced, and nothing else is touched."""

import re

import pytest

from sinkjax.errors import InputError
from sinkjax.files import replace_file
from sinkjax.report.page import Folded, Page, Picture, Section
from sinkjax.report.write import write_page

FOREIGN = b"\x89PNG of somebody else"


def page(*names):
    pictures = [Picture(name, name.encode(), (1, 1), "alt", "caption") for name in names]
    return Page("sweep", "Title", "Lede.", (), [Section("A", [Folded("all", pictures)])])


def figures(folder):
    return {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}


def forget(folder):
    """Leaves the folder as version 0.1.0 did: without a list."""
    (folder / ".report").unlink()


def test_figures_of_the_same_name_are_told_apart(tmp_path):
    write_page(tmp_path, page("a", "b", "a"))
    text = (tmp_path / "report.html").read_text()
    assert figures(tmp_path) == {"a.png": b"a", "b.png": b"b", "a-2.png": b"a"}
    captioned = re.findall(r"figures/([^<]*)</span>", text)
    assert captioned == ["a.png", "b.png", "a-2.png"]


@pytest.mark.parametrize("listed", [True, False])
def test_the_next_report_removes_its_own_figures_alone(tmp_path, listed):
    write_page(tmp_path, page("a", "b"))
    if not listed:
        forget(tmp_path)
    (tmp_path / "figures" / "mine.png").write_bytes(FOREIGN)
    write_page(tmp_path, page("b", "c"))
    assert figures(tmp_path) == {"b.png": b"b", "c.png": b"c", "mine.png": FOREIGN}
    assert (tmp_path / ".report").read_text() == "b.png\nc.png\n"


@pytest.mark.parametrize("name", ["report.html", "figures/a.png"])
@pytest.mark.parametrize("first", [True, False])
def test_what_somebody_else_put_in_the_place_of_a_file_is_left_there(tmp_path, name, first):
    if not first:
        write_page(tmp_path, page("b"))
    before = figures(tmp_path) if not first else {}
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(FOREIGN)
    with pytest.raises(InputError, match=rf"{re.escape(str(path))} is there .* Move it away"):
        write_page(tmp_path, page("a"))
    assert path.read_bytes() == FOREIGN
    for figure, content in before.items():
        assert (tmp_path / "figures" / figure).read_bytes() == content


def test_a_list_that_was_edited_reaches_nothing_outside_of_the_figures(tmp_path):
    write_page(tmp_path, page("a"))
    (tmp_path / "mine.png").write_bytes(FOREIGN)
    (tmp_path / ".report").write_text("a.png\n../mine.png\n")
    write_page(tmp_path, page("a"))
    assert (tmp_path / "mine.png").read_bytes() == FOREIGN


def test_a_report_that_was_killed_between_its_figures_goes_on(tmp_path, monkeypatch):
    write_page(tmp_path, page("a", "b"))

    def kill(path, content):
        if path.name == "d.png":
            raise KeyboardInterrupt
        replace_file(path, content)

    with monkeypatch.context() as patched:
        patched.setattr("sinkjax.report.write.replace_file", kill)
        with pytest.raises(KeyboardInterrupt):
            write_page(tmp_path, page("c", "d"))
    assert figures(tmp_path).keys() == {"a.png", "b.png", "c.png"}
    write_page(tmp_path, page("d"))
    assert figures(tmp_path) == {"d.png": b"d"}
