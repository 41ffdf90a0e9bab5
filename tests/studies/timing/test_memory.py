"""Memory that is really there."""

import sys
import threading

import numpy as np
import pytest

from sinkjax.studies.timing.memory import resident_kept, resident_rise
from sinkjax.studies.timing.pairs import Call

pytestmark = [
    pytest.mark.quick,
    pytest.mark.skipif(sys.platform != "linux", reason="Linux alone says"),
]
_BYTES = 64 << 20


def test_what_is_held_counts_and_what_was_only_passed_through_does_not():
    def make() -> np.ndarray:
        np.ones(3 * _BYTES, np.uint8)
        return np.ones(_BYTES, np.uint8)

    made, kept = resident_kept(make)
    assert made.size == _BYTES
    assert kept == pytest.approx(_BYTES, rel=0.1)


def test_a_call_rises_by_all_that_it_takes_at_once():
    rise = resident_rise(Call(lambda: np.ones(_BYTES, np.uint8).sum() and None))
    assert rise is None or rise == pytest.approx(_BYTES, rel=0.2)


def test_what_another_thread_is_about_to_free_is_not_there_before_a_call():
    """A program's thread frees what it held after the results are ready."""
    held = [np.ones(_BYTES, np.uint8)]
    freed = threading.Timer(0.05, held.clear)

    def run() -> None:
        freed.join()
        np.ones(_BYTES, np.uint8)

    freed.start()
    rise = resident_rise(Call(run))
    assert rise is None or rise == pytest.approx(_BYTES, rel=0.2)
