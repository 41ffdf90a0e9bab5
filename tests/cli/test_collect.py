"""What runs found of a mask, in its file: against the runs' records."""

import dataclasses

import numpy as np
import pytest
from scripts import as_flags, run_main

import sinkjax
from sinkjax import InputError, Provenance, SinkMask, load_mask, save_mask
from sinkjax.cli.card import mask_card
from sinkjax.cli.collect import collect
from sinkjax.studies.costs import PARTS
from sinkjax.studies.results import read_records

MASK = "L0: 6f | L1: 2s(mean) 2w(1,4) 2f"


def run(script, **flags):
    run_main(f"experiments.{script}", *as_flags(flags))


@pytest.fixture(scope="module")
def measured(roomy, tmp_path_factory, free_memory):
    """A folder with a mask's file and a run of each study with it; quality in both dtypes."""
    folder = tmp_path_factory.mktemp("measured")
    mask = folder / "mask.json"
    fills = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
    digest = sinkjax.model_digest(sinkjax.load(roomy))
    made_from = Provenance(model=str(roomy), model_digest=digest, lengths=(420,))
    said = {"controls": {"kept": []}}
    save_mask(mask, SinkMask.from_text(MASK), fills=fills, provenance=made_from, quality=said)
    same = {"model": roomy, "mask": mask}
    texts = {"lengths": 16, "num_excerpts": 2, "generated": 1, "continuation_tokens": 0}
    run("quality", **same, **texts, output_dir=folder / "quality")
    run("quality", **same, **texts, dtype="bfloat16", output_dir=folder / "bfloat16")
    asked = {"lengths": 420, "num_excerpts": 2, "tasks": "niah_prose", "depths": 0.5}
    run("retrieval", **same, **asked, output_dir=folder / "retrieval")
    sizes = {"lengths": 16, "generated": 1, "rounds": 2, "stages": "prefill"}
    free_memory()
    run("timing", **same, **sizes, output_dir=folder / "timing")
    return folder


def test_runs_are_added_to_a_masks_file(measured, tmp_path, capsys):
    names = ("quality", "bfloat16", "retrieval", "timing")
    folders = [f"--measured={measured / name}" for name in names]
    file = tmp_path / "whole.json"
    run_main("experiments.mask", f"--mask={measured}/mask.json", f"--mask_file={file}", *folders)
    assert (
        f"{file}, which says 2 of quality, 1 of retrieval, 1 of timing" in capsys.readouterr().out
    )
    before, saved = load_mask(measured / "mask.json"), load_mask(file)
    assert (saved.mask, saved.provenance) == (before.mask, before.provenance)
    np.testing.assert_array_equal(saved.fills, before.fills)
    assert saved.quality["controls"] == before.quality["controls"]
    records = {name: read_records(measured / name)[1] for name in names}
    means = {
        (record["length"], record["model"]["dtype"]): record["result"]["kl"]["mean"]
        for name in names[:2]
        for record in records[name]
    }
    rows = saved.quality["quality"]
    assert {
        (row["length"], row.get("dtype", "float32")): row["kl"]["mean"] for row in rows
    } == means
    (answers,) = saved.quality["retrieval"]
    own = [record for record in records["retrieval"] if "control_of" not in record["candidate"]]
    assert [of["depth"] for of in answers["asked"]] == [record["depth"] for record in own]
    assert answers["asked"][0]["nll_rise"] == own[0]["result"]["nll"]["change"]
    for row, record in zip(saved.quality["timing"], records["timing"], strict=True):
        program = record["result"]["programs"][record["candidates"][0]["name"]]
        assert row["ratio"] == program["ratio"]
        assert (row["stage"], row["batch_size"]) == (record["stage"], record["batch_size"])
    card = mask_card("ada/mask", saved)
    ratio = saved.quality["timing"][0]["ratio"]
    assert f"| prefill | 1 x 16 | {1 / ratio['value']:.2f} [" in card

    again = collect(saved, [str(measured / name) for name in names])
    assert again == saved.quality  # in place of what was there


def test_whether_a_budget_is_kept_is_told_of_what_is_added(measured):
    saved = load_mask(measured / "mask.json")
    said = {"kl_budget": 1e-9, "budget_on": "largest", "over_budget": [], "not_generated": ["x"]}
    quality = collect(dataclasses.replace(saved, quality=said), [str(measured / "quality")])
    (row,) = quality["quality"]
    over = {of["length"]: of["kl"]["value"] for of in quality["over_budget"]}
    assert over.pop(16) == max(row[part]["value"] for part in PARTS)
    assert over == {int(n): max(parts.values()) for n, parts in row["shorter"].items()}
    assert "not_generated" not in quality
    assert "texts" not in quality  # at the mask's own length

    roomier = said | {"kl_budget": 1e9}
    own = dataclasses.replace(saved.provenance, lengths=(16,))
    saved = dataclasses.replace(saved, quality=roomier, provenance=own)
    quality = collect(saved, [str(measured / "quality"), str(measured / "bfloat16")])
    assert quality["over_budget"] == []
    assert len(quality["quality"]) == 2
    assert quality["texts"]["num_texts"] == 1  # in float32


def test_other_questions_of_the_same_length_are_kept_beside(measured):
    saved = load_mask(measured / "mask.json")
    folder = str(measured / "retrieval")
    once = collect(saved, [folder])
    (promised,) = once["retrieval"]
    other = {**promised, "asked": [{**promised["asked"][0], "depth": 0.25}]}
    kept = collect(dataclasses.replace(saved, quality={"retrieval": [other]}), [folder])
    assert kept["retrieval"] == [other, promised]


def test_runs_of_other_masks_and_models_are_refused(measured, tmp_path):
    saved = load_mask(measured / "mask.json")
    other = tmp_path / "other.json"
    save_mask(other, SinkMask.from_text("L0-1: 6w(1,4)"), provenance=saved.provenance)
    with pytest.raises(InputError, match="nothing of this mask"):
        collect(load_mask(other), [str(measured / "quality")])
    strange = Provenance(model="x", model_digest="0" * 64)
    save_mask(other, saved.mask, provenance=strange, fills=saved.fills)
    with pytest.raises(InputError, match="the mask's has digest 0000"):
        collect(load_mask(other), [str(measured / "timing")])
    with pytest.raises(InputError, match="measured"):
        collect(saved, [str(tmp_path)])


@pytest.mark.parametrize("kind", ["quality", "retrieval", "timing"])
@pytest.mark.parametrize("said", ["good", {"kl": 0.1}, [0.1]])
def test_what_a_user_said_in_the_place_of_measurements_is_refused(measured, tmp_path, kind, said):
    save_mask(tmp_path / "mask.json", SinkMask.from_text("L0-1: 6f"), quality={kind: said})
    with pytest.raises(InputError, match=f"what the mask's file has as {kind} is no list of them"):
        collect(load_mask(tmp_path / "mask.json"), [str(measured / "quality")])


@pytest.mark.parametrize(
    ("said", "selection"),
    [
        ({"quality": [{"kl": 1}], "budget_on": "mean"}, {}),
        ({"budget_on": "mean"}, {}),
        ({"quality": [{"length": [1]}]}, {}),
        ({}, {"asked": "all"}),
    ],
)
def test_a_file_that_says_other_things_of_its_mask_is_refused(measured, said, selection):
    saved = load_mask(measured / "mask.json")
    made_from = dataclasses.replace(saved.provenance, selection=selection)
    with pytest.raises(InputError, match=r"the mask's file has not what .*: save the mask again"):
        collect(
            dataclasses.replace(saved, quality=said, provenance=made_from),
            [str(measured / "quality")],
        )


def test_a_name_alone_is_no_file_to_write_into(measured):
    with pytest.raises(InputError, match="--mask_file: name a file"):
        run("mask", mask="smollm2-135m-512", measured=measured / "quality")
