"""What a search's mask is held against: as many heads, each on a path that hides something."""

import numpy as np
import pytest
import tiny
from searches import search

from sinkjax.accounts.savings import Workload
from sinkjax.masks.paths import Full, Window
from sinkjax.studies.search.controls import CONTROLS, RANDOM, control_masks
from sinkjax.studies.search.grow import SearchSettings

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("by", ["head", "group"])
def test_in_a_layer_with_a_window_of_its_own_wider_windows_mask_no_head(by):
    model = tiny.make(seed=3, layer_windows=(8, None, 8))
    excerpts = np.asarray(tiny.tokens_of(model, (4, 16)))
    narrow, wide = Window(1, 4), Window(1, 12)
    settings = SearchSettings(
        (narrow, wide), 0.1, Workload(16), by=by, ranking="error", objective="heads", rounds=1
    )
    outcome = search(model, excerpts, excerpts, settings)
    np.testing.assert_array_equal(outcome.savings[1] > 0, [False, True, False])
    scores = np.random.default_rng(0).random((3, 6))
    controls = control_masks(outcome, settings, model.config, scores, draws=2)
    assert len(controls) == len(CONTROLS) + len(RANDOM)
    size = int(outcome.mask.masked.sum())
    assert 0 < size < 18
    for mask in (outcome.mask, *controls.values()):
        assert int(mask.masked.sum()) == size
        assert not any(wide in mask.heads[layer] for layer in (0, 2))
    widest = controls["random, on the widest path 1"]
    assert set(widest.heads[1]) <= {Full(), wide}
