"""The timing script, as a user runs it."""

import json

import pytest
import tiny
from masks import problems_of
from scripts import run_main

from sinkjax.models.hf_config import to_hf_config
from sinkjax.studies.results import read_records

MASK = "L0: 3f 3w(1,4)"


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    """A folder with a config and nothing else."""
    folder = tmp_path_factory.mktemp("shape")
    config = tiny.make(num_layers=1).config
    (folder / "config.json").write_text(json.dumps(to_hf_config(config)))
    return f"shape:{folder}"


def test_a_shape_is_timed_with_random_weights(shape, tmp_path, capsys):
    arguments = [
        f"--model={shape}",
        f"--mask={MASK}",
        "--lengths=8",
        "--generated=3",
        "--rounds=2",
        "--warmup=1",
        "--steps_per_call=2",
        f"--output_dir={tmp_path / 'out'}",
        f"--google_benchmark={tmp_path / 'google.json'}",
    ]
    run_main("experiments.timing", *arguments)
    out = capsys.readouterr().out
    for part in (
        "prefill 1 x 8",
        "decode 1 x 8 + 3",
        "baseline to itself",
        "saved of",
        MASK,
    ):
        assert part in out, part
    records = read_records(tmp_path / "out")[1]
    assert [record["stage"] for record in records] == ["prefill", "decode"]
    google = json.loads((tmp_path / "google.json").read_text())
    assert len(google["benchmarks"]) == 2 * 3 * (2 + 4)

    run_main("experiments.timing", *arguments)  # all is there: nothing is timed again
    assert read_records(tmp_path / "out")[1] == records


def test_what_is_wrong_is_named_by_flag(shape, tmp_path):
    model = f"--model={shape}"
    for arguments, wanted in (
        (["--rounds=1", "--lengths=200"], ("--rounds=1", "--lengths=200: with")),
        (["--batch_sizes=two"], ("--batch_sizes: 'two' is no whole number",)),
        (["--mask=L0: 5f"], ("--mask=L0: 5f",)),
        (["--google_benchmark=/nowhere/at/all.json"], ("--google_benchmark=/nowhere",)),
        (["--google_benchmark=", "--profile="], ("--google_benchmark=: it has", "--profile=: it")),
        ([f"--google_benchmark={tmp_path}"], ("it exists and is not a file; give another",)),
        (["--google_benchmark=/dev/null"], ("it exists and is not a file; give another",)),
        (["--stages=decode", "--generated=0"], ("--generated=0: nothing is decoded",)),
        (["--batch_sizes=99999999999"], ("--batch_sizes=99999999999: give 1 or more",)),
        (["--model=shape:llama-9"], ("shape:llama-9: it is no known shape",)),
    ):
        problems = problems_of(
            run_main, "experiments.timing", model, *arguments, f"--output_dir={tmp_path}"
        )
        for part in wanted:
            assert any(part in problem for problem in problems), (part, problems)
