"""What a search says of its controls."""

import pytest

from sinkjax.studies.search.tables import costs_of


def judged(text, kl, name="chosen", **parts):
    mean = {"value": kl, "low": kl - 0.01, "high": kl + 0.01}
    result = {"kl": {"mean": mean}, **parts}
    return {
        "kind": "quality",
        "length": 512,
        "tokens_sha256": text,
        "candidate": {"name": name},
        "source": {"name": text},
        "result": result,
    }


def test_draws_of_a_control_are_told_together():
    other = {"perplexity": {"change": {"value": 0.1}}, "agreement": {"top1": {"value": 0.9}}}
    records = []
    for draw, kl in enumerate((0.1, 0.2, 0.6), start=1):
        part = {"value": kl, "low": 0.0, "high": 1.0}
        parts = dict.fromkeys(("kl_acting", "kl_late", "kl_generated"), part)
        records.append(judged("a.txt", kl, f"random, as chosen {draw}", **parts, **other))
    (costs,) = costs_of(records, "random, as chosen")
    assert costs["text"] == "a.txt"
    for name in ("kl", "kl_acting", "kl_late", "kl_generated"):
        assert costs[name]["value"] == pytest.approx(0.3)
        assert costs[name]["each"] == [0.1, 0.2, 0.6]
        assert costs[name]["low"] is None
