"""What masks save, on one chip and on the fullest of several."""

import dataclasses

import pytest

from sinkjax import SinkMask
from sinkjax.accounts.savings import Workload, saved_over_chips
from sinkjax.models.shapes import SHAPES

pytestmark = pytest.mark.quick

CONFIG = dataclasses.replace(
    SHAPES["smollm2-135m"], num_layers=2, num_heads=8, num_kv_heads=4, layer_windows=()
)
WORK = Workload(64)


def test_on_the_fullest_chip_what_is_not_alike_on_all_of_them_is_not_saved():
    whole = SinkMask.from_text("L0: 4s(first) 4f | L1: 8f")  # two of four groups
    one, two, four = saved_over_chips(CONFIG, whole, WORK)
    assert [row["chips"] for row in (one, two, four)] == [1, 2, 4]
    assert [row["masked"] for row in (one, two, four)] == [4, 4, 0]
    assert one["saved"] == two["saved"]
    assert one["saved"]["cache_bytes"] == pytest.approx(0.25, abs=0.02)
    assert set(four["saved"].values()) == {0.0}


def test_a_mask_alike_in_every_group_saves_the_same_on_any_number_of_chips():
    mask = SinkMask.from_text("L0: w(2,8) f w(2,8) f w(2,8) f w(2,8) f | L1: 8w(0,8)")
    rows = saved_over_chips(CONFIG, mask, WORK)
    assert [row["masked"] for row in rows] == [12] * 3
    assert all(row["saved"] == rows[0]["saved"] for row in rows)
    assert rows[0]["saved"]["cache_bytes"] > 0


def test_copies_are_counted_for_one_chip():
    mask = SinkMask.from_text("L0: 8f | L1: 7f c(0,1)")
    assert [row["chips"] for row in saved_over_chips(CONFIG, mask, WORK)] == [1]
