"""Masks: what is refused, text, counts."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masks import CONFIG, masks, problems_of

from sinkjax import Copy, Full, Sink, SinkMask, Window
from sinkjax.masks.paths import KINDS

pytestmark = pytest.mark.quick

L, N, K = CONFIG.num_layers, CONFIG.num_heads, CONFIG.num_kv_heads
PATHS = [
    Full(),
    Copy(0, 1),
    Window(0, 1),
    Window(4, 128),
    Sink("first"),
    Sink("zero"),
    Sink("mean"),
]

several = settings(deadline=None, max_examples=50)
drawn = masks(L, N, K)


@st.composite
def parts(draw):
    """Two masks, each of some layers of one mask."""
    whole, kept = draw(drawn), st.lists(st.booleans(), min_size=L, max_size=L)
    return tuple(
        SinkMask(
            [
                heads if stays else [Full()] * N
                for heads, stays in zip(whole.heads, draw(kept), strict=True)
            ]
        )
        for _ in range(2)
    )


def masked(mask):
    """{(layer, head): path} of the masked heads."""
    return {
        (layer, head): path
        for layer, heads in enumerate(mask.heads)
        for head, path in enumerate(heads)
        if path != Full()
    }


# Values


@several
@given(drawn)
def test_equal_masks_are_one_static_value_and_one_digest(mask):
    twin = SinkMask([list(layer) for layer in copy.deepcopy(mask.heads)])
    assert twin == mask
    assert hash(twin) == hash(mask)
    assert twin.digest == mask.digest
    assert pickle.loads(pickle.dumps(mask)) == mask


@several
@given(st.one_of(st.tuples(drawn, drawn), parts()))
def test_different_masks_differ_in_digest_and_text(pair):
    first, second = pair
    assert (first == second) == (first.digest == second.digest) == (str(first) == str(second))


def test_a_mask_cannot_be_changed():
    mask = SinkMask.full(CONFIG)
    with pytest.raises(AttributeError):
        mask.heads = ()
    with pytest.raises(AttributeError):
        mask.heads[0][0].kind = "sink"


def test_equal_masks_share_one_compiled_program():
    traces = []

    def traced(mask, x):
        traces.append(mask)
        return x * sum(mask.counts().values())

    function = jax.jit(traced, static_argnums=0)
    function(SinkMask.from_text("L0: f s(first)"), jnp.ones(3))
    function(SinkMask([[Full(), Sink()]]), jnp.ones(3))
    assert len(traces) == 1
    function(SinkMask([[Full(), Sink("zero")]]), jnp.ones(3))
    assert len(traces) == 2


# What no model can do


def test_everything_impossible_is_listed_at_once():
    heads = [
        [Full(), Sink("zero"), Window(1, 2)],
        [Copy(0, 0), Copy(0, 1), Copy(0, 2)],
        [Copy(1, 0), Copy(2, 0), Copy(0, 3)],
        [Copy(7, 0), Full(), Full()],
    ]
    problems = problems_of(SinkMask, heads)
    assert [problem.split(":")[0] for problem in problems] == [
        "layer 1, head 1 copies layer 0, head 1, which is itself sink(zero)",
        "layer 2, head 0 copies layer 1, head 0, which is itself copy(0,0)",
        "layer 2, head 1 copies layer 2, head 0",
        "layer 2, head 2 copies layer 0, head 3",
        "layer 3, head 0 copies layer 7, head 0",
    ]
    assert "earlier" in problems[2]
    assert "heads are 0 to 2" in problems[3]


def test_what_is_no_path_and_ragged_layers_are_listed():
    problems = problems_of(SinkMask, [[Full(), "sink"], [Full()], [Full(), None]])
    assert len(problems) == 3
    assert "layer 0, head 1 is 'sink'" in problems[0]
    assert problems[1] == "layer 1 has 1 heads and layer 0 has 2"


@pytest.mark.parametrize("heads", [(), ((),), ((), ())])
def test_a_mask_without_heads_is_refused(heads):
    assert "at least one" in problems_of(SinkMask, heads)[0]


def test_another_models_shape_is_refused_with_both_shapes():
    SinkMask.full(CONFIG).check(CONFIG)
    (problem,) = problems_of(SinkMask([[Full()] * N] * (L + 1)).check, CONFIG)
    assert f"{L + 1} layers of {N} heads" in problem
    assert f"{L} layers of {N}" in problem
    problems_of(SinkMask([[Full()] * (N + 1)] * L).check, CONFIG)


# Making


@several
@given(st.data(), st.sampled_from(PATHS))
def test_where_puts_the_path_on_the_chosen_heads_alone(data, path):
    bits = data.draw(st.lists(st.booleans(), min_size=L * N, max_size=L * N))
    chosen = np.array(bits).reshape(L, N)
    if isinstance(path, Copy) and (chosen[0].any()):
        problems_of(SinkMask.where, chosen, path)
        return
    mask = SinkMask.where(chosen, path)
    np.testing.assert_array_equal(mask.masked, chosen & (path != Full()))
    assert set(masked(mask).values()) <= {path}


def test_copying_the_first_layer_leaves_it_full_and_keeps_each_heads_index():
    chosen = np.ones((L, N), bool)
    chosen[2, 3] = False
    mask = SinkMask.copy_first_layer(chosen)
    assert masked(mask) == {
        (layer, head): Copy(0, head)
        for layer in range(1, L)
        for head in range(N)
        if (layer, head) != (2, 3)
    }


@pytest.mark.parametrize(
    "chosen", [np.ones(3, bool), np.ones((2, 2)), np.ones((1, 2, 2), bool), np.zeros((2, 2), int)]
)
def test_choices_that_are_no_bools_by_layer_and_head_are_refused(chosen):
    for make in (lambda: SinkMask.where(chosen, Sink()), lambda: SinkMask.copy_first_layer(chosen)):
        with pytest.raises(ValueError, match=r"bool \[L, N\] is needed"):
            make()


# Text


@several
@given(drawn)
def test_text_reads_back(mask):
    assert SinkMask.from_text(str(mask)) == mask
    assert eval(repr(mask)) == mask


@several
@given(st.sampled_from(PATHS[2:]), st.integers(1, 40), st.integers(1, 40))
def test_a_uniform_mask_is_one_run(path, num_layers, num_heads):
    text = str(SinkMask([[path] * num_heads] * num_layers))
    assert len(text) < len("L0-39: 40w(4,128)") + 1
    assert SinkMask.from_text(text).heads == ((path,) * num_heads,) * num_layers


def test_the_text_form_is_the_documented_one():
    text = "L0-1: 9f | L2: 4s(first) 5w(4,128) | L3: 7f c(0,7) s(mean)"
    mask = SinkMask.from_text(text)
    assert str(mask) == text
    assert mask.heads[0] == mask.heads[1] == (Full(),) * 9
    assert mask.heads[2] == (Sink(),) * 4 + (Window(4, 128),) * 5
    assert mask.heads[3][7:] == (Copy(0, 7), Sink("mean"))
    assert SinkMask.from_text(text.replace(" ", "\n  ")) == mask
    assert SinkMask.from_text(text.replace(" | ", "|")) == mask


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is no layer's heads"),
        ("9f", "'9f' is no layer's heads"),
        ("L0: ", "is no layer's heads"),
        ("L1: 2f", "comes where L0 has to begin"),
        ("L0: 2f | L2: 2f", "comes where L1 has to begin"),
        ("L0: 2f | L0: 2f", "comes where L1 has to begin"),
        ("L0: 2f | L2-1: 2f", "comes where L1 has to begin"),
        ("L0: 2x", "'2x' is no run of heads"),
        ("L0: 0f", "'0f' is no run of heads"),
        ("L0: f(1)", "'f(1)' is no run of heads"),
        ("L0: 2f s", "'s' is no run of heads"),
        ("L0: w(4)", "'w(4)' is no run of heads"),
        ("L0: w(4,x)", "'w(4,x)' is no run of heads"),
        ("L0: w(4,0)", "recent of window is 0"),
        ("L0: s(max)", "fill is 'max'"),
        ("L0: 2f | L1: 3f", "layer 1 has 3 heads and layer 0 has 2"),
        ("L0: f c(0,0)", "only heads of earlier layers"),
    ],
)
def test_text_that_is_no_mask_is_refused(text, said):
    assert said in "\n".join(problems_of(SinkMask.from_text, text))


def test_all_that_is_wrong_with_a_text_is_listed():
    assert len(problems_of(SinkMask.from_text, "L0: 2x w(4,0) s(max) f | L1 | L1: c(0)")) == 5


# Counts


@several
@given(drawn)
def test_counts_add_up(mask):
    counts = mask.counts()
    assert list(counts) == list(KINDS)
    assert sum(counts.values()) == L * N
    assert L * N - counts["full"] == mask.masked.sum() == len(masked(mask))
    assert mask.group_counts(N) == {**counts, "mixed": 0}
    groups = mask.group_counts(K)
    assert sum(groups.values()) == L * K
    size = N // K
    for kind in KINDS:
        whole = [
            all(path.kind == kind for path in layer[size * k : size * (k + 1)])
            for layer in mask.heads
            for k in range(K)
        ]
        assert groups[kind] == sum(whole)
    starts = range(0, N, size)
    paths = [set(map(str, heads[n : n + size])) for heads in mask.heads for n in starts]
    assert mask.in_groups(K) == (max(map(len, paths)) == 1)
    assert mask.in_groups(N)


@pytest.mark.parametrize("num_kv_heads", [0, 4, 7])
def test_groups_need_key_value_heads_that_divide_the_query_heads(num_kv_heads):
    with pytest.raises(ValueError, match="do not divide"):
        SinkMask.full(CONFIG).group_counts(num_kv_heads)
