"""Specialized models against the dense oracle, and what is gone from them."""

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from masks import masks

import sinkjax
from sinkjax.distributed import make_mesh
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Sink, Window
from sinkjax.models.abstract import abstract_model
from sinkjax.models.config import RopeConfig
from sinkjax.models.decoder import Layer, Llama
from sinkjax.models.sharding import shard
from sinkjax.programs.scan import LayerRun, scanned
from sinkjax.specialize.build import specialize
from sinkjax.testing.oracle import reference_logits

TOLERANCE = 1e-5

# Six heads a layer, with one, two or six key/value heads: every path mixed inside groups, copies of
# `full` and of `window`, by heads in groups with keys and without, and groups that are all `sink`.
MIXED = SinkMask.from_text(
    "L0: 2f w(2,5) s(first) w(1,4) w(2,5) | "
    "L1: c(0,0) s(mean) w(3,70) c(0,2) s(zero) w(1,4) | "
    "L2: 2s(first) s(mean) c(1,2) c(0,1) c(0,4)"
)
DIVISORS = (1.0, 1.1, 1.2, 1.3, 1.0, 2.0, 4.0, 8.0)
LONG = RopeConfig("longrope", factor=4.0, original_max_length=20, freq_factors=DIVISORS)
ROPES = {"dynamic": RopeConfig("dynamic", factor=3.0), "llama3": tiny.LLAMA3, "longrope": LONG}


def assert_equals_oracle(model, mask, tokens, prompts, max_length, fills=None, steps=None):
    """A ragged batch at once, then each row's first tokens at once and the next ones one by one."""
    fast = specialize(model, mask, fills=fills)
    lengths = np.arange(tokens.shape[0]) + tokens.shape[1] - tokens.shape[0] + 1
    wanted = reference_logits(model, mask, tokens, lengths=jnp.asarray(lengths), fills=fills)
    logits = tiny.call(fast, tokens, jnp.asarray(lengths))
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(
            logits[row, :length], wanted[row, :length], rtol=0, atol=TOLERANCE
        )
    prompts = np.array(prompts)
    wanted = reference_logits(model, mask, tokens, prompt_lengths=prompts, fills=fills)
    logits = tiny.decoded(fast, tokens, prompts, max_length, steps)
    wanted = tiny.after(wanted, prompts, steps)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=TOLERANCE)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.data())
def test_any_mask_equals_the_oracle(data):
    kv_heads = data.draw(st.sampled_from([1, 2, 3, 6]))
    mask = data.draw(masks(num_layers=2, num_heads=6, num_kv_heads=kv_heads))
    joint = data.draw(st.booleans())
    model = tiny.make(
        num_layers=2,
        num_kv_heads=kv_heads,
        attention_bias=data.draw(st.booleans()),
        qk_norm=joint,
        joint_qk_norm=joint,
        score_cap=data.draw(st.sampled_from([None, 1.5])),
        layer_windows=data.draw(st.sampled_from([(), (7, 9)])),
    )
    prompts = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=2))
    max_length = data.draw(st.integers(14, 20))
    tokens, fills = tiny.tokens_of(model, (2, 14)), tiny.make_fills(model)
    assert_equals_oracle(model, mask, tokens, prompts, max_length, fills, steps=5)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_every_path_mixed_equals_the_oracle_beyond_a_block_of_queries(kv_heads):
    model = tiny.make(num_kv_heads=kv_heads, attention_bias=True, mlp_bias=True, max_length=512)
    tokens = tiny.tokens_of(model, (3, 205))
    assert_equals_oracle(model, MIXED, tokens, [1, 77, 200], 210, tiny.make_fills(model), 5)


@pytest.mark.parametrize("rope", ROPES)
def test_ropes_that_depend_on_the_length_equal_the_oracle_beyond_it(rope):
    model = tiny.make(rope=ROPES[rope], max_length=16)
    tokens = tiny.tokens_of(model, (2, 24))
    assert_equals_oracle(model, MIXED, tokens, [14, 20], 24, tiny.make_fills(model))


@pytest.mark.quick
def test_windows_alone_decode_without_end():
    model = tiny.make(num_layers=2)
    mask = SinkMask(((Window(2, 5),) * 6, (Window(1, 6), Sink("first"), Window(2, 5)) * 2))
    tokens = tiny.tokens_of(model, (2, 40))
    assert_equals_oracle(model, mask, tokens, [5, 9], max_length=9)


def test_like_layers_as_one_loop_equal_the_oracle():
    model = tiny.make(num_layers=6)
    mask = SinkMask.from_text(
        "L0: 2f w(2,5) s(first) w(1,4) f | L1-3: c(0,0) s(mean) f c(0,2) s(zero) w(1,4) | L4-5: 6f"
    )
    fills, tokens = tiny.make_fills(model), tiny.tokens_of(model, (2, 14))
    loops = scanned(specialize(model, mask, fills=fills))
    assert [isinstance(layer, LayerRun) for layer in loops.layers] == [False, True, True]
    wanted, prompts = reference_logits(model, mask, tokens, fills=fills), np.array([5, 9])
    logits = tiny.decoded(loops, tokens, prompts, 16)
    np.testing.assert_allclose(logits, tiny.after(wanted, prompts), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("text", ["f", "w(2,5)", "w(0,1)", "s(first)", "s(zero)", "s(mean)"])
def test_a_prompt_of_one_token(text):
    model = tiny.make()
    mask = SinkMask.from_text(f"L0-2: 6{text}")
    assert_equals_oracle(model, mask, tiny.tokens_of(model, (1, 4)), [1], 4, tiny.make_fills(model))


@pytest.mark.parametrize("text", [MIXED, "L0-2: 6s(first)", "L0-2: 6s(zero)", "L0-2: 6s(mean)"])
def test_the_first_residual_is_the_same_under_every_mask(text):
    model = tiny.make(attention_bias=True)
    tokens = tiny.tokens_of(model, (2, 9))
    fast = specialize(model, SinkMask.from_text(str(text)), fills=tiny.make_fills(model))
    hidden = tiny.quick_jit(lambda model, tokens: model.hidden(tokens))
    baseline, masked = hidden(model, tokens), hidden(fast, tokens)
    scale = np.abs(baseline[:, 0]).max()
    np.testing.assert_allclose(masked[:, 0], baseline[:, 0], rtol=0, atol=1e-6 * scale)
    assert np.abs(masked[:, 1:] - baseline[:, 1:]).max() > 0.01


@pytest.mark.quick
def test_all_full_is_the_baselines_own_program():
    model = tiny.make()
    fast = specialize(model, SinkMask.full(model.config))
    tokens = tiny.tokens_of(model, (2, 9))
    _, cache = model.prefill(tokens, max_length=12)
    calls = (
        lambda m: jax.jit(lambda m, x: m(x)).lower(m, tokens),
        lambda m: jax.jit(lambda m, x: m.prefill(x, max_length=12)).lower(m, tokens),
        lambda m: jax.jit(lambda m, x, c: m.decode(x, c)).lower(m, tokens[:, 0], cache),
    )
    for lower in calls:
        assert lower(fast).as_text() == lower(model).as_text()


def arrays(model) -> dict[tuple, jax.Array]:
    return {path: leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


@pytest.mark.quick
def test_what_the_mask_leaves_alone_is_shared_and_what_it_removes_is_gone():
    model = tiny.make(attention_bias=True)
    mask = SinkMask.from_text("L0: 6f | L1: 6w(1,4) | L2: 3s(first) f 2s(zero)")
    fast = specialize(model, mask)
    ours, new = arrays(model), arrays(fast)
    changed = {path for path, array in new.items() if ours.get(path) is not array}
    assert changed == {
        ("layers", 2, "attention", name)
        for name in (
            *("q", "k", "v", "o", "q_bias", "k_bias", "v_bias"),
            *("sink_v", "sink_v_bias", "first_o", "other_o"),
        )
    }
    for path, array in ours.items():
        if path not in changed:
            assert new[path].unsafe_buffer_pointer() == array.unsafe_buffer_pointer()
    last = fast.layers[2].attention
    assert last.q.shape == (1, 8, 40)
    assert last.o.shape == (40, 1, 8)
    assert last.k.shape == last.v.shape == last.sink_v.shape == (1, 8, 40)
    assert last.first_o.shape == last.other_o.shape == (40, 1, 8)
    assert all(isinstance(layer, Layer) for layer in fast.layers)


@pytest.mark.quick
def test_training_a_specialized_model_leaves_the_original_alone():
    model = tiny.make()
    before = arrays(model)
    fast = specialize(model, SinkMask.from_text("L0-2: 5f s(first)"))
    for _, parameter in nnx.to_flat_state(nnx.state(fast, nnx.Param)):
        parameter.set_value(parameter[...] + 1)
    for path, array in arrays(model).items():
        np.testing.assert_array_equal(array, before[path])


@pytest.mark.quick
def test_equal_masks_are_one_program_and_others_are_not():
    model = tiny.make()

    def structure(text):
        return nnx.split(specialize(model, SinkMask.from_text(text)))[0]

    first, same, other = map(structure, ("L0-2: 6w(1,4)", "L0-2: 6w(1,4)", "L0-2: 6w(1,5)"))
    assert first == same
    assert hash(first) == hash(same)
    assert first != other


def test_abstract_models_give_abstract_ones():
    model = tiny.make()
    abstract = nnx.eval_shape(lambda: tiny.make())
    fast = specialize(abstract, MIXED, fills=tiny.make_fills(model))
    wanted = specialize(model, MIXED, fills=tiny.make_fills(model))
    leaves = jax.tree.leaves(nnx.state(fast))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert [leaf.shape for leaf in leaves] == [
        leaf.shape for leaf in jax.tree.leaves(nnx.state(wanted))
    ]


def test_bfloat16_parameters_run():
    model = tiny.make()
    half = tiny.make(dtype=jnp.bfloat16)
    tokens, fills = tiny.tokens_of(model, (2, 80)), tiny.make_fills(model)
    fast = specialize(half, MIXED, fills=fills)
    wanted = reference_logits(model, MIXED, tokens, fills=fills)
    prompts = np.array([70, 75])
    logits = tiny.decoded(fast, tokens, prompts, 80)
    assert logits.dtype == np.float32
    wanted = tiny.after(wanted, prompts)
    assert np.abs(logits - wanted).mean() < 0.05 * np.abs(wanted).mean()


@pytest.mark.quick
def test_refusals():
    model = tiny.make()
    mean = SinkMask.from_text("L0-2: 5f s(mean)")
    with pytest.raises(sinkjax.InputError, match=r"pass fills, float32 \[L, N, H\] = \(3, 6, 8\)"):
        specialize(model, mean)
    with pytest.raises(ValueError, match=r"fills have shape \(3, 6, 4\)"):
        specialize(model, mean, fills=jnp.zeros((3, 6, 4)))
    with pytest.raises(sinkjax.InputError, match="the mask is for 2 layers"):
        specialize(model, SinkMask.from_text("L0-1: 6f"))
    with pytest.raises(TypeError, match="specialized already"):
        specialize(specialize(model, SinkMask.full(model.config)), SinkMask.full(model.config))


def test_a_saved_mask_brings_its_fills_and_is_for_one_model(tmp_path):
    model, other = tiny.make(), tiny.make(seed=1)
    fills, tokens = tiny.make_fills(model), tiny.tokens_of(model, (1, 8))

    def saved(**made_from):
        file = tmp_path / "mask.json"
        provenance = sinkjax.Provenance(**made_from)
        sinkjax.save_mask(file, MIXED, fills=np.asarray(fills), provenance=provenance)
        return sinkjax.load_mask(file)

    mask = saved(model="tiny", model_digest=sinkjax.model_digest(model))
    wanted = specialize(model, MIXED, fills=fills)(tokens)
    np.testing.assert_array_equal(specialize(model, mask)(tokens), wanted)
    with pytest.raises(sinkjax.InputError, match="was made for tiny of digest"):
        specialize(other, mask)
    assert specialize(abstract_model(other.config, jnp.float32), mask).mask == MIXED
    assert specialize(other, saved()).mask == MIXED  # of a file that names no model
    with pytest.raises(sinkjax.InputError, match="the mask is for 3 layers"):
        specialize(tiny.make(num_layers=2), mask)


# Masks that leave the model sane. Where one breaks it, float32 itself is worth 2e-3 in the logits:
# so much the oracle compiled differs from the oracle not compiled.
@pytest.mark.parametrize(
    ("mask", "decoding"),
    [
        ("L0-29: 3f 6w(4,24)", lambda model: model),
        (
            "L0-9: 9f | L10-19: 3w(4,16) 6f | L20-29: 3w(2,30) f s(first) s(zero) c(19,6) 2w(4,16)",
            scanned,  # three loops, and the layer that is copied
        ),
    ],
    ids=["windows", "every path"],
)
def test_the_real_model_equals_the_oracle(mask, decoding, smollm2, smollm2_tokenizer, free_memory):
    tokens = jnp.asarray([smollm2_tokenizer(hf.TEXTS[2])["input_ids"]], jnp.int32)
    mask = SinkMask.from_text(mask)
    fast = specialize(smollm2, mask)
    wanted = reference_logits(smollm2, mask, tokens)
    logits = tiny.call(fast, tokens, jnp.asarray([tokens.shape[1]]))
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4)
    free_memory()  # a quarter of a gigabyte: `scanned` needs it for weights of its own
    prompts = np.array([tokens.shape[1] - 4])
    logits = tiny.decoded(decoding(fast), tokens, prompts, 64)
    np.testing.assert_allclose(logits, tiny.after(wanted, prompts), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "text", ["L0: 3s(first) 3f | L1: 3f 3w(1,4)", "L0-1: f w(2,3) s(first) f w(2,3) s(mean)"]
)
def test_what_is_specialized_lies_over_the_mesh_of_what_it_was_made_from(text, caplog):
    """It came out whole on every device."""
    model = shard(tiny.make(num_layers=2, vocab_size=62), make_mesh({"model": 2, "data": 4}))
    mask, fills = SinkMask.from_text(text), tiny.make_fills(model)
    fast = specialize(model, mask, fills=fills)
    even = mask.balanced(2, 2) == mask
    assert even == ("s(mean)" in text)
    assert ("the heads of 2 of 2 layers uneven over 2 chips" in caplog.text) != even
    assert fast.layers[1].attention.q[...].addressable_shards[0].data.shape[0] == (2 if even else 6)
    assert fast.layers[0].mlp.up[...].addressable_shards[0].data.shape[0] == 24
    tokens = tiny.tokens_of(model, (4, 12))
    alone = specialize(tiny.make(num_layers=2, vocab_size=62), mask, fills=fills)
    np.testing.assert_allclose(
        jax.jit(Llama.__call__)(fast, tokens), jax.jit(Llama.__call__)(alone, tokens), atol=1e-5
    )


def test_layers_that_chips_along_sub_cannot_divide_are_said(caplog):
    """A window and full heads in a group; in the other layer two heads of each group are left."""
    config = tiny.make(num_heads=8, num_kv_heads=2, vocab_size=64, num_layers=2).config
    mesh = make_mesh({"model": 2, "sub": 2, "data": 2})
    mask = SinkMask.from_text("L0: f w(2,3) 2f f w(2,3) 2f | L1: 2s(first) 2f 2s(first) 2f")
    specialize(shard(abstract_model(config, jnp.float32), mesh), mask)
    (record,) = caplog.records
    assert "the heads of 1 of 2 layers uneven over 2 chips along sub, which" in record.getMessage()
