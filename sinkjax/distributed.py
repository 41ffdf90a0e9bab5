"""Several devices and several processes: the mesh that a text asks for, and what crosses processes.

Every process runs the same program on its own devices. What one of them alone may do, such as
writing results, it does in `first`, and all learn what came of it; what befalls one of them alone,
such as a damaged file, befalls all in `together`.
"""

import contextlib
import dataclasses
import math
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from sinkjax.errors import InputError, Problem

Result = TypeVar("Result")

NEURONS = "neurons"
AXES = ("data", NEURONS, "model", "sub")
"""Axes of a mesh, the last of them over devices that are neighbours: `data` for rows, `model` for
key/value heads, and with `sub` for query heads, neurons and words, and for key/value heads where
both divide them, else `sub` for the rows of their cache; `neurons` for neurons and words, and in
attention, whose weights are whole over it, for rows."""

AUTO = "auto"
"""What stands for sizes: as few devices as a model fits on for `model`, the rest for `data`."""

_PROCESSES = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_HOSTS = "TPU_WORKER_HOSTNAMES"


def start(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins this process to the others of its job, before anything is computed; once is enough.

    Without arguments it does so where the environment says that there are several: in a step of
    SLURM, under Open MPI, or where `TPU_WORKER_HOSTNAMES` names several hosts.

    Args:
      coordinator: `host:port` of the first process, for which the other two are needed; `auto` to
        have JAX find all three, as it does in SLURM, under Open MPI and on TPU pods.
      num_processes: of the job.
      process_id: of this one, from 0.

    Raises:
      InputError: for some of the arguments without the others, and where JAX cannot join.
    """
    if jax.distributed.is_initialized():
        return
    by_hand = num_processes is not None and process_id is not None
    if coordinator in (None, AUTO):
        if num_processes is not None or process_id is not None:
            text = "name the first process's host and port, such as 10.0.0.1:8476"
            raise InputError(Problem("coordinator", coordinator, text))
        if coordinator is None and not _said_by_the_environment():
            return
    elif not by_hand or not 0 <= process_id < num_processes < 1 << 31:
        text = "give the number of processes with it, and this one's, from 0 on, below that number"
        raise InputError(Problem("coordinator", coordinator, text))
    elif (port := re.fullmatch(r"\S+:(\d{1,5})", coordinator)) is None or int(port[1]) >= 1 << 16:
        text = "it has no port, which is a number; give host:port, such as 10.0.0.1:8476"
        raise InputError(Problem("coordinator", coordinator, text))
    arguments = (coordinator, num_processes, process_id) if by_hand else ()
    try:
        jax.distributed.initialize(*arguments)
    except (RuntimeError, ValueError) as error:
        text = (
            f"the processes cannot be joined ({error}); check its host and port, and that all run"
        )
        raise InputError(Problem("coordinator", coordinator, text)) from error


def _said_by_the_environment() -> bool:
    counts = [os.environ.get(name, "") for name in _PROCESSES]
    return "," in os.environ.get(_HOSTS, "") or any(n.isdecimal() and int(n) > 1 for n in counts)


def process_count() -> int:
    """The number of processes that were joined; asking starts no device where there is one."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes: the only one, or number 0."""
    return process_count() == 1 or jax.process_index() == 0


def first(function: Callable[[], Result]) -> Result:
    """Calls a function in the first process alone, and gives its result to all.

    Every process has to call it, in the same order as all that is computed together.

    Args:
      function: whose result can be pickled.

    Raises:
      Exception: what the function raised, in every process; and as `together` what another process
        raised by then.
    """
    if process_count() == 1:
        return function()
    message, error = b"", None
    if jax.process_index() == 0:
        try:
            message = pickle.dumps(function())
        except Exception as raised:  # of any class: the others would wait for ever
            error = raised
    return pickle.loads(_meet(message, error))


def together(function: Callable[[], Result]) -> Result:
    """Calls a function in every process, and raises in all what it raised in one.

    Of what one raises alone the others hear where they next call `first` or `together`, or where
    this one ends; in the midst of what they compute together they would wait for it. So what each
    reads by itself, such as its part of a model, it reads in one of its own before all go on.

    Raises:
      InputError, OSError: where the function does in any process, saying in which where it is
        another.
    """
    if process_count() == 1:
        return function()
    try:
        result = function()
    except (InputError, OSError) as error:
        if not is_known(error):
            _meet(error=error)
        raise
    _meet()
    return result


_KNOWN = "Raised in every process."  # a note on what all have heard of


def _meet(message: bytes = b"", error: Exception | None = None) -> bytes:
    """The message of the first process; where some bring an error, raises it in all."""
    if error is not None:
        message = _pickled(error)
    brought = np.array([len(message), error is not None], np.int32)
    sizes, failed = multihost_utils.process_allgather(brought).T
    source = int(failed.argmax())  # the first that failed, or else the first
    size, own = int(sizes[source]), jax.process_index() == source
    if not size:
        return b""
    content = np.frombuffer(message.ljust(size, b"\0")[:size], np.uint8)
    content = multihost_utils.broadcast_one_to_all(content, is_source=own)
    message = np.asarray(content).tobytes()
    if not failed.any():
        return message
    if error is None:
        error = pickle.loads(message)
        if source and isinstance(error, InputError):
            where = f"in process {source} of {process_count()}: "
            named = (dataclasses.replace(p, text=where + p.text) for p in error.problems)
            error = InputError(*named)
    error.add_note(_KNOWN)
    raise error


def is_known(error: BaseException | None) -> bool:
    """Whether all processes have heard of an error, or of one that it was raised from."""
    while error is not None and _KNOWN not in getattr(error, "__notes__", ()):
        error = error.__cause__ or error.__context__
    return error is not None


def _pickled(error: Exception) -> bytes:
    """An error as the others are to raise it; what pickling does not keep, by its text."""
    try:
        message = pickle.dumps(error)
        pickle.loads(message)
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return message


def to_host(arrays: Any) -> Any:
    """A pytree of arrays as NumPy's, with all their values, wherever they lie.

    Where other processes have a part of them, all have to call it.
    """
    return jax.device_get(jax.tree.map(_readable, arrays))


def _readable(array: Any) -> Any:
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return array
    if array.is_fully_replicated:
        return array.addressable_data(0)
    return multihost_utils.process_allgather(array, tiled=True)


def is_traced(arrays: Any) -> bool:
    """Whether an array of a pytree has no values yet, as under `jax.jit`, `vmap` or `grad`."""
    return any(isinstance(array, jax.core.Tracer) for array in jax.tree.leaves(arrays))


def parse_mesh(text: str) -> dict[str, int] | None:
    """The sizes of a mesh by axis, as in `model:4,data:2`; None for `auto`.

    Raises:
      InputError: for a text that is none, or names an axis that is unknown or there twice.
    """
    if text == AUTO:
        return None
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.strip().partition(":")
        if axis not in AXES or axis in sizes or not re.fullmatch(r"0{0,9}[1-9]\d{0,8}", size):
            advice = f"give {AUTO}, or sizes such as model:4,data:2; axes are {', '.join(AXES)}"
            raise InputError(Problem("mesh", text, advice))
        sizes[axis] = int(size)
    return sizes


@contextlib.contextmanager
def outside_meshes() -> Iterator[None]:
    """Takes away the mesh that `jax.set_mesh` has set: a model's arrays say over which they lie.

    Inside `jax.jit`, where nothing can take it away, it stays.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ValueError):  # inside `jit`
            stack.enter_context(jax.set_mesh(None))
        yield


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of these sizes over devices, by default all of all processes.

    Raises:
      InputError: where their product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count, wanted = len(devices), math.prod(sizes.values())
    if wanted != count:
        text = f"it is of {wanted} devices and there are {count}; data:{count} uses them all"
        raise InputError(Problem("mesh", mesh_text(sizes), text))
    names = tuple(axis for axis in AXES if axis in sizes)
    shape, kinds = tuple(sizes[axis] for axis in names), (AxisType.Auto,) * len(names)
    return jax.make_mesh(shape, names, axis_types=kinds, devices=devices)


def mesh_text(sizes: Mapping[str, int]) -> str:
    """Sizes as `parse_mesh` reads them."""
    return ",".join(f"{axis}:{size}" for axis, size in sizes.items())
