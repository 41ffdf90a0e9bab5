"""Which layers a mesh divides by heads, and which by rows; what plans compute is in test_build."""

import pytest

from sinkjax import SinkMask
from sinkjax.models.rules import AS_DIVIDED, BY_CHIP, BY_SUB
from sinkjax.specialize.plan import plan_layers

HALF = "f w(1,2) f w(1,2) f w(1,2) f w(1,2)"


@pytest.mark.parametrize(
    ("text", "chips", "sub", "wanted"),
    [
        ("L0: 8f | L1: f s(zero) f s(zero) f s(zero) f s(zero)", 4, 1, [None, AS_DIVIDED]),
        ("L0: 2s(zero) 6f | L1: 2s(zero) 2f 2s(zero) 2f", 2, 1, [BY_CHIP, AS_DIVIDED]),
        # Parts that `sub` would cut through, heads of a part that it does not divide, and one that
        # it does.
        (f"L0: {HALF} | L1: f 3s(zero) f 3s(zero)", 2, 2, [BY_SUB, BY_SUB]),
        ("L0: 2f 2s(zero) 2f 2s(zero) | L1: 8s(zero)", 2, 2, [AS_DIVIDED, AS_DIVIDED]),
        # Copies of all heads of a part, in their order, stay on their chips; others do not.
        (f"L0: {HALF} | L1: c(0,0) f c(0,2) f c(0,4) f c(0,6) f", 4, 1, [AS_DIVIDED] * 2),
        (f"L0: {HALF} | L1: c(0,2) f c(0,0) f c(0,4) f c(0,6) f", 4, 1, [BY_CHIP] * 2),
        (f"L0: {HALF} | L1: c(0,0) 7f | L2: {HALF}", 4, 1, [BY_CHIP, BY_CHIP, AS_DIVIDED]),
        ("L0: 8f | L1: c(0,0) 7f", 1, 2, [BY_SUB, BY_SUB]),
    ],
)
def test_layers_that_heads_do_not_divide_alike_are_divided_by_rows(text, chips, sub, wanted):
    mask, group = SinkMask.from_text(text), {(2, 2): 4, (1, 2): 8}.get((chips, sub), 2)
    plans = plan_layers(mask, group, chips=chips, sub=sub)
    assert [planned and planned[0].batch for planned in plans] == wanted
    of_chips = [planned and planned[0].chips for planned in plans]
    assert of_chips == [batch and (1 if batch == BY_CHIP else chips) for batch in wanted]
