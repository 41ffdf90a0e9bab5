"""Every study over a mesh of eight devices: the records of one device, and the same sizes refused.

Ten seconds a study, for two whole runs of each: the proof that all of them run over a mesh.
"""

import hf
import pytest
from alike import assert_same_results
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scripts import run_main

from sinkjax.errors import InputError
from sinkjax.studies.results import read_records

MASK = "--mask=L0: 2s(first) f 2s(first) f | L1: f 2w(1,4) f 2w(1,4)"
FEW = ("--choose_excerpts=3", "--judge_excerpts=3")
STUDIES = {
    "sweep": ("--lengths=2,9", "--num_prompts=3", "--thresholds=0.3"),
    "predict": (
        *("--lengths=2,4,9", "--held_out_lengths=4", "--thresholds=0.5", "--num_prompts=20"),
        "--definitions=mean",
    ),
    "copies": (*FEW, "--lengths=8", "--shares=0.3"),
    "search": (
        *("--lengths=24", "--kl_budget=0.3", "--paths=window(1,4)", "--rank_excerpts=2"),
        *("--hold_excerpts=3", "--judge_excerpts=3", "--generated=4", "--control_draws=1"),
        *("--rounds=2", "--tries=2"),
    ),
    "frontier": (*FEW, "--lengths=8", "--paths=8:window(1,4)", "--shares=0.5", "--saved=formula"),
    "gates": (*FEW, "--lengths=12", "--steps=2", "--rows=2", "--shares=0.5"),
    "repair": (*FEW, "--lengths=12", "--steps=2", "--rows=2", MASK),
    "quality": (MASK, "--lengths=12", "--num_excerpts=3", "--continuation_tokens=4"),
    "retrieval": (MASK, "--tasks=niah_prose", "--lengths=192", "--depths=0.5", "--num_excerpts=2"),
}
MESH, MESHES = "model:2,data:4", {"quality": "neurons:2,model:2,data:2"}
"""Of a study, and of one by itself whose programs take more kinds of calls than the others'."""


@pytest.fixture(scope="module")
def model(tmp_path_factory, small_tokenizer):
    """A random Llama with room for the task of retrieval.

    Its logits are small: a mesh sums in another order, and a KL's error grows with them.
    """
    folder = tmp_path_factory.mktemp("model")
    how = {"max_position_embeddings": 256, "initializer_range": 0.2}
    return hf.save_small(folder, small_tokenizer, **how)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_over_a_mesh_finds_what_it_finds_on_one_device(name, model, tmp_path, monkeypatch):
    monkeypatch.setattr(FigureCanvasAgg, "draw", FigureCanvasAgg.get_renderer)
    found, over = [], MESHES.get(name, MESH)
    for mesh in ([], [f"--mesh={over}"]):
        folder = tmp_path / f"over{len(mesh)}"
        run_main(
            f"experiments.{name}",
            f"--model={model}",
            *STUDIES[name],
            *mesh,
            f"--output_dir={folder}",
        )
        found.append(read_records(folder)[1])
    assert {record["environment"].get("mesh") for record in found[1]} == {over}
    assert_same_results(*found)


@pytest.mark.parametrize("name", [*STUDIES, "timing"])
def test_a_bad_mesh_is_refused_by_every_study(name, model, tmp_path):
    for mesh, text in {
        "model:4": "--mesh=model:4: model:4 does not divide 2 key/value heads; data:2",
        "model:2": "--mesh=model:2: it is of 2 devices and there are 8; data:8",
        "rows:8": "--mesh=rows:8: give auto, or sizes such as",
    }.items():
        flags = [f"--model={model}", f"--mesh={mesh}", f"--output_dir={tmp_path / 'none'}"]
        with pytest.raises(InputError) as error:
            run_main(f"experiments.{name}", *STUDIES.get(name, ()), *flags)
        assert text in str(error.value)
        assert not (tmp_path / "none").exists()
