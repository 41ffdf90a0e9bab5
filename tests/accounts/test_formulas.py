"""Compiled executables against formulas: by path, to the byte and to the operation."""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import masks as mask_strategies
import numpy as np
import pytest
import tiny

from sinkjax.accounts.compiled import account
from sinkjax.accounts.formulas import Cost, Sizes, predict, total
from sinkjax.attention.kernels import XLA
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Full, Sink, Window
from sinkjax.models.abstract import abstract_model
from sinkjax.models.decoder import Llama
from sinkjax.programs.compile import Program, compile
from sinkjax.specialize.build import specialize

HEADS = dict(num_heads=6, num_kv_heads=3)
JOINT = dict(qk_norm=True, joint_qk_norm=True, inner_norms=False, outer_norms=True)
MASKS = {
    "full": "L0-2: 6f",
    "first_groups": "L0: 6f | L1: 2s(first) 4f | L2: 6s(first)",
    "zero_heads": "L0: s(zero) 5f | L1: 6s(zero) | L2: 2s(zero) 2f 2s(zero)",
    "mean_heads": "L0: 6f | L1: s(mean) 5f | L2: 4s(mean) s(first) f",
    "windows": "L0: 6w(1,3) | L1: 2w(2,6) w(1,3) w(2,9) 2f | L2: 6w(0,40)",
    "itself": "L0: 6w(0,1) | L1: 3w(0,1) w(1,3) 2f | L2: w(0,1) c(0,1) c(1,0) f 2w(0,1)",
    "copies": "L0: 6f | L1: 2c(0,1) c(0,5) 3f | L2: 2c(1,3) c(0,0) c(0,1) c(0,2) f",
    "window_copies": "L0: 6w(1,3) | L1: 2c(0,1) 4f | L2: 6c(0,5)",
    "mixed": "L0: 2f 2w(2,6) w(1,3) w(2,9) | L1: f c(0,0) w(1,3) c(0,5) 2s(zero) | "
    "L2: f w(1,3) s(first) s(zero) s(mean) c(1,0)",
}
B, T, MAX = 2, 16, 24


def _model(dtype=jnp.float32, **changes) -> Llama:
    """Shapes alone: nothing here is run."""
    config = dataclasses.replace(tiny.make().config, **changes)
    return abstract_model(config, jnp.dtype(dtype))


def _compiled(model, mask: SinkMask, batch=B, length=T, max_length=MAX, **options) -> Program:
    config = model.config
    fills = np.zeros((config.num_layers, config.num_heads, config.head_dim), np.float32)
    return compile(
        specialize(model, mask, fills=fills),
        batch_size=batch,
        prefill_lengths=(length,),
        max_length=max_length,
        device=jax.devices()[0],
        **options,
    )


def _compiled_and_predicted(
    program: Program, mask: SinkMask, itemsize: int = 4
) -> list[tuple[dict[str, Cost], dict[str, Cost]]]:
    """Of prefill and decode, what was compiled and what the formulas say."""
    pairs = []
    for executable, length in zip(program.executables, [*program.prefill, None], strict=True):
        compiled = account(program, executable)
        assert compiled.uncounted == ()
        kernel = program.attention.get(length, XLA)
        sizes = Sizes(program.batch_size, length, program.max_length, itemsize, kernel=kernel)
        pairs.append((compiled.rows, predict(program.model.config, mask, sizes)))
    return pairs


@pytest.fixture(scope="module")
def model() -> Llama:
    return _model(**HEADS)


@pytest.fixture(scope="module")
def costs(model):
    """What one of `MASKS` costs, compiled and predicted; each compiled once."""

    @functools.cache
    def of(name: str) -> list[tuple[dict[str, Cost], dict[str, Cost]]]:
        mask = SinkMask.from_text(MASKS[name])
        return _compiled_and_predicted(_compiled(model, mask), mask)

    return of


@pytest.mark.parametrize("name", MASKS)
def test_compiled_costs_are_the_predicted_ones_path_by_path(costs, name):
    for compiled, predicted in costs(name):
        assert compiled == predicted


@hypothesis.settings(max_examples=3, deadline=None, derandomize=True)
@hypothesis.given(mask=mask_strategies.masks(3, 6, 3))
def test_any_mask_costs_what_is_predicted(model, mask):
    for compiled, predicted in _compiled_and_predicted(_compiled(model, mask), mask):
        assert compiled == predicted


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        (dict(num_heads=6, num_kv_heads=6, attention_bias=True, mlp_bias=True), {}),
        (dict(num_heads=6, num_kv_heads=1, tie_embeddings=True), dict(batch=1)),
        (dict(dtype=jnp.bfloat16, **HEADS), {}),
        (dict(attention_bias=True, **JOINT, **HEADS), {}),
        # Of layers with a window of their own, within which are those of the mask.
        (dict(layer_windows=(7, None, 12), **HEADS), {}),
        # Beyond one block of queries, where both paths run loops over blocks and a rest.
        (dict(max_length=512, **HEADS), dict(length=300, max_length=310)),
        # Keys in blocks as well: whole ones, and a rest.
        (dict(max_length=2048, **HEADS), dict(length=1300, max_length=1310)),
    ],
)
def test_biases_groups_dtypes_and_long_prompts(changes, options):
    model, mask = _model(**changes), SinkMask.from_text(MASKS["mixed"])
    program = _compiled(model, mask, **options)
    itemsize = model.embedding.dtype.itemsize
    for compiled, predicted in _compiled_and_predicted(program, mask, itemsize):
        assert compiled == predicted


def test_wide_windows_of_a_long_prompt_cost_the_blocks_of_keys_that_they_see():
    model = _model(max_length=2048, **HEADS)
    text = "L0: 6w(4,600) | L1: 2w(4,512) 2w(4,9) 2f | L2: 2w(0,1100) 2f 2w(600,700)"
    mask = SinkMask.from_text(text)
    for compiled, predicted in _compiled_and_predicted(
        _compiled(model, mask, length=1300, max_length=1310), mask
    ):
        assert compiled == predicted


def test_scanned_layers_cost_the_same(model):
    """Of all copies that a scan needs, none is a parameter, an operation or a cache."""
    mask = SinkMask(((Window(1, 3),) * 2 + (Full(),) * 4,) * 3)
    program = _compiled(model, mask, layers="scanned")
    for compiled, predicted in _compiled_and_predicted(program, mask):
        assert compiled == predicted


@pytest.mark.parametrize("name", ["first_groups", "windows", "copies"])
def test_what_a_mask_removes_is_gone_and_the_baseline_has_it(costs, name):
    """Savings, compiled minus compiled, are those predicted."""
    for (compiled, predicted), (compiled_full, predicted_full) in zip(
        costs(name), costs("full"), strict=True
    ):
        for field in ("flops", "parameters", "cache"):
            saved = getattr(total(compiled_full), field) - getattr(total(compiled), field)
            hoped = getattr(total(predicted_full), field) - getattr(total(predicted), field)
            assert saved == hoped
    # The prompt is shorter than a block of the window's, so that only decoding gains by each.
    assert total(costs(name)[1][0]).flops < total(costs("full")[1][0]).flops


def test_a_head_whose_work_is_still_there_is_found_out(model, costs):
    """A program that computes every head does not pass for that of a mask with one head less."""
    one_less = SinkMask.from_text("L0: 6f | L1: 2f s(zero) 3f | L2: 6f")
    for (compiled, _), length in zip(costs("full"), (T, None), strict=True):
        predicted = predict(model.config, one_less, Sizes(B, length, MAX, 4))
        assert compiled["full"].flops > predicted["full"].flops
        assert compiled["full"].parameters > predicted["full"].parameters
        assert total(compiled).flops > total(predicted).flops


@pytest.mark.quick
def test_a_mask_of_only_sinks_leaves_no_attention(model):
    mask = SinkMask(((Sink("zero"),) * 6,) * 3)
    _, decode = _compiled_and_predicted(_compiled(model, mask), mask)
    attention = sum((cost for row, cost in decode[0].items() if row != "rest"), Cost())
    assert attention == Cost()
