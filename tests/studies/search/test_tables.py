"""What a search says of its budget."""

import pytest

from sinkjax.studies.search.tables import budget_line, over_budget


def judged(text, kl, name="chosen"):
    mean = {"value": kl, "low": kl - 0.01, "high": kl + 0.01}
    result = {"kl": {"mean": mean}}
    return {
        "kind": "quality",
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
        judged("a.txt", 9.0, "random control"),
    ]
    outcome = over_budget(records, 0.05)
    assert outcome["kl_budget"] == 0.05
    assert [text["text"] for text in outcome["over_budget"]] == over
    line = budget_line(records, 0.05)
    if over:
        assert line.startswith("THE MASK MISSES ITS BUDGET, a KL of 0.05 nats a token")
        assert "0.0612 [0.0512, 0.0712] on b.txt" in line
        assert "a.txt" not in line
    else:
        assert line == "The mask keeps its budget, a KL of 0.05 nats a token, on all judged text."
