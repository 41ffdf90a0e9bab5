"""GGUF files against the Hugging Face models they were written from, and against damage."""

import math
import pathlib
import tracemalloc

import gguf
import hf
import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sinkjax.checkpoint.gguf import hugging_face_rows, open_gguf
from sinkjax.checkpoint.gguf_file import open_gguf_file
from sinkjax.errors import InputError

# Rows of 64 and 96, because blocks hold 32 elements.
SHAPE = dict(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)
KINDS = {
    "grouped": {},
    "one_kv_head": dict(num_key_value_heads=1),
    "all_kv_heads": dict(num_key_value_heads=4),
    "tied": dict(tie_word_embeddings=True),
    "attention_bias": dict(attention_bias=True),
    "mlp_bias": dict(mlp_bias=True),
    "head_dim": dict(head_dim=32),
}
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}


def permute(weights: np.ndarray, num_heads: int) -> np.ndarray:
    """The order in which llama.cpp's converter writes the rows of q and k: its definition."""
    rows = weights.shape[0]
    return (
        weights.reshape(num_heads, 2, rows // num_heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def weights_of(model: transformers.LlamaForCausalLM) -> dict[str, np.ndarray]:
    tied = model.config.tie_word_embeddings
    return {
        name: value.numpy()
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def add_llama(
    writer: gguf.GGUFWriter, model: transformers.LlamaForCausalLM, type_: Type = Type.F32
) -> None:
    """What the converter writes of a Llama, its rotary scaling apart."""
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(7)
    for name, value in weights_of(model).items():
        if "q_proj" in name:
            value = permute(value, config.num_attention_heads)
        if "k_proj" in name:
            value = permute(value, config.num_key_value_heads)
        for theirs, ours in GGUF_NAMES.items():
            name = name.replace(theirs, ours)
        stored = type_ if value.ndim > 1 else Type.F32  # as the converter does
        writer.add_tensor(name, gguf.quantize(value, stored), raw_dtype=stored)


def finish(writer: gguf.GGUFWriter) -> pathlib.Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return pathlib.Path(writer.path)


@pytest.fixture(scope="module")
def model():
    return hf.make_llama(**SHAPE)


@pytest.fixture
def writer(tmp_path):
    return gguf.GGUFWriter(tmp_path / "model.gguf", "llama")


@pytest.fixture(scope="module")
def small_file(model, tmp_path_factory):
    """A whole file and the bytes it needs."""
    writer = gguf.GGUFWriter(tmp_path_factory.mktemp("gguf") / "model.gguf", "llama")
    add_llama(writer, model)
    writer.add_token_list(["a", "b"])
    writer.add_token_scores([0.5, -1.0])
    writer.add_array("general.tags", ["x"])
    path = finish(writer)
    last = max(gguf.GGUFReader(path).tensors, key=lambda tensor: tensor.data_offset)
    return path, last.data_offset + last.n_bytes


def assert_refused(path: pathlib.Path, *mentions: str) -> None:
    with pytest.raises(InputError) as caught:
        open_gguf(path)
    assert all(str(path) in problem for problem in caught.value.problems)
    for mention in mentions:
        assert mention in str(caught.value)


# Tensors.


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
    "type_", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ2_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"]
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


def test_what_is_read_outlives_the_file(small_file, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(small_file[0].read_bytes())
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


# Rotary scaling.


def rope_of(writer, model, **changes) -> dict:
    add_llama(writer, model)
    for key, value in changes.items():
        key = "llama.rope." + key.replace("__", ".")
        {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](
            key, value
        )
    return open_gguf(finish(writer)).config["rope_parameters"]


DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, DEFAULT),
        ({"scaling__type": "none", "scaling__factor": 4.0}, DEFAULT),
        ({"scaling__type": "linear"}, DEFAULT),
        ({"scaling__finetuned": 1}, DEFAULT),
        ({"scaling__attn_factor": 1.0}, DEFAULT),
        (
            {"scaling__type": "linear", "scaling__factor": 2.5},
            DEFAULT | {"rope_type": "linear", "factor": 2.5},
        ),
        # llama.cpp takes a factor without a type for a linear one.
        ({"scaling__factor": 2.5}, DEFAULT | {"rope_type": "linear", "factor": 2.5}),
        ({"scale_linear": 2.5}, DEFAULT | {"rope_type": "linear", "factor": 2.5}),
        (
            {"scale_linear": 8.0, "scaling__factor": 2.5},
            DEFAULT | {"rope_type": "linear", "factor": 2.5},
        ),
        (
            {
                "scaling__type": "yarn",
                "scaling__factor": 4.0,
                "scaling__original_context_length": 16,
                "scaling__yarn_beta_fast": 16.0,
                "scaling__yarn_beta_slow": 2.0,
                "scaling__yarn_attn_factor": 1.3,
            },
            DEFAULT
            | {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "attention_factor": 1.3,
            },
        ),
        # The original length is the context's where there is none.
        (
            {"scaling__type": "yarn", "scaling__factor": 4.0},
            DEFAULT | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
    ],
)
def test_rotary_scaling(writer, model, changes, expected):
    assert rope_of(writer, model, **changes) == expected


def test_llama_cpps_attention_factor_multiplies_the_recommended_one(writer, model):
    rope = rope_of(
        writer, model, scaling__type="yarn", scaling__factor=4.0, scaling__attn_factor=0.5
    )
    without = model.config.to_dict() | {
        "rope_parameters": {k: v for k, v in rope.items() if k != "attention_factor"}
    }
    _, recommended = ROPE_INIT_FUNCTIONS["yarn"](transformers.LlamaConfig(**without), "cpu")
    assert math.isclose(rope["attention_factor"], 0.5 * recommended)


def llama3_divisors(theta: float, head_dim: int, original_length: int, factor: float):
    """transformers' own: how much lower than the plain ones its llama3 frequencies are."""
    config = transformers.LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original_length,
        },
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    return (plain / scaled).numpy(), config.rope_parameters


@pytest.mark.parametrize(("head_dim", "factor"), [(64, 32.0), (128, 8.0)])
def test_llama3_scaling_is_recovered_from_its_divisors(writer, head_dim, factor):
    model = hf.make_llama(
        **SHAPE,
        head_dim=head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )
    divisors, parameters = llama3_divisors(500000.0, head_dim, 8192, factor)
    writer.add_tensor("rope_freqs.weight", divisors)
    assert rope_of(writer, model) == parameters


@pytest.mark.parametrize("type_", [Type.F32, Type.F16])
def test_other_divisors_are_kept_as_they_are(writer, model, type_):
    divisors, _ = llama3_divisors(10000.0, 16, 100, 8.0)
    divisors = gguf.quantize(divisors, type_)
    writer.add_tensor("rope_freqs.weight", divisors)
    assert rope_of(writer, model) == DEFAULT | {"freq_factors": divisors.tolist()}


def test_divisors_of_one_are_no_scaling(writer, model):
    writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32))
    linear = {"scaling__type": "linear", "scaling__factor": 2.0}
    assert rope_of(writer, model, **linear)["rope_type"] == "linear"


@pytest.mark.parametrize(
    "divisors", [np.ones(4), np.ones((2, 4)), np.full(8, np.nan), np.r_[np.ones(7), 0]]
)
def test_impossible_divisors_are_refused(writer, model, divisors):
    add_llama(writer, model)
    writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
    assert_refused(finish(writer), "rope_freqs.weight", "8 positive finite numbers")


def test_two_rotary_scalings_are_refused(writer, model):
    add_llama(writer, model)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(2.0)
    writer.add_tensor("rope_freqs.weight", np.full(8, 2, np.float32))
    assert_refused(finish(writer), "rope_freqs.weight", "'linear'")


# Metadata that cannot be honoured.


def test_all_that_is_not_understood_is_listed_at_once(writer, model):
    add_llama(writer, model)
    writer.add_expert_count(8)
    writer.add_expert_used_count(2)
    writer.add_final_logit_softcapping(30.0)
    writer.add_sliding_window(0)
    writer.add_causal_attention(True)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
    writer.add_key_length(16)
    writer.add_value_length(8)
    path = finish(writer)
    assert_refused(
        path,
        "llama.expert_count = 8, llama.expert_used_count = 2, llama.final_logit_softcapping = 30.0",
        "llama.rope.scaling.type is 'longrope'",
        "llama.attention.value_length is 8, llama.attention.key_length 16",
    )
    with pytest.raises(InputError) as caught:
        open_gguf(path)
    assert len(caught.value.problems) == 3
    assert "sliding_window" not in str(caught.value)


def test_missing_and_uneven_metadata_is_listed_at_once(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_embedding_length(64)
    writer.add_head_count([4, 2])
    writer.add_head_count_kv([2, 2])
    writer.add_rope_dimension_count(15)
    writer.add_key_length(16)
    writer.add_layer_norm_rms_eps(float("nan"))
    writer.add_rope_freq_base(0.0)
    writer.add_uint32("llama.rope.scaling.type", 1)
    writer.add_tensor("token_embd.weight", np.ones((3, 64), np.float32))
    assert_refused(
        finish(writer),
        "llama.block_count is missing",
        "llama.context_length is missing",
        "llama.feed_forward_length is missing",
        "llama.attention.head_count is [4, 2]",
        "llama.attention.layer_norm_rms_epsilon is nan",
        "llama.rope.freq_base is 0.0",
        "llama.rope.scaling.type is 1",
        "llama.rope.dimension_count is 15, the head size 16",
    )


def test_one_number_a_layer_is_read_where_all_agree(writer, model):
    config = model.config
    add_llama(writer, model)
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        value = writer.kv_data[0].pop(f"llama.{key}").value
        writer.add_array(f"llama.{key}", [value] * config.num_hidden_layers)
    read = open_gguf(finish(writer)).config
    assert read["num_attention_heads"] == config.num_attention_heads
    assert read["num_key_value_heads"] == config.num_key_value_heads
    assert read["intermediate_size"] == config.intermediate_size


@pytest.mark.parametrize(
    ("architecture", "key", "value", "mention"),
    [
        ("qwen2", "general.type", "model", "general.architecture is 'qwen2'; only 'llama'"),
        ("llama", "general.type", "adapter", "general.type is 'adapter'"),
        ("llama", "split.count", 3, "one of 3 parts"),
    ],
)
def test_other_kinds_of_files_are_refused(tmp_path, model, architecture, key, value, mention):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
    add_llama(writer, model)
    writer.add_key_value(
        key,
        value,
        gguf.GGUFValueType.STRING if key == "general.type" else gguf.GGUFValueType.UINT16,
    )
    assert_refused(finish(writer), mention)


def test_types_that_cannot_be_dequantized_are_listed_at_once(writer, model):
    add_llama(writer, model)
    for index in range(10):
        stored = np.zeros((2, gguf.GGML_QUANT_SIZES[Type.Q8_K][1]), np.uint8)
        writer.add_tensor(f"blk.{index}.ffn_up.other", stored, raw_dtype=Type.Q8_K)
    writer.add_tensor("positions", np.zeros(4, np.int32))
    assert_refused(
        finish(writer), "10 tensor(s) of type Q8_K", "blk.7.ffn_up.other and 2 more", "positions"
    )


# Damage.


@pytest.mark.parametrize(
    ("content", "mention"),
    [
        (b"", "is empty"),
        (b"GG", "truncated"),
        (b"PK\x03\x04 a zip file instead", "not a GGUF file"),
        (b"GGUF\x01\0\0\0" + bytes(40), "version 1 is not read"),
        (b"GGUF\0\0\0\x03" + bytes(40), "of the other byte order"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 16, "truncated"),
    ],
)
def test_what_is_no_gguf_file_is_refused(tmp_path, content, mention):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert_refused(path, mention)


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    assert_refused(tmp_path, "cannot be read")
    assert_refused(tmp_path / "missing.gguf", "cannot be read")


def test_a_big_endian_file_is_refused(tmp_path, model):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    add_llama(writer, model)
    assert_refused(finish(writer), "of the other byte order")


@hypothesis.given(share=st.floats(0, 1, exclude_max=True))
@hypothesis.settings(deadline=None)
def test_a_truncated_file_is_refused_wherever_it_ends(small_file, share):
    path, needed = small_file
    part = path.parent / "part.gguf"
    part.write_bytes(path.read_bytes()[: int(share * needed)])
    assert_refused(part, "Download")


@hypothesis.given(data=st.data())
@hypothesis.settings(deadline=None, max_examples=300)
def test_a_damaged_header_is_refused_or_read(small_file, data):
    """Whatever one byte becomes: no other exception, no hang, no memory without end."""
    path, _ = small_file
    content = bytearray(path.read_bytes())
    header_size = min(tensor.offset for tensor in open_gguf_file(path).tensors.values())
    place = data.draw(st.integers(0, header_size - 1))
    content[place] = data.draw(st.integers(0, 255))
    damaged = path.parent / "damaged.gguf"
    damaged.write_bytes(content)
    try:
        source = open_gguf(damaged)
    except InputError:
        assert_refused(damaged)
    else:
        for name in list(source.shapes)[:1]:
            source.read(name)


@pytest.mark.parametrize(
    ("old", "new", "mentions"),
    [
        (
            b"blk.1.attn_q.weight",
            b"blk.0.attn_q.weight",
            ["tensor blk.0.attn_q.weight is there tw"],
        ),
        (b"general.tags", b"general.ta\xff\xfe", ["metadata value", "not UTF-8"]),
        (b"llama.block_count", b"llama.block_color", ["block_count is missing", "block_color = 3"]),
    ],
)
def test_damaged_names_are_refused(small_file, tmp_path, old, new, mentions):
    content = small_file[0].read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    path = tmp_path / "model.gguf"
    path.write_bytes(content.replace(old, new))
    assert_refused(path, *mentions)


def test_a_repeated_key_is_refused(writer, model):
    add_llama(writer, model)
    writer.add_string("llama.block_coumt", "3")
    path = finish(writer)
    path.write_bytes(path.read_bytes().replace(b"llama.block_coumt", b"llama.block_count"))
    assert_refused(path, "llama.block_count is there twice")


# The real model.


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
