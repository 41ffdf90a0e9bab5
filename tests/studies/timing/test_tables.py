"""The tables of timing, of records that hold odd values."""

import numpy as np
import pytest

from sinkjax.studies.timing.pairs import ratio
from sinkjax.studies.timing.tables import timing_tables


def program(ratio, limit_ratio, share=0.5):
    return {
        "seconds": {"median": 0.1, "least": 0.1, "spread": 0.0},
        "tokens_per_second": 100.0,
        "ratio": ratio and {"value": ratio, "low": ratio - 0.01, "high": ratio + 0.01},
        "limit": {
            "seconds": 0.05,
            "share": {"value": share},
            "ratio": limit_ratio,
            "operations_ratio": 0.9,
            "bytes_ratio": 0.9,
        },
        "attention": "xla",
        "memory": {"peak": 1e6, "cache": 1e6, "cache_resident": None},
    }


def record(limit_ratio=0.5, share=0.5, load=(0.5, 1.5), again=(0.98, 1.01)):
    rate = {"per_second": {"median": 1e9, "spread": 0.1}}
    low, high = again
    return {
        "model": {"name": "tiny", "dtype": "float32"},
        "stage": "prefill",
        "batch_size": 1,
        "prompt_length": 8,
        "generated": 0,
        "rounds": 3,
        "warmup": 1,
        "environment": {"device": "d", "cpu_count": 2, "jax": "1", "xla_flags": ""},
        "result": {
            "clock": "host",
            "load_average": [[load[0], 0, 0], [load[1], 0, 0]],
            "machine": {"read": rate, "multiply": rate},
            "programs": {
                "baseline": program(None, 1.0),
                "mine": program(0.75, limit_ratio, share),
            },
            "baseline_again": {"ratio": {"value": 1.0, "low": low, "high": high, "level": 0.95}},
        },
    }


@pytest.mark.parametrize(
    ("limit_ratio", "realized"),
    [(0.999, "-"), (0.981, "-"), (0.979, "1190%"), (0.5, "50%"), (1.0, "-"), (1.1, "-")],
)
def test_what_is_realized_is_said_where_it_can_be_resolved(limit_ratio, realized):
    """The baseline's interval is 0.02 from 1: less than that cannot be told from nothing."""
    savings = timing_tables([record(limit_ratio)])[-1]
    assert [row[4] for row in savings.rows] == [realized]
    explained = any(note.startswith("-: less can be saved") for note in savings.notes)
    assert explained == (realized == "-")


@pytest.mark.parametrize(
    ("load", "warned"), [((0.5, 2.0), False), ((2.1, 1), True), ((1, 9), True)]
)
def test_a_load_beyond_the_threads_is_a_warning(load, warned):
    machine = timing_tables([record(load=load)])[0]
    warnings = [note for note in machine.notes if note.startswith("WARNING: prefill 1 x 8.")]
    assert len(warnings) == warned


@pytest.mark.parametrize(("share", "explained"), [(1.0, False), (1.004, True), (1.3, True)])
def test_a_limit_beyond_the_time_is_explained(share, explained):
    times = timing_tables([record(share=share)])[1]
    assert any(note.startswith("A limit above 100%") for note in times.notes) == explained


@pytest.mark.parametrize(("rounds", "covers"), [(2, "50%"), (3, "75%"), (4, "88%"), (5, None)])
def test_few_rounds_say_what_their_intervals_cover(rounds, covers):
    """From the least to the most ratio, of rounds whose median is as often above as below 1."""
    table = timing_tables([{**record(), "rounds": rounds}])[0]
    said = [note for note in table.notes if "covers" in note]
    assert len(said) == (covers is not None)
    if covers is None:
        return
    assert f"covers {covers}" in said[0]
    ratios = np.exp(np.random.default_rng(0).normal(size=(400, rounds)))
    intervals = [ratio(each, np.ones(rounds)) for each in ratios]
    assert [(of["low"], of["high"]) for of in intervals] == [(min(of), max(of)) for of in ratios]
    holds = np.mean([of["low"] <= 1 <= of["high"] for of in intervals])
    assert holds == pytest.approx(float(covers[:-1]) / 100, abs=0.06)
