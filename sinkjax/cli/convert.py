"""Converts a Llama once, so that later runs load it faster, and each device only its part of it.

  sinkjax convert --model=meta-llama/Llama-3.2-1B --output=llama-3.2-1b
  sinkjax sweep --model=llama-3.2-1b

--format=orbax writes the project's own checkpoint, which sinkjax.load restores without converting
anything: on one device, or over a mesh with sinkjax.load("llama-3.2-1b", mesh=mesh).
--format=safetensors writes what other programs read, transformers among them.

Config and tokenizer are written, too, so that the folder stands for the model wherever --model is
asked for. Save in the dtype that is to be loaded: any other is converted to at every load.
"""

import dataclasses
import math
import pathlib
import shutil
import time
from typing import Literal

import jax.numpy as jnp

import sinkjax
from sinkjax.checkpoint.names import name_table
from sinkjax.checkpoint.weights import unwritable
from sinkjax.cli.tool import ModelSettings, Tool
from sinkjax.errors import InputError, Problem, about
from sinkjax.studies.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert(ModelSettings, Tool):
    """Writes a model as a checkpoint."""

    output: str | None = setting(None, "Folder to write; new, or empty.")
    format: Literal["orbax", "safetensors"] = setting("orbax", "Format of the weights.")
    tokenizer: bool = setting(True, "Whether to write the tokenizer, too.")

    def run(self) -> None:
        if not self.output:
            raise InputError(Problem("output", None, "name the folder to write"))
        output = pathlib.Path(self.output)
        count = sum(math.prod(entry.shape) for entry in name_table(self.load_config()))
        _check_output(output, count * jnp.dtype(self.dtype).itemsize)
        tokenizer = self._read_tokenizer() if self.tokenizer else None
        start = time.perf_counter()
        print(f"reading {self.model}", flush=True)
        model = self.load()
        print(f"writing {output}, read after {time.perf_counter() - start:.1f} s", flush=True)
        if tokenizer is not None:
            try:
                tokenizer.save_pretrained(output)
            except Exception as error:  # for a full disk, tokenizers raises this class itself
                raise unwritable(output, error) from error
        save = {"orbax": sinkjax.save_orbax, "safetensors": sinkjax.save_safetensors}
        save[self.format](model, output)
        size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
        config = model.config
        print(
            f"wrote {size / 1e6:,.0f} MB after {time.perf_counter() - start:.1f} s: "
            f"{config.num_layers} layers, {config.num_heads} heads, {config.num_kv_heads} "
            f"key/value heads, {model.embedding[...].dtype.name}, {self.format}\n"
            f'load it with sinkjax.load("{output}"), or give a script --model={output}'
        )

    def _read_tokenizer(self):
        try:
            return self.load_tokenizer()
        except InputError as error:
            advice = Problem("tokenizer", None, "to convert the weights alone, give --notokenizer")
            raise InputError(*error.problems, advice) from error


def _check_output(output: pathlib.Path, num_bytes: int) -> None:
    """Refuses before any long work a folder that is not free or a disk that is too small."""
    with about("output", output):
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise InputError("it exists and is no empty folder; name another, or remove it")
        parent = next(folder for folder in output.absolute().parents if folder.exists())
        free = shutil.disk_usage(parent).free
        if free < num_bytes:
            raise InputError(
                f"it needs {num_bytes:,} bytes, and {parent} has {free:,} free; free some, or name "
                "a folder on another disk"
            )
