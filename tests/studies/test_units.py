"""What is masked at a time: over several chips each has as many heads on every one of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from masks import counts_per_layer

from sinkjax.instruments.sensitivity import Prediction
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Full, Sink, Window
from sinkjax.studies.search.budget import make_moves, rank_moves
from sinkjax.studies.units import units_of

pytestmark = pytest.mark.quick

LAYERS, KV_HEADS, GROUP = 2, 4, 2
PATHS = [Window(1, 4), Sink("zero")]


@given(st.integers(0, 2**32 - 1), st.sampled_from(["head", "group"]), st.sampled_from([1, 2, 4]))
def test_any_number_of_moves_leaves_a_mask_that_is_even(seed, by, chips):
    rng = np.random.default_rng(seed)
    shape = (LAYERS, KV_HEADS * GROUP)
    units = units_of(rng.random(shape), KV_HEADS, by, chips)
    assert units.size == chips * (GROUP if by == "group" else 1)
    full = SinkMask((((Full(),) * shape[1]),) * LAYERS)
    linear = np.concatenate([np.zeros((1, *shape)), rng.random((2, *shape))])
    products = rng.normal(size=(3, *linear.shape))
    predicted = units.predicted(Prediction(full, linear, products))
    moves = rank_moves(full, PATHS, predicted, np.array([1.0, 3.0]), size=units.size)
    for number in range(0, len(moves) + 1, 3):
        arranged = make_moves(full, moves[:number], size=units.size)
        mask = units.restored(arranged)
        assert units.arranged(mask) == arranged
        assert mask.balanced(chips, KV_HEADS) == mask
        made = {(move.layer, move.unit) for move in moves[:number]}
        assert mask.masked.sum() == len(made) * units.size
    # The costs of a unit are those of its heads.
    first = moves[0]
    start = first.unit * units.size
    heads = units.order[first.layer, start : start + units.size]
    option = 1 + PATHS.index(first.path)
    own = (products[:, option] - products[:, 0])[:, first.layer, heads].sum(axis=-1)
    cost = linear[option, first.layer, heads].sum() + np.square(own).mean() / 2
    assert first.cost == pytest.approx(cost)


def test_heads_of_like_costs_are_set_side_by_side():
    costs = np.array([[0.1, 0.9, 0.5, 0.2, 0.8, 0.3, 0.6, 0.3]])
    # Groups of two cost 1.0, 0.7, 1.1 and 0.9: the second is beside the fourth.
    head = units_of(costs, 4, "head", 2)
    assert head.order.reshape(-1, head.size).tolist() == [[3, 7], [2, 6], [0, 5], [1, 4]]
    group = units_of(costs, 4, "group", 2)
    assert group.order.reshape(-1, group.size).tolist() == [[3, 2, 7, 6], [0, 1, 5, 4]]
    assert units_of(costs, 4, "head").order.tolist() == [list(range(8))]


@given(st.integers(0, 2**32 - 1), st.sampled_from(["head", "group"]), st.sampled_from([1, 2, 4]))
def test_masks_of_a_ranking_and_their_controls_are_even(seed, by, chips):
    rng = np.random.default_rng(seed)
    costs = rng.random((LAYERS, KV_HEADS * GROUP))
    units = units_of(costs, KV_HEADS, by, chips)
    mask = units.by_ranking(-costs, [PATHS[0]] * 2)
    control = units.random_control(mask, seed % 7)
    for made in (mask, control):
        assert made.balanced(chips, KV_HEADS) == made
        assert made.masked.sum() == 2 * units.size
    assert counts_per_layer(control) == counts_per_layer(mask)
    # A unit is as costly as the costliest of its heads, of which no left one is as cheap.
    own = np.take_along_axis(costs, units.order, axis=1).reshape(-1, units.size).max(axis=1)
    masked = units.arranged(mask).masked.reshape(-1, units.size)[:, 0]
    assert own[masked].max() < own[~masked].min(initial=1.0)


def test_the_lowest_leave_full_the_first_of_equals_first():
    costs = np.array([[0.5, 0.1], [0.1, 0.0]])
    masked = units_of(costs, 2, "head").by_ranking(-costs, [PATHS[0]] * 2).masked
    assert masked.tolist() == [[False, True], [False, True]]
    groups = np.repeat(costs, 2, axis=1)
    mask = units_of(groups, 2, "group").by_ranking(-groups, [PATHS[0]] * 2)
    assert mask == SinkMask.from_text("L0: 2f 2w(1,4) | L1: 2f 2w(1,4)")
