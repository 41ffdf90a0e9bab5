"""Folders as the Hub has them: what is read, and everything that is refused at once."""

import json
import os
import pathlib
import shutil

import hf
import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import tokenizers
import transformers
from hf import torch
from safetensors.numpy import load_file, save_file

import sinkjax
from sinkjax.checkpoint.folder import CONFIG, GENERATION_CONFIG, INDEX, WEIGHTS, open_folder
from sinkjax.checkpoint.weights import unwritable
from sinkjax.errors import InputError
from sinkjax.models.families import FAMILIES

pytestmark = pytest.mark.quick

DTYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def sharded(tmp_path):
    """A tied Llama in several shards."""
    hf.save_llama(tmp_path / "sharded", tie_word_embeddings=True)
    return tmp_path / "sharded"


@pytest.fixture
def single(sharded, tmp_path):
    """The same in one file."""
    return rewrite(sharded, tmp_path / "single", lambda tensors: None)


def rewrite(source: pathlib.Path, folder: pathlib.Path, change) -> pathlib.Path:
    """The same model in one file, its tensors changed by `change(tensors)`."""
    tensors = {}
    for shard in source.glob("*.safetensors"):
        tensors |= load_file(shard)
    change(tensors)
    folder.mkdir()
    shutil.copy(source / CONFIG, folder)
    save_file(tensors, folder / WEIGHTS)
    return folder


def problems(folder: pathlib.Path) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        sinkjax.load(folder)
    assert all(str(folder) in str(problem) for problem in caught.value.problems)
    return tuple(map(str, caught.value.problems))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", ["40KB", "1GB"])
def test_tensors_are_read_as_they_are_stored(tmp_path, dtype, shards):
    model = hf.make_llama().to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / INDEX).exists() == (shards == "40KB")
    source = open_folder(tmp_path)
    assert source.shapes == {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name, value in model.state_dict().items():
        expected = value.float().numpy().astype(DTYPES[dtype])
        np.testing.assert_array_equal(source.read(name), expected, strict=True)


def test_opening_reads_no_tensor(single):
    """A file of a terabyte, most of it a hole, opens like any other."""
    config = json.loads((single / CONFIG).read_text())
    config["vocab_size"] = 2**40 // 48 // 4
    size = config["vocab_size"] * 48 * 4
    tensor = {
        "dtype": "F32",
        "shape": [config["vocab_size"], 48],
        "data_offsets": [0, size],
    }
    header = json.dumps({"model.embed_tokens.weight": tensor}).encode()
    with (single / WEIGHTS).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        try:
            file.truncate(8 + len(header) + size)
        except OSError:
            pytest.skip("this file system has no files of a terabyte")
    assert open_folder(single).shapes == {"model.embed_tokens.weight": tuple(tensor["shape"])}
    os.truncate(single / WEIGHTS, 0)


def test_what_is_read_outlives_the_file(single):
    source = open_folder(single)
    read = source.read(Q)
    before = read.copy()
    with (single / WEIGHTS).open("r+b") as file:
        file.write(bytes((single / WEIGHTS).stat().st_size))
    np.testing.assert_array_equal(read, before)


def test_a_file_that_is_cut_while_it_is_read_is_refused(single):
    """It was a bus error."""
    source = open_folder(single)
    os.truncate(single / WEIGHTS, 1000)
    with pytest.raises(InputError, match=r"model\.safetensors changed while it was read"):
        source.read(Q)


def test_derived_frequencies_and_a_tied_head_are_consumed(single, tmp_path):
    def add(tensors):
        tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    changed = sinkjax.load(rewrite(single, tmp_path / "changed", add))
    assert sinkjax.model_digest(changed) == sinkjax.model_digest(sinkjax.load(single))


@pytest.mark.parametrize("dtype", [np.float16, np.bool_])
@pytest.mark.parametrize("in_shards", [False, True])
def test_buffers_that_compute_nothing_are_ignored_whatever_their_dtype(
    single, sharded, tmp_path, dtype, in_shards
):
    names = (
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "rotary_emb.inv_freq",
        "model.rotary_emb_local.inv_freq",
        "model.layers.0.self_attn.rotary_emb.cos_cached",
        "model.layers.0.self_attn.rotary_emb._sin_cached",
        "model.embed_tokens.position_ids",
        "model.layers.0.self_attn.rotary_emb.sin_cached",
        "model.layers.0.attention.bias",
        "model.layers.0.self_attn.bias",
        "model.layers.0.self_attn.masked_bias",
        "model.layers.0.attention.masked_bias",
        "masked_bias",
    )
    buffers = {name: np.ones(3, dtype) for name in names}
    if in_shards:  # in a file, but not in its index
        shard = next(sharded.glob("*.safetensors"))
        save_file(load_file(shard) | buffers, shard)
        changed = sharded
    else:
        changed = rewrite(single, tmp_path / "changed", lambda tensors: tensors.update(buffers))
    assert sinkjax.model_digest(sinkjax.load(changed)) == sinkjax.model_digest(sinkjax.load(single))


@pytest.mark.parametrize("name", ["self_attn.q_proj.bias", "rotary_emb.scale", "attention.biases"])
def test_what_may_compute_something_is_no_buffer(single, tmp_path, name):
    name = f"model.layers.0.{name}"
    folder = rewrite(single, tmp_path / "b", lambda tensors: tensors.update({name: np.ones(3)}))
    assert f"tensor {name} " in problems(folder)[0]


def test_a_tied_head_alone_is_the_embedding(single, tmp_path):
    def rename(tensors):
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    changed = sinkjax.load(rewrite(single, tmp_path / "changed", rename))
    assert sinkjax.model_digest(changed) == sinkjax.model_digest(sinkjax.load(single))


def test_shards_may_be_links_to_elsewhere(sharded, tmp_path):
    """As they are in the Hub's cache."""
    expected = sinkjax.model_digest(sinkjax.load(sharded))
    (tmp_path / "blobs").mkdir()
    for path in [*sharded.glob("*.safetensors"), sharded / CONFIG]:
        path.rename(tmp_path / "blobs" / path.name)
        path.symlink_to(pathlib.Path("..", "blobs", path.name))
    assert sinkjax.model_digest(sinkjax.load(sharded)) == expected


# Refusals.


@pytest.mark.parametrize("name", ["../x.safetensors", "a/../../x", "/etc/hostname", "", "."])
def test_a_shard_outside_the_folder_is_refused(sharded, name):
    places = json.loads((sharded / INDEX).read_text())["weight_map"]
    (sharded / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(places, name)}))
    assert f"names the file {name!r}, which is no name of one inside" in problems(sharded)[0]


@pytest.mark.parametrize(("name", "reason"), [("a\0", "NUL"), ("\ud800", "half a surrogate")])
def test_a_shard_of_a_name_that_no_file_has_is_refused(sharded, name, reason):
    (sharded / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    (problem,) = problems(sharded)
    assert reason in problem
    assert problem.isprintable()


@pytest.mark.parametrize("file", [CONFIG, INDEX, "shard", "tokenizer.json", "chat_template.jinja"])
def test_pipes_are_refused_and_not_waited_for(sharded, tokenizer, file):
    tokenizer.save_pretrained(sharded)
    path = next(sharded.glob("*.safetensors")) if file == "shard" else sharded / file
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    load = sinkjax.load if file in (CONFIG, INDEX, "shard") else sinkjax.load_tokenizer
    with pytest.raises(InputError, match=f"{path.name}.*it is a pipe or a device"):
        load(sharded)


def test_nothing_is_written_to_a_name_that_no_file_has(single, tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        sinkjax.save_safetensors(sinkjax.load(single), tmp_path / "a\0b")


@pytest.mark.parametrize("layers", [4, 9_999])
def test_layers_without_tensors_are_counted_in_one_line(single, layers):
    change_config(single, num_hidden_layers=layers)
    (problem,) = problems(single)
    assert f"its config has {layers:,} layers, its tensors are of 3" in problem


@pytest.mark.parametrize("layers", [10_000, 10**9, 2**31 - 1, 2**64])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_layers_are_counted_that_no_model_has(single, layers, family):
    change_config(single, num_hidden_layers=layers, model_type=family)
    assert f"num_hidden_layers is {layers}" in problems(single)[0]
    with pytest.raises(InputError, match=f"num_hidden_layers is {layers}"):
        sinkjax.load_config(single)


def change_config(folder: pathlib.Path, **changes) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def test_every_tensor_that_does_not_fit_is_listed_at_once(single, tmp_path):
    def spoil(tensors):
        tensors["model.layers.0.self_attn.sinks"] = np.ones(6, np.float32)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + np.float32(1)
        tensors["model.layers.3.mlp.up_proj.weight"] = np.ones((80, 48), np.float32)
        del tensors["model.norm.weight"]
        del tensors["model.layers.1.mlp.down_proj.weight"]
        tensors[Q] = tensors[Q][:, :40].copy()

    listed = problems(rewrite(single, tmp_path / "spoilt", spoil))
    assert len(listed) == 6
    for name, mention in [
        ("model.layers.0.self_attn.sinks", "unknown"),
        ("lm_head.weight", "differs from model.embed_tokens.weight"),
        ("model.layers.3.mlp.up_proj.weight", "unknown"),
        ("model.norm.weight", "missing"),
        ("model.layers.1.mlp.down_proj.weight", "missing"),
        (Q, "has shape (48, 40); its config asks for (48, 48)"),
    ]:
        assert any(f"tensor {name} " in problem and mention in problem for problem in listed)


def test_every_disagreement_of_index_and_shards_is_listed_at_once(sharded):
    places = json.loads((sharded / INDEX).read_text())["weight_map"]
    missing, cut, here, there = sorted(set(places.values()))[:4]
    (sharded / missing).unlink()
    os.truncate(sharded / cut, (sharded / cut).stat().st_size - 1)
    unlisted, moved, twice = [name for name, file in places.items() if file == here][:3]
    for file, extra in [(here, ("quantized", np.int8)), (there, (twice, np.float32))]:
        name, dtype = extra
        save_file(load_file(sharded / file) | {name: np.ones(3, dtype)}, sharded / file)
    del places[unlisted]
    places |= {moved: there, "absent": there, "quantized": here}
    (sharded / INDEX).write_text(json.dumps({"weight_map": places}))
    listed = problems(sharded)
    for mention in [
        f"{missing} is missing, though {INDEX} names it",
        f"{cut} is truncated or damaged",
        f"tensor {unlisted} is in {sharded / here}, but not in {INDEX}",
        f"tensor {moved} is not in {sharded / there}, though {INDEX} says so",
        f"tensor {twice} is in both {sharded / here} and {sharded / there}",
        f"tensor absent is not in {sharded / there}",
        f"tensor quantized in {sharded / here} is of dtype I8; F32, F16, BF16 are read",
    ]:
        assert any(mention in problem for problem in listed), mention


@pytest.mark.parametrize(
    ("content", "mention"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "no weight_map"),
        ('{"weight_map": []}', "no weight_map"),
        ('{"weight_map": {"a": 1}}', "no weight_map"),
        ('{"weight_map": {"a": "model-1.safetensors"}}', "model-1.safetensors is missing"),
    ],
)
def test_a_damaged_index_is_refused(sharded, content, mention):
    (sharded / INDEX).write_text(content)
    assert mention in problems(sharded)[0]


@pytest.mark.parametrize(
    ("content", "mention"),
    [(None, "No such file"), ("{", "not JSON"), ("3", "not a JSON object"), (b"\xff", "not JSON")],
)
def test_a_folder_without_a_config_is_refused(single, content, mention):
    if content is None:
        (single / CONFIG).unlink()
    else:
        (single / CONFIG).write_bytes(content if isinstance(content, bytes) else content.encode())
    (problem,) = problems(single)
    assert CONFIG in problem
    assert mention in problem
    with pytest.raises(InputError, match=mention):
        sinkjax.load_config(single)


def test_a_folder_with_pytorchs_files_alone_is_told_how_to_convert_them(single):
    (single / WEIGHTS).rename(single / "pytorch_model.bin")
    (problem,) = problems(single)
    assert "only pytorch_model.bin" in problem
    assert "save_pretrained" in problem


def test_a_config_beside_a_gguf_file_alone_says_what_to_give(single):
    (single / WEIGHTS).rename(single / "model.gguf")
    (problem,) = problems(single)
    assert "only model.gguf. Give a folder with safetensors, or a .gguf file by its name" in problem


@hypothesis.given(share=st.floats(0, 1, exclude_max=True))
@hypothesis.settings(
    deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_a_truncated_file_is_refused_wherever_it_ends(single, share):
    whole = single.parent / "whole"
    if not whole.exists():
        (single / WEIGHTS).rename(whole)
    content = whole.read_bytes()
    (single / WEIGHTS).write_bytes(content[: int(share * len(content))])
    assert "truncated or damaged" in problems(single)[0]


@hypothesis.given(data=st.data())
@hypothesis.settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_a_damaged_header_is_refused_or_read(single, data):
    """Whatever one byte becomes: no other exception."""
    whole = single.parent / "whole"
    if not whole.exists():
        (single / WEIGHTS).rename(whole)
    content = bytearray(whole.read_bytes())
    header_size = 8 + int.from_bytes(content[:8], "little")
    content[data.draw(st.integers(0, header_size - 1))] = data.draw(st.integers(0, 255))
    (single / WEIGHTS).write_bytes(content)
    try:
        source = open_folder(single)
    except InputError as error:
        hypothesis.note(str(error))
    else:
        for name in source.shapes:
            source.read(name)


# Where an answer ends.


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (None, None, ()),
        (2, None, (2,)),
        (2, {}, (2,)),
        (2, {"eos_token_id": None}, (2,)),
        (2, {"eos_token_id": 2}, (2,)),
        (2, {"eos_token_id": [5, 2]}, (2, 5)),
        ([2, 3], {"eos_token_id": 7}, (2, 3, 7)),
        (None, {"eos_token_id": [7, 8]}, (7, 8)),
        (2, {"eos_token_id": [3, 10**6, -1]}, (2, 3)),  # no model gives the others
    ],
)
def test_an_answer_ends_as_config_and_generation_config_say(
    single, tmp_path, config, generation, expected
):
    attributes = json.loads((single / CONFIG).read_text()) | {"eos_token_id": config}
    (single / CONFIG).write_text(json.dumps(attributes))
    (single / GENERATION_CONFIG).unlink(missing_ok=True)
    if generation is not None:
        (single / GENERATION_CONFIG).write_text(json.dumps(generation))
    assert sinkjax.load_config(single).eos_token_ids == expected
    if generation and generation.get("eos_token_id") == [5, 2]:
        model = sinkjax.load(single)
        for save in (sinkjax.save_orbax, sinkjax.save_safetensors):
            save(model, tmp_path / save.__name__)
            assert sinkjax.load_config(tmp_path / save.__name__).eos_token_ids == expected


@pytest.mark.parametrize("file", [CONFIG, GENERATION_CONFIG])
@pytest.mark.parametrize("value", ["</s>", ["</s>"], [2, None], 2.0, True, {"a": 1}, [[2]]])
def test_an_end_token_that_is_no_id_is_refused(single, file, value):
    path = single / file
    attributes = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(attributes | {"eos_token_id": value}))
    with pytest.raises(InputError, match=r"eos_token_id is .* give the id of a token"):
        sinkjax.load_config(single)
    if file == GENERATION_CONFIG:
        path.write_text("[]")
        with pytest.raises(InputError, match=r"generation_config\.json is not a JSON object"):
            sinkjax.load_config(single)
        path.unlink()
        path.symlink_to(single / "removed from a cache")
        with pytest.raises(InputError, match=r"generation_config\.json cannot be read"):
            sinkjax.load_config(single)


@pytest.fixture
def tokenizer():
    model = tokenizers.models.BPE({"<s>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model), bos_token="<s>", add_bos_token=True
    )


@pytest.mark.parametrize("with_config", [True, False])
def test_the_tokenizer_beside_the_weights_is_loaded(single, tokenizer, with_config):
    if not with_config:
        (single / CONFIG).unlink()
    tokenizer.save_pretrained(single)
    loaded = sinkjax.load_tokenizer(single)
    assert loaded("abba")["input_ids"] == tokenizer("abba")["input_ids"]
    assert sinkjax.tokenizer_digest(loaded) == sinkjax.tokenizer_digest(tokenizer)


def test_a_folder_without_a_tokenizer_is_refused(single):
    (single / "tekken.json").write_text("{}")  # all that Mistral publishes with some models
    with pytest.raises(InputError, match=r"holds no tokenizer \(tokenizer\.json.*, as tekken"):
        sinkjax.load_tokenizer(single)


def test_a_damaged_tokenizer_is_refused(single, tokenizer):
    tokenizer.save_pretrained(single)
    path = single / "tokenizer.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(InputError, match="transformers cannot read its tokenizer"):
        sinkjax.load_tokenizer(single)


def test_no_code_of_a_checkpoint_is_run(single, tokenizer):
    tokenizer.save_pretrained(single)
    path = single / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}, "tokenizer_class": "Evil"}
    path.write_text(json.dumps(config))
    (single / "evil.py").write_text("open('ran', 'w')\nclass Evil: pass\n")
    assert sinkjax.load_tokenizer(single)("abba")["input_ids"] == tokenizer("abba")["input_ids"]
    assert not pathlib.Path("ran").exists()


def test_a_failure_that_says_nothing_is_named_by_its_class(tmp_path):
    assert f"{tmp_path} cannot be written (TimeoutError); remove" in str(
        unwritable(tmp_path, TimeoutError())
    )
