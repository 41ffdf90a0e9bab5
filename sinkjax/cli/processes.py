"""Joins the processes of a job, of which the first alone speaks."""

import atexit
import dataclasses
import os
import sys
from collections.abc import Callable

import jax

from sinkjax.distributed import is_first, is_known, process_count, start, together
from sinkjax.errors import InputError, first_line
from sinkjax.studies.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """The settings of a job of several processes, each with devices of its own."""

    coordinator: str | None = setting(
        None,
        "Host and port of the first of several processes; auto has JAX find it, as on a TPU pod. "
        "By default several are joined where SLURM, Open MPI or TPU_WORKER_HOSTNAMES say so.",
    )
    num_processes: int | None = setting(None, "Number of processes; needed with a host and port.")
    process_id: int | None = setting(
        None, "Number of this process, from 0; needed with a host and port."
    )

    def run(self, main: Callable[[], int | None]) -> int | None:
        """Joins them and runs `main` in all; what others than the first print is dropped."""
        jax.config.update("jax_enable_preemption_service", False)  # which takes SIGTERM for itself
        start(self.coordinator, self.num_processes, self.process_id)
        if not is_first():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        try:
            return together(main)
        except Exception as error:
            if process_count() > 1 and not is_known(error):
                atexit.register(os._exit, 1)  # before JAX waits for the others, and they for this
                if "Gloo" in str(error):  # of XLA, which raises it in several classes
                    text = f"another process has ended or cannot be reached ({first_line(error)})"
                    advice = "see what it says, and start all of them again"
                    raise InputError(f"{text}; {advice}") from error
            raise
