"""Time on the device, from JAX's profiler, for calls that take little longer than to start them.

A host's clock sees a call's start, its transfers and the wait for its end, too. On an accelerator
that is tens of microseconds, as much as a short step takes; there the profiler's own clock counts.
Each run stands in a window of the trace that bears its call's name; what counts of it is the time
in which the device worked on any XLA operation.

Written to the events that the TPU's and the GPU's profilers are documented to give, and run on a
CPU's only, which gives each XLA operation as an event of its own.
"""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.profiler import ProfileData

from sinkjax.studies.timing.pairs import Call

_PREFIX = "sinkjax: "
_ACCELERATORS = ("/device:GPU", "/device:TPU")

Span = tuple[float, float]


def trace(calls: Mapping[str, Call], rounds: int, folder: str | pathlib.Path | None) -> ProfileData:
    """Runs every call once a round under the profiler.

    Args:
      folder: for the trace, as XProf and TensorBoard read it; None for none that stays.

    Returns:
      what the profiler saw, for `device_seconds`.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every Python call as an event slows what is traced
    with contextlib.ExitStack() as resources:
        if folder is None:
            folder = resources.enter_context(tempfile.TemporaryDirectory())
        with jax.profiler.trace(folder, profiler_options=options):
            for number in range(rounds):
                for name, call in calls.items():
                    call.prepare()
                    with jax.profiler.StepTraceAnnotation(_PREFIX + name, step_num=number):
                        call.run()
        written = pathlib.Path(folder).glob("plugins/profile/*/*.xplane.pb")
        latest = max(written, key=lambda path: path.stat().st_mtime)
        return ProfileData.from_file(str(latest))


def device_seconds(data: ProfileData) -> dict[str, list[float]]:
    """Seconds in which the device worked, by call and round.

    Raises:
      ValueError: where the trace has no event of any device for a run.
    """
    planes = list(data.planes)
    devices = [plane for plane in planes if plane.name.startswith(_ACCELERATORS)] or [
        plane for plane in planes if plane.name.startswith("/host:CPU")
    ]
    windows = sorted(
        (event.start_ns, event.start_ns + event.duration_ns, event.name.removeprefix(_PREFIX))
        for plane in planes
        for line in plane.lines
        for event in line.events
        if event.name.startswith(_PREFIX) and plane.name.startswith("/host:")
    )
    busy = _union(span for plane in devices for span in _work(plane))
    edges = np.array([edge for span in busy for edge in span] or [0.0])
    lengths = np.diff(edges)
    lengths[1::2] = 0  # between two spans
    worked = np.concatenate([[0.0], np.cumsum(lengths)])  # up to each edge
    seconds: dict[str, list[float]] = {}
    for start, end, name in windows:
        before, after = np.interp([start, end], edges, worked)
        if before == after:
            raise ValueError(f"the trace has no work of a device in a run of {name}")
        seconds.setdefault(name, []).append(float(after - before) / 1e9)
    return seconds


def _work(plane: Any) -> Iterator[Span]:
    """When XLA ran: whole programs where the plane has them (TPU), else single operations."""
    lines = list(plane.lines)
    programs = [line for line in lines if line.name == "XLA Modules"]
    for line in programs or lines:
        for event in line.events:
            if programs or any(name == "hlo_op" for name, _ in event.stats):
                yield event.start_ns, event.start_ns + event.duration_ns


def _union(spans: Iterable[Span]) -> list[Span]:
    """The same time without overlaps, in order."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined
