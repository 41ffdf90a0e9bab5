"""What every study does in a terminal: plans, progress."""

from scripts import finish, start


def test_progress_in_a_file_has_no_codes_that_move_a_cursor(tiny, tmp_path):
    arguments = [f"--model={tiny}", "--lengths=2,4", "--num_prompts=2", "--nostudy"]
    process = start("experiments.sweep", *arguments, f"--output_dir={tmp_path / 'out'}")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "100%" in err
    assert "\x1b" not in out + err


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
