"""Where the work of an executable belongs, beside what test_formulas.py compiles."""

import pytest

from sinkjax.accounts import compiled

pytestmark = pytest.mark.quick

WITHIN = "jit(decode)/while/body/layer_3/while/body/eval_jaxpr/attention/"


@pytest.mark.parametrize(
    ("scopes", "place"),
    [
        # As XLA for GPUs left a decode step's products, of jax 0.12 and 32 heads of 128.
        ([WITHIN + "convert_element_type", WITHIN + "q/slice"], (3, "q")),
        ([WITHIN + "q/slice", WITHIN + "v/slice"], (3, "qkv")),
        ([WITHIN + "k/slice", WITHIN + "full/dot_general"], (3, "full")),
        ([WITHIN + "qkv/dot_general", WITHIN + "v/slice"], (3, "qkv")),
        (["jit(decode)/while/body/layer_3/mlp/dot_general"], None),
    ],
)
def test_a_product_whose_scope_is_lost_belongs_to_those_around_it(scopes, place):
    assert compiled._place(tuple(scopes)) == place
