"""The written report: its files, that nothing but the records decides them, and odd sweeps."""

import base64
import html
import io
import random
import re
import subprocess
import sys
import warnings

import pytest
from PIL import Image
from runs import report_of

from sinkjax.errors import InputError
from sinkjax.studies.sweep.study import Sweep
from sinkjax.studies.sweep.tables import summary_tables

EMBEDDED = re.compile(r'src="data:image/png;base64,([A-Za-z0-9+/=]+)"')


def files_of(folder):
    """The report's files by name."""
    paths = [folder / "report.html", *sorted((folder / "figures").iterdir())]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_figures_are_png_that_decode_and_the_report_holds_all_of_them(report):
    figures = {path.name: path.read_bytes() for path in (report.parent / "figures").iterdir()}
    assert {name.split("-")[0] for name in figures} == {
        *("share", "definitions", "layer0", "sources", "source", "layers", "heads", "scores"),
        *("norms", "consistent"),
    }
    text = report.read_text()
    embedded = {base64.b64decode(content) for content in EMBEDDED.findall(text)}
    assert embedded == set(figures.values())
    for name, content in figures.items():
        assert f"figures/{name}" in text
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            assert image.format == "PNG"
            assert image.width > 1000
            assert len(image.getcolors(1 << 24)) > 10  # something is drawn
            assert not image.info  # neither date nor software, which would change the bytes


def test_the_report_loads_nothing_from_elsewhere(report):
    text = report.read_text()
    addresses = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\'\s>)]+)', text)
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert "<script" not in text
    assert "@import" not in text


def test_the_report_shows_what_the_terminal_shows(report, sweep):
    text = " ".join(html.unescape(report.read_text()).split())
    for table in summary_tables(*sweep):
        assert table.title in text
        for note in table.notes:
            assert note in text
        for row in table.rows:
            cells = r"</t[dh]>\s*<t[dh][^>]*>".join(map(re.escape, row))
            assert re.search(rf">{cells}<", text), row


def test_the_report_says_what_was_run(report, sweep):
    specification, records = sweep
    text = html.unescape(report.read_text())
    for model in specification["models"]:
        assert model["model_digest"] in text
        assert model["tokenizer_digest"] in text
    for source in specification["sources"]:
        assert source["sha256"] in text
        assert source["name"] in text
    for value in records[0]["environment"].values():
        assert f">{value or 'none'}<" in text


def test_the_same_records_in_another_order_give_the_same_bytes(report, sweep, save_sweep, tmp_path):
    specification, records = sweep
    shuffled = records.copy()
    random.Random(1).shuffle(shuffled)
    report_of(Sweep, save_sweep(tmp_path, specification, shuffled))
    assert files_of(tmp_path) == files_of(report.parent)


def test_an_earlier_report_of_fewer_records_leaves_no_trace(
    make_sweep, save_sweep, describe, tmp_path
):
    sources = [describe.source("short", (2, 8)), describe.source("other", (4,), digest="d")]
    whole = make_sweep(sources=sources, definitions=("mean",), num_prompts=3, study=False)
    specification, records = whole
    partly = [r for r in records if r["source"]["name"] == "short" and r["kind"] == "cell"]
    interrupted = save_sweep(tmp_path / "interrupted", specification, partly)
    text = report_of(Sweep, interrupted).read_text()
    assert "Not measured yet" not in text
    save_sweep(interrupted, specification, records)
    report_of(Sweep, interrupted)
    report_of(Sweep, save_sweep(tmp_path / "straight", *whole))
    assert files_of(interrupted) == files_of(tmp_path / "straight")


def test_hostile_names_are_text_and_nothing_else(make_sweep, save_sweep, describe, tmp_path):
    names = [
        "<script>alert(1)</script>\"'&.txt",
        "../../$x_{$ \\frac\n{{ 7 * 7 }} {% raw %}",
        "prompts of \U0001f600 \u6f22\u5b57 " + "long" * 60,
    ]
    sources = [describe.source(name, (2, 8), digest=str(index)) for index, name in enumerate(names)]
    models = [describe.model("<img src=x onerror=alert(2)>", 2, 2, 1)]
    sweep = make_sweep(
        models=models, sources=sources, definitions=("mean",), num_prompts=3, study=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of glyphs that the font does not have
        path = report_of(Sweep, save_sweep(tmp_path / "out", *sweep))
    text = path.read_text()
    assert "<script" not in text
    assert "<img src=x" not in text
    for name in (*names, models[0]["name"]):
        assert " ".join(name.split()) in " ".join(html.unescape(text).split())
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    figures = [entry.name for entry in (tmp_path / "out" / "figures").iterdir()]
    assert all(re.fullmatch(r"[a-z0-9._-]+\.png", name) for name in figures)
    assert len(set(EMBEDDED.findall(text))) == len(figures)


@pytest.mark.parametrize(
    "case",
    ["one layer", "one length", "one prompt", "key position", "many sources", "policies", "wide"],
)
def test_odd_sweeps_have_a_report(case, make_sweep, save_sweep, describe, tmp_path):
    small = {
        "models": [describe.model("m", 3, 4, 2)],
        "sources": [describe.source("a", (2, 8))],
        "definitions": ("mean",),
        "num_prompts": 3,
        "study": False,
    }
    source = describe.source
    changes = {
        "one layer": {"models": [describe.model("m", 1, 4, 4)], "study": True},
        "one length": {"sources": [source("a", (4,))], "definitions": ("log_odds", "excess")},
        "one prompt": {"num_prompts": 1},
        "key position": {"sources": [source("a", (8, 16))], "key_position": 3},
        "many sources": {"sources": [source(name, (2, 8), digest=name) for name in "abcde"]},
        "policies": {"bos": ("never", "tokenizer"), "thresholds": (0.3, 0.9)},
        "wide": {
            "models": [describe.model("m", 40, 64, 8)],
            "sources": [source("a", [2**n for n in range(1, 13)])],
        },
    }
    specification, records = make_sweep(**{**small, **changes[case]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = report_of(Sweep, save_sweep(tmp_path, specification, records))
    text = path.read_text()
    assert len(set(EMBEDDED.findall(text))) == len(list((tmp_path / "figures").iterdir()))
    assert not re.search(r">\s*(nan|None)\s*<", text)


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(InputError, match=re.escape(str(tmp_path))):
        report_of(Sweep, tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.fixture(scope="module")
def small_sweep(make_sweep, describe):
    sources, models = [describe.source("a", (2, 8))], [describe.model("m", 3, 4, 2)]
    return make_sweep(models=models, sources=sources, definitions=("mean",), study=False)


def test_a_folder_that_cannot_be_written_is_refused(small_sweep, save_sweep, tmp_path):
    save_sweep(tmp_path, *small_sweep)
    (tmp_path / "figures").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        report_of(Sweep, tmp_path)
    assert (tmp_path / "figures").read_text() == "in the way"


def test_a_full_disk_leaves_the_report_that_was_there(small_sweep, save_sweep, tmp_path):
    """A limit on a file's size stands in for the disk: figures fit under it, the HTML does not."""
    report_of(Sweep, save_sweep(tmp_path, *small_sweep))
    before = files_of(tmp_path)
    limit = max(len(content) for name, content in before.items() if name != "report.html") + 1
    assert limit < len(before["report.html"])
    code = (
        "import pathlib, resource, sys\n"
        "from sinkjax.errors import InputError\n"
        "from sinkjax.studies.study import write_report\n"
        "from sinkjax.studies.sweep.study import Sweep\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "try: write_report(Sweep, pathlib.Path(sys.argv[1]))\n"
        "except InputError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"output_dir={tmp_path}: the report cannot be written: File too large" in done.stdout
    assert files_of(tmp_path) == before
