"""Converts a model once: later runs load it faster, and each device loads its part of it alone.

  sinkjax convert --model=meta-llama/Llama-3.2-1B --output_dir=llama-3.2-1b
  sinkjax sweep --model=llama-3.2-1b

--format=orbax writes the project's own checkpoint, which sinkjax.load restores without converting
anything: on one device, or over a mesh with sinkjax.load("llama-3.2-1b", mesh=mesh).
--format=safetensors writes what other programs read, transformers among them.

Config and tokenizer are written, too, so that the folder stands for the model wherever --model is
asked for. Save in the dtype in which it is to be loaded: another dtype is converted at every load.

The folder has the model whole or not at all. Unfinished files lie in a folder inside it, which the
next conversion to the same folder removes if this one is killed.
"""

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import jax.numpy as jnp

import sinkjax
from sinkjax.checkpoint.folder import CONFIG
from sinkjax.checkpoint.names import name_table
from sinkjax.checkpoint.orbax import MANIFEST
from sinkjax.checkpoint.weights import unwritable
from sinkjax.cli.tool import ModelSettings, Tool
from sinkjax.distributed import first
from sinkjax.errors import InputError, Problem, about, explaining
from sinkjax.files import PARTIAL, parse_json, replace_file, sync_folder
from sinkjax.studies.settings import setting

_MOVED = "moved.json"  # in the folder of what is on its way: the names that leave it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert(ModelSettings, Tool):
    """Writes a model as a checkpoint."""

    renamed: ClassVar[Mapping[str, str]] = {"output": "output_dir"}

    output_dir: str | None = setting(None, "Folder to write; new, or empty.")
    format: Literal["orbax", "safetensors"] = setting("orbax", "Format of the weights.")
    tokenizer: bool = setting(True, "Whether to write the tokenizer, too.")

    def run(self) -> None:
        if not self.output_dir:
            raise InputError(Problem("output_dir", None, "name the folder to write"))
        output = pathlib.Path(self.output_dir)
        count = sum(math.prod(entry.shape) for entry in name_table(self.load_config()))
        self.make_mesh()  # refused before the weights are read
        first(lambda: _check_output(output, count * jnp.dtype(self.dtype).itemsize))
        tokenizer = self._read_tokenizer() if self.tokenizer else None
        start = time.perf_counter()
        print(f"reading {self.model}", flush=True)
        model = self.load()
        print(f"writing {output}, read after {time.perf_counter() - start:.1f} s", flush=True)
        save = {"orbax": sinkjax.save_orbax, "safetensors": sinkjax.save_safetensors}
        with contextlib.ExitStack() as whole:  # of the first process alone
            folder = first(lambda: whole.enter_context(_whole(output)))
            try:
                if tokenizer is not None:
                    first(lambda: tokenizer.save_pretrained(folder))
                save[self.format](model, folder)
            except InputError as error:
                if error.__cause__ is None:
                    raise
                raise unwritable(output, error.__cause__) from error
            except Exception as error:  # for a full disk, tokenizers raises this class itself
                raise unwritable(output, error) from error
            first(whole.close)
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
    with about("output_dir", output):
        if (output.exists() and not output.is_dir()) or _names(output) - _left(output):
            raise InputError("it exists and is no empty folder; name another, or remove it")
        parent = next(folder for folder in output.absolute().parents if folder.exists())
        free = shutil.disk_usage(parent).free
        if free < num_bytes:
            raise InputError(
                f"it needs {num_bytes:,} bytes, and {parent} has {free:,} free; free some, or name "
                "a folder on another disk"
            )


@contextlib.contextmanager
def _whole(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write to, all of which is in `output` afterwards, or after an error nothing."""
    partial = output / PARTIAL
    with contextlib.ExitStack() as resources:
        with _writing(output):
            partial.mkdir(parents=True, exist_ok=True)
            lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
            resources.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    "another process converts to it; wait until it ends, or name another"
                ) from error
            _clear(output)
        try:
            yield partial
            names = sorted(_names(partial), key=lambda name: name in (MANIFEST, CONFIG))
            with _writing(output):
                replace_file(partial / _MOVED, json.dumps(names).encode())
                for name in names:  # last that by which the folder is a checkpoint
                    (partial / name).rename(output / name)
                sync_folder(output)
        finally:
            with contextlib.suppress(OSError):  # what stays, the next run removes
                _clear(output)
                partial.rmdir()


@contextlib.contextmanager
def _writing(output: pathlib.Path) -> Iterator[None]:
    with (
        about("output_dir", output),
        explaining("it cannot be written", "name a folder that can be, on a disk with the space"),
    ):
        yield


def _clear(output: pathlib.Path) -> None:
    """Removes what a conversion that did not end left in a folder."""
    partial = output / PARTIAL
    moved = [output / name for name in _left(output) - {PARTIAL}]
    for path in [*moved, partial / _MOVED, *(partial / name for name in _names(partial))]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _left(output: pathlib.Path) -> set[str]:
    """The names of what a conversion that did not end left in a folder; nothing else is among them.

    Of a whole checkpoint, none are but that of the folder of what was on its way.
    """
    partial = output / PARTIAL
    if not partial.is_dir() or partial.is_symlink():
        return set()
    moved: set[str] = set()
    if not any((output / name).exists() for name in (MANIFEST, CONFIG)):
        with contextlib.suppress(OSError, ValueError, TypeError):  # killed before it was there
            moved = set(parse_json((partial / _MOVED).read_bytes()))
    return {PARTIAL} | (moved & _names(output) - _names(partial))


def _names(folder: pathlib.Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
