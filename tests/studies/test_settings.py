"""Numbers that no setting of a study can have, whatever the study."""

import importlib
import typing

import pytest

from sinkjax.cli.commands import STUDIES
from sinkjax.errors import InputError

pytestmark = pytest.mark.quick

# Held to the number of texts, and to the model's context.
ELSEWHERE = {"control_texts", "lengths", "held_out_lengths"}
ODD = {int: (-(10**30), 10**30), float: (float("nan"), float("inf"), float("-inf"))}


def _study(name: str) -> type:
    return getattr(importlib.import_module(f"sinkjax.studies.{name}.study"), STUDIES[name])


def _numbers() -> list[tuple[str, str, type, bool]]:
    """Every number of every study: its study, its name, its type, whether it is in a tuple."""
    numbers = []
    for study in STUDIES:
        for name, hint in typing.get_type_hints(_study(study)).items():
            kinds = [kind for kind in (hint, *typing.get_args(hint)) if kind in ODD]
            if kinds and name not in ELSEWHERE:
                numbers.append((study, name, kinds[0], typing.get_origin(hint) is tuple))
    return numbers


@pytest.mark.parametrize(("study", "name", "kind", "several"), _numbers())
def test_numbers_beyond_all_sense_are_refused_before_anything_is_planned(
    study, name, kind, several
):
    """Else they are counted up to, outgrow an array's numbers, or are no JSON."""
    for value in ODD[kind]:
        settings = _study(study)(**{name: (value,) if several else value})
        try:
            problems = list(settings.problems())
        except InputError as error:
            problems = list(error.problems)
        assert any(problem.field == name for problem in problems), (value, problems)
