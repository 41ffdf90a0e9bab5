"""Tiny models timed for real: records, resuming, traces, tables, and google-benchmark's JSON."""

import jax
import numpy as np
import pytest
import tiny
from flax import nnx
from markupsafe import escape
from masks import problems_of

import sinkjax
from sinkjax.report.page import render_page
from sinkjax.studies.candidates import Candidate
from sinkjax.studies.results import read_records
from sinkjax.studies.study import run_study
from sinkjax.studies.subject import Subject
from sinkjax.studies.timing.google_benchmark import google_benchmark
from sinkjax.studies.timing.study import Timing
from sinkjax.studies.timing.tables import timing_tables

MASK = sinkjax.SinkMask.from_text("L0: 3f 3w(1,4) | L1: 3f 3s(first)")
ROUNDS = 3


def study_of(model, **settings):
    subject = Subject("tiny", model.config, None, lambda: model)
    return Timing(**{"model": subject, "warmup": 1, **settings})


def mine(model, **settings):
    """One mask beside the baseline, two rows of 16 tokens and five more."""
    sizes = {"batch_sizes": (2,), "lengths": (16,), "generated": (5,), "steps_per_call": 2}
    masks = (Candidate("mine", {16: MASK}),)
    return study_of(model, **{"mask": masks, "rounds": ROUNDS, **sizes, **settings})


@pytest.fixture(scope="module")
def model():
    return tiny.make(num_layers=2)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """What was timed in one go, with traces."""
    path = tmp_path_factory.mktemp("timing")
    run_study(mine(model, profile=str(path / "traces")), str(path / "out"))
    return path


@pytest.fixture(scope="module")
def records(folder):
    return read_records(folder / "out")[1]


def test_records_hold_every_sample_and_what_reproduces_them(records, model):
    assert [record["stage"] for record in records] == ["prefill", "decode"]
    for record in records:
        assert record["kind"] == "timing"
        assert record["model"]["model_digest"] == sinkjax.model_digest(model)
        assert record["candidates"][0]["mask_digest"] == MASK.digest
        assert record["environment"]["cpu_count"] >= 1
        assert {"xla_flags", "device", "jax", "glibc_tunables"} <= set(record["environment"])
        result = record["result"]
        assert result["clock"] == "host"
        assert np.shape(result["load_average"]) == (2, 3)
        programs = (*result["programs"].values(), result["baseline_again"])
        assert set(result["programs"]) == {"baseline", "mine"}
        assert set(result["machine"]) == {"read", "multiply"}
        machine = [of for measured in result["machine"].values() for of in measured["samples"]]
        for samples in (*(program["samples"] for program in programs), *machine):
            assert len(samples["seconds"]) == ROUNDS
            assert len(samples["warmup"]) == 1
            assert min(samples["seconds"]) > 0
        for measured in result["machine"].values():
            best = np.min([samples["seconds"] for samples in measured["samples"]], axis=0)
            median = np.median(measured["amount"] / best)
            assert measured["per_second"]["median"] == pytest.approx(median)
        for program in programs:
            seconds = program["samples"]["seconds"]
            assert program["seconds"]["median"] == pytest.approx(np.median(seconds))
            tokens = 2 * (16 if record["stage"] == "prefill" else 5)
            assert program["tokens_per_second"] == pytest.approx(tokens / np.median(seconds))
            assert program["limit"]["share"]["value"] > 0
        assert result["programs"]["baseline"]["ratio"] is None
        ratios = np.divide(
            result["programs"]["mine"]["samples"]["seconds"],
            result["programs"]["baseline"]["samples"]["seconds"],
        )
        assert result["programs"]["mine"]["ratio"]["value"] == pytest.approx(np.median(ratios))


def test_what_the_mask_removes_is_beside_its_time(records):
    for record in records:
        programs = record["result"]["programs"]
        limit = programs["mine"]["limit"]
        assert programs["baseline"]["limit"]["ratio"] == 1
        assert limit["operations_ratio"] < 1
        assert limit["bytes_ratio"] < 1
        least = min(limit["operations_ratio"], limit["bytes_ratio"])
        assert least - 1e-12 <= limit["ratio"] < 1  # a quotient of rounded times, where one binds
        # Room for 21 tokens: a window of five in one group, no cache at all in another.
        slots = [programs[name]["memory"]["cache"] for name in ("baseline", "mine")]
        a_slot, counts = 2 * 2 * 8 * 4, 2 * 4
        assert slots[0] == 4 * 21 * a_slot + counts
        assert slots[1] == (21 + 5 + 21) * a_slot + 2 * 40 * 4 + counts


def test_memory_is_the_process_own(records):
    for record in records:
        for program in record["result"]["programs"].values():
            assert program["memory"]["peak"] > program["memory"]["cache"]
            rise = program["memory"]["resident_rise"]
            assert rise is None or 0 <= rise < 100e6


def test_other_settings_are_refused_in_the_same_folder(model, folder):
    problems = problems_of(run_study, mine(model, rounds=5), str(folder / "out"))
    assert any("rounds is 3 there and 5 here" in problem for problem in problems)


def test_a_trace_of_every_cell_is_there_for_xprof(folder):
    for cell in ("prefill-b2-t16", "decode-b2-t16-n5"):
        (trace, *_) = (folder / "traces" / cell).glob("plugins/profile/*/*.xplane.pb")
        names = {
            event.name
            for plane in jax.profiler.ProfileData.from_file(str(trace)).planes
            for line in plane.lines
            for event in line.events
        }
        assert {"sinkjax: baseline", "sinkjax: mine"} <= names


class KilledError(Exception):
    pass


def test_a_run_that_was_killed_goes_on_by_the_device_clock(tmp_path, free_memory):
    """JAX's profiler, as on an accelerator, for what XLA does on this CPU."""
    free_memory()
    model = tiny.make(num_layers=1)
    study = study_of(model, rounds=2, clock="device", lengths=(8,), generated=(4,))
    out = str(tmp_path / "out")

    def kill(text, steps, records):
        if steps and text.startswith("decode"):
            raise KilledError

    with pytest.raises(KilledError):
        run_study(study, out, kill)
    _, before = read_records(out)
    assert [record["stage"] for record in before] == ["prefill"]
    done = []
    run_study(study, out, lambda text, steps, records: steps and done.append(steps))
    assert done == [2, 1, 1]
    _, records = read_records(out)
    assert [record["stage"] for record in records] == ["prefill", "decode"]
    assert records[0] == before[0]
    for record in records:
        result = record["result"]
        assert result["clock"] == "device"
        program = result["programs"]["baseline"]
        device = program["samples"]["device_seconds"]
        assert len(device) == len(program["samples"]["seconds"]) == study.rounds
        assert program["seconds"]["median"] == pytest.approx(np.median(device))


def test_google_benchmark_json_has_its_shape(records):
    benchmark = google_benchmark(records, date="2026-01-01T00:00:00+00:00", executable="x")
    context = benchmark["context"]
    assert {"date", "executable", "num_cpus", "load_avg", "library_build_type"} <= set(context)
    runs = [run for run in benchmark["benchmarks"] if run["run_type"] == "iteration"]
    aggregates = [run for run in benchmark["benchmarks"] if run["run_type"] == "aggregate"]
    assert len(runs) == 2 * 3 * ROUNDS
    assert len(aggregates) == 2 * 3 * 4
    for run in benchmark["benchmarks"]:
        assert {"name", "run_name", "iterations", "real_time", "cpu_time"} <= set(run)
        assert run["time_unit"] == "ms"
    first = [run for run in runs if run["run_name"] == "decode/b2/t16/n5/mine/process_time"]
    assert [run["repetition_index"] for run in first] == [0, 1, 2]
    seconds = records[1]["result"]["programs"]["mine"]["samples"]["seconds"]
    assert [run["real_time"] for run in first] == pytest.approx([1e3 * s for s in seconds])
    median = next(run for run in aggregates if run["name"].endswith("n5/mine/process_time_median"))
    assert median["real_time"] == pytest.approx(1e3 * np.median(seconds))


def test_tables_tell_a_restless_machine(records):
    machine, times, savings = timing_tables(records)
    assert [row[0] for row in machine.rows] == ["prefill 2 x 16", "decode 2 x 16 + 5"]
    assert [row[1] for row in times.rows] == ["baseline", "mine"] * 2
    assert [row[1] for row in savings.rows] == ["mine"] * 2
    assert times.notes[-1] == "A prompt's attention: xla at 16 tokens."
    restless = [{**record, "result": dict(record["result"])} for record in records]
    for record, (low, high) in zip(restless, ((0.9, 1.1), (1.01, 1.1)), strict=True):
        again = record["result"]["baseline_again"]
        ratio = {**again["ratio"], "low": low, "high": high}
        record["result"]["baseline_again"] = {**again, "ratio": ratio}
    machine = timing_tables(restless)[0]
    assert [row[-1] for row in machine.rows] == ["holds 1", "DOES NOT HOLD 1"]
    assert any("NOT TO BE RELIED ON: decode 2 x 16 + 5" in note for note in machine.notes)


def test_a_prompt_is_prefilled_once_however_much_follows(model):
    study = study_of(model, batch_sizes=(1, 2), lengths=(8,), generated=(0, 4, 6))
    assert [run.slug for run in study.runs] == [
        "prefill-b1-t8",
        "decode-b1-t8-n4",
        "decode-b1-t8-n6",
        "prefill-b2-t8",
        "decode-b2-t8-n4",
        "decode-b2-t8-n6",
    ]


@pytest.mark.parametrize(("stage", "name"), [("prefill", "baseline"), ("decode", "mine")])
def test_logits_that_are_not_finite_are_no_time(stage, name, model, tmp_path, free_memory):
    free_memory()
    damaged, masks = nnx.clone(model), ()
    if name == "mine":
        mask = sinkjax.SinkMask.from_text("L0: 6f | L1: 3f 3s(mean)")
        fills = np.full((2, 6, model.config.head_dim), np.nan, np.float32)
        masks = (Candidate("mine", {16: mask}, {mask: fills}),)
    else:
        damaged.norm.scale.set_value(damaged.norm.scale[...].at[0].set(np.nan))
    study = mine(damaged, mask=masks, stages=(stage,))
    (said,) = problems_of(run_study, study, str(tmp_path / "out"))
    assert said.startswith(f"{name}: logits are not finite: activations")


def test_all_that_is_wrong_is_said_at_once(model):
    candidate = Candidate("baseline", {8: sinkjax.SinkMask.from_text("L0: 6f")})
    sizes = {"mask": (candidate,), "lengths": (60,), "generated": (5,)}
    how = {"rounds": 1, "warmup": 0, "clock": "sundial", "attention": "flash"}
    wrong = study_of(model, batch_sizes=(0,), stages=("prefil",), **sizes, **how)
    problems = problems_of(wrong.check)
    for part in (
        "rounds=1",
        "warmup=0",
        "stages=prefil: use one of prefill, decode",
        "clock=sundial: use one of auto",
        "attention=flash: use one of xla",
        "batch_sizes=0",
        "more than the model's context, 64 tokens",
        "mask=baseline: the name is taken",
        "mask=baseline: ",
    ):
        assert any(part in problem for problem in problems), part


def test_the_page_holds_what_is_printed(folder, records):
    specification, _ = read_records(folder / "out")
    html, _ = render_page(Timing.page(specification, records[::-1]))
    for table in timing_tables(records):
        assert all(f">{escape(cell)}<" in html for row in table.rows for cell in row)
    assert f">{MASK.digest}<" in html
