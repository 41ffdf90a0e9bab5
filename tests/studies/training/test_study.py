"""What gates and repairs share as studies, from their scripts' flags on."""

import numpy as np
import pytest
from scripts import as_flags, run_main

from sinkjax import InputError, load_mask
from sinkjax.studies.repair.repair import load_repair
from sinkjax.studies.results import read_records


def arguments(model, folder, /, **more):
    flags = {
        "model": model,
        "lengths": "12",
        "choose_excerpts": 2,
        "judge_excerpts": 2,
        "steps": 2,
        "output_dir": folder,
        **more,
    }
    return as_flags(flags)


def test_gates_from_their_flags_to_masks(small, tmp_path, capsys):
    flags = arguments(
        small, tmp_path, paths="sink(mean)", units="group", shares="0.5", control_draws=1
    )
    run_main("experiments.gates", *flags)
    out = capsys.readouterr().out
    _, records = read_records(tmp_path)
    assert [record["kind"] for record in records] == ["training", "gates", "gates", "gates"]
    training, *judged = records
    assert not {"asked", "judged"} & training.keys()  # as versions without tasks wrote them
    assert np.shape(training["result"]["gates"]) == (2, 2)
    assert len(training["result"]["loss"]) == 2
    for record in judged:
        assert record["result"]["heads"]["sink"] == 6
        assert f"{record['result']['kl']['value']:.4f}" in out
    (png,) = (tmp_path / "figures").iterdir()
    assert png.read_bytes().startswith(b"\x89PNG")
    html = (tmp_path / "report.html").read_text()
    assert f"{judged[0]['result']['kl']['value']:.4f}" in html
    assert "data:image/png" in html
    saved = load_mask(tmp_path / "masks" / "gates-0.5.json")
    assert str(saved.mask) == judged[0]["result"]["mask"]
    assert saved.fills.any()
    assert saved.provenance.selection["method"] == "learned gates"
    run_main("experiments.gates", *flags)
    assert read_records(tmp_path)[1] == records

    repaired = arguments(small, tmp_path / "repair")
    run_main("experiments.repair", f"--mask={tmp_path / 'masks' / 'gates-0.5.json'}", *repaired)
    _, (_, before, after) = read_records(tmp_path / "repair")
    assert not before["repaired"]
    assert after["repaired"]
    # Both judge the same excerpts: by the selection above, by the specialized model here.
    kl = before["result"]["kl"]["value"]
    np.testing.assert_allclose(kl, judged[0]["result"]["kl"]["value"], rtol=1e-3)
    changes = load_repair(
        tmp_path / "repair" / "gates-0.5.json",
        mask_digest=saved.mask.digest,
        model_digest=saved.provenance.model_digest,
    )
    assert any(name.endswith("mean_bias") for name in changes)


BAD = {
    "path": ({"paths": "full"}, ["--paths=full"]),
    "paths": ({"paths": "sink(zero),sink(first)"}, ["give one path"]),
    "share": ({"shares": "1.5", "price": "-1"}, ["--shares=1.5", "--price=-1"]),
    "tasks": (
        {"train_on": "tasks", "judge_text": "", "nll_budget": 0},
        ["--tasks: train_on=tasks needs some", "--judge_text: give", "--nll_budget=0"],
    ),
    "lengths": ({"lengths": "8,12"}, ["--lengths=8,12"]),
    "steps": ({"steps": "0"}, ["steps=0"]),
    "endless": ({"price": "inf", "learning_rate": "inf"}, ["--price=inf", "_rate=inf"]),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_flags_are_refused_before_any_work(what, small, tmp_path):
    more, mentions = BAD[what]
    with pytest.raises(InputError) as error:
        run_main("experiments.gates", *arguments(small, tmp_path / "out", **more))
    for mention in mentions:
        assert mention in str(error.value)
    assert not (tmp_path / "out").exists()
