"""Shipped plans: found by name from any folder, of shipped masks, going on in the baseline."""

import pytest

from sinkjax import InputError, SinkMask, load_mask, shipped
from sinkjax.studies.candidates import read_plan


@pytest.mark.parametrize("name", ["smollm2-135m-10-sinks"])  # none is ever to go
def test_names_of_shipped_plans_stay(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan, fills = read_plan(name)
    assert read_plan(f"configs/plans/{name}.json")[0] == plan
    saved = load_mask(name)
    assert plan.mask(2) == plan.mask(10) == saved.mask
    assert plan.mask(11) == SinkMask.from_text("L0-29: 9f")
    assert plan.crossing == "prefill"
    assert list(fills) == ([] if saved.fills is None else [saved.mask])


def test_an_unknown_plan_is_refused_with_those_there_are():
    with pytest.raises(InputError) as refused:
        read_plan("smollm2-135m-10")
    assert all(name in str(refused.value) for name in shipped.names("plans", ".json"))
