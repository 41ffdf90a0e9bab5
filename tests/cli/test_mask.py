"""Masks from a sweep's records, through the flags: against the scores that the sweep measured."""

import hf
import numpy as np
import pytest
from masks import counts_per_layer
from scripts import as_flags, run_main

import sinkjax
from sinkjax import InputError, SinkMask, load_mask
from sinkjax.studies.results import read_records

MASK, SWEEP = "experiments.mask", "experiments.sweep"
LENGTHS = (2, 4, 9)
L, N, K = 3, 6, 2


@pytest.fixture(scope="module")
def model(tmp_path_factory, small_tokenizer):
    """A random Llama of three layers, with a small tokenizer beside it."""
    folder = tmp_path_factory.mktemp("tiny")
    hf.save_llama(folder, vocab_size=len(small_tokenizer), initializer_range=0.5)
    small_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sweep(model, tmp_path_factory):
    """A sweep's folder: two sources, two definitions and two thresholds."""
    folder = tmp_path_factory.mktemp("sweep")
    words = "the sea was calm and the old man looked out over it for a long while"
    for name in ("a", "b"):
        rows = [
            " ".join(np.random.default_rng((ord(name), i)).permutation(words.split()))
            for i in range(5)
        ]
        (folder / f"{name}.txt").write_text("\n".join(rows))
    flags = {
        "model": model,
        "lengths": ",".join(map(str, LENGTHS)),
        "definitions": "mean,last",
        "thresholds": "0.3,0.5",
        "output_dir": folder / "out",
    }
    prompts = (f"--prompts={folder}/{name}.txt" for name in ("a", "b"))
    run_main(SWEEP, *as_flags(flags), *prompts)
    return folder / "out"


def cells(sweep, **fields):
    """Records by length; of the first of everything that is not named."""
    first = {"definition": "mean", "threshold": 0.3}
    wanted = {**first, **fields}
    source = wanted.pop("source", "a.txt")
    records = [
        record
        for record in read_records(sweep)[1]
        if record["kind"] == "cell"
        and record["source"]["name"] == source
        and wanted.items() <= record.items()
    ]
    return sorted(records, key=lambda record: record["length"])


def make(sweep, file, *arguments: str, **more):
    """Makes a mask and reads its file."""
    run(*arguments, **{"results": sweep, "mask_file": file, **more})
    return load_mask(file)


def run(*arguments: str, **flags):
    run_main(MASK, *as_flags(flags), *arguments)


def held(records, min_share: float) -> np.ndarray:
    """bool [L, N]: heads that are sinks in this share of the prompts of every record."""
    return np.all([np.array(r["result"]["per_head"]) >= min_share for r in records], axis=0)


def test_the_mask_holds_the_consistent_heads(sweep, tmp_path, capsys):
    saved = make(sweep, tmp_path / "m.json", min_share=0.6)
    chosen = held(cells(sweep), 0.6)
    assert 0 < chosen.sum() < L * N
    np.testing.assert_array_equal(saved.mask.masked, chosen)
    assert {str(path) for layer in saved.mask.heads for path in layer} == {"full", "sink(first)"}
    out = capsys.readouterr().out
    assert f"{chosen.sum()} of {L * N}" in out
    for layer in range(L):
        if chosen[layer].any():
            listed = ", ".join(map(str, chosen[layer].nonzero()[0]))
            row = next(line for line in out.splitlines() if line.split()[:1] == [str(layer)])
            assert f"{chosen[layer].sum()} of {N}" in row
            assert row.rstrip().endswith(listed)
    for name in ("m", "m.control"):
        assert f"{tmp_path}/{name}.json" in out
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_file_says_where_the_mask_came_from(sweep, model, tmp_path):
    made_from = make(sweep, tmp_path / "m.json", min_share=0.6, lengths="2,9").provenance
    records = [record for record in cells(sweep) if record["length"] != 4]
    assert made_from.model == str(model)
    assert made_from.model_digest == sinkjax.model_digest(sinkjax.load(model))
    assert made_from.tokenizer_digest == sinkjax.tokenizer_digest(sinkjax.load_tokenizer(model))
    assert (made_from.bos, made_from.text) == ("tokenizer", "a.txt")
    assert made_from.text_sha256 == records[0]["source"]["sha256"]
    assert (made_from.definition, made_from.threshold) == ("mean", 0.3)
    assert made_from.lengths == (2, 9)
    assert made_from.selection == {
        "by": "consistent",
        "min_share": 0.6,
        "unit": "head",
        "path": "s(first)",
        "records": [record["id"] for record in records],
    }


def test_every_flag_of_the_sweep_names_its_part(sweep, tmp_path):
    named = {"definitions": "last", "thresholds": 0.5, "lengths": "4", "min_share": 0.4}
    saved = make(sweep, tmp_path / "m.json", source="b.txt", **named, bos="tokenizer")
    part = cells(sweep, source="b.txt", definition="last", threshold=0.5)
    (cell,) = (record for record in part if record["length"] == 4)
    np.testing.assert_array_equal(saved.mask.masked, held([cell], 0.4))
    assert saved.provenance.text == "b.txt"


def test_whole_groups_alone_are_chosen_on_request(sweep, tmp_path):
    groups = held(cells(sweep), 0.2).reshape(L, K, -1).all(axis=-1)
    saved = make(sweep, tmp_path / "m.json", "--units=group", min_share=0.2)
    assert groups.any()
    np.testing.assert_array_equal(saved.mask.masked, np.repeat(groups, N // K, axis=1))
    control = load_mask(tmp_path / "m.control.json").mask
    assert control.group_counts(K)["mixed"] == 0
    assert control.group_counts(K) == saved.mask.group_counts(K)


def test_a_quantile_takes_the_heads_that_score_highest_at_their_lowest(sweep, tmp_path):
    lowest = np.min([record["result"]["mean_score"] for record in cells(sweep)], axis=0)
    saved = make(sweep, tmp_path / "m.json", quantile=0.75, paths="w(1,4)")
    chosen = saved.mask.masked
    assert chosen.sum() == round(L * N / 4)
    assert lowest[chosen].min() >= lowest[~chosen].max()
    assert saved.mask.counts()["window"] == chosen.sum()


def test_the_control_has_as_many_heads_a_layer_and_a_seed(sweep, tmp_path):
    masks = [make(sweep, tmp_path / f"{i}.json", quantile=0.5, seed=i).mask for i in (0, 1)]
    controls = [load_mask(tmp_path / f"{i}.control.json") for i in (0, 1)]
    assert masks[0] == masks[1]
    assert controls[0].mask != controls[1].mask
    for seed, control in enumerate(controls):
        assert counts_per_layer(control.mask) == counts_per_layer(masks[0])
        assert control.provenance.selection["seed"] == seed
        assert control.provenance.selection["control_of"] == masks[0].digest


def test_the_founding_studys_copies_come_from_the_first_layer(sweep, tmp_path):
    saved = make(sweep, tmp_path / "m.json", paths="copy_first_layer", quantile=0.3)
    chosen = make(sweep, tmp_path / "s.json", quantile=0.3).mask.masked
    assert saved.mask == SinkMask.copy_first_layer(chosen)
    control = load_mask(tmp_path / "m.control.json").mask
    assert counts_per_layer(control) == counts_per_layer(saved.mask)
    assert control == SinkMask.copy_first_layer(control.masked)


def test_the_file_is_in_the_sweeps_folder_where_none_is_named(sweep):
    run(results=sweep, quantile=0.5)
    assert load_mask(sweep / "mask.json").mask.masked.sum() == L * N // 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"results": "/nowhere"}, ["--results: /nowhere holds no"]),
        ({"source": "c"}, ["--source=c", "a.txt, b.txt"]),
        ({"model": "other"}, ["--model=other"]),
        ({"bos": "always"}, ["--bos=always", "tokenizer"]),
        ({"definitions": "tail"}, ["--definitions=tail", "mean, last", "sweep with it"]),
        ({"thresholds": 0.9}, ["--thresholds=0.9", "0.3, 0.5"]),
        ({"lengths": "2,5"}, ["--lengths=5", "2, 4, 9"]),
        ({"paths": "s(mean)"}, ["--paths=s(mean)", "calibrated means"]),
        ({"paths": "2s(zero)"}, ["--paths=2s(zero)", "copy_first_layer"]),
        ({"paths": "f"}, ["--paths=f"]),
        ({"quantile": 1}, ["no head is chosen at 2, 4, 9 tokens"]),
        (
            {"quantile": 2, "min_share": 0, "seed": -1, "mask_file": "x"},
            ["--quantile=2", "--min_share=0", "one of them", "--seed=-1", "--mask_file=x"],
        ),
    ],
)
def test_bad_flags_are_refused_and_nothing_is_written(more, said, sweep, tmp_path):
    with pytest.raises(InputError) as error:
        run(**{"results": sweep, "mask_file": tmp_path / "m.json", **more})
    for part in said:
        assert part in str(error.value)
    assert not list(tmp_path.iterdir())
