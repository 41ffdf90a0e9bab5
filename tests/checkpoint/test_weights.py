"""Parts of checkpoints: what is read for a device alone is what the whole read has for it."""

import jax
import numpy as np
import pytest
import tiny
from flax import nnx
from safetensors.numpy import load_file, save_file

import sinkjax
from sinkjax.checkpoint import weights
from sinkjax.checkpoint.folder import WEIGHTS, open_folder
from sinkjax.checkpoint.names import name_table
from sinkjax.distributed import make_mesh
from sinkjax.models.sharding import parameter_shardings

pytestmark = pytest.mark.quick

KINDS = {
    "biases": dict(attention_bias=True, mlp_bias=True),
    "tied": dict(tie_embeddings=True),
    "one_norm_of_all_heads": dict(
        family="olmo2", qk_norm=True, joint_qk_norm=True, inner_norms=False, outer_norms=True
    ),
    "several_in_one_tensor": dict(family="phi3"),
}


@pytest.fixture(params=KINDS)
def saved(request, tmp_path):
    """A model, and its folder."""
    model = tiny.make(num_heads=8, num_kv_heads=2, vocab_size=64, **KINDS[request.param])
    sinkjax.save_safetensors(model, tmp_path)
    return model, tmp_path


def test_what_a_device_has_is_read_alone(saved):
    model, folder = saved
    source, mesh = open_folder(folder), make_mesh({"data": 2, "model": 2, "sub": 2})
    shardings = parameter_shardings(model, mesh)
    laid = dict(nnx.to_flat_state(nnx.state(sinkjax.load(folder, mesh=mesh), nnx.Param)))
    parameters = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    assert {entry.path for entry in name_table(model.config)} == parameters.keys()
    for entry in name_table(model.config):
        whole = np.asarray(parameters[entry.path][...])
        for shard in laid[entry.path][...].addressable_shards:
            wanted = whole[shard.index]
            read = source.read(entry.name, entry.stored_part(shard.index))
            np.testing.assert_array_equal(read.reshape(wanted.shape), wanted, strict=True)
            np.testing.assert_array_equal(shard.data, wanted)
        assert laid[entry.path][...].sharding == shardings[entry.path]


@pytest.mark.parametrize("row", [0, 63])
def test_a_tied_head_is_held_against_all_of_the_embedding(tmp_path, monkeypatch, row):
    sinkjax.save_safetensors(tiny.make(vocab_size=64, tie_embeddings=True), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    head = tensors["model.embed_tokens.weight"].copy()
    monkeypatch.setattr(weights, "_COMPARED", 10 * head.shape[1])
    save_file({**tensors, "lm_head.weight": head}, tmp_path / WEIGHTS)
    digest = sinkjax.model_digest(sinkjax.load(tmp_path))
    assert digest == sinkjax.model_digest(sinkjax.load(tmp_path, mesh=make_mesh({"data": 8})))
    head[row, -1] += 1
    save_file({**tensors, "lm_head.weight": head}, tmp_path / WEIGHTS)
    with pytest.raises(sinkjax.InputError, match=r"lm_head.weight differs from model.embed"):
        sinkjax.load(tmp_path)


def test_a_process_reads_once_what_several_of_its_devices_have(tmp_path, monkeypatch):
    sinkjax.save_safetensors(tiny.make(num_heads=8, num_kv_heads=4, vocab_size=64), tmp_path)
    source, read = open_folder(tmp_path), []

    def noted(name, part=()):
        read.append(name)
        return source.read(name, part)

    spied = weights.Stored(source.name, source.config, source.shapes, noted)
    weights.convert(spied, jax.numpy.float32, make_mesh({"data": 2, "model": 4}))
    assert sorted(read) == sorted(source.shapes)
