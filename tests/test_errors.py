"""What a user is told: the library names arguments, a script names flags."""

import itertools
import time

import pytest

import sinkjax
from sinkjax.cli import flags
from sinkjax.cli.flags import as_flag
from sinkjax.errors import InputError, Problem, about, each, naming


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (Problem("shares", 1.5, "give less"), "shares=1.5: give less"),
        (Problem("quantile", 1.0000001, "give less"), "quantile=1.0000001: give less"),
        (Problem("lengths", [8, 16], "give less"), "lengths=8,16: give less"),
        (Problem("shares", (0.25, 1.0), "give less"), "shares=0.25,1: give less"),
        (Problem("mask", None, "name one"), "mask: name one"),
        (Problem("model", "", "name one"), "model=: name one"),
    ],
)
def test_a_problem_names_its_field_and_its_flag(problem, said):
    error = InputError(problem, "a file is damaged")
    assert str(error) == f"{said}\na file is damaged"
    assert error.problems == (problem, Problem(None, None, "a file is damaged"))
    assert len(set(error.problems)) == 2
    assert [as_flag(problem) for problem in error.problems] == [f"--{said}", "a file is damaged"]
    assert as_flag(problem, {problem.field: "now"}) == f"--now{said.removeprefix(problem.field)}"


def test_what_is_found_about_a_field_says_so():
    with pytest.raises(InputError) as caught, about("mask", "a.json"):
        raise InputError("it is no mask", Problem("heads", 3, "give 4"))
    assert str(caught.value) == "mask=a.json: it is no mask\nmask=a.json: heads=3: give 4"


def test_of_what_is_wrong_all_along_only_the_beginning_is_looked_at():
    def refused(number: int) -> None:
        raise InputError(f"line {number} is wrong")

    with pytest.raises(InputError, match=r"^line 0 is wrong\nline 1 is wrong"):
        each(itertools.count(), refused)


@pytest.mark.parametrize("text", ["x | " * 10**6, "L0: " + "x " * 10**6 + "x"])
def test_a_text_that_is_no_mask_is_refused_at_once(text):
    start = time.process_time()
    with pytest.raises(InputError, match=r"and \d+ more$"):
        sinkjax.SinkMask.from_text(text)
    assert time.process_time() - start < 1


def test_python_is_told_of_arguments():
    with pytest.raises(InputError, match=r"^model=nomodel: it is no file") as caught:
        sinkjax.load("nomodel")
    assert "--" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\nerror: b\r\x85c", r"a\nerror: b\r\x85c"),
        ("a\0\x7f\x9b", r"a\x00\x7f\x9b"),
        ("a\u2028b\u2029", r"a\u2028b\u2029"),
        ("a\u202eb\u2066\u200f", r"a\u202eb\u2066\u200f"),
        ("a\ud800\udc80", r"a\ud800\udc80"),
        (
            "schöne 模型 \N{ZERO WIDTH JOINER} 🦙 é \\n",
            "schöne 模型 \N{ZERO WIDTH JOINER} 🦙 é \\n",
        ),
    ],
)
def test_names_are_shown_so_that_a_terminal_obeys_none_of_them(name, shown, capsys):
    with pytest.raises(InputError) as caught, about("model", name), naming(name):
        raise InputError(f"tensor {name} is unknown")
    assert str(caught.value) == f"model={shown}: {shown}: tensor {shown} is unknown"
    flags._failed(caught.value)
    assert capsys.readouterr().err == f"error: --{caught.value}\n"
    assert str(Problem(name, None, "it is unknown")) == f"{shown}: it is unknown"


@pytest.mark.parametrize(("count", "lines"), [(1, 1), (20, 20), (21, 21), (100_000, 21)])
def test_of_very_many_problems_the_first_are_shown(count, lines, capsys):
    error = InputError(*(Problem("mask", str(i), "name another") for i in range(count)))
    assert len(error.problems) == count
    shown = str(error).splitlines()
    assert len(shown) == lines
    assert shown[0] == "mask=0: name another"
    assert count <= 20 or shown[-1] == f"and {count - 20:,} more"
    flags._failed(error)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lines
    assert said[-1].startswith("error: ")
