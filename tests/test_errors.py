"""What a user is told: the library names arguments, a script names flags."""

import pytest

import sinkjax
from sinkjax.cli.flags import as_flag
from sinkjax.errors import InputError, Problem, about


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (Problem("shares", 1.5, "give less"), "shares=1.5: give less"),
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


def test_what_is_found_about_a_field_says_so():
    with pytest.raises(InputError) as caught, about("mask", "a.json"):
        raise InputError("it is no mask", Problem("heads", 3, "give 4"))
    assert str(caught.value) == "mask=a.json: it is no mask\nmask=a.json: heads=3: give 4"


def test_python_is_told_of_arguments():
    with pytest.raises(InputError, match=r"^model=nomodel: it is no file") as caught:
        sinkjax.load("nomodel")
    assert "--" not in str(caught.value)
