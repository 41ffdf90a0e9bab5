"""GGUF files of every family that llama.cpp has, against the models they were written from."""

import gguf
import hf
import jax.numpy as jnp
import llama_cpp
import numpy as np
import pytest
import transformers
from families import KINDS
from gguf import GGMLQuantizationType as Type
from gguf_files import ARCHITECTURES, add_family, finish, weights_of

import sinkjax
from sinkjax.checkpoint.gguf import _of_a_part
from sinkjax.models.config import RopeConfig
from sinkjax.models.families import FAMILIES

# What llama.cpp has no key for is as in its code: the layers without rotation and those with
# windows, and Gemma's scale.
CHANGES = {
    "smollm3": dict(no_rope_layer_interval=4, num_hidden_layers=5),
    "smollm3_listed": dict(no_rope_layers=None, attention_bias=False, num_hidden_layers=5),
    "gemma2": dict(query_pre_attn_scalar=16, num_hidden_layers=5),
    "gemma2_uncapped": dict(layer_types=None, attn_logit_softcapping=40.0),
    "gemma3": dict(layer_types=None, query_pre_attn_scalar=16, num_hidden_layers=7),
    "gemma2_all_kv_heads": dict(query_pre_attn_scalar=8, tie_word_embeddings=True),
    "gemma3_all_kv_heads": dict(
        query_pre_attn_scalar=8, sliding_window_pattern=6, num_hidden_layers=6
    ),
    # llama.cpp takes the long factors where it has room for long texts.
    "phi3_longrope": dict(original_max_position_embeddings=60),
    "phi3_part": dict(original_max_position_embeddings=60),
    "qwen3_bias": dict(attention_bias=False),
    "olmo2_tied": dict(head_dim=8, tie_word_embeddings=False),
    "olmo3": dict(layer_types=None, num_hidden_layers=5),
    "olmo3_one_kv_head": dict(head_dim=8, tie_word_embeddings=False),
    "olmo3_all_kv_heads": dict(num_hidden_layers=4),  # one without a window, as llama.cpp needs
    "granite4": dict(shared_intermediate_size=80),
    "granite4_all_kv_heads": dict(shared_intermediate_size=80),
}
ALIKE = {"phi3_windows": 24}  # tokens before llama.cpp, which leaves out Phi-3's windows, differs
UNSAID = (  # what no file has
    *("mistral_windows", "mistral_one_kv_head"),
    *("qwen2_windows", "qwen3_windows", "smollm3_windows"),
    "granite4_unrotated",
)


@pytest.fixture(scope="module", params=[kind for kind in KINDS if kind not in UNSAID])
def file_of_a_family(request, tmp_path_factory):
    """A file, its model, and how many of the first logits llama.cpp has alike."""
    oracle = hf.make_llama(**{**KINDS[request.param], **CHANGES.get(request.param, {})})
    family = oracle.config.model_type
    architecture = ARCHITECTURES.get(family) or FAMILIES[family].gguf.architecture
    writer = gguf.GGUFWriter(tmp_path_factory.mktemp("gguf") / "model.gguf", architecture)
    add_family(writer, architecture, oracle.config, weights_of(oracle))
    return finish(writer), oracle, ALIKE.get(request.param, 70)


TOKENS = hf.random_tokens((2, 70))


def test_a_file_of_a_family_gives_the_models_own_logits(file_of_a_family):
    path, oracle, _ = file_of_a_family
    logits = sinkjax.load(path)(jnp.asarray(TOKENS))
    np.testing.assert_allclose(logits, hf.logits(oracle, TOKENS), rtol=0, atol=1e-4)


def test_llama_cpp_reads_the_same_file_alike(file_of_a_family, monkeypatch):
    path, oracle, alike = file_of_a_family
    logits = llama_cpp.logits(path, TOKENS[0, :alike])
    atol = 1e-3
    if oracle.config.model_type.startswith("gemma"):
        atol = 2e-3  # a number between two of the table may go to either
        for layer in oracle.model.layers:
            monkeypatch.setattr(layer.mlp.act_fn, "forward", gelu_of_a_table)
    wanted = hf.logits(oracle, TOKENS)[0, :alike]
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("architecture", [f.gguf.architecture for f in FAMILIES.values() if f.gguf])
def test_no_layers_are_counted_that_a_file_has_not(architecture, tmp_path):
    """None makes a list of them before their number is looked at."""
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
    for key in ("embedding_length", "context_length", "feed_forward_length"):
        writer.add_uint32(f"{architecture}.{key}", 64)
    writer.add_uint32(f"{architecture}.attention.head_count", 4)
    writer.add_uint32(f"{architecture}.attention.sliding_window", 8)
    writer.add_uint64(f"{architecture}.block_count", 2**62)
    writer.add_tensor("token_embd.weight", np.ones((3, 64), np.float32))
    with pytest.raises(sinkjax.InputError, match=rf"{architecture}.block_count is \d+; it must be"):
        sinkjax.load_config(finish(writer))


def test_a_qwen_with_all_that_published_files_say_is_read(tmp_path):
    """As Qwen2.5 1.5B is published: 12 heads on 2, tied, quantized with an importance matrix."""
    oracle = hf.make_llama(
        family="qwen2", hidden_size=96, num_attention_heads=12, tie_word_embeddings=True
    )
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "qwen2")
    add_family(writer, "qwen2", oracle.config, weights_of(oracle))
    writer.add_type("model")
    writer.add_file_type(15)
    writer.add_quantization_version(2)
    writer.add_tags(["chat", "text-generation"])
    writer.add_languages(["en"])
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, "Qwen2.5 1.5B")
    writer.add_float32("general.sampling.temp", 0.7)
    writer.add_string("quantize.imatrix.file", "some.imatrix")
    writer.add_int32("quantize.imatrix.entries_count", 196)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    read = sinkjax.load(finish(writer))
    assert read.config.tie_embeddings
    np.testing.assert_allclose(
        read(jnp.asarray(TOKENS)), hf.logits(oracle, TOKENS), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["olmo3", "gemma3"])
def test_layers_have_the_windows_that_a_file_lists(kind, tmp_path):
    """llama.cpp knows one in so many alone, and takes its own number where a file has a list."""
    yarn = dict(rope_type="yarn", factor=8.0, original_max_position_embeddings=16)
    yarn |= dict(attention_factor=1.2079441541679836, beta_fast=32.0, beta_slow=1.0)
    changes = dict(query_pre_attn_scalar=16) if kind == "gemma3" else dict(rope_scaling=yarn)
    oracle = hf.make_llama(**{**KINDS[kind], **changes})
    architecture = ARCHITECTURES.get(kind, kind)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
    add_family(writer, architecture, oracle.config, weights_of(oracle))
    writer.add_sliding_window_pattern([True, False, True])
    read = sinkjax.load(finish(writer))
    assert read.config.layer_windows == (24, None, 24)
    logits = read(jnp.asarray(TOKENS))
    np.testing.assert_allclose(logits, hf.logits(oracle, TOKENS), rtol=0, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_a_qwen_of_many_quantizations_is_what_transformers_reads(tied, tmp_path):
    """As it is published: each matrix of its own, and in some files a head beside the embedding."""
    shape = dict(hidden_size=96, intermediate_size=64, num_attention_heads=12)
    oracle = hf.make_llama(family="qwen2", tie_word_embeddings=tied, **shape)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "qwen2")
    types = (Type.Q8_0, Type.Q5_0, Type.F16, Type.Q4_1, Type.Q5_1, Type.Q4_0)
    add_family(writer, "qwen2", oracle.config, weights_of(oracle), types)
    path = finish(writer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=hf.torch.float32, attn_implementation="eager"
    )
    assert theirs.config.tie_word_embeddings == tied
    logits = sinkjax.load(path)(jnp.asarray(TOKENS))
    np.testing.assert_allclose(logits, hf.logits(theirs.eval(), TOKENS), rtol=0, atol=1e-4)
    assert np.abs(logits - hf.logits(oracle, TOKENS)).max() > 0.01


@pytest.mark.parametrize(("said", "window"), [(None, 2047), (0, None), (1024, 1024)])
def test_files_of_phi_3_that_say_nothing_of_windows_have_its_own(said, window, tmp_path):
    """As those of Phi-3-mini-4k that Microsoft published, older than the key."""
    oracle = hf.make_llama(**KINDS["phi3"], max_position_embeddings=4096)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "phi3")
    writer.add_sliding_window = lambda _: None
    add_family(writer, "phi3", oracle.config, weights_of(oracle))
    del writer.add_sliding_window
    if said is not None:
        writer.add_sliding_window(said)
    assert sinkjax.load_config(finish(writer)).window(0) == window


@pytest.mark.parametrize("rotates", [True, False])
def test_a_granite_without_rotation_is_refused(rotates, tmp_path):
    """By a key that for other architectures says nothing of what they compute."""
    oracle = hf.make_llama(**KINDS["granite"])
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "granite")
    add_family(writer, "granite", oracle.config, weights_of(oracle))
    writer.add_rope_scaling_finetuned(rotates)
    path = finish(writer)
    if not rotates:
        with pytest.raises(sinkjax.InputError, match=r"granite.rope.scaling.finetuned = False"):
            sinkjax.load(path)
        return
    logits = sinkjax.load(path)(jnp.asarray(TOKENS))
    np.testing.assert_allclose(logits, hf.logits(oracle, TOKENS), rtol=0, atol=1e-4)


def gelu_of_a_table(x):
    """As llama.cpp has it on a CPU: from a table of float16, which is worth 4e-3 in logits here."""
    return hf.torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()


def test_the_share_of_a_head_that_turns_gives_its_size_again():
    """Also where the quotient is rounded down: 30 of 44 would turn 29."""
    for size in range(2, 321, 2):
        for turned in range(2, size + 1, 2):
            (share,) = _of_a_part(turned, size).values()
            assert share <= 1
            assert RopeConfig(part=share).turned(size) == turned
