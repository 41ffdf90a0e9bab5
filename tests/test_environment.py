"""What records say of where a number was measured."""

import importlib.metadata
import os
import subprocess
import sys

import jax
import pytest

import sinkjax
from sinkjax.environment import environment, num_threads

pytestmark = pytest.mark.quick


def test_versions_and_devices_are_those_that_compute():
    facts = environment()
    assert facts["sinkjax"] == sinkjax.__version__
    for package in ("jax", "jaxlib", "flax", "transformers", "numpy"):
        assert facts[package] == importlib.metadata.version(package)
    assert sys.version.startswith(facts["python"])
    assert (facts["platform"], facts["num_devices"]) == ("cpu", len(jax.devices()))
    assert facts["xla_flags"] == os.environ["XLA_FLAGS"]
    assert facts["device"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity of processes")
def test_processors_are_counted_that_the_process_may_use():
    """Not those of the machine: XLA has no threads for the others."""
    processor = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, [{processor}])\n"
        "from sinkjax.environment import num_threads; print(num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 1
    assert num_threads() == len(os.sched_getaffinity(0))
