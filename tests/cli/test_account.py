"""account from flags to records: compiled where there can be a program, by formula where not."""

import json

import pytest
import tiny
from masks import problems_of
from scripts import run_main

from sinkjax.models.hf_config import to_hf_config

ACCOUNT = "experiments.account"
MASK = "L0: 2f 2w(1,4)"
CONFIG = tiny.make(num_layers=1, num_heads=4, num_kv_heads=2, max_length=64).config


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    """A model's shape, without weights."""
    folder = tmp_path_factory.mktemp("shape")
    (folder / "config.json").write_text(json.dumps(to_hf_config(CONFIG)))
    return f"shape:{folder}"


def test_records_have_costs_memory_and_rows_by_chip_length_and_mask(shape, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    run_main(
        ACCOUNT,
        f"--model={shape}",
        f"--mask={MASK}",
        "--targets=cpu",
        "--lengths=32,128",
        "--memory=0.00013",
        f"--output={output}",
    )
    shown = capsys.readouterr().out
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(r["length"], r["program"]) for r in records] == [
        (length, program) for length in (32, 128) for program in ("baseline", MASK)
    ]
    for baseline, mask in (records[:2], records[2:]):
        whole, part = (record["stages"]["decode"]["cost"] for record in (baseline, mask))
        assert part["cache"] < whole["cache"]
        assert part["operations"] < whole["operations"]
    for record in records:
        peaks = [stage["fixed"] + stage["row"] for stage in record["stages"].values()]
        assert (record["largest_batches"]["prefill"] > 0) == (max(peaks) <= 130_000)
        assert record["largest_batches"]["decode"] >= record["largest_batches"]["prefill"]
    beyond = "the model is made for 64 tokens"
    assert [record["by_formula"] for record in records] == [None, None, beyond, beyond]
    assert f"(a) by formula: {beyond}" in shown
    assert "rows that fit in 130.0 kB" in shown


@pytest.mark.quick
def test_bad_flags_are_refused_together(shape):
    problems = problems_of(
        run_main,
        ACCOUNT,
        f"--model={shape}",
        "--targets=tpu:v99,cuda:a100",
        f"--lengths=0,{10**400}",
    )
    wanted = ("--mask: ", "--targets=tpu:v99: use one of", "--lengths=0: ", "--lengths=1000")
    for problem, part in zip(problems, (*wanted, "--memory: "), strict=True):
        assert problem.startswith(part)
    assert "cuda:a100 has" in problems[-1]
    twice = ("--targets=cpu,cpu", "--lengths=8,16,8")
    flags = (f"--model={shape}", f"--mask={MASK}", "--memory=1", *twice)
    wanted = tuple(f"{flag}: a value is there twice; give each once" for flag in twice)
    assert problems_of(run_main, ACCOUNT, *flags) == wanted
    for memory in ("-1", "nan", "1e+308"):  # of which a billion is no number
        flags = f"--model={shape}", f"--mask={MASK}", f"--memory={memory}"
        (problem,) = problems_of(run_main, ACCOUNT, *flags)
        assert problem.startswith(f"--memory={memory}: ")
