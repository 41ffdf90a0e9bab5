"""Scripts that are stopped: by Ctrl-C, by SIGTERM, and where Python would lose either."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from scripts import ROOT, start

_IN_A_CALLBACK = """
import gc, signal
from sinkjax.interrupts import stoppable

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
from sinkjax.interrupts import stoppable

with stoppable():
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        {end}
"""


_OF_SEVERAL = """
import signal, time
from sinkjax.cli.processes import Processes
from sinkjax.interrupts import stoppable

def main():
    signal.raise_signal(signal.{name})
    time.sleep(1)

with stoppable():
    Processes(coordinator="localhost:{port}", num_processes=1, process_id=0).run(main)
"""


def heed_interrupts() -> None:
    """Lets Ctrl-C come to a process: one in the background may have been told to ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(command, **how) -> subprocess.CompletedProcess[str]:
    how |= dict(capture_output=True, text=True, timeout=120, preexec_fn=heed_interrupts)
    return subprocess.run(command, **how)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_process_of_a_job_is_stopped(name):
    """XLA would have SIGTERM for its notice of preemption, which nothing here asks for."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", _OF_SEVERAL.format(name=name, port=port)]
    ran = run(command)
    assert (ran.returncode, ran.stdout) == (128 + signal.Signals[name], "")
    assert ran.stderr.splitlines()[-1] == "stopped"


_ENDS_ALONE = """
import signal
import jax
from sinkjax.cli import flags
from sinkjax.cli.processes import Processes
from sinkjax.distributed import first
from sinkjax.interrupts import stoppable

def main():
    first(lambda: None)
    if jax.process_index() == 1:
        {ends}
    first(lambda: None)

joined = Processes(coordinator="localhost:{port}", num_processes=2, process_id={index})
with stoppable():
    flags.run(lambda: joined.run(main))
"""


@pytest.mark.parametrize(
    ("ends", "status", "said"),
    [
        ("signal.raise_signal(signal.SIGTERM)", 143, "stopped"),
        ("raise ZeroDivisionError('one alone')", 1, "ZeroDivisionError: one alone"),
        ("signal.raise_signal(signal.SIGKILL)", -9, ""),
    ],
)
def test_no_process_of_a_job_waits_for_one_that_ended(ends, status, said):
    """Where one ended alone, JAX had both wait at its exit: for five minutes, or 100 s."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    how = {"env": {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}, "stderr": subprocess.PIPE}
    processes = [
        subprocess.Popen([sys.executable, "-c", script], text=True, **how)
        for script in (_ENDS_ALONE.format(ends=ends, port=port, index=n) for n in (0, 1))
    ]
    try:
        errors = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [1, status], errors
    assert errors[1].strip().endswith(said)
    (line,) = (line for line in errors[0].splitlines() if line.startswith("error: "))
    assert line.startswith("error: another process has ended or cannot be reached (")
    assert "Traceback" not in errors[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_study_says_so_in_its_last_line(number, tiny, tmp_path):
    process = start(
        "experiments.sweep",
        f"--model={tiny}",
        "--lengths=2,3,4,5,6,7,8,9,10,11,12,13,14,15,16",
        "--num_prompts=2",
        f"--output_dir={tmp_path}",
        preexec_fn=heed_interrupts,
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
    ran = run(command)
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
    ran = run(command)
    assert (ran.returncode, ran.stderr) == (status, said)


_AT = """
import atexit, signal, sys

class Finder:
    def find_spec(name, path, target=None):
        if name == {module!r}:
            signal.raise_signal({number})

sys.meta_path.insert(0, Finder)
if {module!r} == "exit":
    atexit.register(signal.raise_signal, {number})
"""
_INSTALLED = """
import sys
from sinkjax.cli.main import main
sys.exit(main())
"""


def run_with_signal(folder, module, number, *arguments) -> subprocess.CompletedProcess[str]:
    """Runs Python, which gets a signal as it imports a module, or at its exit."""
    (folder / "sitecustomize.py").write_text(_AT.format(module=module, number=int(number)))
    env = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
    return run([sys.executable, *arguments], cwd=ROOT, env=env)


@pytest.mark.parametrize(
    ("module", "number", "installed"),
    [
        ("jax", signal.SIGINT, True),
        ("jax", signal.SIGTERM, False),
        ("sinkjax.cli.main", signal.SIGINT, True),
        ("sinkjax.cli.mask", signal.SIGINT, False),
        ("exit", signal.SIGINT, True),
        ("exit", signal.SIGTERM, False),
    ],
)
def test_a_signal_before_a_command_or_after_it_is_one_line(module, number, installed, tmp_path):
    """While Python imports JAX and the command, and while it ends, printed text is whole."""
    (tmp_path / "sinkjax").write_text(_INSTALLED)
    script = (tmp_path / "sinkjax", "mask") if installed else ("-m", "experiments.mask")
    ran = run_with_signal(tmp_path, module, number, *script, "--help")
    assert (ran.returncode, ran.stderr) == (128 + number, "stopped\n")
    assert ("--threshold" in ran.stdout) == (module == "exit")


def test_a_signal_while_the_library_is_imported_is_pythons_own(tmp_path):
    ran = run_with_signal(tmp_path, "jax", signal.SIGINT, "-c", "import sinkjax")
    assert ran.stderr.splitlines()[-1] == "KeyboardInterrupt"
