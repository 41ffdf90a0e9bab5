"""GGUF files against the Hugging Face models they were written from, tiny and real."""

import tracemalloc

import gguf
import hf
import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import transformers
from gguf import GGMLQuantizationType as Type
from gguf_files import SHAPE, add_llama, finish, permute, weights_of
from hf import torch

import sinkjax
from sinkjax.checkpoint.gguf import hugging_face_rows, open_gguf
from sinkjax.checkpoint.gguf_file import open_gguf_file

KINDS = {
    "grouped": {},
    "one_kv_head": dict(num_key_value_heads=1),
    "all_kv_heads": dict(num_key_value_heads=4),
    "tied": dict(tie_word_embeddings=True),
    "attention_bias": dict(attention_bias=True),
    "mlp_bias": dict(mlp_bias=True),
    "head_dim": dict(head_dim=32),
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_tensors_and_config_are_those_of_the_hugging_face_model(writer, changes):
    model = hf.make_llama(**{**SHAPE, "rms_norm_eps": 1e-5, **changes})
    add_llama(writer, model)
    source = open_gguf(finish(writer))
    weights = weights_of(model)
    assert source.shapes == {name: value.shape for name, value in weights.items()}
    for name, value in weights.items():
        np.testing.assert_array_equal(source.read(name), value, err_msg=name, strict=True)
    expected = model.config.to_dict() | {"pad_token_id": 7, "architectures": ["LlamaForCausalLM"]}
    assert source.config == {key: expected[key] for key in source.config}
    assert transformers.LlamaConfig(**source.config).to_dict() == expected | {
        "dtype": None,
        "initializer_range": 0.02,
    }


def test_biases_of_queries_keys_and_values_alone_are_read(writer, tmp_path):
    """A Llama with them is a Qwen2: transformers' has a fourth, which is zero there."""
    model = hf.make_llama(**SHAPE, attention_bias=True)
    for name, value in model.named_parameters():
        if name.endswith(".bias"):
            value.data = torch.zeros_like(value) if "o_proj" in name else torch.randn_like(value)
    add_llama(writer, model)
    for tensors in writer.tensors:
        for name in [name for name in tensors if name.endswith("attn_output.bias")]:
            del tensors[name]
    read = sinkjax.load(finish(writer))
    assert read.config.attention_bias
    assert not read.config.output_bias
    tokens = np.arange(1, 9)[None]
    expected = model(torch.asarray(tokens)).logits.detach().numpy()
    np.testing.assert_allclose(read(tokens), expected, atol=2e-5)
    sinkjax.save_safetensors(read, tmp_path / "saved")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    saved = theirs(torch.asarray(tokens)).logits.detach().numpy()
    np.testing.assert_allclose(saved, expected, atol=2e-5)


@pytest.mark.parametrize(
    "type_",
    ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4"],
)
def test_every_type_that_can_be_written_is_read(writer, model, type_):
    type_ = Type[type_]
    add_llama(writer, model, type_)
    source = open_gguf(finish(writer))
    dtypes = {Type.F16: np.float16, Type.BF16: ml_dtypes.bfloat16}
    for name, value in weights_of(model).items():
        stored = type_ if value.ndim > 1 else Type.F32
        expected = gguf.dequantize(gguf.quantize(value, stored), stored)
        read = source.read(name)
        assert read.dtype == dtypes.get(stored, np.float32)
        np.testing.assert_array_equal(read.astype(np.float32), expected, err_msg=name)


@pytest.mark.parametrize(
    "type_",
    [
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S"),
        *("IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "NVFP4"),
    ],
)
def test_types_that_are_only_read_are_read_in_chunks_as_whole(writer, model, type_):
    type_ = Type[type_]
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[type_]
    rows, columns = 2100, 256  # two chunks and a part
    rng = np.random.default_rng(0)
    shape = (rows, columns // block_size * block_bytes)
    stored = rng.integers(0, 60, shape, np.uint8)  # small bytes: finite scales in float16
    add_llama(writer, model)
    writer.add_tensor("blk.0.attn_v.other", stored, raw_dtype=type_)
    source = open_gguf(finish(writer))
    read = source.read("blk.0.attn_v.other")
    np.testing.assert_array_equal(read, gguf.dequantize(stored, type_), strict=True)


@pytest.mark.parametrize("type_", ["F32", "BF16", "Q8_0", "Q5_1"])
def test_a_part_is_read_as_it_is_in_the_whole(writer, model, type_):
    """Columns begin and end inside of quantized blocks of 32."""
    add_llama(writer, model, Type[type_])
    source = open_gguf(finish(writer))
    for name, shape in source.shapes.items():
        part = tuple(slice(n // 4 + 1, n - 10) for n in shape)
        whole = source.read(name)
        for of in (part, part[:1]):
            np.testing.assert_array_equal(source.read(name, of), whole[of], name, strict=True)


def test_the_parts_of_a_split_file_are_read_as_one(writer, model, tmp_path):
    add_llama(writer, model)
    whole = open_gguf(finish(writer))
    parted = gguf.GGUFWriter(tmp_path / "parted.gguf", "llama", split_max_tensors=7)
    add_llama(parted, model)
    finish(parted)
    source = open_gguf(tmp_path / "parted-00001-of-00005.gguf")
    assert (source.config, source.shapes) == (whole.config, whole.shapes)
    for name in whole.shapes:
        np.testing.assert_array_equal(source.read(name), whole.read(name), name, strict=True)


def test_reading_holds_one_tensor_at_a_time(writer, model):
    values = np.ones((4096, 1024), np.float32)
    add_llama(writer, model)
    # As a query projection, because its rows are put in order besides.
    writer.add_tensor("blk.9.attn_q.weight", gguf.quantize(values, Type.Q8_0), raw_dtype=Type.Q8_0)
    source = open_gguf(finish(writer))
    tracemalloc.start()
    read = source.read("model.layers.9.self_attn.q_proj.weight")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Beside the result: the quantized rows in order, a quarter of it, and a chunk.
    assert read.nbytes <= peak < 1.6 * read.nbytes


def test_what_is_read_outlives_the_file(writer, model):
    add_llama(writer, model)
    path = finish(writer)
    source = open_gguf(path)
    read = source.read("model.norm.weight")
    before = read.copy()
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    np.testing.assert_array_equal(read, before)
    assert read.flags.writeable


@hypothesis.given(
    num_heads=st.integers(1, 12),
    half=st.integers(1, 20),
    columns=st.sampled_from([None, 1, 3]),
)
def test_the_order_of_rows_undoes_the_converters(num_heads, half, columns):
    rows = num_heads * 2 * half
    weights = np.arange(rows * (columns or 1)).reshape((rows, columns) if columns else (rows,))
    stored = permute(weights, num_heads)
    np.testing.assert_array_equal(stored[hugging_face_rows(rows, num_heads)], weights)


def test_unknown_tensors_keep_their_names(writer, model):
    add_llama(writer, model)
    unknown = ["blk.0.attn_qkv.weight", "blk.0.attn_norm.bias", "blk.00.attn_q.weight", "cls"]
    for name in unknown:
        writer.add_tensor(name, np.ones(3, np.float32))
    source = open_gguf(finish(writer))
    assert source.shapes.keys() - weights_of(model).keys() == set(unknown)
    np.testing.assert_array_equal(source.read("cls"), np.ones(3, np.float32))


def test_the_header_is_what_the_gguf_package_reads(smollm2_gguf):
    file, reader = open_gguf_file(smollm2_gguf), gguf.GGUFReader(smollm2_gguf)
    fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert file.metadata.keys() == fields.keys()
    for key, value in fields.items():
        if isinstance(value, float):  # the same float32; here as the shortest decimal
            assert np.float32(file.metadata[key]) == np.float32(value)
        else:
            assert file.metadata[key] == value
    assert {name: (t.type, t.offset, t.num_bytes) for name, t in file.tensors.items()} == {
        t.name: (t.tensor_type, t.data_offset, t.n_bytes) for t in reader.tensors
    }


def test_the_real_model_is_what_transformers_reads(smollm2_gguf, hf_smollm2):
    source = open_gguf(smollm2_gguf)
    theirs = weights_of(hf_smollm2)
    assert source.shapes == {name: value.shape for name, value in theirs.items()}
    for name, value in theirs.items():
        np.testing.assert_array_equal(source.read(name), value, err_msg=name)
    assert source.config["rms_norm_eps"] == 1e-5
    assert source.config["tie_word_embeddings"]
    for key in ("num_hidden_layers", "num_key_value_heads", "max_position_embeddings", "head_dim"):
        assert source.config[key] == getattr(hf_smollm2.config, key)
    assert source.config["rope_parameters"] == {"rope_type": "default", "rope_theta": 100000.0}
