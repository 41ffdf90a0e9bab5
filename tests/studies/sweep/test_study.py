"""The sweep from its flags to its records: against transformers, through kills and bad input."""

import hashlib
import json
import os
import re
import signal
import time

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from scripts import ROOT, as_flags, load_script, run_main, start

import sinkjax
from sinkjax.errors import InputError
from sinkjax.masks.definitions import DEFINITIONS
from sinkjax.studies.results import read_records
from sinkjax.studies.series import Series
from sinkjax.studies.subject import Subject
from sinkjax.studies.sweep.cell import summarize_cell
from sinkjax.studies.sweep.study import count_flops
from sinkjax.studies.sweep.tables import summary_tables

SWEEP = "experiments.sweep"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, small_tokenizer):
    """A random Llama of three layers, with a small tokenizer beside it."""
    folder = tmp_path_factory.mktemp("tiny")
    hf.save_llama(folder, vocab_size=len(small_tokenizer), initializer_range=0.5)
    small_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def figures_are_blank_but_where_they_are_compared(request):
    """Drawing them would be half of the work; the tests of pages draw every kind."""
    if "killed" not in request.node.name:
        request.getfixturevalue("figures_are_blank")


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    words = "the sea was calm and the old man looked out over it for a long while"
    rows = [" ".join(np.random.default_rng(i).permutation(words.split())) for i in range(6)]
    file.write_text("# six prompts\n" + "\n".join(rows) + "\n")
    return file


def arguments(model, prompts, folder, /, **more):
    flags = {
        "model": model,
        "prompts": prompts,
        "lengths": "2,4,9",
        "definitions": "mean,last",
        "thresholds": "0.3,0.5",
        "output_dir": folder,
        **more,
    }
    return as_flags(flags)


def cells_of(folder, **fields):
    _, records = read_records(folder)
    return [r for r in records if r["kind"] == "cell" and fields.items() <= r.items()]


def test_cells_are_what_transformers_attention_says(tiny, prompts, tmp_path, small_tokenizer):
    run_main(SWEEP, *arguments(tiny, prompts, tmp_path / "out"), "--nostudy")
    oracle = hf.load_llama(tiny)
    texts = prompts.read_text().splitlines()[1:]
    for length in (2, 4, 9):
        tokens = np.array([small_tokenizer(text)["input_ids"][:length] for text in texts])
        on_first = hf.attentions(oracle, tokens)[..., 0]  # [L, P, N, T]
        scores = {"mean": on_first.mean(axis=-1), "last": on_first[..., -1]}
        for definition, by_head in scores.items():
            for threshold in (0.3, 0.5):
                (cell,) = cells_of(
                    tmp_path / "out", length=length, definition=definition, threshold=threshold
                )
                sinks = by_head > threshold  # [L, P, N]
                result = cell["result"]
                assert cell["num_prompts"] == len(texts)
                assert not cell["bos_added"]
                np.testing.assert_allclose(result["per_head"], sinks.mean(axis=1), atol=1e-12)
                assert result["sinks"]["count"]["value"] == sinks.sum() / len(texts)
                pairs = sinks[0][None] & sinks[1:]
                given = result["conditional"][0]["given_sink"]
                if sinks[0].any():
                    expected = pairs.sum() / (sinks[0].sum() * 2)
                    np.testing.assert_allclose(given["value"], expected)
                else:
                    assert given["value"] is None
                    assert "no sink head" in given["undefined"]


def test_several_models_each_have_the_cells_that_they_have_alone(
    tiny, prompts, tmp_path, small_tokenizer
):
    other = tmp_path / "other"
    hf.save_llama(other, seed=1, vocab_size=len(small_tokenizer), num_hidden_layers=2)
    small_tokenizer.save_pretrained(other)
    for name, models in {"both": f"{tiny},{other}", "first": tiny, "second": other}.items():
        folder = tmp_path / name
        run_main(SWEEP, *arguments(models, prompts, folder, lengths="4", definitions="mean"))
    _, both = read_records(tmp_path / "both")
    alone = [r for name in ("first", "second") for r in read_records(tmp_path / name)[1]]
    assert both == alone
    assert {r["model"]["num_layers"] for r in both} == {2, 3}


def test_a_text_is_cut_into_excerpts_and_named_in_every_record(tiny, tmp_path):
    text = ROOT / "BUILD.md"
    flags = {"lengths": "3,12", "num_prompts": 5, "bos": "always", "max_tokens": 24}
    flags |= {"model": tiny, "text": text, "output_dir": tmp_path}
    run_main(SWEEP, *as_flags(flags), "--nostudy")
    cells = cells_of(tmp_path)
    assert [(c["length"], c["num_prompts"]) for c in cells] == [(3, 5), (12, 2)]
    digest = hashlib.sha256(text.read_bytes()).hexdigest()
    for cell in cells:
        assert cell["source"] == {"name": "BUILD.md", "sha256": digest, "role": "text"}
        assert cell["bos_added"]


def test_the_studys_short_prompt_on_the_real_model(
    tmp_path, hf_smollm2, smollm2_tokenizer, figures_are_blank
):
    flags = ("--lengths=2", "--num_prompts=2", "--definitions=mean,mean_excl_first")
    run_main(SWEEP, *flags, f"--output_dir={tmp_path}")
    tokens = np.array([smollm2_tokenizer("Hello world")["input_ids"]])
    assert tokens.shape == (1, 2)
    second = hf.attentions(hf_smollm2, tokens)[:, 0, :, 1, 0]  # the first query's is 1
    for definition, scores in {"mean": (1 + second) / 2, "mean_excl_first": second}.items():
        (cell,) = cells_of(tmp_path, definition=definition, length=2, bos="never")
        assert cell["source"]["role"] == "study"
        assert cell["result"]["sinks"]["count"]["value"] == (scores > 0.9).sum()


def test_a_killed_sweep_goes_on_and_ends_as_one_that_was_not(tiny, prompts, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = {"definitions": "mean"}
    run_main(SWEEP, *arguments(tiny, prompts, whole, **more))
    total = len(read_records(whole)[1])

    seen = {}
    for part in (0.0, 0.5):
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(jax.device_count())}
        process = start(SWEEP, *arguments(tiny, prompts, killed, **more), env=environment)
        while process.poll() is None and lines_in(killed) <= part * total:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
        before = state_of(killed)
        assert seen.items() <= before.items(), "something was lost or measured again"
        seen = before
    with (killed / "records.jsonl").open("ab") as file:
        file.write(b'{"id": "torn')
    run_main(SWEEP, *arguments(tiny, prompts, killed, **more))

    assert seen.items() <= state_of(killed).items()
    assert read_records(killed) == read_records(whole)
    assert (killed / "report.html").read_bytes() == (whole / "report.html").read_bytes()
    figures = sorted(path.name for path in (whole / "figures").iterdir())
    assert figures == sorted(path.name for path in (killed / "figures").iterdir())
    for name in figures:
        assert (killed / "figures" / name).read_bytes() == (whole / "figures" / name).read_bytes()


def test_a_folder_of_an_earlier_version_goes_on_and_says_whose_controls_are_another(
    tiny, prompts, tmp_path
):
    """And, where its records are deleted, makes all of them from kept scores."""
    flags = arguments(tiny, prompts, tmp_path, definitions="mean", thresholds="0.3")
    run_main(SWEEP, *flags, "--nostudy")
    whole = read_records(tmp_path)
    measured = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "measured").iterdir()}
    (old, *_) = cells_of(tmp_path, length=2)
    assert old["result"].pop("renumbered") == "key/value groups"
    (tmp_path / "records.jsonl").write_text(json.dumps(old) + "\n")
    (tmp_path / "records.sha256").unlink()
    run_main(SWEEP, *flags, "--nostudy")
    by_id = {record["id"]: record for record in read_records(tmp_path)[1]}
    assert by_id == {record["id"]: record for record in whole[1]} | {old["id"]: old}
    said = "At 2 tokens an earlier version renumbered single heads"
    assert said in (tmp_path / "report.html").read_text()

    for name in ("records.jsonl", "records.sha256"):
        (tmp_path / name).unlink()
    run_main(SWEEP, *flags, "--nostudy")
    assert read_records(tmp_path) == whole
    assert said not in (tmp_path / "report.html").read_text()
    assert measured == {f.name: f.stat().st_mtime_ns for f in (tmp_path / "measured").iterdir()}


def test_the_control_keeps_the_models_own_groups_together(tiny, prompts, tmp_path):
    run_main(SWEEP, *arguments(tiny, prompts, tmp_path, lengths="9", thresholds="0.3"), "--nostudy")
    groups = sinkjax.load(tiny).config.num_kv_heads
    (file,) = (tmp_path / "measured").iterdir()
    with np.load(file) as kept:
        scores, norms = kept["scores"], kept["output_norm"]
    for definition in ("mean", "last"):
        (cell,) = cells_of(tmp_path, definition=definition)
        of = scores[DEFINITIONS.index(definition)]
        expected = [summarize_cell(of, norms, definition, 0.3, 0, number) for number in (groups, 1)]
        assert cell["result"] == expected[0] != expected[1]


def lines_in(folder):
    path = folder / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def state_of(folder):
    """Every whole record's line, and when each measured file was written."""
    lines = (folder / "records.jsonl").read_bytes().split(b"\n")[:-1]
    files = (folder / "measured").glob("*.npz")
    return {line: None for line in lines} | {f.name: f.stat().st_mtime_ns for f in files}


def test_the_terminal_shows_what_the_records_say_and_where_the_report_is(
    tiny, prompts, tmp_path, capsys
):
    run_main(SWEEP, *arguments(tiny, prompts, tmp_path / "out"))
    captured = capsys.readouterr()
    assert "measuring: 100%" in captured.err
    assert f"{len(read_records(tmp_path / 'out')[1])} records" in captured.err
    *_, last, _ = captured.out.strip().splitlines()
    assert last == f"report: {tmp_path / 'out' / 'report.html'}"
    specification, records = read_records(tmp_path / "out")
    first = {"definition": "mean", "threshold": 0.3}
    shown = [r for r in records if r["source"]["role"] == "study" or first.items() <= r.items()]
    printed = re.sub(r"\s+", "", captured.out)
    for table in summary_tables(specification, shown):
        assert re.sub(r"\s+", "", table.title) in printed
    (cell,) = cells_of(tmp_path / "out", length=9, **first)
    assert f"{100 * cell['result']['sinks']['share']['value']:.1f}%" in printed


def test_dry_run_prints_every_cell_and_touches_nothing(tiny, prompts, tmp_path, capsys):
    run_main(SWEEP, *arguments(tiny, prompts, tmp_path / "out"), "--dry_run")
    out = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert "20 cells, nothing run" in out  # 3 lengths and 2 study prompts, 4 rules each
    assert re.search(r"about [\d.]+ (s|min|h)", out)


def test_flops_are_those_that_xla_counts(tiny):
    """Within what the formula leaves out: norms, rotations, softmax, activations, masked scores."""
    model = sinkjax.load(tiny)
    tokens = jnp.zeros((2, 64), jnp.int32)
    counted = jax.jit(lambda m, x: m.hidden(x)).lower(model, tokens).compile().cost_analysis()
    subject = Subject("tiny", model.config, None, None)
    series = Series(subject, None, "never", False, {64: np.zeros((2, 64))})
    assert 0.6 < count_flops(series) / counted["flops"] < 1.0


BAD_FLAGS = {
    "model": ("smollm3,smollm3", ["--model=smollm3", "smollm2-135m", "smollm3,smollm3: a value"]),
    "lengths": ("1,500", ["--lengths=1", "at least 2"]),
    "definitions": ("median", ["--definitions=median", "mean_excl_first"]),
    "thresholds": ("0,0.5,1.5", ["--thresholds=0", "--thresholds=1.5", "between 0 and 1"]),
    "bos": ("maybe", ["--bos=maybe", "never"]),
    "key_position": ("9", ["--key_position=9", "0 to 7"]),
    "num_prompts": ("0", ["--num_prompts=0"]),
    "min_share": ("0", ["--min_share=0"]),
    "prompts": ("/nowhere.txt", ["--prompts=/nowhere.txt", "No such file"]),
}


@pytest.mark.parametrize("flag", BAD_FLAGS)
def test_bad_flags_are_refused_before_any_work(flag, tiny, prompts, tmp_path):
    value, mentions = BAD_FLAGS[flag]
    with pytest.raises(InputError) as error:
        run_main(SWEEP, *arguments(tiny, prompts, tmp_path / "out", **{flag: value}))
    for mention in mentions:
        assert mention in str(error.value)
    assert not (tmp_path / "out").exists()


def test_lengths_beyond_the_context_or_the_prompts_are_named_together(tiny, prompts, tmp_path):
    with pytest.raises(InputError) as error:
        run_main(SWEEP, *arguments(tiny, prompts, tmp_path / "out", lengths="40"))
    assert [
        str(problem).startswith("--lengths=40: ") and "too few" in str(problem)
        for problem in error.value.problems
    ] == [True] * 6
    with pytest.raises(InputError, match=r"context of model=.* is 64 tokens"):
        run_main(SWEEP, *arguments(tiny, prompts, tmp_path / "out", lengths="4,65"))


def test_a_damaged_model_and_ids_that_it_does_not_know_are_told(
    tiny, prompts, tmp_path, small_tokenizer
):
    model = sinkjax.load(tiny)
    model.layers[0].mlp.down.set_value(model.layers[0].mlp.down[...].at[0, 0].set(jnp.nan))
    sinkjax.save_safetensors(model, tmp_path / "damaged")
    hf.save_llama(tmp_path / "small", vocab_size=300)
    for name, message in (
        ("damaged", r"sink scores are not finite in layer 1, head \d: activations outgrow"),
        ("small", r"--model=\S+: its tokenizer makes token \d+ of .* has ids 0 to 299"),
    ):
        small_tokenizer.save_pretrained(tmp_path / name)
        with pytest.raises(InputError, match=message):
            run_main(SWEEP, *arguments(tmp_path / name, prompts, tmp_path / "out"))


def test_another_runs_folder_is_refused(tiny, prompts, tmp_path):
    run_main(SWEEP, *arguments(tiny, prompts, tmp_path))
    before = (tmp_path / "records.jsonl").read_bytes()
    with pytest.raises(InputError) as error:
        run_main(SWEEP, *arguments(tiny, prompts, tmp_path, thresholds="0.4"))
    assert "the results of another run" in str(error.value)
    assert "thresholds" in str(error.value)
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_a_damaged_folder_is_refused(tiny, prompts, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for file in folder.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError) as error:
        run_main(SWEEP, *arguments(folder, prompts, tmp_path / "out"))
    assert str(folder) in str(error.value)


def test_a_user_sees_one_line_a_problem_and_no_traceback(prompts, tmp_path):
    process = start(
        SWEEP, "--thresholds=2", "--bos=maybe", f"--prompts={prompts}", f"--output_dir={tmp_path}"
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert out == ""
    assert [line for line in err.splitlines() if line.startswith("error: --")] == err.splitlines()
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.flags")), ids=lambda f: f.name)
def test_every_shipped_config_is_its_scripts(file):
    """Each names its script in a comment, and every flag in it is that script's."""
    script = re.search(r"python -m (\S+) --flagfile=configs/" + file.name, file.read_text())
    assert script, "its comment says how it is used"
    loaded = load_script(script[1])
    assert callable(loaded.main)
    assert flags.FLAGS([script[1], f"--flagfile={file}"])[1:] == []
    flags.FLAGS.unparse_flags()
