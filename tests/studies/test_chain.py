"""The digests of a run's records: what was changed after it was written is refused."""

import re

import pytest
from runs import SPECIFICATION, numbers, record

from sinkjax.errors import InputError
from sinkjax.studies.results import Results, read_records

pytestmark = pytest.mark.quick


def test_an_old_folder_opens_and_says_once_that_it_kept_no_digests(old_folder, caplog):
    assert numbers(old_folder) == [0, 1, 2]
    said = "its 3 records were written by a version that kept no digests"
    assert [said in r.getMessage() for r in caplog.records] == [True]
    caplog.clear()
    with Results(old_folder, SPECIFICATION) as results:
        results.append(record(3))
    assert [said in r.getMessage() for r in caplog.records] == [True]
    caplog.clear()
    assert numbers(old_folder) == [0, 1, 2, 3]
    with Results(old_folder, SPECIFICATION) as results:
        results.append(record(4))
    assert not caplog.records
    path = old_folder / "records.jsonl"
    path.write_bytes(
        path.read_bytes().replace(b'"number":1', b'"number":7')
    )  # from now on it shows
    with pytest.raises(InputError, match="line 2 is not the one that was written"):
        read_records(old_folder)


def lines_of(folder):
    return (folder / "records.jsonl").read_bytes().splitlines(keepends=True)


def damaged(lines):
    """By what was done to the lines of a file of records, what they are then."""
    first, second, *rest = lines
    return {
        "emptied": [],
        "last lost": lines[:-1],
        "first lost": [second, *rest],
        "middle lost": [first, *rest],
        "reordered": [second, first, *rest],
        "turned": lines[::-1],
        "doubled": [first, first, second, *rest],
        "another number": [first.replace(b":0", b":9"), second, *rest],
        "another last number": [*lines[:-1], lines[-1].replace(b":3", b":1")],
        "blank after": [*lines, b"\n", b"\n"],
        "two more": [*lines, b'{"id":"x"}\n', b'{"id":"y"}\n'],
        "other line ends": [line.replace(b"\n", b"\r\n") for line in lines],
        "spaces": [line.replace(b":", b": ") for line in lines],
    }


def test_records_that_are_not_those_that_were_written_are_refused_with_a_way_on(tmp_path):
    def written(name):
        with Results(tmp_path / name, SPECIFICATION) as results:
            for number in range(4):
                results.append(record(number))
        return tmp_path / name

    cases = damaged(lines_of(written("whole")))
    for name, lines in cases.items():
        folder = written(name)
        path, digests = folder / "records.jsonl", folder / "records.sha256"
        path.write_bytes(b"".join(lines))
        for opened in (
            lambda at=folder: Results(at, SPECIFICATION),
            lambda at=folder: read_records(at),
        ):
            with pytest.raises(InputError) as caught:
                opened()
            assert re.search(r"Delete the lines named here, and records\.sha256", str(caught.value))
        # What the message says: the lines that it names go, and the digests.
        named = {int(n) for n in re.findall(r"records\.jsonl: line (\d+) ", str(caught.value))}
        assert len(named) <= len(lines)
        path.write_bytes(b"".join(line for n, line in enumerate(lines, 1) if n not in named))
        digests.unlink()
        with Results(folder, SPECIFICATION) as results:
            for number in range(4):
                if f"id{number}" not in results:
                    results.append(record(number))
        assert sorted(numbers(folder)) == [0, 1, 2, 3], name


def test_a_lost_line_alone_is_told_and_no_other_is_named(folder):
    path = folder / "records.jsonl"
    first, _, third = lines_of(folder)
    path.write_bytes(first + third)
    with pytest.raises(InputError) as caught:
        read_records(folder)
    (problem,) = caught.value.problems[1:]
    assert str(problem) == f"{path}: it has 2 lines of the 3 that were written"


@pytest.mark.parametrize("place", range(0, 65 * 4, 5))
def test_damaged_digests_are_refused_or_what_they_prove_is_right(place, folder):
    path = folder / "records.sha256"
    content = bytearray(path.read_bytes())
    content[place] ^= 0x15
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"records\.sha256|run\.json is not"):
        read_records(folder)
    with pytest.raises(InputError, match=r"Delete .*records\.sha256"):
        Results(folder, SPECIFICATION)
    path.unlink()
    with Results(folder, SPECIFICATION) as results:
        assert len(results) == 3
