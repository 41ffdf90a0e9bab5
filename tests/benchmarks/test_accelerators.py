"""What compiled programs would ask of a chip, as a user asks for it."""

import importlib.util
import json

import pytest
import tiny
from masks import problems_of
from scripts import run_main

from sinkjax.models.hf_config import to_hf_config
from sinkjax.programs.targets import WITHOUT_TPU

SCRIPT = "benchmarks.accelerators"


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    """A folder with a config and nothing else."""
    folder = tmp_path_factory.mktemp("shape")
    config = tiny.make(num_layers=2, num_heads=4, max_length=128).config
    (folder / "config.json").write_text(json.dumps(to_hf_config(config)))
    return f"shape:{folder}"


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the extra targets-tpu")
def test_a_chips_least_time_is_shown_and_nothing_is_compiled_twice(
    shape, tmp_path, monkeypatch, capsys
):
    for variable, value in WITHOUT_TPU.items():
        monkeypatch.setenv(variable, value)
    arguments = [
        f"--model={shape}",
        "--mask=L0-1: 2f 2w(1,4)",
        "--targets=tpu:v5e",
        "--lengths=128",
        "--xla_lengths=",
        f"--output={tmp_path / 'out.jsonl'}",
    ]
    run_main(SCRIPT, *arguments)
    shown = capsys.readouterr().out
    for part in ("COMPUTED, NOT MEASURED", "prefill 128", "splash", "197.0 TFLOP/s", "2f 2w(1,4)"):
        assert part in shown
    assert "NOT COUNTED" not in shown
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(record["work"][-1], record["name"]) for record in records] == [
        (program, name) for program in ("baseline", "mask") for name in ("prefill 128", "decode")
    ]
    monkeypatch.setattr("sinkjax.compile", None)
    run_main(SCRIPT, *arguments)
    assert capsys.readouterr().out == shown
    (problem,) = problems_of(run_main, SCRIPT, *arguments[:1], "--mask=L0-1: 4f", *arguments[2:])
    assert "holds another model or mask" in problem


def test_an_unknown_chip_is_refused(shape):
    (problem,) = problems_of(run_main, SCRIPT, f"--model={shape}", "--targets=tpu:v99")
    assert problem == "--targets=tpu:v99: known are tpu:v5e, cuda:h100"
