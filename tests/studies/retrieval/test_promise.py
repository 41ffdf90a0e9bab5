"""What is promised of a mask's answers, from records whose answers are known."""

import numpy as np
import pytest
from scipy.stats import binom

from sinkjax.studies.retrieval.measure import summarize_answers
from sinkjax.studies.retrieval.promise import promise, promise_line, promises

pytestmark = pytest.mark.quick


def records(*sets, count=30):
    """A record of each depth, from three numbers: of answers that the baseline gives, of those that
    the mask loses, and of nats by which the mask's NLL rises."""
    made = []
    for number, (own, lost, rise) in enumerate(sets):
        baseline = np.arange(count) < own
        masked = baseline & (np.arange(count) >= lost)
        of = [
            {"accuracy": given.astype(float), "nll": np.ones(count)} for given in (baseline, masked)
        ]
        of[1]["nll"] += rise
        result = summarize_answers(*of, np.full(count, 8), seed=0)
        fields = {"task": "niah_prose", "length": 512, "depth": number / 10, "num_windows": count}
        made.append({**fields, "result": result})
    return made


@pytest.mark.parametrize(
    ("sets", "kept"),
    [
        ([(30, 0, 0.09), (30, 0, -1), (28, 0, 0)], True),
        ([(30, 0, 0.11), (30, 0, -1), (30, 0, 0)], False),
        ([(30, 1, 0), (30, 1, 0), (30, 0, 0)], False),
        ([(30, 1, 0)] * 6, False),
        ([(30, 1, 0)] * 3 + [(30, 0, 0)] * 3, True),
        ([(30, 0, 0), (30, 0, 0), (23, 23, 9)], None),
        ([(30, 0, 0), (30, 0, 0), (30, 0, 0), (23, 23, 9)], True),
    ],
)
def test_answers_are_kept_where_the_nll_and_the_bound_say_so(sets, kept):
    promised = promise(records(*sets))
    assert promised["kept"] is kept
    says = [of for of in sets if of[0] >= 24]
    assert promised["num_questions"] == 30 * len(says)
    assert promised["lost"] == sum(of[1] for of in says)
    # As many losses as were seen, or fewer, are that unlikely where more than the bound are lost.
    seen = binom.cdf(promised["lost"], promised["num_questions"], promised["lost_at_most"])
    assert seen == pytest.approx(0.025, rel=1e-6)
    line = promise_line(promised)
    assert ("no promise" in line) == (kept is None)
    assert ("DOES NOT" in line) == (kept is False)


def test_nothing_is_promised_where_nothing_says_something():
    promised = promise(records((3, 0, 0), (3, 0, 0), (3, 0, 0)))
    assert promised["kept"] is None
    assert promised["lost_at_most"] == 1
    assert [of["says_something"] for of in promised["asked"]] == [False] * 3


def test_three_depths_of_one_task_are_needed_and_thirty_questions_at_each():
    of_task = lambda *sets, task, **how: [  # noqa: E731
        {**record, "task": task} for record in records(*sets, **how)
    ]
    well = (30, 0, 0)
    prose = of_task(well, well, well, task="niah_prose")
    assert promise(prose)["kept"]
    assert promise(prose + of_task(well, task="niah_single_1"))["kept"]
    apart = prose[:1] + of_task(well, well, well, task="niah_single_1")[1:]
    assert promise(apart)["kept"] is None
    for record in (listed := of_task(well, task="vt")):
        del record["depth"]
    assert promise(prose[:2] + listed)["kept"] is None
    fewer = of_task(*[(24, 0, 0)] * 3, task="niah_prose", count=24)
    assert promise(fewer)["lost_at_most"] < 0.05
    assert promise(fewer)["kept"] is None
    assert "three depths of one task, of 30 questions each, are needed" in promise_line(
        promise(fewer)
    )


def test_questions_that_are_there_twice_count_once():
    """A mask by its name and by its text, in one run."""
    once = records((30, 0, 0), (30, 0, 0), (30, 1, 0))
    longer = [{**record, "length": 1024} for record in once]
    (of_longer, of_once) = promises([*once, *longer, *once])
    assert of_once == promise(once)
    assert of_longer == promise(longer)
