"""Retrieval from its flags to its records, its table and its heat maps."""

import copy
import functools

import hf
import numpy as np
import pytest
from scripts import as_flags, run_main

import sinkjax
from sinkjax import InputError, SinkMask, compile, save_mask, specialize
from sinkjax.instruments.answers import score_answers
from sinkjax.instruments.tasks import ask, share_of_words
from sinkjax.report.page import render_page
from sinkjax.studies import texts
from sinkjax.studies.prompts import encode
from sinkjax.studies.results import read_records
from sinkjax.studies.retrieval.measure import FLOOR, summarize_answers
from sinkjax.studies.retrieval.page import heat_maps
from sinkjax.studies.retrieval.promise import promise, promise_line
from sinkjax.studies.retrieval.study import Retrieval
from sinkjax.studies.retrieval.tables import by_mask, retrieval_tables
from sinkjax.studies.search.study import Search

RETRIEVAL = "experiments.retrieval"
FULL, ZERO = "L0-1: 6f", "L0-1: 6s(zero)"
LENGTH, COUNT = 420, 3


@pytest.fixture(scope="module")
def mask_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("masks") / "means.json"
    fills = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
    save_mask(path, SinkMask.from_text("L0: 6f | L1: 2s(mean) 2w(1,4) 2f"), fills=fills)
    return path


def arguments(model, folder, /, **more):
    flags = {
        "model": model,
        "lengths": LENGTH,
        "num_excerpts": COUNT,
        "tasks": "niah_prose",
        "depths": "0.1,0.9",
        "output_dir": folder,
        **more,
    }
    return as_flags(flags)


@pytest.fixture(scope="module")
def measured(roomy, mask_file, tmp_path_factory):
    """A run's folder: of a mask's file with its control."""
    folder = tmp_path_factory.mktemp("out") / "retrieval"
    run_main(RETRIEVAL, *arguments(roomy, folder), f"--mask={mask_file}")
    return folder


def records_of(folder, **fields):
    return [r for r in read_records(folder)[1] if fields.items() <= r.items()]


def test_every_mask_and_control_is_asked_everything(measured, mask_file):
    names = [str(mask_file), f"{mask_file}, at random"]
    cells = [
        (record["candidate"]["name"], record["task"], record.get("depth"))
        for record in records_of(measured)
    ]
    assert cells == [(name, "niah_prose", depth) for name in names for depth in (0.1, 0.9)]
    mask, control = (records_of(measured)[n]["candidate"] for n in (0, 2))
    assert control["control_of"] == mask["name"]
    assert control["heads"] == mask["heads"]
    assert control["mask_digest"] != mask["mask_digest"]


def test_the_baseline_answers_once_for_all_masks(measured):
    """Of two sets of questions: under the baseline, mask and control."""
    kept = [tuple(np.load(path).files) for path in (measured / "measured").glob("*.npz")]
    assert kept.count(("nll", "given_back")) == 2 * 3
    assert kept.count(("fills",)) == 1  # of the control, which has means on heads of its own


def test_a_mask_of_full_heads_is_the_baseline_and_answers_with_it(roomy, tmp_path):
    more = {"tasks": "niah_prose,fwe", "depths": 0.5, "control_draws": 0}
    run_main(RETRIEVAL, *arguments(roomy, tmp_path, **more), f"--mask={FULL}")
    changes = [record["result"]["nll"]["change"]["value"] for record in records_of(tmp_path)]
    assert changes == [0, 0]
    kept = [tuple(np.load(path).files) for path in (tmp_path / "measured").glob("*.npz")]
    assert sorted(kept) == [("nll", "given_back")] * 2 + [("tokens",)]


@pytest.fixture(scope="module")
def listed(roomy, tmp_path_factory):
    """A run's folder: of a list, under a mask without control."""
    folder = tmp_path_factory.mktemp("out") / "lists"
    flags = arguments(roomy, folder, tasks="fwe", control_draws=0)
    run_main(RETRIEVAL, *flags, f"--mask={ZERO}")
    return folder


def test_the_last_lines_say_whether_each_mask_keeps_its_baselines_answers(
    measured, roomy, mask_file, run
):
    study = Retrieval(
        model=str(roomy), mask=(str(mask_file),), lengths=(LENGTH,), num_excerpts=COUNT
    )
    assert (
        study.closing("", records_of(measured))
        == [  # of the mask, and not of its control
            f"{mask_file}: {promise_line(promise(records_of(measured)[:2]))}"
        ]
    )

    def line(lost):
        result = drawn(1 - lost / 30, count=30)
        asked = [
            {**run[1][0], "depth": depth, "num_windows": 30, "result": result}
            for depth in (0.1, 0.5, 0.9)
        ]
        (line,) = study.closing("", asked)
        return line

    assert line(0).startswith(
        f"{mask_file}: At {LENGTH} tokens the mask keeps the baseline's answers: 0 of 90 answers "
        "lost, all depths together (4.0% at most)"
    )
    assert "DOES NOT KEEP the baseline's answers: 3 of 90" in line(1)


def test_lists_are_searched_in_what_the_model_writes(listed, roomy, small_tokenizer):
    encoder = functools.partial(encode, small_tokenizer, bos="tokenizer")
    questions = ask(encoder, "fwe", LENGTH, count=COUNT, seed=0)
    model = sinkjax.load(roomy)
    masked = specialize(model, SinkMask.from_text(ZERO))
    (record,) = records_of(listed)
    assert "depth" not in record
    for name, of in (("baseline", model), ("candidate", masked)):
        program = compile(of, batch_size=COUNT, prefill_lengths=[LENGTH], max_length=LENGTH)
        written = program.generate(questions.prompts(), max_new_tokens=questions.new_tokens)
        shares = [
            share_of_words(small_tokenizer.decode(tokens), words)
            for tokens, words in zip(written, questions.answers, strict=True)
        ]
        assert record["result"]["per_excerpt"][name]["accuracy"] == shares
    nll = score_answers(model, questions)["nll"]
    np.testing.assert_allclose(record["result"]["per_excerpt"]["baseline"]["nll"], nll, rtol=1e-5)


def test_the_terminal_shows_what_the_records_say_and_nothing_is_measured_again(
    measured, roomy, mask_file, capsys
):
    before = {path: path.stat().st_mtime_ns for path in (measured / "measured").iterdir()}
    run_main(RETRIEVAL, *arguments(roomy, measured), f"--mask={mask_file}")
    assert before == {path: path.stat().st_mtime_ns for path in (measured / "measured").iterdir()}
    out = capsys.readouterr().out
    for record in records_of(measured):
        assert f"{record['result']['nll']['baseline']['value']:.2f}" in out
    assert f"n = {COUNT} excerpts" in out
    assert "says nothing: the baseline itself is below 80%" in out
    page = (measured / "report.html").read_text()
    for table in retrieval_tables(records_of(measured)):
        assert all(f">{cell}<" in page for row in table.rows for cell in row)
    assert len(list((measured / "figures").glob("*.png"))) == 1


def test_lengths_without_room_are_left_out_and_said(roomy, tmp_path, capsys):
    more = {"lengths": f"60,{LENGTH}", "tasks": "niah_single_1", "control_draws": 0}
    run_main(RETRIEVAL, *arguments(roomy, tmp_path, **more), f"--mask={FULL}")
    records = records_of(tmp_path)
    assert {record["length"] for record in records} == {LENGTH}
    for record in records:  # the mask is the baseline's own
        assert record["result"]["accuracy"]["change"]["value"] == 0
        assert record["result"]["nll"]["change"]["value"] == 0
    assert "niah_single_1 is not asked in 60 tokens: no room." in capsys.readouterr().out


def drawn(accuracy, baseline=1.0, count=20, nll=1.0):
    """A result in which the models are right in these shares."""
    right = np.arange(count) / count
    models = (
        {"accuracy": (right < share).astype(float), "nll": np.full(count, value)}
        for share, value in ((baseline, 1.0), (accuracy, nll))
    )
    return summarize_answers(*models, np.full(count, 8), seed=0)


def test_changes_are_paired_and_cells_below_the_floor_say_nothing():
    result = drawn(0.5, 0.9, nll=3.5)
    assert result["accuracy"]["baseline"]["value"] == 0.9
    assert result["accuracy"]["candidate"]["value"] == 0.5
    assert result["accuracy"]["change"]["value"] == pytest.approx(-0.4)
    assert result["nll"]["change"]["value"] == 2.5
    assert drawn(0.1, FLOOR)["says_something"] is True
    assert drawn(1.0, FLOOR - 0.05)["says_something"] is False
    # Exactly the floor, and 0.7999999999999999 as a mean of floats.
    fifths = {"accuracy": np.array([1.0, 0.8, 0.6]), "nll": np.ones(3)}
    assert summarize_answers(fifths, fifths, np.full(3, 8), seed=0)["says_something"] is True


@pytest.fixture
def run(measured, listed):
    """The run's specification and records of a mask, with drawn results at two lengths."""
    specification, records = copy.deepcopy(read_records(measured))
    records = [r for r in records if "control_of" not in r["candidate"]]
    (of_list,) = copy.deepcopy(records_of(listed))
    records.append({**of_list, "candidate": records[0]["candidate"]})
    results = [drawn(0.25), drawn(1.0), drawn(0.35, 0.5)]
    for record, result in zip(records, results, strict=True):
        record["result"] = result
    longer = [{**record, "length": 2 * LENGTH} for record in copy.deepcopy(records)]
    return specification, records + longer


def test_the_page_says_where_a_mask_loses_most_of_what_tells(run):
    html, pictures = render_page(Retrieval.page(*run))
    worst = f"at worst 25.0% right where the baseline has 100.0% (niah_prose, {LENGTH} tokens"
    assert f"{worst}, depth 10%)" in html
    assert len(pictures) == 1
    assert f"Hatched: says nothing: the baseline itself is below {FLOOR:.0%}" in html
    assert html == render_page(Retrieval.page(run[0], run[1][::-1]))[0]
    _, table = retrieval_tables(run[1])
    assert [row[3] for row in table.rows] == ["35.0% (a)"] * 2
    assert "(a) says nothing: the baseline itself is below 80%" in table.notes


def test_heat_maps_have_a_square_for_each_result(run, monkeypatch):
    """Baseline and mask side by side, the first depth on top, blank where nothing is told."""
    from sinkjax.report import canvas

    drawn_values = []
    monkeypatch.setattr(canvas, "image", lambda axes, values, scale: drawn_values.append(values))
    (panels,) = by_mask(run[1]).values()
    heat_maps(panels)
    baseline, of_list, mask, of_list_mask = drawn_values
    np.testing.assert_array_equal(baseline, np.ones((2, 2)))
    np.testing.assert_array_equal(mask, [[1, 1], [0.25, 0.25]])  # from the bottom
    np.testing.assert_array_equal(of_list, [[0.5, 0.5]])
    assert np.isnan(of_list_mask).all()


def test_a_page_without_a_cell_that_tells_says_so(run):
    specification, records = run
    records = [r for r in records if r["task"] == "fwe"]
    html, _ = render_page(Retrieval.page(specification, records))
    assert "nothing is known, for the baseline reaches 80% nowhere" in html


BAD = {
    "no mask": ([], {}, ["--mask: name a mask"]),
    "task": ([FULL], {"tasks": "niah_single_2"}, ["--tasks=niah_single_2: use one of niah_"]),
    "none": ([FULL], {"tasks": ""}, ["--tasks: give at least one"]),
    "depth": ([FULL], {"depths": "0.5,2"}, ["--depths=2", "between 0 and 1"]),
    "depths": ([FULL], {"depths": ""}, ["--depths: give at least one"]),
    "no room": (
        [FULL],
        {"lengths": "50,60", "tasks": "niah_prose,fwe"},
        ["--lengths=60: niah_prose needs", "fwe needs"],
    ),
    "context": ([FULL], {"lengths": "99999"}, ["--lengths=99999", "context is"]),
    "excerpts": ([FULL], {"num_excerpts": 0}, ["--num_excerpts=0"]),
    "control_draws": ([FULL], {"control_draws": -1}, ["--control_draws=-1"]),
    "text": ([FULL], {"text": "/nowhere.txt"}, ["--text=/nowhere.txt"]),
    "twice": ([FULL, f"{FULL}, at random"], {}, ["--mask=L0-1: 6f, at random"]),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_flags_are_refused_before_any_work(what, roomy, tmp_path):
    masks, more, mentions = BAD[what]
    flags = arguments(roomy, tmp_path / "out", **more)
    with pytest.raises(InputError) as error:
        run_main(RETRIEVAL, *flags, *(f"--mask={mask}" for mask in masks))
    for mention in mentions:
        assert mention in str(error.value)
    assert not (tmp_path / "out").exists()


def test_groups_of_a_mask_are_drawn_whole_for_its_control(roomy):
    model = sinkjax.load_config(roomy)
    size = model.num_heads // model.num_kv_heads
    group = "L0: 6f | L1: " + f"{size}w(1,4) {6 - size}f"
    for text, whole in ((group, True), ("L0: 6f | L1: w(1,4) 5f", False)):
        study = Retrieval(model=str(roomy), mask=(text,), lengths=(LENGTH,), control_draws=8)
        masked = [c.masks[LENGTH].masked for c in study.candidates[1:]]
        grouped = [m.reshape(2, -1, size) for m in masked]
        assert all((m.all(-1) == m.any(-1)).all() for m in grouped) == whole
        assert len({str(c.masks[LENGTH]) for c in study.candidates}) > 1


def test_no_draw_of_a_control_is_one_of_another_seeds(roomy):
    masks = [
        candidate.masks[LENGTH]
        for seed in (0, 1, 2)
        for candidate in Retrieval(
            model=str(roomy),
            mask=("L0-1: w(1,4) w(1,5) w(1,6) 3f",),
            lengths=(LENGTH,),
            control_draws=3,
            seed=seed,
        ).candidates[1:]
    ]
    assert len(set(masks)) == len(masks) == 9


def test_no_seed_asks_for_what_a_search_chooses_on(roomy):
    common = {"model": str(roomy), "lengths": (LENGTH,), "tasks": ("niah_prose",)}
    search = Search(**common, depths=(0.4, 0.8), judge_questions=2, seed=1)
    chosen = [of for use in (1, 2) for of in search.asked_for(2, use, [LENGTH])]
    assert {of.depth for of in chosen} == {0.2, 0.4 + 0.2, 0.9}

    def asked(depths, seed):
        of_mask = {"mask": (FULL,), "num_excerpts": 2, "depths": depths, "seed": seed}
        return Retrieval(**common, **of_mask).asked

    words = {answer for of in chosen for answer in of.questions.answers}
    assert len(words) == 2 * 3 * 2
    for seed in range(6):
        for of in asked(tuple({of.depth for of in chosen}), seed):
            assert words.isdisjoint(of.questions.answers)
    judged = [of.questions.tokens for of in search.judged_answers if of.length == LENGTH]
    np.testing.assert_array_equal(
        judged, [of.questions.tokens for of in asked(search.depths, search.seed)]
    )


def test_means_of_controls_need_text_enough(roomy, mask_file, tmp_path):
    (tmp_path / "short.txt").write_text("Hardly a sentence. " * 20)
    flags = arguments(roomy, tmp_path / "out", text=tmp_path / "short.txt", tasks="niah_single_1")
    with pytest.raises(InputError, match=r"--lengths=420: short\.txt has \d+ tokens"):
        run_main(RETRIEVAL, *flags, f"--mask={mask_file}")
    study = Retrieval(model=str(roomy), mask=(FULL,), text=str(tmp_path / "short.txt"))
    assert study.calibrated_on is None


def test_tokens_that_the_model_does_not_know_are_told(tmp_path, small_tokenizer):
    hf.save_llama(
        tmp_path / "small", vocab_size=300, num_hidden_layers=2, max_position_embeddings=1024
    )
    small_tokenizer.save_pretrained(tmp_path / "small")
    message = r"--model=\S+: its tokenizer makes token \d+ of niah_prose, and .* ids 0 to 299"
    with pytest.raises(InputError, match=message):
        run_main(RETRIEVAL, *arguments(tmp_path / "small", tmp_path / "out"), f"--mask={ZERO}")
    assert not (tmp_path / "out").exists()


def test_prose_is_the_text_that_is_given(roomy, small_tokenizer, other_text):
    study = Retrieval(
        model=str(roomy), mask=(FULL,), text=str(other_text), lengths=(LENGTH,), num_excerpts=2
    )
    questions = next(asked.questions for asked in study.asked if asked.task == "niah_prose")
    shown = small_tokenizer.decode(questions.tokens[0])
    assert "steps from home." in shown
    assert "steps from home." not in texts.read_text(texts.JUDGE, 1, 0).text
