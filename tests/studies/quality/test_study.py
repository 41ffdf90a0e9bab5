"""Quality from its flags to its records: against the dense oracle, through stops and bad input."""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from losses import kl_of
from scripts import as_flags, refused, run_main
from tiny import quick_jit

import sinkjax
from sinkjax import InputError, Provenance, SinkMask, load_mask, save_mask
from sinkjax.studies import texts as inputs
from sinkjax.studies.candidates import Candidate
from sinkjax.studies.costs import PARTS
from sinkjax.studies.quality.measure import first_differences
from sinkjax.studies.quality.study import Quality
from sinkjax.studies.results import read_records
from sinkjax.studies.study import run_study
from sinkjax.studies.subject import Subject
from sinkjax.testing.oracle import reference_logits

QUALITY = "experiments.quality"
FULL = "L0-1: 6f"
SINKS = "L0: 2s(mean) 4f | L1: 3s(first) 3w(1,4)"


@pytest.fixture(scope="module")
def mask_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("masks") / "sinks.json"
    fills = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
    save_mask(path, SinkMask.from_text(SINKS), fills=fills)
    return path


def arguments(model, folder, /, **more):
    flags = {
        "model": model,
        "lengths": "2,40",
        "num_excerpts": 3,
        "continuation_tokens": 0,
        "output_dir": folder,
        **more,
    }
    return as_flags(flags)


def records_of(folder, **fields):
    _, records = read_records(folder)
    return [r for r in records if fields.items() <= r.items()]


def names(record, candidate):
    return record["candidate"]["name"] == str(candidate)


@pytest.fixture(scope="module")
def measured(tiny, mask_file, tmp_path_factory):
    """A run's folder: a mask's file and the text form of the baseline's, of every kind."""
    folder = tmp_path_factory.mktemp("out") / "quality"
    more = {"continuation_tokens": 4, "lengths": "2,90", "num_excerpts": 2}
    run_main(QUALITY, *arguments(tiny, folder, **more), f"--mask={mask_file}", f"--mask={FULL}")
    return folder


def test_a_masks_cost_is_what_the_dense_oracle_says(measured, tiny, mask_file, small_tokenizer):
    model, saved = sinkjax.load(tiny), load_mask(mask_file)
    for length in (2, 90):
        excerpts = inputs.read_text(inputs.JUDGE, 2, 0).at_length(
            small_tokenizer, "tokenizer", length
        )
        tokens = jnp.asarray(excerpts)
        logits = reference_logits(model, saved.mask, tokens, fills=jnp.asarray(saved.fills))
        kl = kl_of(model(tokens), logits)[:, 1:]
        records = records_of(measured, kind="quality", length=length)
        (record,) = [r for r in records if names(r, mask_file)]
        assert record["num_windows"] == 2
        assert record["candidate"]["mask_digest"] == saved.mask.digest
        assert record["candidate"]["heads"] == {"full": 4, "copy": 0, "window": 3, "sink": 5}
        summary = record["result"]["kl"]
        np.testing.assert_allclose(summary["mean"]["value"], kl.mean(), rtol=1e-3)
        np.testing.assert_allclose(summary["max"], kl.max(), rtol=1e-3)


def test_the_baselines_own_mask_costs_exactly_nothing(measured):
    own = [r for r in records_of(measured) if names(r, FULL)]
    assert [(r["kind"], r["length"]) for r in own] == [
        ("quality", 2),
        ("quality", 90),
        ("continuation", 2),
        ("continuation", 90),
    ]
    for record in own:
        result = record["result"]
        if record["kind"] == "quality":
            assert result["kl"]["max"] == 0
            assert result["agreement"]["top5"]["value"] == 1
        else:
            assert result["per_window"] == [4, 4]
            assert result["identical"]["value"] == 1


def test_the_terminal_shows_what_the_records_say(measured, tiny, mask_file, capsys):
    """The same command again: everything is there."""
    before = {path: path.stat().st_mtime_ns for path in (measured / "measured").iterdir()}
    more = {"continuation_tokens": 4, "lengths": "2,90", "num_excerpts": 2}
    run_main(QUALITY, *arguments(tiny, measured, **more), f"--mask={mask_file}", f"--mask={FULL}")
    assert before == {path: path.stat().st_mtime_ns for path in (measured / "measured").iterdir()}
    out = capsys.readouterr().out
    unwrapped = " ".join(out.split())  # a title breaks where the folder's name is long
    for title in ("KL to the baseline", "perplexity", "KL by position", "greedy"):
        assert title in unwrapped
    for record in records_of(measured, kind="quality"):
        assert f"{record['result']['kl']['mean']['value']:.4f}" in out
    assert "8/12" in out
    assert out.splitlines()[-1] == f"report: {measured}/report.html"
    page = (measured / "report.html").read_text()
    for record in records_of(measured, kind="quality"):
        assert f"{record['result']['kl']['mean']['value']:.4f}" in page


def test_plans_are_measured_on_both_sides_of_a_boundary_and_across_it(
    tiny, mask_file, small_tokenizer, tmp_path
):
    """Held to the dense oracle: each token by the mask that the rule gives to those before it."""
    room, saved, windowed = 20, load_mask(mask_file), SinkMask.from_text("L0: 6f | L1: 3f 3w(1,2)")
    stages = [{"up_to": 10, "mask": "../sinks.json"}, {"up_to": None, "mask": str(windowed)}]
    files = {rule: mask_file.parent / "plans" / f"{rule}.json" for rule in ("stay", "prefill")}
    for rule, file in files.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"crossing": rule, "stages": stages}))
    out, plans = tmp_path / "out", [f"--plan={file}" for file in files.values()]
    run_main(
        QUALITY, *arguments(tiny, out, lengths="8,14", continuation_tokens=6, generated=6), *plans
    )

    def under(mask, fills=None):
        call = quick_jit(lambda model, tokens: reference_logits(model, mask, tokens, fills=fills))
        return lambda tokens: np.asarray(call(model, jnp.asarray(tokens)))

    def continued(padded, length, logits_after):
        tokens = padded.copy()
        for size in range(length, length + 6):
            tokens[:, size] = logits_after(size)(tokens)[:, size - 1].argmax(axis=-1)
        return tokens[:, length : length + 6]

    model = sinkjax.load(tiny)
    full = under(SinkMask.from_text(FULL))
    below, beyond = under(saved.mask, jnp.asarray(saved.fills)), under(windowed)
    for length, own in ((8, below), (14, beyond)):
        excerpts = inputs.read_text(inputs.JUDGE, 3, 0).at_length(
            small_tokenizer, "tokenizer", length
        )
        longer = inputs.read_text(inputs.JUDGE, 3, 0).at_length(small_tokenizer, "tokenizer", room)
        padded = np.pad(excerpts, ((0, 0), (0, room - length)))  # what stands behind is not seen
        kl = kl_of(full(padded), own(padded))[:, 1:length].mean()
        baseline = continued(padded, length, lambda size: full)
        by_rule = {
            "stay": lambda size, own=own: own,
            "prefill": lambda size: below if size <= 10 else beyond,
        }
        for rule, file in files.items():
            forced, record = (
                next(r for r in records_of(out, kind=kind, length=length) if names(r, file))
                for kind in ("quality", "continuation")
            )
            np.testing.assert_allclose(forced["result"]["kl"]["mean"]["value"], kl, rtol=1e-3)
            after = [
                kl_of(full(longer), by_rule[rule](size)(longer))[:, size - 1].mean()
                for size in range(length + 1, length + 7)
            ]
            generated = forced["result"]["kl_generated"]["value"]
            np.testing.assert_allclose(generated, np.mean(after), rtol=1e-3)
            wanted = first_differences(baseline, continued(padded, length, by_rule[rule]))
            assert record["result"]["per_window"] == wanted.tolist()
            crossing = record.get("crossing")
            assert (crossing is not None) == (length == 8)
            if crossing:
                later = [windowed.digest] if rule == "prefill" else []
                assert crossing["rule"] == rule
                assert crossing["boundaries"] == [10]
                assert [mask["mask_digest"] for mask in crossing["masks"]] == later


def test_the_acting_late_and_generated_parts_are_what_the_dense_oracle_says(
    measured, tiny, mask_file, small_tokenizer
):
    """At 2 tokens; 90 with 64 more are beyond the model's context, of which the record says so."""
    model, saved = sinkjax.load(tiny), load_mask(mask_file)
    rows = inputs.read_text(inputs.JUDGE, 2, 0).at_length(small_tokenizer, "tokenizer", 90)
    tokens = jnp.asarray(rows)
    logits = reference_logits(model, saved.mask, tokens, fills=jnp.asarray(saved.fills))
    kl = kl_of(model(tokens), logits)
    (short,) = [r for r in records_of(measured, kind="quality", length=2) if names(r, mask_file)]
    (long,) = [r for r in records_of(measured, kind="quality", length=90) if names(r, mask_file)]
    near = dict(rtol=1e-3)
    np.testing.assert_allclose(short["result"]["kl_acting"]["value"], kl[:, 1].mean(), **near)
    np.testing.assert_allclose(short["result"]["kl_generated"]["value"], kl[:, 2:66].mean(), **near)
    assert short["generated"] == 64
    np.testing.assert_allclose(long["result"]["kl_acting"]["value"], kl[:, 1:].mean(), **near)
    np.testing.assert_allclose(long["result"]["kl_late"]["value"], kl[:, 68:].mean(), **near)
    assert long["result"]["kl_late"]["each"] == pytest.approx(kl[:, 68:].mean(axis=1), rel=1e-3)
    by_path = long["result"]["kl_acting"]["by_path"]
    assert [(p["path"], p["first"]) for p in by_path] == [
        ("sink(first)", 1),
        ("sink(mean)", 1),
        ("window(1,4)", 5),
    ]
    np.testing.assert_allclose(by_path[2]["value"], kl[:, 5:].mean(), **near)
    assert long["generated"] == 0
    assert "no room for them" in long["result"]["kl_generated"]["undefined"]


def test_tokens_after_an_excerpt_are_read_where_the_text_has_room_for_all(
    tiny, small_tokenizer, tmp_path
):
    """And never after a prompt, which ends where it ends."""
    config = sinkjax.load_config(tiny)
    subject = Subject("tiny", config, small_tokenizer, lambda: sinkjax.load(tiny))
    text = "\n".join(f"Line {n} of a short text." for n in range(40))
    paths = {"text": tmp_path / "text.txt", "prompts": tmp_path / "prompts.txt"}
    for path in paths.values():
        path.write_text(text)

    def generated(count, **source):
        how = {"lengths": (4,), "num_excerpts": count, "generated": 30}
        mask = (Candidate("full", {4: SinkMask.from_text(FULL)}),)
        study = Quality(model=subject, mask=mask, continuation_tokens=0, **how, **source)
        ((_, length, rows),) = study.excerpts
        assert len(rows) == count
        return rows.shape[1] - length

    assert generated(2, text=str(paths["text"])) == 30
    assert generated(25, text=str(paths["text"])) == 0
    assert generated(2, prompts=str(paths["prompts"])) == 0


def test_the_last_line_says_whether_a_mask_keeps_what_its_file_promises(tiny, tmp_path, capsys):
    file, plan = tmp_path / "mask.json", tmp_path / "plan.json"
    stages = [{"up_to": 20, "mask": "mask.json"}, {"up_to": None, "mask": FULL}]
    plan.write_text(json.dumps({"crossing": "prefill", "stages": stages}))
    digest = sinkjax.model_digest(sinkjax.load(tiny))

    def last_line(kl_budget, named=f"--mask={file}", model_digest=digest, **more):
        save_mask(
            file,
            SinkMask.from_text("L0: 6f | L1: 6s(first)"),
            provenance=Provenance(model_digest=model_digest, lengths=(20,)),
            quality={
                "quality": [{"length": 20, "generated": 2, "num_windows": 200}],
                "kl_budget": kl_budget,
                "budget_on": "largest",
            },
        )
        flags = {"lengths": "8,20,30", "generated": 2, **more}
        folder = tmp_path / f"out-{'-'.join(map(str, more.values()))}-{named[2:6]}"
        run_main(QUALITY, *arguments(tiny, folder, **flags), named)
        return folder, capsys.readouterr().out.splitlines()[-1]

    on = "where it acts, over the last quarter and over generated tokens"
    wide = "up to 20 tokens and the next 2"
    promises = (
        f"keeps its budget, a KL of 100 nats a token {on}, on all judged text. Its file promises "
        f"this for {wide}, from 200 excerpts of a text; here are 3 excerpts of 8 and 20 tokens."
    )
    folder, line = last_line(100)
    assert line == f"{file} {promises}"
    folder, line = last_line(1e-9)
    assert line.startswith(f"{file} MISSES ITS BUDGET, a KL of 1e-09 nats")
    for length, over in ((8, True), (20, True), (30, False)):  # 30 tokens are not promised
        (record,) = records_of(folder, length=length)
        most = max(record["result"][part]["value"] for part in PARTS)
        assert (f"{most:.4f} (" in line) == over
        assert (f"at {length} tokens" in line.partition(" Its file")[0]) == over
    _, line = last_line(100, generated=3)
    assert f"promises a KL of 100 nats a token for {wide}, of which nothing was measured" in line
    assert line.endswith("set lengths to 20 and generated to 2.")
    # What serves the tokens after a prompt is the plan's own, however many they are.
    _, line = last_line(100, f"--plan={plan}", generated=3)
    assert line == f"{plan} {promises}"
    _, line = last_line(100, model_digest="0" * 64)
    assert line.startswith(f"{file}: what its file promises is of another model than this, or of ")


@pytest.mark.parametrize(
    ("flag", "now"),
    [
        ("--scored=second_half", "--scored is gone: every record has the KL of the last"),
        ("--passkey_depths=0.5", "--passkey_depths is gone: `sinkjax retrieval` hides numbers"),
    ],
)
def test_a_flag_that_is_gone_says_what_there_is_now(flag, now):
    assert now in refused(QUALITY, flag)


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tiny, tmp_path, small_tokenizer):
    config = sinkjax.load_config(tiny)
    subject = Subject("tiny", config, small_tokenizer, lambda: sinkjax.load(tiny))
    sinks = SinkMask.from_text("L0: 6f | L1: 6s(first)")
    candidates = [
        Candidate("a", {8: sinks}),
        Candidate("b", {8: SinkMask.from_text(FULL)}),
        Candidate("a again", {8: sinks}),
    ]
    study = Quality(
        model=subject,
        mask=tuple(candidates),
        lengths=(8,),
        num_excerpts=4,
        continuation_tokens=3,
    )
    run_study(study, str(tmp_path / "whole"))

    def stopping(step):
        steps = itertools.count()

        def stop(*progress):
            if next(steps) == step:
                raise KeyboardInterrupt

        return stop

    for step in (1, 3, 5):  # the first one before any record
        with pytest.raises(KeyboardInterrupt):
            run_study(study, str(tmp_path / "stopped"), stopping(step))
    kept = len(list((tmp_path / "stopped" / "measured").iterdir()))
    assert kept >= 2
    run_study(study, str(tmp_path / "stopped"))
    assert read_records(tmp_path / "stopped") == read_records(tmp_path / "whole")
    first, again = (
        [r["result"] for r in records_of(tmp_path / "whole") if names(r, name)]
        for name in ("a", "a again")
    )
    assert first == again
    # One comparison and one continuation a mask, and the baseline's continuation.
    assert len(list((tmp_path / "whole" / "measured").iterdir())) == 5


BAD = {
    "no mask": ([], {}, ["--mask: name a mask"]),
    "no file": (["nowhere.json"], {}, ["--mask=nowhere.json", "No such file"]),
    "no text": (["L0: 6q"], {}, ["--mask=L0: 6q"]),
    "no means": (["L0-1: 6s(mean)"], {}, ["calibrated means"]),
    "shape": (["L0: 6f"], {}, ["1 layers of 6 heads"]),
    "context": ([FULL], {"continuation_tokens": 100}, ["lengths=40", "context of 128"]),
    "negative": ([FULL], {"continuation_tokens": -1}, ["--continuation_tokens=-1"]),
    "excerpts": ([FULL], {"num_excerpts": 0}, ["--num_excerpts=0"]),
    "length": ([FULL], {"lengths": "1,40"}, ["--lengths=1"]),
    "text": ([FULL], {"text": "/nowhere.txt"}, ["--text=/nowhere.txt"]),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_flags_are_refused_before_any_work(what, tiny, tmp_path):
    masks, more, mentions = BAD[what]
    with pytest.raises(InputError) as error:
        run_main(
            QUALITY,
            *arguments(tiny, tmp_path / "out", **more),
            *(f"--mask={mask}" for mask in masks),
        )
    for mention in mentions:
        assert mention in str(error.value)
    assert not (tmp_path / "out").exists()
