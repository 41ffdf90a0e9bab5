"""What a run takes over from another run's folder: what is whole there, and under its own name."""

import os
import shutil

import numpy as np
import pytest

from sinkjax.studies.results import Results
from sinkjax.studies.shared import take_arrays

pytestmark = pytest.mark.quick


@pytest.fixture
def other(tmp_path):
    """Another run's folder, with arrays under three names."""
    with Results(tmp_path / "other", {"experiment": "sweep"}) as results:
        for number, name in enumerate("abc"):
            results.put_arrays(name, scores=np.full(3, number, np.float32))
    return tmp_path / "other"


def taken(folder, own):
    """The names that are taken over, each with its first number."""
    with Results(own, {"experiment": "predict"}) as results:
        take_arrays(results, folder)
        arrays = {name: results.arrays(name) for name in "abc"}
        return {name: int(of["scores"][0]) for name, of in arrays.items() if of is not None}


def test_arrays_are_taken_over(other, tmp_path):
    assert taken(other, tmp_path / "own") == {"a": 0, "b": 1, "c": 2}
    assert taken(tmp_path / "none", tmp_path / "fresh") == {}


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "swapped", "pipe", "text"])
def test_what_is_damaged_in_another_runs_folder_is_left_there(damage, other, tmp_path):
    path = other / "measured" / "b.npz"
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage == "pipe":
        os.mkfifo(path)
    elif damage == "swapped":
        shutil.copy(other / "measured" / "c.npz", path)
    else:
        content[150] ^= 1
        parts = {"cut": content[:200], "empty": b"", "text": b"text", "flipped": content}
        path.write_bytes(parts[damage])
    assert taken(other, tmp_path / "own") == {"a": 0, "c": 2}
