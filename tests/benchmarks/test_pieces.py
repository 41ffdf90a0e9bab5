"""The benchmark of long prompts in pieces, on a model whose context they exceed."""

import json

import pytest
import tiny
from scripts import run_main

from sinkjax.models.hf_config import to_hf_config


@pytest.mark.parametrize("length", [5, 90])
def test_a_prompt_in_pieces_gives_the_logits_of_the_whole(length, tmp_path, capsys):
    config = tiny.make().config
    assert config.max_length < 90
    (tmp_path / "config.json").write_text(json.dumps(to_hf_config(config)))
    mask = "L0-2: 3w(2,9) 3s(first)"
    arguments = (f"--model=shape:{tmp_path}", f"--lengths={length}", "--piece=16", f"--mask={mask}")
    run_main("benchmarks.pieces", *arguments)
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.strip().startswith(f"{length} ")]
    assert [row[1] for row in rows] == ["baseline", "L0-2:"]
    for *_, difference, largest in rows:
        assert float(difference) < 1e-5 * float(largest)
