"""Gates that are trained and judged on questions, too: what each way of training keeps.

Half a minute of one core: whole runs, with gradients, at lengths that have room for a question.
"""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scripts import as_flags, run_main

from sinkjax import SinkMask, Window, load_mask
from sinkjax.cli.card import mask_card
from sinkjax.instruments.token_losses import OutputHead, residuals
from sinkjax.report.page import render_page
from sinkjax.studies.gates.gates import GatedModel, gates_of, start_gates
from sinkjax.studies.gates.study import Gates
from sinkjax.studies.results import Results, read_records
from sinkjax.studies.retrieval.promise import promise_line
from sinkjax.studies.training.train import distil, mean_divergence

GATES = "experiments.gates"
LENGTH = 210  # that has room for the task, and whose half has none


def arguments(model, folder, text, **more):
    flags = {
        "model": model,
        "lengths": LENGTH,
        "paths": "window(1,16)",
        "tasks": "niah_single_1",
        "depths": "0.2,0.8",
        "choose_excerpts": 2,
        "judge_excerpts": 2,
        "train_questions": 1,
        "judge_questions": 2,
        "steps": 2,
        "rows": 2,
        "shares": 0.5,
        "chips": 2,
        "control_draws": 2,
        "output_dir": folder,
        **more,
    }
    return [f"--judge_text={text}", "--judge_text=code", *as_flags(flags)]


@pytest.fixture(scope="module")
def asking(roomy, other_text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "gates"
    run_main(GATES, *arguments(roomy, folder, other_text))
    return folder


def test_masks_are_judged_on_every_text_and_by_other_questions(asking):
    specification, records = read_records(asking)
    (training,) = (record for record in records if record["kind"] == "training")
    assert training["asked"] == {
        "tasks": ["niah_single_1"],
        "depths": [0.2, 0.8],
        "train_questions": 1,
        "train_on": "both",
        "judge_questions": 2,
    }
    judged = [record for record in records if record["kind"] == "gates"]
    names = ["other.txt", "code (Python's standard library)"]
    methods = ["gates", "own_error", "random"]
    choices = [("gates", None), ("own_error", None), ("random", 1), ("random", 2)]
    assert [((r["method"], r.get("draw")), r["source"]["name"]) for r in judged] == [
        *itertools.product(choices, names)
    ]
    assert [of["name"] for of in specification["judged"]] == names[1:]
    for record in judged:
        mask = SinkMask.from_text(record["result"]["mask"])
        assert (record["chips"], int(mask.masked.sum())) == (2, 6)
        assert mask.balanced(2, 2) == mask
    assert "chips" not in training  # which is the same for any number of them
    answers = [record for record in records if record["kind"] == "retrieval"]
    assert [(r["candidate"]["name"], r["depth"]) for r in answers] == [
        *itertools.product([f"{method}, 50%" for method in methods], [0.2, 0.8])
    ]
    html, _ = render_page(Gates.page(specification, records))
    assert "Trained on questions and 2 excerpts" in html
    assert "chosen by gates, as many on each of 2 chips" in html
    kl = [record["result"]["kl"]["value"] for record in judged]
    shown = *kl[:4], np.mean(kl[4::2]), np.mean(kl[5::2])  # of draws their mean, on either text
    assert all(f"{value:.4f}" in html for value in shown)


def test_a_mask_says_what_is_promised_of_its_answers(asking, roomy, other_text, capsys):
    saved = load_mask(asking / "masks" / "gates-0.5.json")
    (promised,) = saved.quality["retrieval"]
    # A random model gives no answer back.
    assert (promised["length"], promised["kept"], promised["nll_budget"]) == (LENGTH, None, 0.1)
    assert [of["depth"] for of in promised["asked"]] == [0.2, 0.8]
    assert len(saved.quality["kl"]) == len(saved.provenance.selection["records"]) == 2
    one, two = saved.quality["over_chips"]
    assert (one["chips"], two["chips"], one["saved"]) == (1, 2, two["saved"])
    card = mask_card("ada/mask", saved)
    assert "fullest of several chips" in card
    for text in ("--tasks=niah_single_1", "--train_on=both", "--nll_budget=0.1", "--chips=2"):
        assert text in card
    run_main(GATES, *arguments(roomy, asking, other_text))
    assert f"gates, 50%: {promise_line(promised)}" in capsys.readouterr().out


def test_a_run_that_was_stopped_ends_as_one_that_was_not(asking, roomy, other_text, tmp_path):
    steps, put = itertools.count(), Results.put_arrays

    def stopping(self, name, /, **arrays):
        put(self, name, **arrays)
        if next(steps) == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Results, "put_arrays", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_main(GATES, *arguments(roomy, tmp_path / "out", other_text))
        assert not (tmp_path / "out" / "masks").exists()
        run_main(GATES, *arguments(roomy, tmp_path / "out", other_text))
    assert read_records(tmp_path / "out") == read_records(asking)
    mask = "masks/gates-0.5.json"
    assert (tmp_path / "out" / mask).read_bytes() == (asking / mask).read_bytes()


@pytest.fixture(scope="module")
def ways(roomy, tmp_path_factory):
    """A study, its model, and the gates that it learns, by `train_on`, of a text of one word.

    All that a head sees in such a text is the same, so that the text needs no head.
    """
    folder = tmp_path_factory.mktemp("ways")
    text = folder / "word.txt"
    text.write_text(" a" * 5000)
    study = Gates(
        model=str(roomy),
        choose_text=str(text),
        lengths=(LENGTH,),
        paths=(Window(1, 16),),
        tasks=("niah_single_1",),
        depths=(0.5,),
        choose_excerpts=1,
        train_questions=1,
        judge_questions=1,
        steps=6,
        learning_rate=1.0,
        seed=1,
    )
    study.check()
    model = study.subject.load()
    gated, start = GatedModel(model, study.path), start_gates(2, 6)
    price = lambda logits: study.price * gates_of(logits).mean()  # noqa: E731
    learned = {}
    for way in ("text", "tasks", "both"):
        rows, weights = dataclasses.replace(study, train_on=way).training_rows
        how = {"weights": weights, "price": price}
        trained = distil(model, gated.residuals, start, rows, study.train, folder / way, **how)
        learned[way] = trained.parameters
    return study, model, gated, learned


def test_heads_that_answers_need_stay_where_text_alone_lets_them_go(ways):
    _, _, _, learned = ways
    text, tasks, both = (np.asarray(gates_of(of)) for of in learned.values())
    start = np.asarray(gates_of(start_gates(1, 1)))
    assert np.ptp(text) < 1e-4
    assert text.max() < start
    for gates in (tasks, both):
        assert gates.max() > start
        assert gates.min() < start


def test_answers_cost_less_where_they_were_trained_on(ways):
    study, model, gated, learned = ways
    # Other questions than those that were trained on.
    (asked,) = study.judged_answers
    trained_on = dataclasses.replace(study, train_on="tasks").training_rows[0]
    assert not {row.tobytes() for row in trained_on} & {r.tobytes() for r in asked.questions.tokens}
    tokens = jnp.asarray(asked.questions.tokens)
    weights = jnp.asarray(asked.questions.predicting[:, 1:], jnp.float32)
    target = residuals(model, tokens)[:, 1:]
    head = OutputHead(model)
    text, tasks, both = (
        float(mean_divergence(head, target, gated.residuals(of, tokens)[:, 1:], weights)[0])
        for of in learned.values()
    )
    assert tasks < 0.8 * text
    assert both < 0.8 * text


def test_the_text_to_judge_on_by_default_is_not_chosen_on_too(roomy):
    study = Gates(model=str(roomy), choose_text="moby-dick", lengths=(64,))
    rows = [series.tokens[64] for series in (study.chosen_on, study.judged_on)]
    assert study.chosen_on.name == study.judged_on.name
    assert not set.intersection(*({row.tobytes() for row in of} for of in rows))
