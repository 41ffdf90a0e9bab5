"""Records that are JSON, but not what the study's records are: named, never a traceback."""

import copy
import json
import pickle
import re

import pytest
from runs import report_of

from sinkjax.errors import InputError
from sinkjax.studies.fields import placed, understood
from sinkjax.studies.quality.study import Quality
from sinkjax.studies.results import read_records
from sinkjax.studies.sweep.study import Sweep

pytestmark = pytest.mark.quick

MISSING = object()


def changed(records, line, place, value):
    """Records, one of which has another value, or none, at a place."""
    records = json.loads(json.dumps(records))  # in which no two share a part
    inner = records[line - 1]
    *outer, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    for key in outer:
        inner = inner[key]
    if value is MISSING:
        del inner[last]
    else:
        inner[last] = value
    return records


def tables(study, folder):
    specification, records = read_records(folder)
    with understood(records):
        return study.tables(specification, records)


CASES = [
    (Sweep, 3, "result", MISSING, "the field result is missing"),
    (Sweep, 3, "result.sinks", MISSING, "line 3: result: the field sinks is missing"),
    (Sweep, 2, "source.role", MISSING, "line 2: source: the field role is missing"),
    (Sweep, 3, "result.sinks.share.value", "0.5", "line 3: result.sinks.share.value: text"),
    (Sweep, 3, "result.sinks.share", None, "line 3: result.sinks.share: null"),
    (Sweep, 3, "result.sinks", [], "line 3: result.sinks: a list of 0"),
    (Sweep, 3, "length", "8", "line 3: length: text"),
    (Sweep, 3, "source", "short", "line 3: source: text"),
    (Quality, 1, "candidate", None, "line 1: candidate: null"),
    (Quality, 1, "result.heads.copy", [], "line 1: result.heads.copy: a list of 0"),
    (Quality, 1, "result.kl.mean", 0.5, "line 1: result.kl.mean: a number"),
    (Quality, 1, "result.kl.mean.value", {}, "line 1: result.kl.mean.value: an object"),
    (Quality, 1, "num_windows", "many", "line 1: num_windows: text"),
    (Quality, 1, "bos", 7, "bos"),
]


@pytest.fixture(scope="module")
def runs(make_sweep, make_quality_run, describe):
    sources, models = [describe.source("a", (2, 8))], [describe.model("m", 3, 4, 2)]
    return {
        Sweep: make_sweep(models=models, sources=sources, definitions=("mean",), num_prompts=3),
        Quality: make_quality_run({"none.json": 0.0, "some.json": 0.05, "plan.json": 1.5}, 3),
    }


@pytest.mark.parametrize(("study", "line", "place", "value", "said"), CASES)
def test_a_record_of_another_shape_is_named(
    study, line, place, value, said, runs, save_sweep, tmp_path
):
    specification, records = runs[study]
    save_sweep(tmp_path, specification, records)
    assert tables(study, tmp_path)
    save_sweep(tmp_path, specification, changed(records, line, place, value))
    with pytest.raises(InputError, match=said) as caught:
        tables(study, tmp_path)
    assert str(tmp_path / "records.jsonl") in str(caught.value)
    assert re.search(r"delete what is wrong .*give the study's command again", str(caught.value))


def test_so_is_it_by_the_report_and_so_are_settings_that_are_missing(runs, save_sweep, tmp_path):
    specification, records = runs[Sweep]
    save_sweep(tmp_path, specification, changed(records, 3, "result.per_head", None))
    with pytest.raises(InputError, match=r"records\.jsonl, line 3: result\.per_head: null"):
        report_of(Sweep, tmp_path)
    save_sweep(
        tmp_path, {name: v for name, v in specification.items() if name != "definitions"}, records
    )
    with pytest.raises(InputError, match=r"run\.json: the field definitions is missing"):
        report_of(Sweep, tmp_path)


def test_records_are_otherwise_what_json_gives():
    value = {"a": {"b": [1, {"c": None}]}, "d": [[1.5]]}
    read = placed(value, "file, line 1:")
    assert read == value
    assert copy.deepcopy(read) == pickle.loads(pickle.dumps(read)) == {**read} == value
    with pytest.raises(InputError, match=r"^file, line 1: a\.b\[1\]: the field x is missing"):
        read["a"]["b"][1]["x"]
