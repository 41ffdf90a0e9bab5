"""Shows what a mask's programs need of a chip at long lengths, and how many rows fit in its memory.

  sinkjax account --model=shape:llama-3.1-8b --dtype=bfloat16 --mask=mask.json
  sinkjax account --mask=mask.json --targets=cpu --lengths=2048,8192 --memory=8

For each chip and length the baseline and the masks are compiled for one row, prefill and a decode
step whose cache is as long as the prompt, and their FLOPs, parameters, cache and memory are read
from the executables. How many rows of that length fit in --memory is worked out from a second
compile, of many rows. Nothing runs, and no weights are read, so that --model may be a shape, too.

Where one chip cannot hold a row, where the model is not made for the length, or where XLA's
compiler for the chip is not installed, the numbers are the formulas' of
sinkjax/accounts/formulas.py and marked so; memory is then the least, and rows are the most, as
sinkjax/accounts/planner.py says.

Of several chips, `sinkjax inspect --mesh` shows what each needs, and whether a batch fits.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from sinkjax.accounts.limits import CHIPS
from sinkjax.accounts.planner import plan_memory
from sinkjax.checkpoint.load import Dtype
from sinkjax.cli import terminal
from sinkjax.cli.programs import account_tables
from sinkjax.cli.tool import ProgramSettings, ShapeSettings, Tool, as_in, output_path, write_records
from sinkjax.environment import environment
from sinkjax.errors import InputError, Problem
from sinkjax.masks.mask import SinkMask
from sinkjax.models.config import LlamaConfig
from sinkjax.programs.targets import TARGETS
from sinkjax.studies.candidates import read_masks
from sinkjax.studies.settings import MOST, each_at_least, known, setting, some, twice
from sinkjax.studies.timing.measured import BASELINE
from sinkjax.studies.timing.study import Timing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account(ProgramSettings, Tool):
    """Accounts for masks and the baseline on one chip that need not be here."""

    model: str = as_in(Timing, "model")
    revision: str | None = as_in(Timing, "revision")
    dtype: Dtype = as_in(Timing, "dtype")
    mask: tuple[str, ...] = as_in(Timing, "mask")
    targets: tuple[str, ...] = setting(
        ("tpu:v5e", "cuda:h100"), f"Chips to account for, of {', '.join(TARGETS)}."
    )
    lengths: tuple[int, ...] = setting((8192, 32768, 131_072), "Tokens of a row.")
    memory: float | None = setting(
        None,
        "Gigabytes (of 1e9 bytes) of the chip's memory; by default what its maker publishes, which "
        f"is known of {', '.join(CHIPS)}.",
    )
    output: str | None = setting(None, "File for the records, as JSON lines; by default none.")

    def run(self) -> None:
        if problems := list(self._problems()):
            raise InputError(*problems)
        output = output_path(self.output)
        config = ShapeSettings(model=self.model, revision=self.revision).load_config()
        named = {name: mask for name, (mask, _) in read_masks(self.mask, config).items()}
        programs = {BASELINE: SinkMask.full(config), **named}
        # JAX gives the CUDA compiler up where it looks for a GPU and finds none.
        jax.config.update("jax_platforms", "cpu")
        work = list(itertools.product(self.targets, self.lengths, programs))
        records = [
            self._record(config, programs[name], name, target, length)
            for target, length, name in tqdm(work, desc="accounting", disable=None)
        ]
        console = terminal.console()
        for target in self.targets:
            own = [record for record in records if record["target"] == target]
            for table in account_tables(own):
                terminal.print_table(console, table)
        if output is not None:
            write_records(output, records)

    def _problems(self) -> Iterator[Problem]:
        yield from some(self, mask="smollm2-135m-512", targets="tpu:v5e", lengths=8192)
        yield from twice(self, "targets", "lengths")
        yield from known("targets", self.targets, TARGETS)
        yield from each_at_least(self, lengths=1)
        unpublished = [t for t in self.targets if t in TARGETS and t not in CHIPS]
        if self.memory is None and unpublished:
            yield Problem("memory", None, f"give the gigabytes that {', '.join(unpublished)} has")
        if self.memory is not None and not 0 < self.memory <= MOST:
            yield Problem("memory", self.memory, f"give gigabytes, above 0 and at most {MOST:,}")

    def _record(
        self, config: LlamaConfig, mask: SinkMask, name: str, target: str, length: int
    ) -> dict[str, Any]:
        """A record of one mask, chip and length."""
        memory = CHIPS[target].memory if self.memory is None else self.memory * 1e9
        plan = plan_memory(
            config,
            mask,
            jnp.dtype(self.dtype),
            length,
            target=target,
            memory=memory,
            attention=self.attention,
            layers=self.layers,
        )
        return {
            "kind": "account",
            "model": self.model,
            "config": config.to_dict(),
            "program": name,
            "mask": str(mask),
            "mask_digest": mask.digest,
            "dtype": self.dtype,
            "target": target,
            "length": length,
            "layers": self.layers,
            "memory": memory,
            "stages": {stage: needs.record() for stage, needs in plan.stages.items()},
            "by_formula": plan.by_formula,
            "attention": plan.attention,
            "uncounted": plan.uncounted,
            "largest_batches": plan.largest_batches(memory),
            "environment": environment(),
        }
