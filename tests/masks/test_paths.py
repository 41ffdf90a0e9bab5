"""Paths: their numbers, and their text in both forms."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masks import problems_of, sinks, windows

from sinkjax import InputError, SinkMask
from sinkjax.masks.paths import Copy, Full, Sink, Window, parse_path, parse_paths, short

numbers = st.integers(0, 10**9)
paths = st.one_of(
    st.just(Full()), st.builds(Copy, numbers, numbers), windows(10**9, 10**9), sinks()
)


def test_numbers_of_any_integer_type_are_the_same_path():
    path = Copy(np.int64(0), np.int32(1))
    assert path == Copy(0, 1)
    assert str(path) == "copy(0,1)"
    assert type(path.layer) is int


@pytest.mark.parametrize(
    ("path", "arguments", "said"),
    [
        (Window, (-1, 4), "sinks of window is -1; it has to be at least 0"),
        (Window, (2, 0), "recent of window is 0; it has to be at least 1"),
        (Window, (0, 2**31), "recent of window is 2147483648; .* at most 1000000000"),
        (Window, (10**9 + 1, 1), "sinks of window is 1000000001; .* at most 1000000000"),
        (Copy, (-1, 0), "layer of copy is -1"),
        (Copy, (0, -2), "head of copy is -2"),
        (Sink, ("median",), "fill is 'median'; it has to be one of first, zero, mean"),
    ],
)
def test_impossible_paths_are_refused(path, arguments, said):
    with pytest.raises(ValueError, match=said):
        path(*arguments)


def test_numbers_that_are_not_whole_are_refused():
    with pytest.raises(TypeError):
        Window(1.0, 4)


@settings(deadline=None)
@given(paths)
def test_both_forms_read_back(path):
    assert parse_path(str(path)) == parse_path(short(path)) == path
    assert str(path).split("(")[0] == path.kind
    assert short(path).split("(")[0] == path.kind[0]


@settings(deadline=None)
@given(st.lists(st.tuples(paths, st.booleans()), max_size=4))
def test_lists_are_split_at_commas_outside_of_parentheses(several):
    text = ",".join(short(path) if brief else str(path) for path, brief in several)
    assert parse_paths(text) == tuple(path for path, _ in several)


def test_a_whole_mask_is_read_in_either_form():
    brief = "L0: 2f w(1,4) s(zero) | L1: 3c(0,2) f"
    long = "L0: 2full window(1,4) sink(zero) | L1: 3copy(0,2) full"
    assert SinkMask.from_text(long) == SinkMask.from_text(brief)
    assert str(SinkMask.from_text(long)) == brief


@given(least=st.integers(1, 10**6), each=st.integers(1, 10**6), length=st.integers(1, 10**6))
def test_windows_grow_with_the_length_that_they_are_read_for(least, each, length):
    growing = f"window(4,{least}+L/{each})"
    assert parse_path(growing, length=length) == Window(4, least + length // each)
    (refused,) = problems_of(parse_path, growing)
    assert f"'{growing}' is no path: it grows with a length, and there is none here" in refused


def test_a_window_may_be_a_share_of_the_length_alone():
    assert parse_path("w(0,L/4)", length=8) == Window(0, 2)
    (refused,) = problems_of(parse_path, "w(0,L/4)", ("window",), 3)
    assert "recent of window is 0" in refused
    mask = SinkMask.from_text("L0: f 2w(4,32+L/16) | L1: 3w(4,64+L/8)", 512)
    assert str(mask) == "L0: f 2w(4,64) | L1: 3w(4,128)"


@settings(deadline=None)
@given(st.text("fullcopywindsk(,)0123456789 ٣", max_size=14))
def test_text_is_a_path_or_refused_with_what_is_allowed(text):
    try:
        path = parse_path(text)
    except InputError as error:
        (problem,) = error.problems
        assert problem.text.startswith(f"{text!r} is no path")
        assert "window(sinks,recent)" in problem.text or "it has to be" in problem.text
    else:
        assert re.sub(r"\b0+(?=\d)", "", text) in (str(path), short(path))


@pytest.mark.parametrize(
    "text",
    [
        *("full()", "f(1)", "sink", "w(4)", "w(4,x)", "w(-1,4)", "c(0)", "s(first", "2f"),
        *("w(4,L/0)", "w(4,L)", "w(L/4,4)", "w(4,4+l/8)", "w(4,L/8+4)", "c(0,L/8)"),
    ],
)
def test_what_no_form_has_is_refused(text):
    assert f"{text!r} is no path: write full, " in problems_of(parse_path, text)[0]


def test_every_path_that_cannot_be_used_is_named():
    allowed = (
        "write window(sinks,recent), sink(fill) with one of first, zero, mean; the words may be "
        "their first letters"
    )
    assert problems_of(parse_paths, "w(4,0),full,,s(mean),c(0,1)", ("window", "sink")) == (
        "'w(4,0)' is no path: recent of window is 0; it has to be at least 1 and at most "
        "1000000000",
        f"'full' is a full, which has no place here: {allowed}",
        f"'' is no path: {allowed}",
        f"'c(0,1)' is a copy, which has no place here: {allowed}",
    )
