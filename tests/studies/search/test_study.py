"""A search from its flags to its records: on excerpts apart, through stops and bad input."""

import itertools
import pathlib

import numpy as np
import pytest
from losses import kl_of
from masks import is_part
from scripts import as_flags, run_main

import sinkjax
from sinkjax import InputError, SinkMask, load_mask, specialize
from sinkjax.cli.card import mask_card
from sinkjax.report.page import render_page
from sinkjax.studies import texts as inputs
from sinkjax.studies.results import Results, read_records
from sinkjax.studies.search.controls import CHOSEN, CONTROLS, RANDOM
from sinkjax.studies.search.saved import answer_lines
from sinkjax.studies.search.study import Search
from sinkjax.studies.search.tables import search_tables

SEARCH = "experiments.search"


def arguments(model, folder, text, **more):
    flags = {
        "model": model,
        "lengths": 24,
        "kl_budget": 0.3,
        "paths": "sink(mean),window(1,4),window(1,12)",
        "rank_excerpts": 2,
        "hold_excerpts": 3,
        "judge_excerpts": 4,
        "generated": 8,
        "control_draws": 2,
        "growth_rounds": 2,
        "tries": 3,
        "judge_text": text,
        "output_dir": folder,
        **more,
    }
    return as_flags(flags)


@pytest.fixture(scope="module")
def searched(tiny, other_text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "search"
    run_main(SEARCH, *arguments(tiny, folder, other_text))
    return folder


def test_the_masks_file_says_what_its_specialized_model_costs(searched, tiny, small_tokenizer):
    saved = load_mask(searched / "mask.json")
    model = sinkjax.load(tiny)
    assert saved.provenance.model_digest == sinkjax.model_digest(model)
    excerpts = inputs.read_text(inputs.CHOOSE, 9, 0).at_length(small_tokenizer, "tokenizer", 32)[5:]
    fast = specialize(model, saved.mask, fills=saved.fills)
    kl = kl_of(model(excerpts), fast(excerpts))
    own, other = saved.quality["quality"]
    np.testing.assert_allclose(own["kl"]["mean"]["value"], kl[:, 1:24].mean(), rtol=1e-3)
    np.testing.assert_allclose(own["kl_late"]["value"], kl[:, 18:24].mean(), rtol=1e-3)
    np.testing.assert_allclose(own["kl_generated"]["value"], kl[:, 24:].mean(), rtol=1e-3)
    late = [of_text["kl_late"]["value"] for of_text in (own, other)]
    assert saved.quality["texts"]["num_texts"] == 2
    assert saved.quality["texts"]["kl_late"]["each"] == late
    assert other["text"] == "other.txt"
    assert set(saved.quality["controls"]) == set(CONTROLS)
    assert saved.provenance.selection["held_kl"] <= 0.3 * 0.8
    assert saved.provenance.selection["budget_on"] == "largest"
    assert saved.provenance.selection["num_windows"] == [2, 3]


@pytest.fixture(scope="module")
def asking(roomy, other_text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "asking"
    more = {"lengths": 420, "tasks": "niah_prose,niah_single_1", "depths": "0.2,0.8"}
    counts = {"rank_questions": 1, "hold_questions": 2, "judge_questions": 3, "judge_excerpts": 1}
    ranked = {"growth_rounds": 1, "rank_excerpts": 1, "hold_excerpts": 1, "paths": "window(1,16)"}
    run_main(SEARCH, *arguments(roomy, folder, other_text, **more, **counts, **ranked))
    return folder


def test_other_things_are_asked_to_choose_than_to_judge(asking):
    specification, records = read_records(asking)
    (search,) = (record for record in records if record["kind"] == "search")
    asked = [record for record in records if record["kind"] == "retrieval"]
    judged = [record["tokens_sha256"] for record in asked]
    assert specification["judged_answers"] == judged[:8]
    assert not set(judged) & set(search["asked"]["held_sha256"])
    # Between 0, 0.2, 0.8 and 1, of two tasks, at two lengths; 105 tokens have no room.
    assert len(set(search["asked"]["held_sha256"])) == 2 * 6
    assert len(set(search["asked"]["ranked_sha256"])) == 2
    assert [r["candidate"]["name"] for r in asked] == [CHOSEN] * 8 + [f"{RANDOM[0]} 1"] * 4
    assert {r["source"]["name"] for r in asked if r["task"] == "niah_prose"} == {"other.txt"}
    saved = load_mask(asking / "mask.json")
    # A random model gives no answer back.
    assert search["result"]["nll_rises"] == [None] * 6
    assert search["result"]["asked_at"] == 420
    promises = saved.quality["retrieval"]
    assert [(of["length"], of["kept"]) for of in promises] == [(420, None), (210, None)]
    assert [len(of["asked"]) for of in promises] == [4, 4]
    assert "at random" not in str(promises)
    assert "NO ANSWER BORE ON THE CHOICE" in answer_lines(records)[-1]
    how = saved.provenance.selection["asked"]
    assert (how["tasks"], how["depths"]) == (["niah_prose", "niah_single_1"], [0.2, 0.8])
    assert how["searched_nll_budget"] == pytest.approx(0.08)
    made = mask_card("ada/mask", saved)
    assert "--tasks=niah_prose,niah_single_1" in made
    assert "--nll_budget=0.08" in made
    assert "At 420 tokens no promise is made of answers" in made


def test_controls_are_as_large_as_the_chosen_mask_and_judged_on_the_same_excerpts(searched):
    _, records = read_records(searched)
    quality = [record for record in records if record["kind"] == "quality"]
    random = [f"{name} {draw}" for name in RANDOM for draw in (1, 2)]
    names = [CHOSEN, *random, *CONTROLS[len(RANDOM) :]]
    assert [r["candidate"]["name"] for r in quality] == names * 2
    masks = {r["candidate"]["name"]: r["candidate"]["mask_digest"] for r in quality}
    assert len({masks[name] for name in random}) == 4
    widest = [r for r in quality if r["candidate"]["name"].startswith(RANDOM[1])]
    assert all(sum(c > 0 for c in r["candidate"]["heads"].values()) == 2 for r in widest)
    sizes = {r["candidate"]["heads"]["full"] for r in quality}
    assert len(sizes) == 1
    assert sizes.pop() < 12
    (search,) = (record for record in records if record["kind"] == "search")
    used = {search["ranking_sha256"], search["held_sha256"], *(r["tokens_sha256"] for r in quality)}
    assert len(used) == 4


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tiny, other_text, searched, tmp_path):
    steps = itertools.count()
    put = Results.put_arrays

    def stopping(self, name, /, **arrays):
        put(self, name, **arrays)
        if next(steps) in (3, 5):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Results, "put_arrays", stopping)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run_main(SEARCH, *arguments(tiny, tmp_path / "out", other_text))
        run_main(SEARCH, *arguments(tiny, tmp_path / "out", other_text))
    assert read_records(tmp_path / "out") == read_records(searched)
    whole = (searched / "mask.json").read_bytes()
    assert (tmp_path / "out" / "mask.json").read_bytes() == whole


def test_groups_move_as_a_whole(tiny, other_text, tmp_path, capsys):
    more = {"units": "group", "ranking": "error", "kl_budget": 1, "judge_excerpts": 2}
    run_main(SEARCH, *arguments(tiny, tmp_path, other_text, **more))
    mask = load_mask(tmp_path / "mask.json").mask
    assert mask.masked.any()
    groups = mask.group_counts(sinkjax.load_config(tiny).num_kv_heads)
    assert groups["mixed"] == 0
    assert "draws" in capsys.readouterr().out
    assert read_records(tmp_path)[0]["settings"]["by"] == "group"


def test_a_pruned_masks_heads_keep_their_paths_or_are_full(tiny, other_text, tmp_path):
    given = SinkMask.from_text("L0: 6w(1,4) | L1: 3w(1,12) 3s(first)")
    more = {"prune": given, "units": "group", "kl_budget": 1.5}
    more |= {"judge_excerpts": 1, "growth_rounds": 1}
    more |= {"control_draws": 1, "control_texts": 1}
    flags = arguments(tiny, tmp_path, other_text, **more)
    run_main(SEARCH, *(flag for flag in flags if not flag.startswith("--paths")))
    saved = load_mask(tmp_path / "mask.json")
    assert 0 < saved.mask.masked.sum() < given.masked.sum()
    assert is_part(saved.mask, given)
    chosen = saved.provenance.selection
    assert chosen["held_kl"] <= 1.2
    assert chosen["paths"] == ["window(1,4)", "window(1,12)", "sink(first)"]
    made = mask_card("ada/mask", saved)
    assert f"'--prune={given}'" in made
    assert "--paths" not in made
    _, records = read_records(tmp_path)
    ((whole, kl), *_) = records[0]["result"]["rounds"][0]["tried"]
    assert whole == 4  # all groups, first of all
    assert kl > 1.2
    names = [r["candidate"]["name"] for r in records if r["kind"] == "quality"]
    assert len(names) == 1 + len(CONTROLS) + 1
    assert names[-1] == CHOSEN  # on the second text alone


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        ("L0-1: 6f", "it masks no head"),
        ("L0: 6f | L1: 3c(0,1) 3f", "it has copy heads"),
        ("L0: w(1,4) 5f | L1: 6f", "not all of its key/value groups"),
        ("L0-2: 5f", "the mask is for 3 layers of 5 heads"),
        ("nothing.json", "cannot be read"),
        ("one.json,another.json", "cannot be read"),
    ],
)
def test_a_mask_that_cannot_be_pruned_is_refused(mask, why, tiny, other_text, tmp_path):
    flags = arguments(tiny, tmp_path / "out", other_text, prune=mask, units="group")
    with pytest.raises(InputError) as error:
        run_main(SEARCH, *(flag for flag in flags if not flag.startswith("--paths")))
    assert f"--prune={mask}" in str(error.value)
    assert why in str(error.value)


@pytest.fixture(scope="module")
def learned(tiny, other_text, tmp_path_factory):
    """Gates at 24 tokens."""
    folder = tmp_path_factory.mktemp("out") / "gates"
    flags = {"model": tiny, "choose_text": other_text, "lengths": 24, "paths": "window(1,4)"}
    sizes = {"choose_excerpts": 3, "judge_excerpts": 2, "steps": 3, "shares": 0.5}
    every = {**flags, **sizes, "output_dir": folder}
    run_main("experiments.gates", *as_flags(every))
    return folder


def test_the_lowest_gates_leave_first_and_their_text_is_not_judged_on(
    learned, tiny, other_text, tmp_path
):
    (gates,) = (
        np.array(record["result"]["gates"])
        for record in read_records(learned)[1]
        if record["kind"] == "training"
    )
    here = pathlib.Path(__file__)
    flags = arguments(tiny, tmp_path / "out", here, ranking="gates", gates=learned, kl_budget=0.6)
    flags.append(f"--choose_text={other_text}")
    none = [flag for flag in flags if not flag.startswith("--judge_text")]
    with pytest.raises(InputError) as error:
        run_main(SEARCH, *none, "--judge_text=")
    assert "--judge_text: the gates were trained on the text to choose on" in str(error.value)
    assert "--paths=sink(mean),window(1,4),window(1,12): the gates" in str(error.value)
    run_main(SEARCH, *flags, "--paths=window(1,4)")
    off = load_mask(tmp_path / "out" / "mask.json").mask.masked
    assert 0 < off.sum() < off.size
    assert gates[off].max() < gates[~off].min()
    quality = [r for r in read_records(tmp_path / "out")[1] if r["kind"] == "quality"]
    assert {r["source"]["name"] for r in quality} == {here.name}


BAD = {
    "path": ({"paths": "sink(some),full"}, ["sink(some)", "full", "sink(fill)"]),
    "budget": ({"kl_budget": 0}, ["--kl_budget=0"]),
    "endless": ({"kl_budget": "inf", "flops_per_byte": "inf"}, ["--kl_budget=inf", "--flops_per"]),
    "file": ({"mask_file": "mask.txt"}, ["--mask_file=mask.txt: let its name end in .json"]),
    "excerpts": (
        {"hold_excerpts": 0, "control_draws": 0},
        ["--hold_excerpts=0", "--control_draws=0"],
    ),
    "text": ({"lengths": 120, "judge_excerpts": 100}, ["other.txt has", "100 are wanted"]),
    "pruned": ({"prune": "L0-1: 6w(1,4)", "chips": 2}, ["give no paths", "for one chip"]),
    "no gates": ({"ranking": "gates"}, ["--gates: ranking=gates needs"]),
    "no folder": ({"ranking": "gates", "gates": ""}, ["--gates: folder=: a folder's name is"]),
    "error": ({"hold_questions": 1}, ["--hold_questions=1: give 2 or more"]),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_flags_are_refused_before_any_work(what, tiny, other_text, tmp_path):
    more, mentions = BAD[what]
    with pytest.raises(InputError) as error:
        run_main(SEARCH, *arguments(tiny, tmp_path / "out", other_text, **more))
    for mention in mentions:
        assert mention in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_page_holds_what_is_printed(searched):
    specification, records = read_records(searched)
    html, _ = render_page(Search.page(specification, records[::-1]))
    for table in search_tables(records):
        assert all(f">{cell}<" in html for row in table.rows for cell in row)
    assert "for the largest KL up to 0.2400, the budget less its margin" in html
