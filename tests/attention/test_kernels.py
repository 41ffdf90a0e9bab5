"""Full attention, windows and kernels against the oracle's patterns; what a kernel's blocks hold.

Kernels run in JAX's interpreter.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from heads import attended, random_heads
from masks import problems_of

from sinkjax.attention.full import causal_attention
from sinkjax.attention.kernels import XLA
from sinkjax.attention.pallas import Pallas
from sinkjax.attention.splash import Splash, _PathMask
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import Full, Window
from sinkjax.specialize.build import specialize
from sinkjax.testing.oracle import reference_logits

KERNELS = [Splash(interpret=True), Pallas(interpret=True)]
PATHS = [Full(), Window(0, 1), Window(4, 128), Window(130, 61), Window(9, 500)]
WINDOWS = [Window(0, 1), Window(1, 1), Window(4, 16), Window(3, 64), Window(70, 5), Window(4, 200)]
# In layers with a window of their own, which the first tokens leave.
CUT_PATHS = [Window(4, 64, 128), Window(130, 61, 200), Window(300, 61, 150)]
CUT_WINDOWS = [Window(4, 16, 40), Window(70, 5, 90), Window(400, 5, 90)]
LENGTHS = [1, 64, 300]  # around the blocks of what XLA compiles


def by(kernel, path):
    return tiny.quick_jit(lambda *heads: kernel.attend(*heads, path))


def assert_equals_oracle(attend, path, heads):
    np.testing.assert_allclose(attend(*heads), attended(path, *heads), rtol=0, atol=1e-5)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("length", LENGTHS)
def test_full_attention_equals_the_oracle(length, group):
    assert_equals_oracle(causal_attention, Full(), random_heads(length, group))


@pytest.mark.parametrize("path", WINDOWS + CUT_WINDOWS, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_window_attention_equals_the_oracle(length, path):
    heads = random_heads(length, 3)
    assert_equals_oracle(lambda *heads: XLA.attend(*heads, path), path, heads)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("path", PATHS + CUT_PATHS, ids=str)
def test_a_kernel_equals_the_oracle_over_several_blocks(path, kernel):
    """A window whose sinks end within a block, reach into the recent keys, or leave nothing out."""
    assert_equals_oracle(by(kernel, path), path, random_heads(384, 2, head_dim=16))


@pytest.mark.parametrize("kernel", [XLA, *KERNELS], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("path", [Full(), Window(4, 128)], ids=str)
def test_capped_scores_are_the_oracles(path, kernel):
    q, k, v = random_heads(256, 2, head_dim=16)
    attend = tiny.quick_jit(lambda *heads: kernel.attend(*heads, path, cap=1.5))
    wanted = attended(path, 4 * q, k, v, cap=1.5)
    np.testing.assert_allclose(attend(4 * q, k, v), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("kv_heads", [1, 3])
def test_query_heads_read_their_own_groups_keys(kv_heads, kernel):
    path = Window(3, 50)
    heads = random_heads(128, 3 // kv_heads, kv_heads, head_dim=16)
    assert_equals_oracle(by(kernel, path), path, heads)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_in_bfloat16_sums_stay_float32(kernel):
    """As near to the oracle as the form that XLA compiles, whose sums are float32, too."""
    heads = random_heads(256, 2, head_dim=16, dtype=jnp.bfloat16)
    wanted = attended(Window(4, 100), *(x.astype(jnp.float32) for x in heads))

    def error(kernel):
        outputs = by(kernel, Window(4, 100))(*heads)
        assert outputs.dtype == jnp.bfloat16
        return np.abs(outputs.astype(jnp.float32) - wanted).max()

    assert error(kernel) < 1.5 * error(XLA)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_models_prefill_equals_the_oracle_on_ragged_rows(kernel):
    """A layer of the baseline's, and every path in others: what is copied has no kernel."""
    model = tiny.make(num_layers=3, num_heads=4, head_dim=16, max_length=160)
    mask = SinkMask.from_text("L0: 4f | L1: f w(4,50) f w(4,50) | L2: c(1,0) 3s(first)")
    tokens, lengths = tiny.tokens_of(model, (3, 128)), jnp.asarray([128, 71, 1])
    wanted = reference_logits(model, mask, tokens, lengths=lengths)

    def prefill(fast, tokens, lengths):
        return fast.prefill(tokens, lengths=lengths, max_length=160, kernel=kernel)[0]

    logits = tiny.quick_jit(prefill)(specialize(model, mask), tokens, lengths)
    last = np.asarray(wanted)[np.arange(3), np.asarray(lengths) - 1]
    np.testing.assert_allclose(logits, last, rtol=0, atol=1e-5)


def visible(path, length):
    t, s = np.arange(length)[:, None], np.arange(length)[None, :]
    if path == Full():
        return s <= t
    seen = (s <= t) & ((s < path.sinks) | (s > t - path.recent))
    return seen if path.within is None else seen & (s > t - path.within)


@pytest.mark.parametrize("kernel", [Splash(), Pallas()], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("path", [*PATHS, Window(600, 90), Window(128, 257)], ids=str)
def test_pairs_are_those_of_the_blocks_that_the_path_leaves(path, kernel):
    length = 1024
    block_q, block_kv = kernel.blocks(path, length)
    seen = visible(path, length).reshape(length // block_q, block_q, -1, block_kv)
    wanted = seen.any(axis=(1, 3)).sum() * block_q * block_kv
    assert kernel.pairs(path, length) == wanted


@pytest.mark.parametrize("path", PATHS + CUT_PATHS, ids=str)
def test_the_path_of_a_kernels_call_is_read_from_its_scope(path):
    kernel, heads = Pallas(interpret=True), random_heads(1024, 1, head_dim=16)
    jaxpr = jax.make_jaxpr(lambda *heads: kernel.attend(*heads, path))(*heads)
    (call,) = (e for e in jaxpr.eqns if e.primitive.name == "pallas_call")
    assert kernel.read_path([f"jit(f)/{call.source_info.name_stack}/pallas_call"]) == path


@pytest.mark.parametrize("block", [128, 256])
@pytest.mark.parametrize("path", [*PATHS, *CUT_PATHS, Window(600, 90), Window(128, 257)], ids=str)
def test_splash_is_told_of_each_block_whether_any_or_all_of_it_is_seen(path, block):
    length = 1024
    mask, seen = _PathMask(path, length), visible(path, length).reshape(-1, block, 8, 128)
    for i, j in np.ndindex(length // block, 8):
        mask_block = mask[i * block : (i + 1) * block, j * 128 : (j + 1) * 128]
        wanted = seen[i, :, j]
        assert (mask_block.any(), mask_block.all()) == (wanted.any(), wanted.all())
        assert mask_block.size == 1 or (mask_block == wanted).all()


@pytest.mark.parametrize("kernel", [Splash(), Pallas()], ids=lambda kernel: kernel.name)
def test_a_long_windows_work_grows_with_the_length_and_not_its_square(kernel):
    short, long = (kernel.pairs(Window(4, 128), length) for length in (8_192, 131_072))
    assert long < 17 * short
    assert 80 * long < kernel.pairs(Full(), 131_072)


def test_what_a_kernel_cannot_compute_is_refused_with_the_reason():
    q, k, v = (x[:, :100] for x in random_heads(128, 1, head_dim=16))
    (problem,) = problems_of(Splash().attend, q, k, v, Full())
    assert "a prompt of 100 tokens (splash takes multiples of 128)" in problem
    small = [x[..., :10].astype("float16") for x in (q, k, v)]
    problems = problems_of(Pallas().attend, *small, Full())
    for part, problem in zip(("100 tokens", "in float16", "of size 10"), problems, strict=True):
        assert part in problem
        assert "pallas takes" in problem
