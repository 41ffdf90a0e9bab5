"""Runs as their reports read them: drawn numbers, and the real statistics of them."""

import itertools
import json
import math
import types

import hf
import numpy as np
import pytest
import runs

from sinkjax.instruments.compare import QualityStats
from sinkjax.masks.mask import SinkMask
from sinkjax.studies.quality.study import Quality
from sinkjax.studies.quality.summary import (
    summarize_continuation,
    summarize_quality,
)
from sinkjax.studies.results import identity
from sinkjax.studies.sweep.cell import summarize_cell
from sinkjax.studies.sweep.lengths import summarize_lengths
from sinkjax.studies.sweep.study import Sweep

ENVIRONMENT = {
    "sinkjax": "0.1.0",
    "jax": "0.10.2",
    "python": "3.11.7",
    "platform": "cpu",
    "device": "Some processor",
    "num_devices": 1,
    "cpu_count": 2,
    "xla_flags": "",
}
STUDY = (("study: Hello world", 2), ("study: complex sentence (stand-in)", 24))


@pytest.fixture
def folder(tmp_path):
    """A run's folder with three records."""
    return runs.make(tmp_path)


@pytest.fixture
def old_folder(folder):
    """The same of a version that kept no digests."""
    return runs.without_digests(folder)


def describe_model(name="tiny", num_layers=6, num_heads=8, num_kv_heads=2, digest="a"):
    return {
        "name": name,
        "model_digest": digest * 64,
        "tokenizer_digest": "b" * 64,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "max_length": 4096,
        "dtype": "float32",
    }


def describe_source(name, lengths, role="prompts", digest="c"):
    return {"name": name, "sha256": digest * 64, "role": role, "lengths": list(lengths)}


def draw_scores(seed, num_prompts, length, model):
    """Scores by definition, float32 [P, L, N], of heads of which every query gives the same share.

    Deeper heads are stronger sinks, longer prompts weaken all, layer 0 has no sink at two tokens.
    """
    rng = np.random.default_rng(seed)
    L, N = model["num_layers"], model["num_heads"]
    strength = (
        np.random.default_rng(7).normal(0.0, 2.0, (L, N)) + np.linspace(-1.0, 3.0, L)[:, None]
    )
    drawn = rng.normal(0.0, 0.7, (num_prompts, L, N))
    log_odds = strength + drawn + 3.0 - 0.8 * math.log2(length)
    if length == 2:
        log_odds[:, 0] = np.minimum(log_odds[:, 0], 0.0)
    share = 1 / (1 + np.exp(-log_odds))
    uniform = sum(1 / (i + 1) for i in range(1, length)) / (length - 1)
    scores = {
        "mean": (1 + (length - 1) * share) / length,
        "mean_excl_first": share,
        "last": share,
        "tail": share,
        "min": share,
        "log_odds": log_odds,
        "excess": share - uniform,
    }
    return {name: value.astype(np.float32) for name, value in scores.items()}


def build_sweep(
    models=None,
    sources=None,
    bos=("never",),
    definitions=("mean", "mean_excl_first"),
    thresholds=(0.9,),
    num_prompts=12,
    study=True,
    key_position=0,
):
    """(specification, records) of a sweep that ran to its end."""
    models = models or [describe_model()]
    sources = sources or [
        describe_source("short", (2, 4, 8, 24)),
        describe_source("prose", (8, 64, 512), role="text", digest="d"),
    ]
    of_study = [
        describe_source(name, [length], role="study", digest=str(index))
        for index, (name, length) in enumerate(STUDY)
    ]
    specification = {
        "models": models,
        "sources": [*(of_study if study else ()), *sources],
        "lengths": sorted({length for source in sources for length in source["lengths"]}),
        "bos": list(bos),
        "definitions": list(definitions),
        "thresholds": list(thresholds),
        "key_position": key_position,
        "tail": 16,
        "num_prompts": num_prompts,
        "max_tokens": 131072,
        "min_share": 0.9,
        "seed": 0,
    }
    records = []
    for model, source in itertools.product(models, specification["sources"]):
        for policy in ("never",) if source["role"] == "study" else bos:
            records += _series(specification, model, source, policy)
    return specification, records


def _series(specification, model, source, policy):
    """The records of one model on one source under one BOS policy."""
    is_study = source["role"] == "study"
    lengths = source["lengths"]
    counts = {
        length: 1 if is_study else max(1, min(specification["num_prompts"], 2048 // length))
        for length in lengths
    }
    scores = {length: draw_scores(length, counts[length], length, model) for length in lengths}
    common = {
        "model": {key: value for key, value in model.items() if key != "max_length"},
        "source": {key: source[key] for key in ("name", "sha256", "role")},
        "bos": policy,
        "bos_added": policy == "always",
        "key_position": specification["key_position"],
        "tail": 16,
        "seed": 0,
    }

    def record(kind, what, result):
        fields = {"kind": kind, **common, **what}
        return {"id": identity(fields), **fields, "result": result, "environment": ENVIRONMENT}

    for definition, threshold in itertools.product(
        specification["definitions"], specification["thresholds"]
    ):
        under = {"definition": definition, "threshold": threshold}
        for length in lengths:
            values = scores[length][definition]
            norms = np.exp(-values - values.mean()).astype(np.float32)
            groups = model["num_kv_heads"]
            result = summarize_cell(values, norms, definition, threshold, 0, groups)
            what = {"length": length, "num_prompts": counts[length], **under}
            yield record("cell", what, result)
        if not is_study:
            result = summarize_lengths(
                lengths,
                [scores[length][definition] for length in lengths],
                [counts[length] for length in lengths],
                definition,
                threshold,
                0,
                specification["min_share"],
            )
            what = {"lengths": lengths, "num_prompts": list(counts.values()), **under}
            yield record("lengths", what, result)


def write_sweep(folder, specification, records):
    """A sweep's output folder with these records, in this order."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"specification": specification}))
    lines = [json.dumps(record, allow_nan=False) + "\n" for record in records]
    (folder / "records.jsonl").write_text("".join(lines))
    return folder


QUALITY_LENGTHS, EXCERPTS, NEW = (2, 24, 512), 6, 16
MASK = SinkMask.from_text("L0-5: 4f 4w(4,60)")
CROSSING = {"rule": "prefill", "boundaries": [24], "masks": []}


def draw_stats(cost, length, excerpts=EXCERPTS, seed=0):
    """A comparison whose KL grows with the position, `cost` nats at most."""
    rng = np.random.default_rng(seed)
    positions = np.arange(1, length)
    kl = cost * rng.uniform(0.5, 1, (excerpts, length - 1)) * positions / length
    nll = rng.uniform(2, 4, (excerpts, length - 2))
    agree = rng.random(kl.shape) > cost / 2
    return QualityStats(
        positions=positions,
        kl=kl.astype(np.float32),
        top1=agree,
        top5=agree.astype(np.float32),
        baseline_nll=nll.astype(np.float32),
        candidate_nll=(nll + kl[:, : length - 2]).astype(np.float32),
        baseline_correct=nll < 3,
        candidate_correct=nll < 2.8,
    )


def build_quality_run(costs, excerpts=EXCERPTS):
    """(specification, records): candidates by name with what each costs; the last is a plan's."""
    model, source = describe_model(), describe_source("book.txt", QUALITY_LENGTHS, role="text")
    plan = {"crossing": "prefill", "stages": []}
    heads = MASK.counts()
    described = {name: {"name": name, "mask_digest": name, "heads": heads} for name in costs}
    specification = {
        "experiment": "quality",
        "model": model,
        "candidates": [
            {
                "name": name,
                "masks": dict.fromkeys(map(str, QUALITY_LENGTHS), "text"),
                "described": [described[name]] * len(QUALITY_LENGTHS),
                **({"plan": plan} if name == list(costs)[-1] else {}),
            }
            for name in costs
        ],
        "sources": [source],
        "generated": 64,
        "seed": 0,
    }
    records = []

    def add(kind, name, length, result, **fields):
        fields = {
            "kind": kind,
            "model": model,
            "candidate": described[name],
            "source": {key: source[key] for key in ("name", "sha256", "role")},
            "bos": "never",
            "bos_added": False,
            "length": length,
            "num_windows": excerpts,
            **fields,
        }
        record = {"id": identity(fields), **fields, "result": result, "environment": ENVIRONMENT}
        records.append(record)

    for name, cost in costs.items():
        for length in QUALITY_LENGTHS:
            stats = draw_stats(cost, length, excerpts)
            add("quality", name, length, summarize_quality(stats, MASK, seed=0), score_from=1)
            agreeing = np.minimum(NEW, np.arange(excerpts) + int(4 / (cost + 0.1)))
            crosses = {"crossing": CROSSING} if (name, length) == (list(costs)[-1], 24) else {}
            result = summarize_continuation(agreeing, NEW, seed=0)
            add("continuation", name, length, result, num_tokens=NEW, **crosses)
    return specification, records


@pytest.fixture(scope="session")
def describe():
    """Makes what specifications hold: `model`, `source`; and `scores` of a model."""
    return types.SimpleNamespace(model=describe_model, source=describe_source, scores=draw_scores)


@pytest.fixture(scope="session")
def make_sweep():
    return build_sweep


@pytest.fixture(scope="session")
def save_sweep():
    return write_sweep


@pytest.fixture(scope="session")
def sweep(make_sweep):
    """One model, two sources, two definitions, and the study's prompts."""
    return make_sweep()


@pytest.fixture(scope="session")
def report(sweep, save_sweep, tmp_path_factory):
    """The path of the report of `sweep`, written once."""
    return runs.report_of(Sweep, save_sweep(tmp_path_factory.mktemp("sweep"), *sweep))


@pytest.fixture(scope="session")
def make_quality_run():
    return build_quality_run


@pytest.fixture(scope="session")
def quality_run(make_quality_run):
    """Three candidates, one of which costs nothing and one of which is a plan."""
    return make_quality_run({"none <b>.json": 0.0, "some.json": 0.05, "plan.json": 1.5})


@pytest.fixture(scope="session")
def quality_report(quality_run, save_sweep, tmp_path_factory):
    """The path of the report of `quality_run`, written once."""
    return runs.report_of(Quality, save_sweep(tmp_path_factory.mktemp("quality"), *quality_run))


@pytest.fixture(scope="session")
def other_text(tmp_path_factory):
    """A second text for whole runs."""
    path = tmp_path_factory.mktemp("text") / "other.txt"
    path.write_text("\n".join(f"Line {n} of a text, {n * n} steps from home." for n in range(400)))
    return path


@pytest.fixture(scope="session")
def small(tmp_path_factory, small_tokenizer):
    """A random Llama of two layers, with a small tokenizer beside it."""
    return hf.save_small(tmp_path_factory.mktemp("small"), small_tokenizer)
