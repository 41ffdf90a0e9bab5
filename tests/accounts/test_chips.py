"""What each chip of a mesh has under a shipped mask, read from programs without weights."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from masks import EARLIER

import sinkjax
from sinkjax.accounts.chips import inspect_chips
from sinkjax.accounts.inspect import compile_shapes
from sinkjax.models.shapes import SHAPES

LAYERS = 4


@pytest.fixture(scope="module")
def records():
    """The baseline, a mask that leaves three chips uneven, and the same balanced; of a few layers.

    Six seconds: real widths, and two executables each.
    """
    config = dataclasses.replace(SHAPES["smollm2-135m"], num_layers=LAYERS)
    shipped = sinkjax.load_mask(EARLIER / "512-windows.json").mask
    uneven = sinkjax.SinkMask(shipped.heads[:LAYERS])
    masks = {
        "baseline": sinkjax.SinkMask.full(config),
        "uneven": uneven,
        "balanced": uneven.balanced(3, config.num_kv_heads),
    }
    mesh = jax.make_mesh((3,), ("model",))
    options = {"batch_size": 2, "prefill_lengths": (16,), "max_length": 1024}
    return {
        name: inspect_chips(compile_shapes(config, mask, jnp.bfloat16, mesh, **options))
        for name, mask in masks.items()
    }


def test_a_balanced_mask_takes_fewer_bytes_and_no_more_exchange_on_each_of_three_chips(records):
    baseline, balanced = records["baseline"][1], records["balanced"][1]
    assert balanced["cache"] < baseline["cache"]
    assert balanced["operations"] < baseline["operations"]
    assert balanced["collectives"] == baseline["collectives"]
    saved, nominal = (
        [1 - masked[of] / whole[of] for of in ("cache", "operations")]
        for masked, whole in ((balanced, baseline), (balanced["nominal"], baseline["nominal"]))
    )
    assert saved == pytest.approx(nominal, abs=0.002)


def test_the_same_mask_uneven_takes_more_than_no_mask(records):
    """Why it is said, and not used in silence: two rows, which three chips do not divide."""
    baseline, uneven = records["baseline"][1], records["uneven"][1]
    assert uneven["parameters"] > baseline["parameters"]
    assert (
        uneven["collectives"]["all-reduce"]["count"]
        < baseline["collectives"]["all-reduce"]["count"]
    )
    nominal = uneven["nominal"]["cache"] / baseline["nominal"]["cache"]
    assert nominal < 0.9 * uneven["cache"] / baseline["cache"]


def test_parameters_and_cache_of_a_chip_are_a_third_and_what_is_whole_is_named(records):
    config = SHAPES["smollm2-135m"]
    record = records["baseline"][1]
    assert record["mesh"] == {"model": 3}
    rows, slots = 2, 1024
    assert record["cache"] == LAYERS * 2 * rows * slots * config.head_dim * 2 + 4 * rows
    norms = {"layers.attention_norm.scale", "layers.mlp_norm.scale", "norm.scale"}
    assert set(record["whole"]) == norms
    whole = sum(record["whole"].values())
    assert whole == (2 * LAYERS + 1) * config.embed_dim * 2
    kv, q = (2 * n * config.head_dim for n in (config.num_kv_heads, config.num_heads))
    a_layer = config.embed_dim * (kv + q + 3 * config.mlp_dim)
    divided = LAYERS * a_layer + config.vocab_size * config.embed_dim
    assert record["parameters"] == whole + divided * 2 // 3
