"""Shows what a mask takes out of the compiled programs, beside what it should take out by formula.

  sinkjax inspect --mask=mask.json
  sinkjax inspect --mask="L0: 9f | L1-29: 6f 3s(first)" --lengths=64,512
  sinkjax inspect --model=shape:llama-3.2-1b --dtype=bfloat16 --targets=tpu:v5e \\
      --mask="L0-15: 24f 8s(first)"

The baseline and the mask are compiled, prefill and a decode step each, and their FLOPs, parameters
and cache are read from the executables themselves, by path: FLOPs of matrix products from the
optimized HLO, parameters and cache from the arguments that are left of it. Beside them stand the
formulas of sinkjax/accounts/formulas.py, which know the config, the mask and the sizes, and no
program. --attention names what computes a prompt's attention; a kernel's FLOPs are counted from the
blocks that it computes, and said so.

With --mesh what is shown is what each chip has and does, with what chips exchange:

  sinkjax inspect --model=shape:llama-3.1-8b --dtype=bfloat16 --layers=scanned \\
      --targets=tpu:v5e:2x4 --mesh=model:8 --mask="L0-31: 24f 8s(first)"

No weights are read, so that --model may be a shape, too. --targets compiles for a chip that this
machine does not have; the wheels that it takes are named where they are missing.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from sinkjax.accounts.chips import inspect_chips
from sinkjax.accounts.inspect import compile_shapes, inspect_program
from sinkjax.cli import terminal
from sinkjax.cli.programs import chip_tables, program_tables
from sinkjax.cli.tool import ProgramSettings, ShapeSettings, Tool, output_path, write_records
from sinkjax.errors import InputError
from sinkjax.masks.mask import SinkMask
from sinkjax.models.sharding import fit_mesh
from sinkjax.programs.targets import TARGETS, target_devices
from sinkjax.studies.candidates import MASK, read_mask
from sinkjax.studies.settings import setting

_HERE = "here"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect(ShapeSettings, ProgramSettings, Tool):
    """Compiles the baseline and a mask, and shows what they cost."""

    renamed: ClassVar[Mapping[str, str]] = {
        "target": "targets",
        "batch_size": "batch_sizes",
        "prefill_lengths": "lengths",
    }

    mask: str | None = setting(None, f"{MASK}.")
    targets: str = setting(
        _HERE,
        f"Chip to compile for: here, this machine's device, or {', '.join(TARGETS)}; several of "
        "a TPU by their topology, as in tpu:v5e:2x4.",
    )
    batch_sizes: int = setting(1, "Rows of a batch.")
    lengths: tuple[int, ...] = setting(
        (64,), "Padded lengths of a prompt, in tokens: each has an executable."
    )
    max_length: int = setting(1024, "Tokens that the cache has room for.")
    output: str | None = setting(None, "File for the records, as JSON lines; by default none.")

    def run(self) -> None:
        output = output_path(self.output)
        config = self.load_config()
        if not self.mask:
            raise InputError("--mask is missing: give a mask's file, or its text")
        programs = {"baseline": SinkMask.full(config), "mask": read_mask(self.mask, config)[0]}
        if self.targets == _HERE:
            devices, absent = jax.devices(), None
        else:
            # JAX gives the CUDA compiler up where it looks for a GPU and finds none.
            jax.config.update("jax_platforms", "cpu")
            devices = absent = target_devices(self.targets)
        mesh = fit_mesh(self.mesh, config, self.dtype, absent)
        if mesh is None:
            where, read, tables = {"device": devices[0]}, inspect_program, program_tables
        else:
            where, read, tables = {"mesh": mesh}, inspect_chips, chip_tables
        records = {}
        for name, mask in programs.items():
            program = compile_shapes(
                config,
                mask,
                jnp.dtype(self.dtype),
                batch_size=self.batch_sizes,
                prefill_lengths=self.lengths,
                max_length=self.max_length,
                layers=self.layers,
                attention=self.attention,
                **where,
            )
            named = {
                "program": name,
                "model": self.model,
                "target": self.targets,
                "device": devices[0].device_kind,
                "layers": self.layers,
            }
            records[name] = [{**record, **named} for record in read(program)]
        console = terminal.console()
        for table in tables(records["baseline"], records["mask"]):
            terminal.print_table(console, table)
        if output is not None:
            write_records(output, itertools.chain(*records.values()))
