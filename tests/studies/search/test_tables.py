"""What a search says of its budget."""

import pytest

from sinkjax.studies.search.tables import budget_line, costs_of, over_budget


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


@pytest.mark.parametrize(("kl", "over"), [(0.04, []), (0.05, []), (0.0612, ["b.txt"])])
def test_a_mask_that_misses_its_budget_on_judged_text_says_so(kl, over):
    records = [
        {"kind": "search"},
        judged("a.txt", 0.03),
        judged("b.txt", kl),
        judged("a.txt", 9.0, "random, as chosen 1"),
    ]
    outcome = over_budget(records, 0.05, "mean")
    assert outcome["kl_budget"] == 0.05
    assert [text["text"] for text in outcome["over_budget"]] == over
    line = budget_line(records, 0.05, "mean")
    if over:
        assert line.startswith("THE MASK MISSES ITS BUDGET, a KL of 0.05 nats a token")
        assert "0.0612 [0.0512, 0.0712] on b.txt at 512 tokens" in line
        assert "a.txt" not in line
    else:
        assert line == "The mask keeps its budget, a KL of 0.05 nats a token, on all judged text."


def test_the_budget_is_on_the_largest_part():
    part = lambda value: {"value": value, "low": value - 0.01, "high": value + 0.01}  # noqa: E731
    nothing = {"value": None, "undefined": "why"}
    dear = {"kl_acting": part(0.03), "kl_late": part(0.055), "kl_generated": part(0.04)}
    cheap = {"kl_acting": part(0.03), "kl_late": part(0.04), "kl_generated": nothing}
    records = [{"kind": "search"}, judged("a.txt", 0.02, **dear), judged("b.txt", 0.02, **cheap)]
    (over,) = over_budget(records, 0.05)["over_budget"]
    assert over == {"text": "a.txt", "length": 512, "kl": dear["kl_late"]}
    assert "0.0550 [0.0450, 0.0650] on a.txt at 512 tokens" in budget_line(records, 0.05)
    shorter = {"256": {"kl_late": 0.04, "kl_generated": 0.0601}, "128": {"kl_late": 0.05}}
    records[2]["result"]["shorter"] = shorter
    assert "a.txt at 512 tokens, 0.0601 on b.txt at 256 tokens. " in budget_line(records, 0.05)
    assert "on all judged text" in budget_line(records, 0.05, "mean")


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
