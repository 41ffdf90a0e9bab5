"""A run's folder through kills, torn and damaged files, full disks and a second writer."""

import contextlib
import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import SPECIFICATION, numbers, record

from sinkjax.errors import InputError
from sinkjax.studies.results import Results, identity, read_records, read_study

pytestmark = pytest.mark.quick

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def test_records_come_back_in_order_and_by_id(folder):
    with Results(folder, SPECIFICATION) as results:
        assert len(results) == 3
        assert "id1" in results
        assert "id7" not in results
        assert results.get("id1") == record(1)
        assert results.get("id7") is None
        assert list(results) == [record(number) for number in range(3)]
    assert read_records(folder) == (SPECIFICATION, [record(number) for number in range(3)])


@settings(deadline=None, max_examples=50)
@given(values=st.lists(json_values, max_size=6))
def test_any_json_value_comes_back_as_it_was(values, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    records = [record(number, value=value) for number, value in enumerate(values)]
    with Results(folder, SPECIFICATION) as results:
        for each in records:
            results.append(each)
        assert list(results) == records
    assert read_records(folder)[1] == records
    with Results(folder, SPECIFICATION) as results:
        assert list(results) == records


def test_what_json_cannot_hold_and_ids_that_are_there_change_nothing(folder):
    with Results(folder, SPECIFICATION) as results:
        with pytest.raises(ValueError, match=r"id2 is in .*records\.jsonl already"):
            results.append(record(2))
        with pytest.raises(ValueError, match="Out of range float"):
            results.append(record(3, value=float("nan")))
        with pytest.raises(TypeError):
            results.append(record(3, value=np.float32(1)))
        results.append(record(3))
    assert numbers(folder) == [0, 1, 2, 3]


def test_identity_is_of_the_fields_and_not_of_their_order():
    assert identity({"a": 1, "b": [2, None]}) == identity({"b": [2, None], "a": 1})
    assert identity({"a": 1}) != identity({"a": 2})
    assert identity({"a": 1}) != identity({"a": "1"})
    assert len(identity({})) == 16
    with pytest.raises(ValueError, match="Out of range float"):
        identity({"a": float("inf")})


def test_arrays_come_back_and_are_replaced(folder):
    scores = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    with Results(folder, SPECIFICATION) as results:
        assert results.arrays("one") is None
        results.put_arrays("one", scores=scores, name=np.arange(3))
        np.testing.assert_array_equal(results.arrays("one")["scores"], scores)
        results.put_arrays("one", scores=scores + 1)
        assert set(results.arrays("one")) == {"scores"}
    with Results(folder, SPECIFICATION) as results:
        np.testing.assert_array_equal(results.arrays("one")["scores"], scores + 1)


def test_damaged_arrays_count_as_missing(folder):
    """Every byte of the file is changed in turn: the arrays are missing, or they are right."""
    values = np.arange(6, dtype=np.float32)
    with Results(folder, SPECIFICATION) as results:
        results.put_arrays("one", values=values)
        path = folder / "measured" / "one.npz"
        whole = path.read_bytes()
        missing = 0
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
            arrays = results.arrays("one")
            missing += arrays is None
            if arrays is not None and "values" in arrays:
                np.testing.assert_array_equal(arrays["values"], values)
        assert missing > values.nbytes
        path.write_bytes(whole[: len(whole) // 2])
        assert results.arrays("one") is None


def test_arrays_under_another_name_or_of_another_kind_count_as_missing(folder):
    values = np.arange(6, dtype=np.float32)
    with Results(folder, SPECIFICATION) as results:
        results.put_arrays("one", values=values)
        results.put_arrays("two", values=values + 1)
        measured = folder / "measured"
        (measured / "one.npz").replace(measured / "two.npz")
        assert results.arrays("two") is None
        (measured / "three.npz").mkdir()
        os.mkfifo(measured / "four.npz")
        assert results.arrays("three") is results.arrays("four") is None
        np.savez(measured / "old.npz", values=values)  # as earlier versions kept them
        np.testing.assert_array_equal(results.arrays("old")["values"], values)


@pytest.mark.parametrize("name", ["run.json", "records.jsonl", "records.sha256"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_and_never_waited_for(make, name, folder):
    (folder / name).unlink()
    make(folder / name)
    for opened in (lambda: Results(folder, SPECIFICATION), lambda: read_records(folder)):
        with pytest.raises(InputError, match=f"(a pipe|directory).*{name}"):
            opened()


def test_a_last_line_torn_anywhere_is_cut_off(folder):
    """As a kill leaves it, before its digest is there; and as a disk that loses it later does."""
    path, digests = folder / "records.jsonl", folder / "records.sha256"
    whole, proof = path.read_bytes(), digests.read_bytes()
    begin = whole.rindex(b"\n", 0, -1) + 1
    for end in range(begin, len(whole) + 1):
        for kept in (proof[:-65], proof[:-1], proof) if begin < end < len(whole) else (proof[:-9],):
            path.write_bytes(whole[:end])
            digests.write_bytes(kept)
            assert numbers(folder) == [0, 1]
            assert path.read_bytes() == whole[:end]  # reading mends nothing
            assert digests.read_bytes() == kept
            with Results(folder, SPECIFICATION) as results:
                assert [each["number"] for each in results] == [0, 1]
                results.append(record(2))
            assert path.read_bytes() == whole
            assert digests.read_bytes() == proof


@pytest.mark.parametrize(
    "garbage", [b"\0" * 40, b'{"id": "x"}', b"[1]\n", b'{"id": 7}\n', b'{"a": 1}\n', b"{}\r\r"]
)
def test_a_last_line_that_is_no_record_is_cut_off(garbage, folder):
    with (folder / "records.jsonl").open("ab") as file:
        file.write(garbage)
    assert numbers(folder) == [0, 1, 2]
    with Results(folder, SPECIFICATION) as results:
        results.append(record(3))
    assert numbers(folder) == [0, 1, 2, 3]


@pytest.mark.parametrize("kept", [True, False], ids=["digests", "none"])
def test_damage_in_the_middle_is_refused_with_every_line_named(kept, folder):
    if not kept:
        (folder / "records.sha256").unlink()
    path = folder / "records.jsonl"
    first, second, third = path.read_bytes().splitlines(keepends=True)
    damaged = first + b"\0" + second[1:] + first + b"\n" + third
    path.write_bytes(damaged)
    for opened in (lambda: Results(folder, SPECIFICATION), lambda: read_records(folder)):
        with pytest.raises(InputError) as caught:
            opened()
        assert [str(problem).split(": ", 1)[1] for problem in caught.value.problems[1:]] == [
            "line 2 is not a record",
            "line 3 repeats the id of line 1",
            "line 4 is not a record",
        ]
        assert "Delete the lines" in str(caught.value.problems[0])
        assert path.read_bytes() == damaged
    path.write_bytes(first + third)  # as the message advises
    (folder / "records.sha256").unlink(missing_ok=True)
    with Results(folder, SPECIFICATION) as results:
        results.append(record(1))
    assert sorted(numbers(folder)) == [0, 1, 2]


def test_another_runs_folder_is_refused_with_what_differs(folder):
    before = (folder / "records.jsonl").read_bytes()
    other = {"models": ["tiny"], "lengths": [2, 8], "thresholds": [0.9], "seed": 1}
    with pytest.raises(InputError) as caught:
        Results(folder, other)
    summary, *differences = map(str, caught.value.problems)
    assert summary.startswith(f"output_dir={folder}: it holds the results of another run.")
    assert differences == [
        "lengths is [2, 4] there and [2, 8] here",
        "seed is missing there and 1 here",
    ]
    assert (folder / "records.jsonl").read_bytes() == before
    Results(folder, SPECIFICATION).close()


def test_a_folder_without_results_takes_a_new_specification(tmp_path):
    Results(tmp_path, SPECIFICATION).close()
    with Results(tmp_path, {"other": 1}) as results:
        results.put_arrays("one", a=np.zeros(1))
    with pytest.raises(InputError, match="another run"):
        Results(tmp_path, SPECIFICATION)


def test_results_without_a_specification_are_refused(folder):
    (folder / "run.json").unlink()
    with pytest.raises(InputError, match=r"No such file.*give the output folder"):
        read_records(folder)
    for other in ({"other": 1}, SPECIFICATION):
        with pytest.raises(InputError, match=r"without a run\.json"):
            Results(folder, other)
        (folder / "records.sha256").unlink(missing_ok=True)


WRONG = [
    b"", b"{", b"[]", b"{}", b'{"specification": 3}', b"\xff", b"[" * 100_000, b"9" * 5000
]  # fmt: skip
EDITED = [b'{"specification": {"models": ["huge"]}}', b'{"specification": {}}']


@pytest.mark.parametrize("content", [None, *WRONG, *EDITED])
def test_a_lost_or_damaged_specification_is_written_anew_by_the_same_command(content, folder):
    path = folder / "run.json"
    before = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=r"holds no results that can be read|delete it, and give"):
        read_records(folder)
    with pytest.raises(InputError, match=r"without a run|no run's specification|not the one that"):
        Results(folder, {"other": 1})
    Results(folder, SPECIFICATION).close()
    assert path.read_bytes() == before
    assert numbers(folder) == [0, 1, 2]


@pytest.mark.parametrize("content", WRONG)
def test_a_damaged_specification_is_refused(content, old_folder):
    folder = old_folder
    (folder / "run.json").write_bytes(content)
    with pytest.raises(InputError, match="no run's specification"):
        Results(folder, SPECIFICATION)
    with pytest.raises(InputError, match="holds no results"):
        read_records(folder)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be opened: Not a directory.*give another"):
        Results(tmp_path / "file" / "sweep", SPECIFICATION)
    with pytest.raises(InputError, match="holds no results"):
        read_records(tmp_path / "nothing")


def test_a_second_writer_is_refused_until_the_first_ends(folder):
    with Results(folder, SPECIFICATION) as first:
        with pytest.raises(InputError, match="another process writes to it"):
            Results(folder, SPECIFICATION)
        assert numbers(folder) == [0, 1, 2]  # reading needs no lock
        first.append(record(3))
    with Results(folder, SPECIFICATION) as second:
        assert len(second) == 4


def test_a_sweep_that_could_not_open_leaves_the_folder_unlocked(folder):
    with pytest.raises(InputError):
        Results(folder, {"other": 1})
    Results(folder, SPECIFICATION).close()


def test_reserve_gives_back_what_it_took(folder):
    with Results(folder, SPECIFICATION) as results:
        before = sorted(folder.iterdir())
        for size in (0, 1, 3 << 20):
            results.reserve(size)
        with pytest.raises(InputError, match=f"cannot take the {1 << 60} bytes .*Free space"):
            results.reserve(1 << 60)
        assert sorted(folder.iterdir()) == before


@contextlib.contextmanager
def largest_file(size):
    """No file may grow beyond so many bytes: the system's own refusal, without a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_cannot_grow_keeps_what_it_held(folder):
    before = (folder / "records.jsonl").read_bytes()
    with Results(folder, SPECIFICATION) as results:
        results.put_arrays("one", a=np.zeros(3))
        with largest_file(4096):
            with pytest.raises(InputError, match=r"records\.jsonl: File too large\. Free space"):
                results.append(record(3, text="x" * 8192))
            with pytest.raises(InputError, match=r"measured/one\.npz: File too large"):
                results.put_arrays("one", a=np.zeros(8192))
            assert (folder / "records.jsonl").read_bytes() == before
            np.testing.assert_array_equal(results.arrays("one")["a"], np.zeros(3))
            results.append(record(3))  # a smaller one fits
        results.append(record(4, text="x" * 8192))
    assert numbers(folder) == [0, 1, 2, 3, 4]


def append_many(results):
    for number in range(1, 100):
        results.append(record(number, text="x" * 5000))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB, where this process may mount one."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting needs more rights: {mounted.stderr.decode().strip()}")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_loses_nothing_and_the_run_goes_on_when_there_is_space(small_disk):
    filler = small_disk / "filler"
    with Results(small_disk / "sweep", SPECIFICATION) as results:
        with pytest.raises(InputError, match=r"No space left on device\. Free space there"):
            results.reserve(1 << 20)
        results.append(record(0))
        filler.write_bytes(bytes(128 << 10))
        with pytest.raises(InputError, match=r"No space left on device\. Free space there"):
            append_many(results)
        written = numbers(small_disk / "sweep")
        assert written == list(range(len(results)))
        assert 1 < len(written) < 99
        with pytest.raises(InputError, match="No space left on device"):
            results.put_arrays("one", a=np.zeros(50_000))
        assert results.arrays("one") is None
    filler.unlink()
    with Results(small_disk / "sweep", SPECIFICATION) as results:
        results.append(record(len(written)))
    assert numbers(small_disk / "sweep") == [*written, len(written)]


# The writer is killed at a random moment while it opens, appends lines of up to 2 MB (long enough
# that a kill lands within a write) or keeps arrays; then its folder is opened again. In a process
# of its own, which forks the writers before any thread exists.
KILLS = """
import json, os, random, select, signal, sys, time
import numpy as np
from sinkjax.studies.results import Results, read_records

folders, trials = sys.argv[1], int(sys.argv[2])
chance = random.Random(0)

def write(acknowledge):
    with Results(folder, {"sweep": 1}) as results:
        number = len(results)
        while True:
            text = "x" * chance.choice([10, 10, 5000, 2_000_000])
            results.append({"id": f"id{number}", "number": number, "text": text, "end": number})
            os.write(acknowledge, b"%d\\n" % number)
            results.put_arrays("arrays", value=np.full(chance.choice([10, 200_000]), number))
            os.write(acknowledge, b"%da\\n" % number)
            number += 1

total, torn, killed_early = 0, 0, 0
for trial in range(trials):
    chance.seed(trial)
    if trial % 8 == 0:
        folder, appended, kept = f"{folders}/{trial}", 0, -1
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        write(writing)
    os.close(writing)
    if trial % 4:
        select.select([reading], [], [])
    time.sleep(chance.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with open(reading) as lines:
        acknowledged = lines.read().split()
    new = sum(not line.endswith("a") for line in acknowledged)
    appended, total = appended + new, total + new
    killed_early += not acknowledged
    kept = max([kept, *(int(line[:-1]) for line in acknowledged if line.endswith("a"))])
    if not os.path.exists(f"{folder}/run.json"):
        continue
    size = os.path.getsize(f"{folder}/records.jsonl")
    _, read = read_records(folder)
    with Results(folder, {"sweep": 1}) as results:
        records = list(results)
        arrays = results.arrays("arrays")
    torn += os.path.getsize(f"{folder}/records.jsonl") < size
    assert read == records
    assert [r["number"] for r in records] == list(range(len(records)))
    assert all(r["end"] == r["number"] for r in records)
    # One more may be there than was acknowledged: killed after the write and before the word of it.
    assert appended <= len(records) <= appended + 1, (appended, len(records))
    appended = len(records)
    if arrays is None:
        assert kept == -1
    else:
        values = set(arrays["value"].tolist())
        assert len(values) == 1
        assert kept <= values.pop() <= appended - 1
    names = {".lock", "measured", "records.jsonl", "records.sha256", "run.json"}
    assert set(os.listdir(folder)) == names
    assert os.listdir(folder + "/measured") in ([], ["arrays.npz"])
print(json.dumps({"appended": total, "torn": torn, "killed_early": killed_early}))
"""


def test_killed_at_any_moment_nothing_is_lost_torn_or_repeated(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path), "48"], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    assert seen["appended"] > 20
    assert seen["killed_early"] > 0


def test_a_folder_without_a_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="output_dir=: a folder's name is needed"):
        Results("", {"a": 1})
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_study_is_refused_as_that(tmp_path):
    """It was read as one of a run that had not ended, or that had nothing to take over."""
    for name, said in (("sweep", "sweep"), ("quality", "quality"), (None, "sweep")):
        folder = tmp_path / str(name)
        Results(folder, {**({"experiment": name} if name else {}), "lengths": [2]}).close()
        with pytest.raises(InputError) as caught:
            read_study("searches", folder, "search")
        advice = "give the output folder of `sinkjax search`"
        assert str(caught.value) == f"searches={folder}: it is of `sinkjax {said}`: {advice}"
        assert read_study("results", folder, "predict", said) == []
    with pytest.raises(InputError, match=r"^copies: .*nothing holds no results that can be read"):
        read_study("copies", tmp_path / "nothing", "copies")


def test_what_differs_is_shown_where_it_differs(tmp_path):
    """Long lists of fields were cut before the one that differs; of another study all differed."""
    model = {"name": "a" * 300, "dtype": "float32"}
    specification = {"experiment": "sweep", "models": [model, model], "seed": 0}
    with Results(tmp_path, specification) as results:
        results.append(record(0))
    for other, said in (
        ({"models": [model, {**model, "dtype": "bfloat16"}]}, "models[1].dtype is"),
        ({"models": [model]}, "models is [{"),
        ({"experiment": "quality", "seed": 1}, 'experiment is "sweep" there and "quality" here'),
    ):
        with pytest.raises(InputError) as caught:
            Results(tmp_path, {**specification, **other})
        _, difference = map(str, caught.value.problems)
        assert difference.startswith(said)
