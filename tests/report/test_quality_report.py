"""The report of a quality run: drawn comparisons, and the real summaries of them."""

import random

import numpy as np
import pytest

from sinkjax import InputError
from sinkjax.quality import (
    QualityStats,
    summarize_continuation,
    summarize_passkeys,
    summarize_quality,
)
from sinkjax.report import write_report
from sinkjax.report.quality import quality_tables
from sinkjax.results import identity

LENGTHS, WINDOWS, NEW = (2, 24, 512), 6, 16
HEADS = {"full": 20, "copy": 0, "window": 24, "sink": 4}
CROSSING = {"rule": "prefill", "boundaries": [24], "masks": []}


def draw_stats(cost, length, windows=WINDOWS, seed=0):
    """A comparison whose KL grows with the position, `cost` nats at most."""
    rng = np.random.default_rng(seed)
    positions = np.arange(1, length)
    kl = cost * rng.uniform(0.5, 1, (windows, length - 1)) * positions / length
    nll = rng.uniform(2, 4, (windows, length - 2))
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


def build_run(describe, costs, windows=WINDOWS):
    """(specification, records): candidates by name with what each costs; the last is a plan's."""
    model, source = describe.model(), describe.source("book.txt", LENGTHS, role="text")
    plan = {"crossing": "prefill", "stages": []}
    described = {name: {"name": name, "mask_digest": name, "heads": HEADS} for name in costs}
    specification = {
        "experiment": "quality",
        "model": model,
        "candidates": [
            {
                "name": name,
                "masks": dict.fromkeys(map(str, LENGTHS), "text"),
                "described": [described[name]] * len(LENGTHS),
                **({"plan": plan} if name == list(costs)[-1] else {}),
            }
            for name in costs
        ],
        "sources": [source],
        "scored": "all",
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
            "num_windows": windows,
            **fields,
        }
        environment = {"jax": "0.10.2", "device": "Some processor"}
        record = {"id": identity(fields), **fields, "result": result, "environment": environment}
        records.append(record)

    for name, cost in costs.items():
        for length in LENGTHS:
            stats = draw_stats(cost, length, windows)
            add("quality", name, length, summarize_quality(stats, seed=0), score_from=1)
            agreeing = np.minimum(NEW, np.arange(windows) + int(4 / (cost + 0.1)))
            crosses = {"crossing": CROSSING} if (name, length) == (list(costs)[-1], 24) else {}
            result = summarize_continuation(agreeing, NEW, seed=0)
            add("continuation", name, length, result, num_tokens=NEW, **crosses)
        answers = np.full(windows, 5)
        add(
            "passkey",
            name,
            512,
            summarize_passkeys(stats, answers, seed=0),
            depth=0.5,
            score_from=500,
        )
    return specification, records


@pytest.fixture(scope="module")
def run(describe):
    return build_run(describe, {"none <b>.json": 0.0, "some.json": 0.05, "plan.json": 1.5})


@pytest.fixture(scope="module")
def quality_report(run, save_sweep, tmp_path_factory):
    return write_report(save_sweep(tmp_path_factory.mktemp("quality"), *run))


def test_the_page_has_every_table_a_figure_for_each_question_and_says_what_it_costs(
    run, quality_report
):
    page = quality_report.read_text()
    figures = sorted(path.name for path in (quality_report.parent / "figures").iterdir())
    assert [name.split("-")[0] for name in figures] == ["continuations", "cost", "positions"]
    for table in quality_tables(run[1]):
        assert f"<figcaption>{table.title}</figcaption>" in page
        for row in table.rows:
            for cell in row:
                assert cell.replace("<", "&lt;").replace(">", "&gt;") in page, cell
    assert "none &lt;b&gt;.json takes 28 of 48 heads off full attention" in page
    assert page.index("some.json takes") < page.index("plan.json takes")  # the cheapest first
    assert "beyond 24 tokens all tokens are prefilled again with the next mask" in page
    assert "no scored position has a next token" in page  # of two tokens
    assert "Some processor" in page


def test_the_order_of_records_changes_nothing(run, quality_report, save_sweep, tmp_path):
    specification, records = run
    shuffled = random.Random(0).sample(records, len(records))
    again = write_report(save_sweep(tmp_path, specification, shuffled))
    assert again.read_bytes() == quality_report.read_bytes()


def test_many_masks_are_shown_some_a_figure_and_one_window_has_no_interval(
    describe, save_sweep, tmp_path
):
    costs = {f"mask-{n}.json": 0.01 * n for n in range(7)}
    specification, records = build_run(describe, costs, windows=1)
    report = write_report(save_sweep(tmp_path, specification, records))
    names = [path.name for path in (tmp_path / "figures").iterdir()]
    assert len([name for name in names if name.startswith("cost")]) == 2
    assert "one prompt: no interval" in report.read_text()


def test_records_without_a_report_are_refused(run, save_sweep, tmp_path):
    specification, records = run
    with pytest.raises(InputError, match=r"holds no records yet: run experiments\.quality"):
        write_report(save_sweep(tmp_path / "none", specification, []))
    other = {**specification, "experiment": "other"}
    with pytest.raises(InputError, match=r"records of experiments\.other; reports are"):
        write_report(save_sweep(tmp_path / "other", other, records))
