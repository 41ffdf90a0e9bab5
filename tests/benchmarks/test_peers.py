"""The other engines that speed is held against: the same tokens as ours, from the same weights."""

import contextlib
import dataclasses
import importlib.util
import json
import os

import numpy as np
import pytest
import tiny
from flax import nnx
from scripts import load_script, run_main

import sinkjax
from sinkjax.models.hf_config import to_hf_config
from sinkjax.models.shapes import SHAPES, random_model
from sinkjax.studies.results import read_records

needs_torch = pytest.mark.skipif(
    not importlib.util.find_spec("torch"), reason="needs PyTorch, which is not installed"
)


@pytest.fixture(scope="module")
def engines():
    """Flags of the benchmarks are not those of other scripts."""
    return load_script("benchmarks.engines")


@pytest.fixture(scope="module")
def model():
    return tiny.make(num_layers=1, embed_dim=48, vocab_size=64)


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_holds_the_same_model(tied, tmp_path):
    from benchmarks.write_gguf import write_gguf

    config = dataclasses.replace(
        SHAPES["llama-3.2-1b"], num_layers=2, vocab_size=64, embed_dim=64, mlp_dim=96, num_heads=4,
        num_kv_heads=2, head_dim=32, tie_embeddings=tied,
    )  # fmt: skip
    model = random_model(config)
    write_gguf(model, tmp_path / "model.gguf")
    loaded = sinkjax.load(tmp_path / "model.gguf")
    assert loaded.config.rope.type == "llama3"
    for (path, written), (_, read) in zip(
        nnx.to_flat_state(nnx.state(model)), nnx.to_flat_state(nnx.state(loaded)), strict=True
    ):
        np.testing.assert_array_equal(written.get_value(), read.get_value(), err_msg=str(path))
    tokens = tiny.tokens_of(model, (1, 9))
    np.testing.assert_allclose(model(tokens), loaded(tokens), atol=1e-5)


@pytest.mark.parametrize("changes", [dict(activation="relu"), dict(family="granite")])
def test_a_gguf_file_of_what_is_not_written_is_refused(changes, tmp_path):
    from benchmarks.write_gguf import write_gguf

    model = tiny.make(**changes)
    with pytest.raises(sinkjax.InputError, match="leave it out of --engines"):
        write_gguf(model, tmp_path / "model.gguf")


@needs_torch
def test_engines_give_the_same_tokens_again_and_again(engines, model, tmp_path):
    """Prefill and decode can be run any number of times: what is timed is always the same work."""
    tokens = np.asarray(tiny.tokens_of(model, (2, 7)))
    sinkjax.save_safetensors(model, tmp_path)
    by_name = {"sinkjax": engines.Sinkjax(model)}
    for attention in ("sdpa", "eager"):
        by_name[attention] = engines.Transformers(tmp_path, attention, "float32", 2)
    with contextlib.suppress(sinkjax.InputError):  # the extra `peers` is not installed
        by_name["llama.cpp"] = engines.LlamaCpp(model, 2)
    wanted = by_name["sinkjax"].greedy(tokens, 4)
    for name, engine in by_name.items():
        np.testing.assert_array_equal(engine.greedy(tokens, 4), wanted, err_msg=name)
        decode = engine.decode(tokens, 4)
        results = []
        for _ in range(2):
            decode.prepare()
            results.append(decode.run())
        if name == "sinkjax":
            continue
        for result in results:
            new = np.asarray(result)
            new = new.T if name == "llama.cpp" else new
            np.testing.assert_array_equal(new[:, :3], wanted[:, 1:], err_msg=name)


@needs_torch
def test_the_benchmark_runs_on_a_shape(tmp_path, capsys, free_memory):
    free_memory()
    config = tiny.make(num_layers=1, embed_dim=48).config
    (tmp_path / "config.json").write_text(json.dumps(to_hf_config(config)))
    run_main(
        "benchmarks.peers",
        f"--model=shape:{tmp_path}",
        "--engines=sdpa,sdpa-bfloat16",
        "--lengths=6",
        "--stages=prefill",
        "--rounds=2",
        f"--threads={len(os.sched_getaffinity(0))}",
        f"--output_dir={tmp_path / 'out'}",
    )
    out = capsys.readouterr().out
    assert "PyTorch sdpa bfloat16" in out
    records = read_records(tmp_path / "out")[1]
    assert [record["stage"] for record in records] == ["prefill"]
    for record in records:
        for engine in record["result"]["engines"].values():
            assert len(engine["samples"]["seconds"]) == 2
        sdpa = record["result"]["engines"]["sdpa"]
        assert sdpa["ratio"]["value"] > 0
        agreement = sdpa["agreement"]
        assert agreement["same"] == agreement["of"] or max(agreement["margins"]) < 1e-3
