"""Versions, device and settings that a number was measured with, for records."""

import contextlib
import importlib.metadata
import os
import platform
from typing import Any

import jax

import sinkjax

_PACKAGES = ("jax", "jaxlib", "flax", "transformers", "numpy")


def environment() -> dict[str, Any]:
    """Versions of what computes, the device it runs on, and the flags that XLA was given."""
    device = jax.devices()[0]
    return {
        "sinkjax": sinkjax.__version__,  # also where it runs from a checkout, not installed
        **{package: importlib.metadata.version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "platform": device.platform,
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "num_devices": jax.device_count(),
        "cpu_count": num_threads(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def num_threads() -> int:
    """Processors that this process may use, each of which XLA gives a thread."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    """The processor's name, for which JAX says no more than "cpu"."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
