"""Joins the processes of a job, of which the first alone speaks."""

import dataclasses
import os
import sys
from collections.abc import Callable

import jax

from sinkjax.distributed import is_first, start, together
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
        return together(main)
