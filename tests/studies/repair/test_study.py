"""Settings of a repair that are refused; one from its flags on is in training/test_study.py."""

import pytest
from scripts import as_flags, run_main

from sinkjax import InputError

BAD = {
    "no mask": ({}, "--mask: it is missing"),
    "no heads": ({"mask": "L0-1: 6f"}, "--mask=L0-1: 6f: it masks no head"),
    "lengths": ({"mask": "L0-1: 6w(1,4)", "lengths": "8,12"}, "--lengths"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_flags_are_refused_before_any_work(what, small, tmp_path):
    more, mention = BAD[what]
    excerpts = {"choose_excerpts": 2, "judge_excerpts": 2, "steps": 2}
    folder = {"model": small, "output_dir": tmp_path / "out"}
    with pytest.raises(InputError) as error:
        run_main("experiments.repair", *as_flags({**folder, "lengths": 12, **excerpts, **more}))
    assert mention in str(error.value)
    assert not (tmp_path / "out").exists()
