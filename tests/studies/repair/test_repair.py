"""Repairs: what they change, what they gain, and how they are kept."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sinkjax import InputError, SinkMask, specialize
from sinkjax.distributed import make_mesh
from sinkjax.instruments.token_losses import residuals
from sinkjax.models.sharding import lay_rows, shard
from sinkjax.studies.repair.repair import Repair, load_repair, save_repair
from sinkjax.studies.training.train import TrainSettings, distil

MASK = SinkMask.from_text("L0: 6f | L1: 2s(first) f 3w(1,4) | L2: 3s(zero) c(1,2) 2f")


@pytest.fixture(scope="module")
def model():
    return tiny.make()


@pytest.fixture(scope="module")
def excerpts(model):
    return np.asarray(tiny.tokens_of(model, (5, 12)))


@pytest.fixture(scope="module")
def repair(model):
    return Repair(specialize(model, MASK))


def test_a_repair_changes_output_slices_and_biases_alone(model, repair, excerpts):
    assert sorted(repair.start) == [
        "layers.1.attention.first_o",
        "layers.1.attention.mean_bias",
        "layers.1.attention.o",
        "layers.2.attention.mean_bias",
        "layers.2.attention.o",
        "layers.2.attention.other_o",
    ]
    tokens = jnp.asarray(excerpts)
    expected = model.logits(residuals(specialize(model, MASK), tokens))
    logits = model.logits(repair.residuals(repair.start, tokens))
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    bias = jnp.arange(40, dtype=jnp.float32)
    moved = repair.residuals({**repair.start, "layers.2.attention.mean_bias": bias}, tokens)
    np.testing.assert_array_equal(moved[:, 0], repair.residuals(repair.start, tokens)[:, 0])
    assert np.abs(moved - repair.residuals(repair.start, tokens)).max() > 1


def test_a_repair_lowers_the_kl_and_is_kept(model, repair, excerpts, tmp_path):
    settings = TrainSettings(steps=12, learning_rate=0.02, rows=5, save_every=3)
    trained = distil(
        model, repair.residuals, dict(repair.start), excerpts, settings, tmp_path / "c"
    )
    assert trained.history["kl"][-1] < 0.7 * trained.history["kl"][0]
    file, digests = tmp_path / "mask.json", {"mask_digest": MASK.digest, "model_digest": "m"}
    save_repair(file, trained.parameters, **digests)
    loaded = load_repair(file, **digests)
    for name, value in trained.parameters.items():
        np.testing.assert_array_equal(loaded[name], value)
    with pytest.raises(InputError, match="another mask"):
        load_repair(file, mask_digest="other", model_digest="m")
    kept = tmp_path / "mask.repair.safetensors"
    content = kept.read_bytes()
    kept.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    with pytest.raises(InputError, match="it is damaged: its numbers are not those that"):
        load_repair(file, **digests)
    kept.write_bytes(b"nothing")
    with pytest.raises(InputError, match="sinkjax repair"):
        load_repair(file, **digests)
    with pytest.raises(InputError, match=r"layers\.1\.attention\.o"):
        repair.model({k: v for k, v in loaded.items() if k != "layers.1.attention.o"})


def test_a_repair_is_the_same_over_a_mesh_whose_chips_have_heads_in_another_order(tmp_path):
    """Its numbers were by heads as they lie over the mesh, and on one device those of others."""
    model = tiny.make(num_heads=8, num_kv_heads=4, num_layers=2, vocab_size=64)
    mask = SinkMask.from_text("L0: s(first) f w(1,4) f w(1,4) f s(first) f | L1: 8f")
    meshes = {"data": 4, "model": 2}, {"data": 2, "model": 4}, {"data": 2, "model": 2, "sub": 2}
    laid = [shard(model, make_mesh(mesh)) for mesh in meshes]
    alone, *over = (Repair(specialize(of, mask)) for of in (model, *laid))
    draw = np.random.default_rng(5)
    changes = {
        name: value + draw.normal(scale=0.3, size=value.shape).astype(np.float32)
        for name, value in alone.start.items()
    }
    file, digests = tmp_path / "mask.json", {"mask_digest": "mask", "model_digest": "model"}
    save_repair(file, changes, **digests)
    kept, tokens = load_repair(file, **digests), np.asarray(tiny.tokens_of(model, (4, 12)))
    wanted = np.asarray(alone.residuals(kept, jnp.asarray(tokens)))
    assert np.abs(wanted - alone.residuals(alone.start, jnp.asarray(tokens))).max() > 0.1
    for of, repair in zip(laid, over, strict=True):
        for name, value in alone.start.items():
            np.testing.assert_array_equal(repair.start[name], value)
        stream = repair.residuals(kept, lay_rows(of, tokens))
        # Of values up to 13 that is float32's own: the baseline's differ by as much.
        np.testing.assert_allclose(stream, wanted, rtol=0, atol=1e-5)


def test_there_is_nothing_to_repair_where_all_heads_are_full(model):
    with pytest.raises(InputError, match="nothing to repair"):
        Repair(specialize(model, SinkMask.full(model.config)))
