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
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

import sinkjax
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
    lengths: tuple[int, ...] = setting((64,), "Tokens of a prompt with its padding, each a bucket.")
    max_length: int = setting(1024, "Tokens that the cache has room for.")
    output: str | None = setting(None, "File for the records, as JSON lines; by default none.")

    def run(self) -> None:
        output = output_path(self.output)
        config = self.load_config()
        if not self.mask:
            raise InputError("--mask is missing: give a mask's file, or its text")
        programs = {"baseline": SinkMask.full(config), "mask": read_mask(self.mask, config)[0]}
        devices = self._devices()
        absent = None if self.targets == _HERE else devices
        mesh = fit_mesh(self.mesh, config, self.dtype, absent)
        where = {"device": devices[0]} if mesh is None else {"mesh": mesh}
        records = {
            name: self._records(name, config, mask, devices[0].device_kind, where)
            for name, mask in programs.items()
        }
        console = terminal.console()
        tables = program_tables if mesh is None else chip_tables
        for table in tables(records["baseline"], records["mask"]):
            terminal.print_table(console, table)
        if output is not None:
            write_records(output, itertools.chain(*records.values()))

    def _devices(self) -> list[jax.Device]:
        """The devices to compile for, or the first of them."""
        if self.targets == _HERE:
            return jax.devices()
        # JAX gives the CUDA compiler up where it looks for a GPU and finds none.
        jax.config.update("jax_platforms", "cpu")
        return target_devices(self.targets)

    def _records(
        self,
        name: str,
        config: sinkjax.LlamaConfig,
        mask: SinkMask,
        device_kind: str,
        where: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """A record of each executable of one mask."""
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
            "device": device_kind,
            "layers": self.layers,
        }
        read = inspect_chips if "mesh" in where else inspect_program
        return [{**record, **named} for record in read(program)]
