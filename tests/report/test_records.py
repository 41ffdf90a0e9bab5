"""What pages take from records, of a few that are made by hand."""

import math

import numpy as np
import pytest

from sinkjax.report import records

pytestmark = pytest.mark.quick


def test_a_name_has_its_digest_where_another_model_has_the_name():
    ours, other = ({"name": "tiny", "digest": digest * 8} for digest in ("ab", "cd"))
    elsewhere = {"name": "large", "digest": "ef" * 8}
    assert records.told_apart(ours, "digest", [ours, elsewhere]) == "tiny"
    assert records.told_apart(ours, "digest", [ours, other]) == "tiny (abababab)"
    assert records.told_apart(ours, "digest", [other]) == "tiny (abababab)"


def test_environments_are_each_there_once_in_whatever_order_their_keys_stand():
    of = [{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 0, "b": 2}]
    environments = records.environments([{"environment": each} for each in of])
    assert environments == ({"a": 0, "b": 2}, {"a": 1, "b": 2})


@pytest.mark.parametrize(
    ("bos", "added", "said"),
    [
        ("never", True, "BOS: never"),
        ("tokenizer", True, "BOS: the tokenizer's"),
        ("tokenizer", False, "BOS: none (the tokenizer adds none)"),
    ],
)
def test_a_title_names_the_model_the_bos_and_the_text_asked_for(bos, added, said):
    record = {"bos": bos, "bos_added": added}
    record |= {of: {"name": of.upper()} for of in ("model", "source", "judged")}
    assert records.title(record) == f"MODEL, {said}; SOURCE"
    assert records.title(record, "judged") == f"MODEL, {said}; JUDGED"


def test_what_an_estimate_does_not_have_is_no_number():
    estimates = [{"value": 1.5, "low": 1.0}, {"value": None}, {}]
    np.testing.assert_array_equal(records.numbers(estimates), [1.5, math.nan, math.nan])
    np.testing.assert_array_equal(records.numbers(estimates, "low"), [1.0, math.nan, math.nan])


def test_groups_keep_the_order_in_which_they_are_met_and_lengths_go_up():
    of = [{"length": length, "n": n} for n, length in enumerate((4, 2, 4, 8, 2))]
    groups = records.grouped(of, lambda record: record["length"])
    assert {key: [record["n"] for record in group] for key, group in groups.items()} == {
        4: [0, 2],
        2: [1, 4],
        8: [3],
    }
    assert list(groups) == [4, 2, 8]
    assert list(records.by_length(of)) == [2, 4, 8]


def test_portions_hold_so_many_groups_and_items_stay_in_order():
    portions = records.portions(["a1", "b1", "a2", "c1", "b2", "d1", "e1"], lambda item: item[0], 2)
    assert portions == [["a1", "b1", "a2", "b2"], ["c1", "d1"], ["e1"]]
