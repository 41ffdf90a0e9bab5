"""Masks over chips: even, and no wider than that takes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinkjax import InputError, Sink, SinkMask
from sinkjax.masks.paths import Full, Window

pytestmark = pytest.mark.quick

PATHS = [Full(), Window(2, 4), Window(0, 9), Sink("first"), Sink("zero")]
KV_HEADS, GROUP = 4, 2


def paths_of(heads):
    return st.lists(st.sampled_from(PATHS), min_size=heads, max_size=heads).map(tuple)


masks = st.lists(paths_of(KV_HEADS * GROUP), min_size=1, max_size=3).map(
    lambda layers: SinkMask(tuple(layers))
)


def sees(path, distance, position):
    """Whether a query at a position sees the key so far before it."""
    if isinstance(path, Window):
        return distance < path.recent or position - distance < path.sinks
    return path == Full()


def is_even(paths, chips):
    """Whether groups of equal make-up, those of sinks alone apart, can be dealt out alike."""
    groups = [paths[start : start + GROUP] for start in range(0, len(paths), GROUP)]
    make_ups = [sorted(str(p) for p in group if not isinstance(p, Sink)) for group in groups]
    return all(make_ups.count(make_up) % chips == 0 for make_up in make_ups if make_up)


@given(masks, st.sampled_from([1, 2, 4]))
def test_a_balanced_mask_is_even_and_takes_nothing_from_a_head(mask, chips):
    even = mask.balanced(chips, KV_HEADS)
    for before, after in zip(mask.heads, even.heads, strict=True):
        assert is_even(after, chips)
        if is_even(before, chips):
            assert after == before
        for old, new in zip(before, after, strict=True):
            seen = [(d, t) for t in range(12) for d in range(t + 1)]
            assert all(sees(new, *at) for at in seen if sees(old, *at))
            assert old == new or not isinstance(new, Sink)
    assert even.balanced(chips, KV_HEADS) == even


@pytest.mark.parametrize(
    ("text", "chips", "wanted"),
    [
        # Three groups of sinks alone and one with a head: its chips' others get one, too.
        ("L0: 7s(first) f", 2, "L0: s(first) f 5s(first) f"),
        ("L0: 7s(first) f", 4, "L0: s(first) f s(first) f s(first) f s(first) f"),
        # Windows of several widths become the widest beside them, the narrowest together.
        (
            "L0: w(2,4) f w(2,9) f w(0,4) f w(0,12) f",
            2,
            "L0: w(2,4) f w(2,12) f w(2,4) f w(2,12) f",
        ),
        # What is even in groups of any place stays.
        ("L0: s(zero) f 2f s(first) f 2f", 2, "L0: s(zero) 3f s(first) 3f"),
    ],
)
def test_what_is_given_back(text, chips, wanted):
    assert str(SinkMask.from_text(text).balanced(chips, KV_HEADS)) == wanted


def test_of_heads_on_one_path_the_costliest_is_given_back():
    mask = SinkMask.from_text("L0: 4s(first) 2s(first) f s(first)")
    costs = np.array([[0.0, 0, 0, 0, 0.9, 0.1, 0, 0]])
    assert str(mask.balanced(2, 2, costs=costs)) == "L0: 3s(first) f 2s(first) f s(first)"
    mask = SinkMask.from_text("L0: 4s(first) 3s(first) f")
    costs = np.array([[0.2, 0.8, 0.1, 0, 0, 0, 0, 0]])
    assert str(mask.balanced(2, 2, costs=costs)) == "L0: s(first) f 5s(first) f"


def test_what_cannot_be_balanced_is_refused():
    mask = SinkMask.from_text("L0: 8f | L1: 7f c(0,1)")
    with pytest.raises(InputError, match="chips=3: 4 key/value heads are not divided by it"):
        mask.balanced(3, KV_HEADS)
    with pytest.raises(InputError, match=r"copy heads, .* without them, or lay it over neurons"):
        mask.balanced(2, KV_HEADS)
