"""The account of a compiled executable, against FLOPs counted by hand."""

import re

import jax
import jax.numpy as jnp
import pytest

from sinkjax.programs.hlo import Module

pytestmark = [pytest.mark.quick, pytest.mark.default_compilation]


def _module(function, *arguments) -> Module:
    return Module(jax.jit(function).lower(*arguments).compile().as_text())


def flops(module: Module, scope: str = "", *, matmul_only: bool = False) -> int:
    """FLOPs of all instructions that came from a scope: a regular expression, anywhere."""
    return sum(
        item.flops
        for item in module.work
        if any(re.search(scope, place) for place in item.scopes or ("",))
        and (item.is_matmul or not matmul_only)
    )


def _array(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def test_a_matrix_product_is_two_flops_an_element_and_contracted_index():
    module = _module(lambda a, b: a @ b, _array(7, 33), _array(33, 11))
    assert module.flops() == flops(module, matmul_only=True) == 2 * 7 * 33 * 11


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("equation", "shapes", "wanted"),
    [
        ("btd,dnh->btnh", [(2, 5, 12), (12, 3, 8)], 2 * 2 * 5 * 12 * 24),
        ("btnh,nhd->btd", [(2, 5, 3, 8), (3, 8, 12)], 2 * 2 * 5 * 12 * 24),
        ("bkth,bksh->bkts", [(2, 3, 9, 8), (2, 3, 7, 8)], 2 * 2 * 3 * 9 * 7 * 8),
    ],
)
def test_einsums_of_the_model_count_the_same_in_every_dtype(dtype, equation, shapes, wanted):
    arrays = [_array(*shape, dtype=dtype) for shape in shapes]
    module = _module(lambda a, b: jnp.einsum(equation, a, b), *arrays)
    assert flops(module, matmul_only=True) == wanted


def test_a_loop_counts_as_often_as_it_turns_also_inside_another():
    def function(x, w):
        def inner(_, x):
            return jnp.tanh(x @ w)

        def outer(x, _):
            return jax.lax.fori_loop(0, 3, inner, x), None

        return jax.lax.scan(outer, x, length=5)[0]

    module = _module(function, _array(4, 16), _array(16, 16))
    assert flops(module, matmul_only=True) == 5 * 3 * 2 * 4 * 16 * 16


def test_a_loop_that_may_stop_at_any_turn_counts_once():
    def function(x, w):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ w, x)

    module = _module(function, _array(4, 16), _array(16, 16))
    assert flops(module, matmul_only=True) == 2 * 4 * 16 * 16


@pytest.mark.parametrize(("direction", "turns"), [("LT", 5), ("NE", 1)])
def test_turns_that_only_a_loops_condition_tells_are_counted(direction, turns):
    """As XLA's TPU compiler leaves a scan."""
    text = f"""\
HloModule jit_f
%body (s: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {{
  %s = (s32[], f32[4,4]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[4,4]{{1,0}} get-tuple-element(%s), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %y = f32[4,4]{{1,0}} dot(%x, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %t = (s32[], f32[4,4]{{1,0}}) tuple(%next, %y)
}}
%condition (s: (s32[], f32[4,4])) -> pred[] {{
  %s = (s32[], f32[4,4]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] constant(5)
  ROOT %c = pred[] compare(%i, %n), direction={direction}
}}
ENTRY %main (x: f32[4,4]) -> (s32[], f32[4,4]) {{
  %x = f32[4,4]{{1,0}} parameter(0), metadata={{op_name="x"}}
  %zero = s32[] constant(0)
  %t = (s32[], f32[4,4]{{1,0}}) tuple(%zero, %x)
  ROOT %w = (s32[], f32[4,4]{{1,0}}) while(%t), condition=%condition, body=%body
}}
"""
    assert flops(Module(text), matmul_only=True) == turns * 2 * 4 * 4 * 4


def test_a_conditional_counts_its_largest_branch():
    def function(choice, x, w):
        return jax.lax.switch(choice, [lambda x: x, lambda x: x @ w, lambda x: (x @ w) @ w], x)

    module = _module(function, _array(dtype=jnp.int32), _array(4, 16), _array(16, 16))
    assert flops(module, matmul_only=True) == 2 * 2 * 4 * 16 * 16


def test_work_is_told_apart_by_named_scope():
    def function(x, w):
        with jax.named_scope("first"):
            x = x @ w
        for index in range(2):
            with jax.named_scope(f"second_{index}"):
                x = jnp.exp(x) @ w
        return x

    module = _module(function, _array(4, 16), _array(16, 16))
    product = 2 * 4 * 16 * 16
    assert flops(module, "first", matmul_only=True) == product
    assert flops(module, "second_1") == product + 4 * 16
    assert flops(module, "second", matmul_only=True) == 2 * product
    assert flops(module, "third") == 0


def test_batched_products_keep_their_scope():
    """On a CPU, XLA rewrites these and forgets where they came from."""

    def function(q, k, v):
        with jax.named_scope("attention"):
            scores = jnp.einsum("bkth,bksh->bkts", q, k, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
            return jnp.einsum("bkts,bksh->bkth", weights, v)

    heads = _array(1, 3, 64, 32, dtype=jnp.bfloat16)
    module = _module(function, heads, heads, heads)
    assert flops(module, "attention", matmul_only=True) == 2 * (2 * 3 * 64 * 64 * 32)


def test_arguments_are_named_by_their_place_and_dead_ones_are_gone():
    def function(state, x):
        return x @ state["layer"][1]

    state = {"layer": [_array(8, 8), _array(8, 3, dtype=jnp.bfloat16)], "unused": _array(4)}
    module = _module(function, state, _array(2, 8, dtype=jnp.bfloat16))
    assert [(a.name, a.size) for a in module.arguments] == [
        ("state['layer'][1]", 48),
        ("x", 32),
    ]


def test_elementwise_and_reductions_are_counted_but_are_no_matrix_product():
    module = _module(lambda x: (x * x).sum(), _array(10, 10))
    assert module.flops() == 200
    assert flops(module, matmul_only=True) == 0


def test_what_cannot_be_counted_is_named():
    text = """\
HloModule jit_f
ENTRY %main (x: f32[4,4]) -> f32[4,4] {
  %x = f32[4,4]{1,0} parameter(0), metadata={op_name="x"}
  ROOT %y = f32[4,4]{1,0} custom-call(%x), custom_call_target="mystery"
}
"""
    module = Module(text)
    (call,) = module.calls
    assert (call.target, call.shapes, call.times) == ("mystery", ((4, 4),), 1)
    assert module.flops() == 0


def test_a_cublas_product_is_counted_from_its_own_description():
    text = """\
HloModule jit_f
ENTRY %main (a: bf16[5,32], b: bf16[32,7]) -> bf16[5,7] {
  %a = bf16[5,32]{1,0} parameter(0), metadata={op_name="a"}
  %b = bf16[32,7]{1,0} parameter(1), metadata={op_name="b"}
  %c = (bf16[5,7]{1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", \
metadata={op_name="jit(f)/mlp/dot_general"}, backend_config={"gemm_backend_config":\
{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  ROOT %d = bf16[5,7]{1,0} get-tuple-element(%c), index=0
}
"""
    assert flops(Module(text), "mlp", matmul_only=True) == 2 * 5 * 32 * 7


def test_a_product_of_one_row_as_multiply_and_reduce_counts_once():
    """As XLA's TPU compiler writes it."""
    text = """\
HloModule jit_f
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}
ENTRY %main (x: f32[32], w: f32[32,7]) -> f32[7] {
  %x = f32[32]{0} parameter(0), metadata={op_name="x"}
  %w = f32[32,7]{1,0} parameter(1), metadata={op_name="w"}
  %zero = f32[] constant(0)
  %wide = f32[32,7]{1,0} broadcast(%x), dimensions={0}
  %m = f32[32,7]{1,0} multiply(%wide, %w), metadata={op_name="jit(f)/mlp/dot_general"}
  ROOT %r = f32[7]{0} reduce(%m, %zero), dimensions={0}, to_apply=%add, \
metadata={op_name="jit(f)/mlp/dot_general"}
}
"""
    assert flops(Module(text), "mlp", matmul_only=True) == 2 * 32 * 7


def test_the_parts_of_a_split_product_are_added_up_without_being_a_product_again():
    """As XLA's GPU compiler splits a long inner axis: the sum reads a fusion's result."""
    text = """\
HloModule jit_f
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}
%gemm (x: f32[4,5,8], w: f32[4,8,7]) -> f32[4,5,7] {
  %x = f32[4,5,8]{2,1,0} parameter(0)
  %w = f32[4,8,7]{2,1,0} parameter(1)
  ROOT %d = f32[4,5,7]{2,1,0} dot(%x, %w), lhs_batch_dims={0}, lhs_contracting_dims={2}, \
rhs_batch_dims={0}, rhs_contracting_dims={1}, metadata={op_name="jit(f)/mlp/dot_general"}
}
%sum (p: f32[4,5,7]) -> f32[5,7] {
  %p = f32[4,5,7]{2,1,0} parameter(0)
  %zero = f32[] constant(0)
  ROOT %r = f32[5,7]{1,0} reduce(%p, %zero), dimensions={0}, to_apply=%add, \
metadata={op_name="jit(f)/mlp/dot_general"}
}
ENTRY %main (x: f32[4,5,8], w: f32[4,8,7]) -> f32[5,7] {
  %x = f32[4,5,8]{2,1,0} parameter(0), metadata={op_name="x"}
  %w = f32[4,8,7]{2,1,0} parameter(1), metadata={op_name="w"}
  %parts = f32[4,5,7]{2,1,0} fusion(%x, %w), kind=kCustom, calls=%gemm
  ROOT %y = f32[5,7]{1,0} fusion(%parts), kind=kLoop, calls=%sum
}
"""
    module = Module(text)
    assert flops(module, "mlp", matmul_only=True) == 2 * 5 * 32 * 7
    assert flops(module, "mlp") == 2 * 5 * 32 * 7 + 4 * 5 * 7
