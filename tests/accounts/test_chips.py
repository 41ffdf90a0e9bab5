"""What each chip of a mesh has under a shipped mask, read from programs without weights."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import tiny

import sinkjax
from sinkjax.accounts.chips import inspect_chips
from sinkjax.accounts.inspect import compile_shapes
from sinkjax.distributed import make_mesh
from sinkjax.models.shapes import SHAPES

LAYERS = 4


@pytest.fixture(scope="module")
def records():
    """The baseline, a shipped mask, which leaves three chips uneven, and the same balanced.

    Of a few layers: six seconds, for real widths, and two executables each.
    """
    config = dataclasses.replace(SHAPES["smollm2-135m"], num_layers=LAYERS)
    shipped = sinkjax.load_mask("smollm2-135m-512").mask
    uneven = sinkjax.SinkMask(shipped.heads[:LAYERS])
    masks = {
        "baseline": sinkjax.SinkMask.full(config),
        "uneven": uneven,
        "balanced": uneven.balanced(3, config.num_kv_heads),
    }
    return {name: over_three(config, mask, 2, 1024) for name, mask in masks.items()}


def over_three(config, mask, rows, room):
    mesh = jax.make_mesh((3,), ("model",))
    options = {"batch_size": rows, "prefill_lengths": (16,), "max_length": room}
    return inspect_chips(compile_shapes(config, mask, jnp.bfloat16, mesh, **options))


def test_a_balanced_mask_takes_fewer_bytes_and_no_more_exchange_on_each_of_three_chips(records):
    baseline, balanced = records["baseline"][1], records["balanced"][1]
    assert baseline["by_rows"] == balanced["by_rows"] == []
    for of in ("parameters", "cache", "operations"):
        assert balanced[of] <= baseline[of]
    assert balanced["cache"] < 0.9 * baseline["cache"]
    assert balanced["collectives"] == baseline["collectives"]
    saved, nominal = (
        [1 - masked[of] / whole[of] for of in ("cache", "operations")]
        for masked, whole in ((balanced, baseline), (balanced["nominal"], baseline["nominal"]))
    )
    assert saved[0] == pytest.approx(nominal[0], abs=0.002)
    assert 0.95 * nominal[1] < saved[1] < nominal[1] + 0.002


def test_the_same_mask_uneven_takes_more_than_no_mask(records):
    """Why it is said, and not used in silence: two rows, which three chips do not divide."""
    baseline, uneven = records["baseline"][1], records["uneven"][1]
    assert uneven["parameters"] > baseline["parameters"]
    assert uneven["by_rows"]
    for layer in uneven["by_rows"]:
        alone, by_rows = (r["collectives"][f"layer_{layer}"] for r in (baseline, uneven))
        assert alone["all-reduce"]["count"] == 2
        assert {kind: of["count"] for kind, of in by_rows.items()} == {"all-reduce": 1}
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


def test_an_uneven_mask_takes_fewer_bytes_and_no_more_exchange_where_chips_have_rows():
    """Of a long cache a chip saves more than attention's weights, whole on each, take."""
    config = dataclasses.replace(SHAPES["smollm2-135m"], num_layers=LAYERS)
    shipped = sinkjax.load_mask("smollm2-135m-8000").mask
    masks = sinkjax.SinkMask.full(config), sinkjax.SinkMask(shipped.heads[:LAYERS])
    baseline, uneven = (over_three(config, mask, 3, 8064)[1] for mask in masks)
    assert uneven["by_rows"] == list(range(LAYERS))
    assert uneven["parameters"] > baseline["parameters"]
    held = [record["parameters"] + record["cache"] for record in (uneven, baseline)]
    assert held[0] < 0.9 * held[1]
    assert uneven["collectives"].keys() == baseline["collectives"].keys()
    for layer in range(LAYERS):
        exchanged = [r["collectives"][f"layer_{layer}"].values() for r in (uneven, baseline)]
        for of in ("count", "bytes"):
            ours, theirs = (sum(kind[of] for kind in kinds) for kinds in exchanged)
            assert ours <= theirs


def test_parameters_that_chips_along_an_axis_hold_alike_are_named():
    """Attention's over `neurons`, those of keys and values along `sub`: no chip has them whole."""
    config = tiny.make(num_heads=8, num_kv_heads=2, vocab_size=64, num_layers=2).config
    mesh = make_mesh({"neurons": 2, "model": 2, "sub": 2})
    options = {"batch_size": 2, "prefill_lengths": (4,), "max_length": 8}
    full = sinkjax.SinkMask.full(config)
    record = inspect_chips(compile_shapes(config, full, jnp.float32, mesh, **options))[1]
    head = config.num_layers * config.head_dim * config.embed_dim * 4
    of_keys = {"layers.attention.k": head, "layers.attention.v": head}
    of_queries = {"layers.attention.q": 2 * head, "layers.attention.o": 2 * head}
    assert record["alike"] == {"neurons": of_queries | of_keys, "model": {}, "sub": of_keys}
    assert all("norm" in name for name in record["whole"])
