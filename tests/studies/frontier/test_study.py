"""The frontier from its flags to its page: every mask judged as what it is, at its own size."""

import numpy as np
import pytest
from losses import kl_of
from masks import counts_per_layer
from scripts import as_flags, run_main

import sinkjax
from sinkjax import InputError, SinkMask, specialize
from sinkjax.accounts.formulas import predict, total
from sinkjax.accounts.savings import Workload
from sinkjax.studies import texts as inputs
from sinkjax.studies.frontier.page import frontier_table
from sinkjax.studies.frontier.study import METHODS
from sinkjax.studies.results import Results, identity, read_records

FRONTIER = "experiments.frontier"
SHARES = (0.25, 0.75)
GATED = "L0: 6f | L1: s(mean) 5f"
TOO_LONG = {"lengths": "100", "paths": "100:sink(first)", "saved": "compiled"}


def arguments(model, folder, text, **more):
    flags = {
        "model": model,
        "judge_text": text,
        "lengths": "8,24",
        "paths": "8:sink(mean);24:sink(mean),window(1,6)",
        "shares": ",".join(map(str, SHARES)),
        "choose_excerpts": 2,
        "judge_excerpts": 3,
        "saved": "formula",
        "control_draws": 2,
        "output_dir": folder,
        **more,
    }
    return as_flags(flags)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """What a search at 24 tokens leaves behind."""
    folder = tmp_path_factory.mktemp("search")
    masks = ("L0: 3w(1,6) 3f | L1: 6f", "L0: 3w(1,6) 3f | L1: 5f s(mean)")
    with Results(folder, {"experiment": "search"}) as results:
        rounds = [{"mask": mask} for mask in masks]
        record = {"kind": "search", "length": 24, "result": {"rounds": rounds, "mask": masks[1]}}
        results.append({"id": identity(record), **record})
    return folder


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    """What gates at 8 tokens leave behind: a mask by them, and a control of theirs."""
    folder = tmp_path_factory.mktemp("gates")
    with Results(folder, {"experiment": "gates"}) as results:
        for method, mask in (("gates", GATED), ("random", "L0: 5f s(mean) | L1: 6f")):
            common = {"kind": "gates", "method": method, "path": "sink(mean)", "length": 8}
            record = {**common, "result": {"mask": mask}}
            results.append({"id": identity(record), **record})
    return folder


@pytest.fixture(scope="module")
def ran(tiny, other_text, searched, gated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "frontier"
    run_main(FRONTIER, *arguments(tiny, folder, other_text, searches=searched, gates=gated))
    return folder


def test_every_method_is_judged_at_every_size(ran):
    _, records = read_records(ran)
    ranked = [record for record in records if record["method"] in METHODS]
    assert len(ranked) == 3 * len(SHARES) * (len(METHODS) + 1)  # of the control two draws
    for record in ranked:
        mask = SinkMask.from_text(record["result"]["mask"])
        assert int(mask.masked.sum()) in (3, 9)
        paths = {str(path) for layer in mask.heads for path in layer}
        assert paths == {record["path"], "full"}
    searched = [record for record in records if record["method"] == "budget search"]
    assert [record["length"] for record in searched] == [24, 24]
    (gates,) = [record for record in records if record["method"] == "gates"]
    assert (gates["length"], gates["path"]) == (8, "sink(mean)")
    assert gates["result"]["mask"] == GATED
    assert gates["result"]["kl"]["value"] > 0
    own, *draws = (
        [
            SinkMask.from_text(r["result"]["mask"])
            for r in ranked
            if r["method"] == method and r.get("draw") == draw
        ]
        for method, draw in (("own error", None), ("random", 1), ("random", 2))
    )
    for control in draws:
        assert list(map(counts_per_layer, control)) == list(map(counts_per_layer, own))
    assert own != draws[0] != draws[1] != own


def test_a_kl_of_other_excerpts_than_the_tables_is_marked(ran):
    _, records = read_records(ran)
    own = [record for record in records if record["length"] == 8]
    copied = {**own[0], "method": "copy the best", "path": "copy", "record": "of copies"}
    elsewhere = {**copied, "source": {**own[0]["source"], "num_windows": 7}}
    for record, wanted in ((copied, "copy the best"), (elsewhere, "copy the best (a)")):
        table = frontier_table([*own, record])
        (row,) = (row for row in table.rows if row[1] == "copy")
        assert row[0] == wanted
        name = own[0]["source"]["name"]
        note = f"(a) the KL is of other excerpts: 7 excerpts of {name}"
        assert (note in table.notes) == (record is elsewhere)


def test_a_point_says_what_its_mask_costs_and_saves(ran, tiny, other_text, small_tokenizer):
    model = sinkjax.load(tiny)
    _, records = read_records(ran)
    (record, *_) = [r for r in records if (r["path"], r["method"]) == ("window(1,6)", "random")]
    mask = SinkMask.from_text(record["result"]["mask"])
    text = inputs.read_text(other_text, 3, 0)
    excerpts = text.at_length(small_tokenizer, "tokenizer", 24)[:3]
    kl = kl_of(model(excerpts), specialize(model, mask)(excerpts))[:, 1:]
    np.testing.assert_allclose(record["result"]["kl"]["value"], kl.mean(), rtol=1e-3)
    sizes = Workload(24).decode
    ours, its = (
        total(predict(model.config, m, sizes)) for m in (mask, SinkMask.full(model.config))
    )
    saved = record["result"]["saved"]
    assert saved["cache_bytes"] == pytest.approx(1 - ours.cache / its.cache)
    assert saved["decode_operations"] == pytest.approx(1 - ours.flops / its.flops)


def test_what_masks_save_is_read_from_their_programs(ran, tiny, other_text, tmp_path):
    small = {"lengths": "8", "paths": "8:sink(mean)", "shares": "0.75", "saved": "compiled"}
    run_main(FRONTIER, *arguments(tiny, tmp_path / "out", other_text, **small))
    compiled, formula = (
        {
            record["mask_digest"]: record["result"]["saved"]
            for record in read_records(folder)[1]
            if record["length"] == 8
        }
        for folder in (tmp_path / "out", ran)
    )
    assert len(compiled) > 1
    for digest, saved in compiled.items():
        assert saved["prefill_operations"] > 0
        assert saved == formula[digest]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "programs that each mask compiles into" in page


def test_over_chips_masks_are_even_and_what_is_saved_is_that_of_the_fullest(
    tiny, other_text, gated, tmp_path
):
    more = {"lengths": "8", "paths": "8:sink(mean)", "gates": gated, "chips": 2}
    run_main(FRONTIER, *arguments(tiny, tmp_path / "out", other_text, **more))
    _, records = read_records(tmp_path / "out")
    for record in records:
        mask = SinkMask.from_text(record["result"]["mask"])
        saved = record["result"]["saved"]["decode_operations"]
        assert record["chips"] == 2
        if record["method"] == "gates":  # of one head, for which the other chip would wait
            assert saved == 0 < mask.masked.sum()
        else:
            assert mask.balanced(2, 2) == mask
            assert saved > 0
            assert int(mask.masked.sum()) in (4, 8)  # a quarter, and three, in pairs
    assert "on the fullest of 2 chips" in (tmp_path / "out" / "report.html").read_text()


def test_the_page_shows_every_length_and_the_same_command_measures_nothing(
    ran, tiny, other_text, searched, gated, capsys
):
    before = {path: path.stat().st_mtime_ns for path in (ran / "measured").iterdir()}
    run_main(FRONTIER, *arguments(tiny, ran, other_text, searches=searched, gates=gated))
    assert before == {path: path.stat().st_mtime_ns for path in (ran / "measured").iterdir()}
    html = (ran / "report.html").read_text()
    assert html.count("data:image/png") == len(list((ran / "figures").glob("*.png"))) == 4
    for text in ("8 tokens", "24 tokens", "budget search", "sink score", "random"):
        assert text in html
    out = capsys.readouterr().out
    assert "budget search" in out
    _, records = read_records(ran)
    random = [r for r in records if (r["method"], r["path"]) == ("random", "window(1,6)")]
    for size in (3, 9):
        drawn = [r["result"]["kl_last"]["value"] for r in random if _masked(r) == size]
        assert len(drawn) == 2
        assert f"{np.mean(drawn):.4f}" in out


def _masked(record):
    return sum(record["result"]["heads"].values()) - record["result"]["heads"]["full"]


def test_masks_of_what_is_not_measured_are_refused(tiny, other_text, searched, tmp_path):
    more = {"lengths": "8", "shares": "0,0.5", "searches": searched}
    with pytest.raises(InputError) as error:
        run_main(FRONTIER, *arguments(tiny, tmp_path / "out", other_text, **more))
    assert "24 tokens" in str(error.value)
    assert "--shares=0:" in str(error.value)
    with pytest.raises(InputError, match=r"--lengths=100: .* saved=formula"):
        run_main(FRONTIER, *arguments(tiny, tmp_path / "out", other_text, **TOO_LONG))
    more = {"chips": 2, "copies": "results/copies"}
    with pytest.raises(InputError, match=r"--copies=results/copies: .* not balanced over chips"):
        run_main(FRONTIER, *arguments(tiny, tmp_path / "out", other_text, **more))
    with pytest.raises(InputError, match=r"--copies: folder=: a folder's name is needed"):
        run_main(FRONTIER, *arguments(tiny, tmp_path / "out", other_text, copies=""))
    with pytest.raises(InputError, match=r"--chips=4: 2 key/value heads"):
        run_main(FRONTIER, *arguments(tiny, tmp_path / "out", other_text, chips=4))
    with pytest.raises(InputError, match="512:window"):
        run_main(FRONTIER, *arguments(tiny, tmp_path / "out", other_text, paths="window(1,6)"))
