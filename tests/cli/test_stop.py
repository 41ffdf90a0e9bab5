"""Scripts that are stopped: by Ctrl-C, by SIGTERM, and where Python would lose either."""

import signal
import subprocess
import sys
import time

import pytest
from scripts import start

_IN_A_CALLBACK = """
import gc, signal
from sinkjax.cli.stop import stoppable

def callback(phase, info):
    gc.callbacks.remove(callback)
    signal.raise_signal(signal.SIGTERM)

with stoppable():
    gc.callbacks.append(callback)
    gc.collect(0)  # quick: the signal comes again after what follows
    print("went on")
    while True:
        pass
"""

_IN_A_CALL = """
import signal
from sinkjax.cli.stop import stoppable

with stoppable():
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        {end}
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_study_says_so_in_its_last_line(number, tiny, tmp_path):
    process = start(
        "experiments.sweep",
        f"--model={tiny}",
        "--lengths=2,3,4,5,6,7,8,9,10,11,12,13,14,15,16",
        "--num_prompts=2",
        f"--output_dir={tmp_path}",
        # A process in the background may have been told to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    records = tmp_path / "records.jsonl"
    while process.poll() is None and not (records.exists() and records.stat().st_size):
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    assert err.splitlines()[-1] == "stopped; the same command goes on"
    assert "Traceback" not in out + err


def test_a_signal_that_comes_in_a_callback_is_not_lost():
    """What a callback of the garbage collector raises, Python shows and forgets; JAX has one."""
    command = [sys.executable, "-c", _IN_A_CALLBACK]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout, ran.stderr) == (143, "went on\n", "stopped\n")


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        ("raise RuntimeError('INTERNAL: of XLA')", 143, "stopped\n"),
        ("raise SystemExit(1)", 143, "stopped\n"),
        ("raise SystemExit(0)", 0, ""),  # all was done
    ],
)
def test_a_signal_that_comes_out_of_a_call_as_another_error_stops(end, status, said):
    command = [sys.executable, "-c", _IN_A_CALL.format(end=end)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (status, said)
