"""What programs would ask of chips that are not here: read from compiled programs, not measured.

  pip install -e '.[targets-tpu,targets-cuda]'
  python -m benchmarks.accelerators
  python -m benchmarks.accelerators --targets=tpu:v5e --lengths=8192 --mask=mask.json

For each chip and prompt length the baseline and the mask are compiled: prefill with the chip's
kernel and, at the lengths of --xla_lengths, with the attention that XLA compiles; and a decode step
whose cache is as long as the prompt. Nothing runs. Operations are those of matrix products, read
from the executables, a kernel's counted from the blocks that it computes; bytes are parameters and
cache, each once. The time is what the chip's published rate and bandwidth would need for these, the
longer of both. So it is a lower bound, and no forecast: what goes through memory between two
operations, such as the scores of `xla`, is not in it. The executables' memory is XLA's own figure.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from absl import flags
from tqdm import tqdm

import sinkjax
from sinkjax.accounts.inspect import compile_shapes, inspect_program
from sinkjax.accounts.limits import CHIPS, Chip, Limit
from sinkjax.checkpoint.load import Dtype
from sinkjax.cli import flags as cli
from sinkjax.cli import terminal
from sinkjax.cli.settings import define_settings, numbers, read_settings
from sinkjax.cli.tool import ShapeSettings
from sinkjax.errors import InputError
from sinkjax.masks.mask import SinkMask
from sinkjax.models import sampling
from sinkjax.programs.options import choose_attention
from sinkjax.programs.targets import target_device
from sinkjax.report import formats
from sinkjax.report.table import Table
from sinkjax.studies.candidates import read_mask
from sinkjax.studies.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Model(ShapeSettings):
    model: str = setting("shape:llama-3.2-1b", "Model, or shape, as `sinkjax inspect` takes it.")
    dtype: Dtype = setting("bfloat16", "Type of the parameters.")


define_settings(_Model)
_MASK = flags.DEFINE_string(
    "mask",
    "L0-15: 20w(4,128) 2f 2w(4,128) 2f 2w(4,128) f 3w(4,128)",
    "File of a mask, or its text. By default 16% of the heads are full, in 38% of the groups, like "
    "the mask in docs/findings.md that a KL budget chose, and alike in all layers.",
)
_TARGETS = flags.DEFINE_list("targets", ["tpu:v5e", "cuda:h100"], "Chips.")
_LENGTHS = flags.DEFINE_list("lengths", ["512", "8192", "131072"], "Tokens of a prompt, one row.")
_XLA = flags.DEFINE_list("xla_lengths", ["8192", "131072"], "Lengths to show XLA's attention at.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "File for the records, as JSON lines; what it holds is not compiled again."
)


def main() -> None:
    lengths, xla_lengths = (numbers(flag.name, flag.value, int) for flag in (_LENGTHS, _XLA))
    unknown = [target for target in _TARGETS.value if target not in CHIPS]
    if unknown:
        raise InputError(f"--targets={','.join(unknown)}: known are {', '.join(CHIPS)}")
    # JAX gives the CUDA compiler up where it looks for a GPU and finds none.
    jax.config.update("jax_platforms", "cpu")
    config = read_settings(_Model).load_config()
    programs = {"baseline": SinkMask.full(config), "mask": read_mask(_MASK.value, config)[0]}
    work = [
        (target, length, attention, program)
        for target in _TARGETS.value
        for length in lengths
        for attention in _names(target, length, config, xla_lengths)
        for program in programs
    ]
    records = _read(config, programs)
    done = {tuple(record["work"]) for record in records}
    for item in tqdm([item for item in work if item not in done], desc="compiling"):
        target, length, attention, program = item
        new = [
            {"work": item, **record}
            for record in _records(config, programs[program], target, length, attention)
        ]
        records += new
        if _OUTPUT.value is not None:
            with open(_OUTPUT.value, "a") as file:
                file.write("".join(json.dumps(record) + "\n" for record in new))
    console = terminal.console()
    for target in _TARGETS.value:
        terminal.print_table(console, _table(target, records, programs["mask"]))


def _read(config: sinkjax.LlamaConfig, programs: Mapping[str, SinkMask]) -> list[dict[str, Any]]:
    """The records that --output holds already."""
    if _OUTPUT.value is None or not pathlib.Path(_OUTPUT.value).exists():
        return []
    records = [json.loads(line) for line in pathlib.Path(_OUTPUT.value).read_text().splitlines()]
    wanted = config, flags.FLAGS.dtype
    digests = {name: mask.digest for name, mask in programs.items()}
    for record in records:
        held = sinkjax.LlamaConfig.from_dict(record["config"]), record["dtype"]
        if held != wanted or record["mask_digest"] != digests[record["work"][-1]]:
            raise InputError(
                f"--output={_OUTPUT.value} holds another model or mask; give a new file"
            )
    return records


def _names(
    target: str, length: int, config: sinkjax.LlamaConfig, xla_lengths: list[int]
) -> list[str]:
    """What computes attention: the chip's kernel, where it can, and XLA where that is asked for."""
    platform = target_device(target).platform
    dtype = jnp.dtype(flags.FLAGS.dtype)
    kernel = choose_attention("auto", platform, 1, [length], config, dtype)[length].name
    return list(dict.fromkeys([kernel, *(["xla"] if length in xla_lengths else [])]))


def _records(
    config: sinkjax.LlamaConfig, mask: SinkMask, target: str, length: int, attention: str
) -> list[dict[str, Any]]:
    """Compiles prefill and decode, and reads a record of each."""
    # The sort of tokens for top-k and top-p has no matrix product and takes XLA's TPU compiler four
    # fifths of its time. All other ways to draw are there.
    with mock.patch.object(sampling, "_filtered", sampling._plain):
        program = compile_shapes(
            config,
            mask,
            jnp.dtype(flags.FLAGS.dtype),
            prefill_lengths=[length],
            max_length=length,
            layers="scanned",
            attention=attention,
            device=target_device(target),
        )
    return inspect_program(program)


def _table(target: str, records: list[dict[str, Any]], mask: SinkMask) -> Table:
    chip = CHIPS[target]
    own = [record for record in records if record["work"][0] == target]
    rows, shown = [], {}
    for record in sorted(own, key=_place):
        (_, length, _, program), stage = record["work"], record["name"].split()[0]
        what = stage, length, record["attention"]
        if (what, program) in shown:  # decoding, beside another attention of the prompt
            continue
        seconds, bound = shown[what, program] = _time(record, chip)
        base, _ = shown[what, "baseline"]
        total, peak = record["compiled"]["total"], record["memory"]["peak"]
        rows.append(
            (
                f"{stage} {formats.count(length)}",
                record["attention"] if stage == "prefill" else "-",
                program,
                formats.scaled(total["operations"]),
                formats.size(total["parameters"] + total["cache"]),
                formats.size(record["memory"]["temporary"]),
                formats.size(peak) + ("" if peak <= chip.memory else ", TOO MUCH"),
                f"{1000 * seconds:.4g}",
                bound,
                "" if program == "baseline" else f"{base / seconds:.2f}",
            )
        )
    return Table(
        title=f"{flags.FLAGS.model} in {flags.FLAGS.dtype} on {target}, one row: COMPUTED, NOT "
        "MEASURED",
        columns=(
            *("", "attention", "program", "FLOPs", "parameters\nand cache", "temporary"),
            *("memory\nin all", "ms at\nleast", "bound\nby", "times\nas fast"),
        ),
        rows=rows,
        notes=(*_notes(target, chip, own), f"The mask: {mask}"),
        labels=3,
    )


def _place(record: Mapping[str, Any]) -> tuple:
    """Orders by length, then prefill first, a kernel before `xla`, the baseline before the mask."""
    _, length, attention, program = record["work"]
    return length, record["name"] == "decode", attention == "xla", program != "baseline"


def _time(record: Mapping[str, Any], chip: Chip) -> tuple[float, str]:
    """The least seconds by published figures, and which of them is the bound."""
    total = record["compiled"]["total"]
    return chip.bound(Limit(total["operations"], total["parameters"] + total["cache"]))


def _notes(target: str, chip: Chip, records: list[dict[str, Any]]) -> Iterator[str]:
    yield (
        f"{target} as published: {formats.scaled(chip.multiply)}FLOP/s in bfloat16, "
        f"{formats.size(chip.read)}/s, {formats.size(chip.memory)} of memory. ms at least: the "
        "longer of FLOPs by the one and bytes by the other; nothing ran."
    )
    kernels = {r["attention"] for r in records if r["kernel"]["operations"]}
    if kernels:
        computed, needed = (
            sum(r["kernel"][name] for r in records) for name in ("operations", "needed")
        )
        yield (
            f"FLOPs of {', '.join(sorted(kernels))} are counted from the blocks that it "
            f"computes, not read from XLA: {formats.percent(1 - needed / computed)} of them, over "
            "all rows, fall on pairs that the mask hides."
        )
    yield (
        "Temporary: beside arguments and results. Layers are compiled as one loop, which in "
        "decoding copies what it goes over."
    )
    if uncounted := sorted({name for r in records for name in r["uncounted"]}):
        yield f"NOT COUNTED: {', '.join(uncounted)}"


if __name__ == "__main__":
    cli.run(main)
