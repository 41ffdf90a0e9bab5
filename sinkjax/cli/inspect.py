"""Shows what a mask takes out of the compiled programs, beside what it should take out by hand.

  sinkjax inspect --mask=mask.json
  sinkjax inspect --mask="L0: 9f | L1-29: 6f 3s(first)" --prefill_lengths=64,512
  sinkjax inspect --model=shape:llama-3.2-1b --dtype=bfloat16 --target=tpu:v5e \\
      --mask="L0-15: 24f 8s(first)"

The baseline and the mask are compiled, prefill and a decode step each, and their operations,
parameters and cache are read from the executables themselves, by path: operations of matrix
products from the optimized HLO, parameters and cache from the arguments that are left of it.
Beside them stand the formulas of sinkjax/program/cost.py, which know the config, the mask and the
sizes, and no program. --attention names what computes a prompt's attention; a kernel's operations
are counted from the blocks that it computes, and said so.

No weights are read: --model is as everywhere, or a shape without weights. --target compiles for a
chip that this machine does not have; the wheels that it takes are named where they are missing.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

import sinkjax
from sinkjax.accounts.inspect import compile_shapes, inspect_program
from sinkjax.cli import flags as cli
from sinkjax.cli import terminal
from sinkjax.cli.programs import program_tables
from sinkjax.errors import InputError
from sinkjax.files import replace_file
from sinkjax.masks.mask import SinkMask
from sinkjax.programs.compile import LAYERS
from sinkjax.programs.targets import TARGETS, target_device
from sinkjax.studies.candidates import read_masks

_HERE = "here"

cli.define_model_flags(shapes=True)
_MASK = flags.DEFINE_string("mask", None, "File of a mask, or its text.")
_TARGET = flags.DEFINE_string(
    "target", _HERE, f"What to compile for: this machine's device, or {', '.join(TARGETS)}."
)
_BATCH = flags.DEFINE_integer("batch_size", 1, "Rows of every call.")
_PREFILL = flags.DEFINE_list("prefill_lengths", ["64"], "Tokens of a padded prompt, each a bucket.")
_MAX_LENGTH = flags.DEFINE_integer("max_length", 1024, "Tokens that the cache has room for.")
_LAYERS = flags.DEFINE_enum(
    "layers", "unrolled", LAYERS, "Each layer by itself, or like ones as one loop: faster compiled."
)
cli.define_attention_flag()
_OUTPUT = flags.DEFINE_string("output", None, "File to write the same to, as JSON lines.")


def main() -> None:
    output = _output()
    config = cli.load_config(cli.model())
    programs = {"baseline": SinkMask.full(config), "mask": _mask(config)}
    device = _device()
    records = {name: _records(name, config, mask, device) for name, mask in programs.items()}
    console = terminal.console()
    for table in program_tables(records["baseline"], records["mask"]):
        terminal.print_table(console, table)
    if output is not None:
        _write(output, [record for of_one in records.values() for record in of_one])
        console.print(f"records: {output}", soft_wrap=True)


def _output() -> pathlib.Path | None:
    """--output, refused before any long work where it cannot be written."""
    if _OUTPUT.value is None:
        return None
    path = pathlib.Path(_OUTPUT.value)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError(f"--output={path}: give the name of a file, in a folder that exists")
    return path


def _mask(config: sinkjax.LlamaConfig) -> SinkMask:
    if not _MASK.value:
        raise InputError("--mask is missing: give a mask's file, or its text")
    read = read_masks([_MASK.value], config)
    if len(read) > 1:
        raise InputError(f"--mask={_MASK.value} names several masks; give one")
    ((mask, _),) = read.values()
    return mask


def _device() -> jax.Device:
    """The device to compile for."""
    if _TARGET.value == _HERE:
        return jax.devices()[0]
    # JAX gives the CUDA compiler up where it looks for a GPU and finds none.
    jax.config.update("jax_platforms", "cpu")
    return target_device(_TARGET.value)


def _records(
    name: str, config: sinkjax.LlamaConfig, mask: SinkMask, device: jax.Device
) -> list[dict[str, Any]]:
    """Of the executables of one mask."""
    lengths = cli.numbers("prefill_lengths", _PREFILL.value, int)
    program = compile_shapes(
        config,
        mask,
        jnp.dtype(flags.FLAGS.dtype),
        batch_size=_BATCH.value,
        prefill_lengths=lengths,
        max_length=_MAX_LENGTH.value,
        layers=_LAYERS.value,
        attention=cli.attention(),
        device=device,
    )
    named = {
        "program": name,
        "model": cli.model(),
        "target": _TARGET.value,
        "device": device.device_kind,
        "layers": _LAYERS.value,
    }
    return [{**record, **named} for record in inspect_program(program)]


def _write(path: pathlib.Path, records: list[dict[str, Any]]) -> None:
    lines = "".join(f"{json.dumps(record, allow_nan=False)}\n" for record in records)
    try:
        replace_file(path, lines.encode())
    except OSError as error:
        raise InputError(
            f"--output={path} cannot be written ({error.strerror}): free space, or give another"
        ) from error
