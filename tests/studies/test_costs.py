"""Where a mask's KL is counted, by counting positions one by one."""

import numpy as np
import pytest
from tiny import make

from sinkjax.instruments.judge import Judge
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Full
from sinkjax.studies.costs import LAST, PARTS, over_draws, part_means, summarize_parts
from sinkjax.studies.frontier.page import masked_share
from sinkjax.studies.held_out import mask_result
from sinkjax.testing.oracle import reference_logits

MIXED = SinkMask.from_text("L0: 2f | L1: f w(2,5) | L2: w(1,2) f")


def acts(path, position):
    """Whether a query at a position attends to other than all positions up to its own."""
    if path.kind == "window":
        unseen = [s for s in range(position + 1) if path.sinks <= s <= position - path.recent]
        return bool(unseen)
    return path != Full() and position > 0


@pytest.mark.parametrize("prompt", [2, 3, 9, 24])
@pytest.mark.parametrize("generated", [0, 4])
@pytest.mark.parametrize(
    "text", [str(MIXED), "L0-1: 2f | L2: s(zero) w(2,5)", "L0: 2f | L1: c(0,1) f"]
)
def test_each_part_is_the_mean_over_positions_counted_one_by_one(prompt, generated, text):
    mask = SinkMask.from_text(text)
    kl = np.random.default_rng(0).uniform(size=(9, prompt + generated - 1)).astype(np.float32)
    paths = {path for layer in mask.heads for path in layer}
    late = {p for p in range(prompt) if p >= prompt - max(1, prompt // 4)}
    wanted = {
        "kl_acting": {p for p in range(prompt) if any(acts(path, p) for path in paths)},
        "kl_late": late,
        "kl_generated": set(range(prompt, prompt + generated)),
    }
    means, parts = part_means(kl, mask, prompt), summarize_parts(kl, mask, prompt)
    assert list(parts) == [*PARTS, LAST]
    assert parts[LAST]["first"] == prompt - 1
    assert parts[LAST]["value"] == pytest.approx(kl[:, prompt - 2].mean())
    assert set(means) == {name for name, positions in wanted.items() if positions}
    for name, positions in wanted.items():
        if not positions:
            assert parts[name]["value"] is None
            assert parts[name]["undefined"]
            continue
        mean = np.mean([kl[:, p - 1] for p in sorted(positions)], dtype=np.float64)
        np.testing.assert_allclose([means[name], parts[name]["value"]], mean, rtol=1e-12)
        assert parts[name]["first"] == min(positions)
        assert parts[name]["low"] <= mean <= parts[name]["high"]
    by_name = {"copy" if path.kind == "copy" else str(path): path for path in paths - {Full()}}
    assert {of_path["path"] for of_path in parts["kl_acting"]["by_path"]} == set(by_name)
    for of_path in parts["kl_acting"]["by_path"]:
        positions = [p for p in range(prompt) if acts(by_name[of_path["path"]], p)]
        mean = np.mean([kl[:, p - 1] for p in positions]) if positions else None
        assert of_path["value"] == (mean if mean is None else pytest.approx(mean))


def test_a_mask_without_masked_heads_acts_nowhere():
    mask = SinkMask.from_text("L0: 2f")
    parts = summarize_parts(np.zeros((2, 7), np.float32), mask, 8)
    assert parts["kl_acting"]["undefined"] == "no masked head acts before the end of the prompt"
    assert parts["kl_acting"]["by_path"] == []
    assert parts["kl_late"]["value"] == 0


def test_draws_of_a_control_have_each_in_an_intervals_place():
    drawn = over_draws([{"value": 1.0, "low": 0.5, "high": 2.0}, {"value": 3.0}])
    assert drawn == {"value": 2.0, "low": None, "high": None, "each": [1.0, 3.0]}
    nothing = {"value": None, "undefined": "no room"}
    assert over_draws([nothing, nothing]) == nothing


def test_the_oracle_differs_from_where_on_the_first_head_acts():
    model = make(num_heads=2, num_kv_heads=1)
    tokens = np.random.default_rng(1).integers(0, 61, (2, 16)).astype(np.int32)
    for text, first in ((str(MIXED), 3), ("L0-1: 2f | L2: s(first) f", 1)):
        mask = SinkMask.from_text(text)
        full = SinkMask.full(model.config)
        logits = [np.asarray(reference_logits(model, m, tokens)) for m in (full, mask)]
        changed = (logits[0] != logits[1]).any(axis=(0, 2))
        assert np.flatnonzero(changed)[0] == first


def test_in_a_layer_with_a_window_of_its_own_a_wider_one_does_not_act():
    model = make(num_heads=2, num_kv_heads=1, layer_windows=(5, None, 5))
    tokens = np.random.default_rng(1).integers(0, 61, (2, 16)).astype(np.int32)
    mask = SinkMask.from_text("L0: w(1,5) f | L1: f w(2,8) | L2: w(0,7) w(3,6)")
    kl = Judge(model, tokens)(mask)
    result = mask_result(mask, kl, 16, model.config.layer_windows)
    first = 1 + int(np.flatnonzero((kl > 0).any(axis=0))[0])
    assert result["kl_acting"]["first"] == first == 10
    assert [of["path"] for of in result["kl_acting"]["by_path"]] == ["window(2,8)"]
    assert result["mask"] == str(mask)
    assert result["heads"] == {"full": 5, "copy": 0, "window": 1, "sink": 0}
    idle = SinkMask.from_text("L0: w(1,5) f | L1: 2f | L2: w(0,7) w(3,6)")
    nothing = mask_result(idle, kl, 16, model.config.layer_windows)
    assert nothing["kl_acting"]["value"] is None
    assert masked_share({"result": nothing}) == 0
