"""Whether a mask keeps its KL budget, from entries whose KL is known."""

import pytest

from sinkjax.studies.quality.promise import budget_line, over_budget

pytestmark = pytest.mark.quick


def measured(text, kl, **parts):
    mean = {"value": kl, "low": kl - 0.01, "high": kl + 0.01}
    return {"length": 512, "text": text, "kl": {"mean": mean}, **parts}


@pytest.mark.parametrize(("kl", "over"), [(0.04, []), (0.05, []), (0.0612, ["b.txt"])])
def test_a_mask_that_misses_its_budget_on_judged_text_says_so(kl, over):
    kept = over_budget([measured("a.txt", 0.03), measured("b.txt", kl)], 0.05, "mean")
    assert (kept["kl_budget"], kept["budget_on"]) == (0.05, "mean")
    assert [text["text"] for text in kept["over_budget"]] == over
    line = budget_line(kept)
    if over:
        assert line.startswith("THE MASK MISSES ITS BUDGET, a KL of 0.05 nats a token")
        assert "0.0612 [0.0512, 0.0712] on b.txt at 512 tokens" in line
        assert "a.txt" not in line
    else:
        assert line == "The mask keeps its budget, a KL of 0.05 nats a token, on all judged text."


def test_the_budget_is_on_the_largest_part_at_any_length():
    part = lambda value: {"value": value, "low": value - 0.01, "high": value + 0.01}  # noqa: E731
    dear = {"kl_acting": part(0.03), "kl_late": part(0.055), "kl_generated": part(0.04)}
    cheap = {"kl_acting": part(0.03), "kl_late": part(0.04), "kl_generated": part(0.05)}
    entries = [measured("a.txt", 0.02, **dear), measured("b.txt", 0.02, **cheap)]
    kept = over_budget(entries, 0.05)
    assert kept["over_budget"] == [{"text": "a.txt", "length": 512, "kl": dear["kl_late"]}]
    assert "0.0550 [0.0450, 0.0650] on a.txt at 512 tokens" in budget_line(kept)
    entries[1]["shorter"] = {
        "256": {"kl_late": 0.04, "kl_generated": 0.0601},
        "128": {"kl_late": 0.05},
    }
    line = budget_line(over_budget(entries, 0.05))
    assert "a.txt at 512 tokens, 0.0601 on b.txt at 256 tokens. " in line
    assert "on all judged text" in budget_line(over_budget(entries, 0.05, "mean"))


def test_generated_tokens_that_there_was_no_room_for_are_named():
    part = {"value": 0.01, "low": 0.0, "high": 0.02}
    nothing = {"value": None, "undefined": "why"}
    of_prompt = {"kl_acting": part, "kl_late": part}
    whole = measured("a.txt", 0.01, **of_prompt, kl_generated=part)
    assert "not_generated" not in over_budget([whole], 0.05)
    kept = over_budget([whole, measured("b.txt", 0.01, **of_prompt, kl_generated=nothing)], 0.05)
    assert kept["not_generated"] == [{"text": "b.txt", "length": 512}]
    line = budget_line(kept)
    assert "keeps its budget" in line
    assert "No generated tokens were read on b.txt at 512 tokens" in line
    earlier = measured("a.txt", 0.01)  # of a version that measured the mean alone
    assert "not_generated" not in over_budget([earlier], 0.05)
