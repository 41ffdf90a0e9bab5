"""Parts of a study: joined they are one run, and what does not belong together is refused."""

import dataclasses
import os
import re

import pytest
from scripts import MASK, SMALL, finish, run_main

from sinkjax.errors import InputError
from sinkjax.studies.parts import Part, finished_parts
from sinkjax.studies.quality.study import Quality
from sinkjax.studies.results import Results, read_records
from sinkjax.studies.study import run_study
from sinkjax.studies.sweep.study import Sweep

pytestmark = pytest.mark.usefixtures("figures_are_blank")

STUDIES = {
    "sweep": ("--lengths=2,9,16", "--num_prompts=3", "--thresholds=0.3,0.5"),
    "quality": (MASK, "--lengths=8,12", "--num_excerpts=3", "--continuation_tokens=0"),
    "retrieval": (MASK, "--tasks=fwe", "--lengths=240,250", "--num_excerpts=2"),
    **SMALL,
}


def files(folder):
    """What a study's folder holds, its parts and its lock apart."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "part-" not in str(path.relative_to(folder))
    }


@pytest.mark.parametrize("name", STUDIES)
def test_parts_joined_are_one_run(name, roomy, tmp_path):
    def run(folder, *more):
        flags = (f"--model={roomy}", *STUDIES[name], f"--output_dir={tmp_path / folder}")
        run_main(f"experiments.{name}", *flags, *more)

    for number in (2, 1):  # in any order
        run("parts", f"--part={number}/2")
    made = [read_records(tmp_path / "parts" / f"part-{n}-of-2")[1] for n in (1, 2)]
    run("parts")
    run("whole")
    joined, whole = files(tmp_path / "parts"), files(tmp_path / "whole")
    specification, records = read_records(tmp_path / "parts")
    assert (specification, records) == read_records(tmp_path / "whole")
    assert joined == whole  # the page, the figures, and what was measured, too

    ids = [record["id"] for of_part in made for record in of_part]
    assert len(set(ids)) == len(ids)  # none twice
    left = [record["kind"] for record in records if record["id"] not in ids]
    assert set(left) <= {"lengths"}
    assert all(made)  # both have something to do


@pytest.fixture
def study(roomy):
    return Sweep(model=(str(roomy),), lengths=(2, 9), num_prompts=3, study=False)


def test_nothing_is_measured_by_two_parts(study, tmp_path):
    for number in (1, 2):
        run_study(study, tmp_path, part=Part(number, 2))
    names = [
        {path.name for path in (tmp_path / f"part-{n}-of-2" / "measured").iterdir()} for n in (1, 2)
    ]
    assert all(names)
    assert not names[0] & names[1]


def test_a_part_takes_what_another_has_measured(roomy, tmp_path):
    study = Quality(
        model=str(roomy),
        mask=("L0-1: 6w(1,4)",),
        lengths=(8,),
        num_excerpts=2,
        continuation_tokens=2,
        generated=0,
    )
    two = dataclasses.replace(study, mask=(*study.mask, "L0-1: 6s(first)"))
    measured = []
    for number in (1, 2, 3, 4):
        run_study(two, tmp_path, part=Part(number, 4))
        folder = tmp_path / f"part-{number}-of-4"
        assert len(read_records(folder)[1]) == 1
        measured.append(len(list((folder / "measured").iterdir())))
    # Of losses one file each; of continuations the baseline's, which the second mask's needs, too.
    assert measured == [1, 2, 1, 1]


def test_each_part_has_a_lock_of_its_own(study, tmp_path):
    specification, _ = run_study(study, tmp_path / "other")
    with Results(tmp_path / "out" / "part-1-of-2", specification):
        run_study(study, tmp_path / "out", part=Part(2, 2))
        with pytest.raises(InputError, match="another process writes to it"):
            run_study(study, tmp_path / "out", part=Part(1, 2))


def test_parts_that_are_missing_or_have_not_finished_are_named(study, tmp_path):
    class StoppedError(Exception):
        pass

    def stop_after_a_record(text, steps, records):
        if records:
            raise StoppedError

    run_study(study, tmp_path, part=Part(1, 3))
    with pytest.raises(StoppedError):
        run_study(study, tmp_path, stop_after_a_record, part=Part(2, 3))
    with pytest.raises(InputError) as error:
        run_study(study, tmp_path)
    stopped, missing = map(str, error.value.problems)
    assert stopped.startswith("part=2/3: it has not finished, and its records are needed. Run it")
    assert missing.startswith("part=3/3: it was not run, and its records are needed. Run it")
    assert not (tmp_path / "run.json").exists()
    for number in (2, 3):
        run_study(study, tmp_path, part=Part(number, 3))
    _, records = run_study(study, tmp_path)
    assert [r["kind"] for r in records] == ["cell", "cell", "lengths"] * 2


def test_parts_of_another_run_are_refused(study, tmp_path):
    other = dataclasses.replace(study, thresholds=(0.4,))
    run_study(study, tmp_path, part=Part(1, 2))
    before = files(tmp_path)
    with pytest.raises(InputError) as error:
        run_study(other, tmp_path, part=Part(2, 2))
    assert "part=1/2: it holds the results of another run" in str(error.value)
    assert "thresholds is [0.9] there and [0.4] here" in str(error.value)
    run_study(study, tmp_path, part=Part(2, 2))
    with pytest.raises(InputError, match=re.escape("thresholds is [0.9] there and [0.4] here")):
        run_study(other, tmp_path)
    assert files(tmp_path) == before


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "x", "1/2/3", "-1/2", "1/0", "1/10000"])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(InputError, match="give the part's number, from 1, and how many there are"):
        Part.parse(text)


def test_a_folder_that_has_the_name_of_no_part_is_none(tmp_path):
    for name in ("part-1-of-99999999999", "part-x-of-2", "part-0-of-0"):
        (tmp_path / name).mkdir()
    assert finished_parts(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("search", "each round of a search follows from the one before"),
        ("gates", "all its records follow from one training"),
        ("repair", "all its records follow from one training"),
        ("timing", "what is timed on machines of several jobs cannot be compared"),
    ],
)
def test_studies_that_cannot_be_divided_say_why(name, reason, tmp_path):
    with pytest.raises(InputError, match=f"--part=1/2: {reason}"):
        run_main(f"experiments.{name}", "--part=1/2", f"--output_dir={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_a_part_says_what_comes_next(tiny, tmp_path):
    out = finish(
        "experiments.sweep",
        *(f"--model={tiny}", "--lengths=2,4", "--num_prompts=2", "--nostudy", "--part=1/2"),
        f"--output_dir={tmp_path}",
        env={**os.environ, "COLUMNS": "200"},
    )
    assert out == (
        "part 1/2 has its 2 records. Once all 2 parts have theirs, the same command without "
        "--part joins them.\n"
    )
