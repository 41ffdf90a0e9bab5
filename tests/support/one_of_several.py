"""Runs commands, one after another, as one of several processes.

python tests/support/one_of_several.py PORT PROCESSES ID '[["experiments.sweep", "--model=..."]]'

The commands `in_python`, of a folder and a threshold, and `refused`, of a folder with damage, are
what is done with the library alone.
"""

import dataclasses
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
from sinkjax.checkpoint.weights import convert
from sinkjax.distributed import first, make_mesh, start, together
from sinkjax.studies.subject import load_model


def in_python(folder: str, threshold: str) -> dict[str, Any]:
    """The share of each tensor's numbers that a process reads, and the mask of sink scores."""
    source, read = open_folder(pathlib.Path(folder)), {}

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
    joined = f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={index}"
    for name, *arguments in json.loads(commands):
        if name in ("in_python", "refused"):
            start(f"localhost:{port}", int(count), int(index))
            print(json.dumps(globals()[name](*arguments)))
        else:
            run_main(name, *arguments, *joined)
