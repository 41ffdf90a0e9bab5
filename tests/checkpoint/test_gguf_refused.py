"""GGUF files that are refused: what is not understood, what is no such file, and damage."""

import os
import shutil

import gguf
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf_files import add_llama, assert_refused, finish

import sinkjax
from sinkjax.checkpoint.gguf import open_gguf
from sinkjax.checkpoint.gguf_file import open_gguf_file
from sinkjax.errors import InputError

pytestmark = pytest.mark.quick


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
        "llama.attention.value_length is 8, attention.key_length 16",
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
    writer.add_bool("llama.rope.freq_base", True)
    writer.add_uint32("llama.rope.scaling.type", 1)
    writer.add_tensor("token_embd.weight", np.ones((3, 64), np.float32))
    assert_refused(
        finish(writer),
        "llama.block_count is missing",
        "llama.context_length is missing",
        "llama.feed_forward_length is missing",
        "llama.attention.head_count is [4, 2]",
        "llama.attention.layer_norm_rms_epsilon is nan",
        "llama.rope.freq_base is True",
        "llama.rope.scaling.type is 1",
        "llama.rope.dimension_count is 15, the head size 16",
    )


def test_a_rotation_of_a_part_of_each_head_is_refused_with_both_sizes(writer, model):
    add_llama(writer, model)
    writer.kv_data[0]["llama.rope.dimension_count"].value = 12
    assert_refused(finish(writer), "llama.rope.dimension_count is 12, the head size 16")


@pytest.mark.parametrize("tokens", [5, "abc", True, []])
def test_tokens_that_are_no_list_are_not_counted(tmp_path, tokens):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    for key in ("embedding_length", "context_length", "feed_forward_length", "block_count"):
        writer.add_uint32(f"llama.{key}", 8)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    kinds = {int: writer.add_uint32, str: writer.add_string, bool: writer.add_bool}
    kinds.get(type(tokens), writer.add_array)("tokenizer.ggml.tokens", tokens)
    with pytest.raises(InputError, match="vocab_size is 0"):
        sinkjax.load_config(finish(writer))


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
        ("gpt2", "general.type", "model", "general.architecture is 'gpt2'; read are "),
        ("llama", "general.type", "adapter", "general.type is 'adapter'"),
        ("llama", "split.count", 3, "one of 3 parts of a split file. Give the first, whose name"),
        ("llama", "split.count", 10**9, "split.count is 1000000000"),
    ],
)
def test_other_kinds_of_files_are_refused(tmp_path, model, architecture, key, value, mention):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
    add_llama(writer, model)
    writer.add_key_value(
        key,
        value,
        gguf.GGUFValueType.STRING if key == "general.type" else gguf.GGUFValueType.UINT32,
    )
    assert_refused(finish(writer), mention)


@pytest.fixture
def parts(tmp_path, model):
    """The five parts of a split file."""
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama", split_max_tensors=7)
    add_llama(writer, model)
    finish(writer)
    return [tmp_path / f"model-{n:05d}-of-00005.gguf" for n in range(1, 6)]


def test_a_split_file_without_one_of_its_parts_is_refused(parts):
    assert_refused(
        parts[1], "one of 5 parts of a split file. Give the first, whose name ends in -0"
    )
    shutil.copy(parts[4], parts[3])
    with pytest.raises(InputError, match=rf"^{parts[3]}: this is not part 4 of 5 of a split file"):
        open_gguf(parts[0])
    parts[2].unlink()
    with pytest.raises(InputError, match=f"^{parts[2]}: cannot be read"):
        open_gguf(parts[0])


def test_a_tensor_in_two_parts_is_refused(parts):
    content = parts[3].read_bytes()
    assert content.count(b"blk.2.ffn_norm.weight") == 1
    parts[3].write_bytes(content.replace(b"blk.2.ffn_norm.weight", b"blk.0.ffn_norm.weight"))
    with pytest.raises(InputError, match=r"blk\.0\.ffn_norm\.weight is in a part before it, too"):
        open_gguf(parts[0])


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


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.gguf")
    assert_refused(tmp_path / "model.gguf", "it is a pipe or a device")
    with pytest.raises(InputError, match="it is a pipe or a device"):
        sinkjax.load_tokenizer(tmp_path / "model.gguf")


@pytest.mark.parametrize("blocks", [4, 10**9, 2**31 - 1])
def test_no_layers_are_counted_that_the_file_has_not(small_file, tmp_path, blocks):
    content = small_file[0].read_bytes()
    key = b"llama.block_count\x04\0\0\0"
    path = tmp_path / "model.gguf"
    path.write_bytes(content.replace(key + b"\3\0\0\0", key + blocks.to_bytes(4, "little")))
    with pytest.raises(InputError, match=rf"4 layers, its tensors are of 3|is {blocks}; .*at most"):
        sinkjax.load(path)


def test_a_damaged_length_is_not_followed_through_a_large_file(small_file, tmp_path):
    """Of a file of gigabytes, each byte of which would be a value of tens of bytes."""
    content = small_file[0].read_bytes()
    place = content.index(b"tokenizer.ggml.scores") + len(b"tokenizer.ggml.scores") + 8
    path = tmp_path / "model.gguf"
    path.write_bytes(content[:place] + (1 << 23).to_bytes(8, "little") + content[place + 8 :])
    with path.open("r+b") as file:
        file.truncate(1 << 26)
    assert_refused(path, "tokenizer.ggml.scores is a list of 8,388,608 values, more than any model")


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


@pytest.mark.parametrize("wrong", [0, 1, -32, 32, 64, 2**62])
def test_a_tensor_that_does_not_begin_where_the_one_before_ends_is_refused(
    small_file, tmp_path, wrong
):
    """At another's data, between two, a byte off, or beyond all."""
    content = bytearray(small_file[0].read_bytes())
    name = b"blk.1.attn_v.weight"
    place = content.index(name) + len(name) + 4 + 2 * 8 + 4  # after its axes and its type
    right = int.from_bytes(content[place : place + 8], "little")
    content[place : place + 8] = (right + wrong if wrong else 0).to_bytes(8, "little")
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert_refused(
        path, f"tensor {name.decode()} is said to begin at byte", f"end at byte {right:,}"
    )


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_tensors_are_padded_as_the_file_says(writer, model, alignment):
    writer.add_custom_alignment(alignment)
    writer.add_tensor("first", np.ones(3, np.float32))
    add_llama(writer, model)
    file = open_gguf_file(finish(writer))
    np.testing.assert_array_equal(file.read("first"), np.ones(3))
    assert all(tensor.offset % alignment == 0 for tensor in file.tensors.values())


def test_a_repeated_key_is_refused(writer, model):
    add_llama(writer, model)
    writer.add_string("llama.block_coumt", "3")
    path = finish(writer)
    path.write_bytes(path.read_bytes().replace(b"llama.block_coumt", b"llama.block_count"))
    assert_refused(path, "llama.block_count is there twice")
