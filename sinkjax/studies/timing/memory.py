"""Memory that a call really takes, where the system lets it be seen."""

import contextlib
import ctypes
import pathlib
import time
from collections.abc import Callable
from typing import TypeVar

import jax

from sinkjax.studies.timing.pairs import Call

_RESET = pathlib.Path("/proc/self/clear_refs")
_STATUS = pathlib.Path("/proc/self/status")
_Made = TypeVar("_Made")


def resident_rise(call: Call) -> int | None:
    """Measures how many bytes higher the resident memory stood during a call than before it.

    None where the system has no peak that can be set back: elsewhere than on Linux.
    """
    call.prepare()
    try:
        before = _settled()
        _RESET.write_text("5")  # the peak, back to what is resident now
        result = call.run()
        peak = _status("VmHWM")
    except OSError:
        return None
    del result
    return max(0, peak - before)


def resident_kept(make: Callable[[], _Made]) -> tuple[_Made, int | None]:
    """What is made, and by how many bytes the process's resident memory is larger for holding it.

    None where the system does not say: elsewhere than on Linux.
    """
    try:
        before = _settled()
        made = make()
        return made, _settled() - before
    except OSError:
        return make(), None


def device_memory() -> dict[str, int] | None:
    """What the device's allocator says of itself; None on a CPU, where there is none."""
    stats = jax.local_devices()[0].memory_stats()
    return None if stats is None else {name: int(value) for name, value in stats.items()}


def _settled() -> int:
    """Bytes of this process in memory, once what nobody holds any more is the system's again.

    What a program held is freed by a thread of its own, after its results are ready.
    """
    resident = _status("VmRSS")
    while True:
        with contextlib.suppress(AttributeError, OSError):  # what the allocator keeps
            ctypes.CDLL(None).malloc_trim(0)
        time.sleep(0.1)
        before, resident = resident, _status("VmRSS")
        if resident >= before:
            return resident


def _status(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])
