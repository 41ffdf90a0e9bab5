"""Which processors a benchmark keeps to."""

import os

from sinkjax.errors import InputError


def keep_to_processors(threads: int) -> None:
    """Keeps this process to some processors, of which XLA and PyTorch count their threads.

    Args:
      threads: the value of --threads.

    Raises:
      InputError: for more than there are, or where the system cannot.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise InputError(f"--threads={threads}: only Linux can keep XLA to so many processors")
    available = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(available):
        raise InputError(f"--threads={threads}: from 1 to {len(available)} can be had here")
    os.sched_setaffinity(0, available[:threads])
