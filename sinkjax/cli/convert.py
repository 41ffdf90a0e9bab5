"""Converts a Llama once, so that later runs load it faster, and each device only its part of it.

  sinkjax convert --model=meta-llama/Llama-3.2-1B --output=llama-3.2-1b
  sinkjax sweep --model=llama-3.2-1b

--format=orbax writes the project's own checkpoint, which sinkjax.load restores without converting
anything: on one device, or over a mesh with sinkjax.load("llama-3.2-1b", mesh=mesh).
--format=safetensors writes what other programs read, transformers among them.

Config and tokenizer are written, too, so that the folder stands for the model wherever --model is
asked for. Save in the dtype that is to be loaded: any other is converted to at every load.
"""

import math
import pathlib
import shutil
import time

import jax.numpy as jnp
from absl import flags

import sinkjax
from sinkjax.checkpoint.names import name_table
from sinkjax.checkpoint.weights import unwritable
from sinkjax.cli import flags as cli
from sinkjax.errors import InputError

cli.define_model_flags()
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; new, or empty.", required=True)
_FORMAT = flags.DEFINE_enum("format", "orbax", ["orbax", "safetensors"], "Of the weights.")
_TOKENIZER = flags.DEFINE_bool("tokenizer", True, "Whether to write the tokenizer, too.")


def main() -> None:
    name, output = cli.model(), pathlib.Path(_OUTPUT.value)
    _check_output(output, _num_bytes(sinkjax.load_config(name, revision=cli.revision())))
    tokenizer = _tokenizer(name) if _TOKENIZER.value else None
    start = time.perf_counter()
    print(f"reading {name}", flush=True)
    model = cli.load_model(name)
    print(f"writing {output}, read after {time.perf_counter() - start:.1f} s", flush=True)
    if tokenizer is not None:
        try:
            tokenizer.save_pretrained(output)
        except Exception as error:  # for a full disk, tokenizers raises this class itself
            raise unwritable(output, error) from error
    save = {"orbax": sinkjax.save_orbax, "safetensors": sinkjax.save_safetensors}
    save[_FORMAT.value](model, output)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    config = model.config
    print(
        f"wrote {size / 1e6:,.0f} MB after {time.perf_counter() - start:.1f} s: "
        f"{config.num_layers} layers, {config.num_heads} heads, {config.num_kv_heads} key/value "
        f"heads, {model.embedding[...].dtype.name}, {_FORMAT.value}\n"
        f'load it with sinkjax.load("{output}"), or give a script --model={output}'
    )


def _num_bytes(config: sinkjax.LlamaConfig) -> int:
    """What the weights take in the dtype that they are to be written in."""
    count = sum(math.prod(entry.shape) for entry in name_table(config))
    return count * jnp.dtype(flags.FLAGS.dtype).itemsize


def _check_output(output: pathlib.Path, num_bytes: int) -> None:
    """Refuses before any long work a folder that is not free or a disk that is too small."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(
            f"--output={output} exists and is no empty folder; name another, or remove it"
        )
    there = next(folder for folder in output.absolute().parents if folder.exists())
    free = shutil.disk_usage(there).free
    if free < num_bytes:
        raise InputError(
            f"--output={output} needs {num_bytes:,} bytes, and {there} has {free:,} free; free "
            "some, or name a folder on another disk"
        )


def _tokenizer(name: str):
    try:
        return sinkjax.load_tokenizer(name, revision=cli.revision())
    except InputError as error:
        raise InputError(
            *error.problems, "--tokenizer: to convert the weights alone, give --notokenizer"
        ) from error
