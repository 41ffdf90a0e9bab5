"""What every study does in a terminal: plans, progress."""

import pytest
from scripts import finish, run_main, start

from sinkjax import InputError
from sinkjax.cli.study import _bar
from sinkjax.studies.study import Size


def test_progress_in_a_file_has_no_codes_that_move_a_cursor(tiny, tmp_path):
    arguments = [f"--model={tiny}", "--lengths=2,4", "--num_prompts=2", "--nostudy"]
    process = start("experiments.sweep", *arguments, f"--output_dir={tmp_path / 'out'}")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "100%" in err
    assert "\x1b" not in out + err


def test_a_masks_text_does_not_fill_the_terminal(capsys):
    with _bar(Size(1, 1, 0)) as show:
        show("niah_prose under L0: " + "2w(4,64+L/8) " * 99, 1, 1)
    shown = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert "1/1 records, niah_prose under" in shown[-1]
    assert max(map(len, shown)) < 160


def test_a_dry_run_says_how_much_there_is_and_measures_nothing(tiny, tmp_path):
    out = finish(
        "experiments.copies",
        f"--model={tiny}",
        "--lengths=8",
        "--choose_excerpts=2",
        "--judge_excerpts=3",
        "--shares=0.5",
        "--dry_run",
        f"--output_dir={tmp_path / 'out'}",
    )
    assert "copies: nothing run" in out
    masks = 6 + 2 * 5  # chosen ones, and five draws of the two that are drawn
    assert f"{2 * 8 + masks * 3 * 8:,}" in out  # excerpts to fit on, and masks on those to judge
    assert not (tmp_path / "out").exists()


def test_a_folder_with_somebody_elses_page_is_refused_before_a_weight_is_read(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr("sinkjax.studies.subject.load_model", lambda: None)
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(InputError, match=r"report.html is there and was not written by an earlier"):
        run_main("experiments.sweep", f"--model={tiny}", f"--output_dir={tmp_path}", "--lengths=2")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
