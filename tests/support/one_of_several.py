"""Runs commands, one after another, as one of several processes.

python tests/support/one_of_several.py PORT PROCESSES ID '[["experiments.sweep", "--model=..."]]'

The commands `in_python`, of a model and a threshold, `loaded`, of a model, and `refused`, of a
folder with damage, are what is done with the library alone. Where PORT is "", SLURM's variables say
which processes there are.
"""

import dataclasses
import gc
import json
import math
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import tiny
from scripts import run_main

import sinkjax
from sinkjax.checkpoint.folder import open_folder
from sinkjax.checkpoint.gguf import open_gguf
from sinkjax.checkpoint.weights import convert
from sinkjax.distributed import first, make_mesh, start, together
from sinkjax.studies.subject import load_model
from sinkjax.studies.timing.memory import resident_rise
from sinkjax.studies.timing.pairs import Call


def in_python(model: str, threshold: str) -> dict[str, Any]:
    """The share of each tensor's numbers that a process reads, and the mask of sink scores."""
    path, read = pathlib.Path(model), {}
    source = open_gguf(path) if path.suffix == ".gguf" else open_folder(path)

    def counted(name, part=()):
        value = source.read(name, part)
        read[name] = value.size / math.prod(source.shapes[name])
        return value

    mesh = make_mesh({"model": 2})
    model = convert(dataclasses.replace(source, read=counted), jnp.dtype("float32"), mesh)
    scores = sinkjax.measure_sinks(model, tiny.tokens_of(model, (3, 12))).score("mean")
    path = sinkjax.Sink("first")
    mask = sinkjax.SinkMask.from_scores(scores, threshold=float(threshold), path=path)
    return {"read": read, "mask": str(mask)}


def loaded(source: str) -> dict[str, Any]:
    """The digest of a model over two processes, and bytes by which one's memory rose for it."""
    models, mesh = [], make_mesh({"model": 2})
    gc.collect()  # what others were, whose memory would count as this one's before
    risen = resident_rise(Call(lambda: models.append(sinkjax.load(source, mesh=mesh))))
    return {"digest": sinkjax.model_digest(*models), "risen": risen}


def refused(folder: str) -> list[str]:
    """What this process says where a file is damaged, or something is wrong, in the second."""

    def load() -> None:
        mesh = make_mesh({"model": 2})
        load_model(folder, revision=None, dtype="float32", seed=0, mesh=mesh)

    def wrong_in_the_second() -> None:
        if jax.process_index() == 1:
            raise sinkjax.InputError("something is wrong")
        first(lambda: None)

    said = []
    for function in (load, wrong_in_the_second):
        try:
            together(lambda function=function: together(function))
        except sinkjax.InputError as error:
            said.append(str(error))
    return said


if __name__ == "__main__":
    port, count, index, commands = sys.argv[1:]
    by_hand = f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={index}"
    joined = by_hand if port else ()
    for name, *arguments in json.loads(commands):
        if name in ("in_python", "loaded", "refused"):
            start(f"localhost:{port}", int(count), int(index))
            print(json.dumps(globals()[name](*arguments)))
        else:
            run_main(name, *arguments, *joined)
