"""Shipped plans: found by name from any folder, of shipped masks, going on in the baseline."""

import dataclasses
import json

import numpy as np
import pytest
from masks import CONFIG

from sinkjax import InputError, SinkMask, load_mask, save_mask, shipped
from sinkjax.models.shapes import SHAPES
from sinkjax.studies.candidates import Candidate, candidates, read_masks, read_plan

SMOLLM2 = SHAPES["smollm2-135m"]


@pytest.mark.parametrize("name", ["smollm2-135m-10-sinks"])  # none is ever to go
def test_names_of_shipped_plans_stay(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan, files = read_plan(name, SMOLLM2)
    assert read_plan(f"configs/plans/{name}.json", SMOLLM2)[0] == plan
    saved = load_mask(name)
    assert plan.mask(2) == plan.mask(10) == saved.mask
    assert plan.mask(11) == SinkMask.from_text("L0-29: 9f")
    assert plan.crossing == "prefill"
    assert {mask: of.digest for mask, of in files.items()} == {saved.mask: saved.digest}


def test_the_shipped_windows_grow_from_one_shipped_mask_to_another():
    plan, files = read_plan("smollm2-135m-windows", SMOLLM2)
    assert [stage.up_to for stage in plan.stages] == [512, 1024, 2048, None]
    assert plan.mask(512) == load_mask("smollm2-135m-512").mask
    assert plan.mask(2048) == load_mask("smollm2-135m-2048").mask
    assert plan.mask(2049) == SinkMask.from_text("L0-29: 9f")
    assert not files


def test_an_unknown_plan_is_refused_with_those_there_are():
    with pytest.raises(InputError) as refused:
        read_plan("smollm2-135m-10", SMOLLM2)
    assert all(name in str(refused.value) for name in shipped.names("plans", ".json"))


@pytest.mark.parametrize("stage", ["mean.json", "L0-3: 6s(mean)", "L0: 6f"])
def test_a_plan_for_another_model_is_refused_before_anything_is_measured(stage, tmp_path):
    """Of fills of another size, without fills, of another shape."""
    mask = SinkMask.from_text("L0-3: 6s(mean)")
    save_mask(tmp_path / "mean.json", mask, fills=np.zeros((4, 6, CONFIG.head_dim + 1), np.float32))
    stages = [{"up_to": None, "mask": stage}]
    (tmp_path / "plan.json").write_text(json.dumps({"crossing": "stay", "stages": stages}))
    with pytest.raises(InputError, match=r"plan.json: .*(fills are for|calibrated|is for 1 layer)"):
        candidates([], [str(tmp_path / "plan.json")], CONFIG, [8])


@pytest.mark.parametrize("value", ["", "smollm2-135m-512,", ",smollm2-135m-512"])
def test_a_mask_without_a_name_is_refused_as_such(value):
    with pytest.raises(InputError, match="mask=: it is empty: give files, or names of shipped"):
        candidates([value], [], dataclasses.replace(CONFIG, num_layers=30, num_heads=9), [8])


def test_a_masks_text_may_have_windows_that_grow_with_the_length():
    rest = "L1-3: 6f"
    text = f"L0: 5f w(4,32+L/16) | {rest}"
    (named,) = candidates([text], [], CONFIG, [2048, 512])
    assert {n: str(mask) for n, mask in named.masks.items()} == {
        2048: f"L0: 5f w(4,160) | {rest}",
        512: f"L0: 5f w(4,64) | {rest}",
    }
    assert named.describe(512)["mask_digest"] != named.describe(2048)["mask_digest"]
    assert named.serving(512, 64) == [(named.masks[512], 512, 576)]
    (alone,) = candidates([text], [], CONFIG, [512])
    assert alone.plan is None
    assert Candidate.of_masks("one", {1: alone.masks[512], 2: alone.masks[512]}).plan is None


@pytest.mark.parametrize("text", ["L0:6f", "L1: 6f", "l0-3: 6f", "L0 : 6f"])
def test_what_was_to_be_a_masks_text_is_told_how_one_is_written(text):
    """It was looked for as a file of that name."""
    with pytest.raises(InputError, match=r"is no layer's heads: write it as|where L0 has to begin"):
        candidates([text], [], CONFIG, [8])


def test_a_text_that_is_broken_into_lines_has_its_name_in_one():
    text = "L0-14: 9f | L15-29: 9w(4,128)"
    (broken,) = read_masks([text.replace(" | ", " |\n  ")], SMOLLM2).items()
    assert broken == (text, (SinkMask.from_text(text), {}))
