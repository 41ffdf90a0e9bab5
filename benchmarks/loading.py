"""How much memory does loading a model take of each of several processes?

  python -m benchmarks.loading
  python -m benchmarks.loading --model=qwen2.5-coder-0.5b --processes=1,2

The model, a GGUF file, is written as safetensors and for Orbax, too. Each of the three is loaded by
new processes, each with one device and its part of the mesh model:N. Shown is how much higher a
process's resident memory stood while it loaded than before, at most (VmHWM, so on Linux alone):
what it keeps, what it passed through, and the pages of files that it had mapped.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

import jax
from absl import flags

import sinkjax
from sinkjax.cli import flags as cli
from sinkjax.cli import terminal
from sinkjax.distributed import make_mesh, start
from sinkjax.report.formats import size
from sinkjax.report.table import Table
from sinkjax.studies.timing.memory import resident_rise
from sinkjax.studies.timing.pairs import Call

MODEL = flags.DEFINE_string("model", "smollm2-135m", "A GGUF file, or a registry's name.")
PROCESSES = flags.DEFINE_list("processes", ["1", "3"], "Numbers of processes.")
_OF = flags.DEFINE_string("as_process", None, "PORT,PROCESSES,ID of a process that loads.")


def main() -> None:
    if _OF.value:
        print(json.dumps(_load(*map(int, _OF.value.split(",")))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        model = sinkjax.load(MODEL.value)
        sinkjax.save_safetensors(model, folder / "safetensors")
        sinkjax.save_orbax(model, folder / "orbax")
        del model
        sources = {"safetensors": folder / "safetensors", "GGUF": MODEL.value}
        for name, source in {**sources, "Orbax": folder / "orbax"}.items():
            for count in map(int, PROCESSES.value):
                kept, risen = zip(*_loaded(str(source), count), strict=True)
                rows.append((name, str(count), *(" ".join(map(size, of)) for of in (kept, risen))))
    columns = ("from", "processes", "parameters of each (B)", "memory at most (B)")
    table = Table(f"Loading {MODEL.value} in float32", columns, rows, (), 1)
    terminal.print_table(terminal.console(), table)


def _loaded(source: str, count: int) -> list[tuple[int, int]]:
    """What each of some processes that load a model together says."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, f"--model={source}"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    running = [
        subprocess.Popen(
            [*command, f"--as_process={port},{count},{index}"],
            env=environment,
            stdout=subprocess.PIPE,
        )
        for index in range(count)
    ]
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(1)  # it has said why
    return [json.loads(line.splitlines()[-1]) for line in said]


def _load(port: int, count: int, index: int) -> tuple[int, int | None]:
    """The bytes of parameters that this process has, and how much memory it took to load them."""
    start(f"localhost:{port}", count, index)
    mesh = make_mesh({"model": count})
    models = []
    risen = resident_rise(Call(lambda: models.append(sinkjax.load(MODEL.value, mesh=mesh))))
    shards = [s for x in jax.tree.leaves(models[0]) for s in x.addressable_shards]
    return sum(shard.data.nbytes for shard in shards), risen


if __name__ == "__main__":
    cli.run(main)
