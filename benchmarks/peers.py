"""Times the baseline beside other engines, by turns in one process, on the same weights and tokens.

  python -m benchmarks.peers
  python -m benchmarks.peers --lengths=4096 --stages=prefill --rounds=3
  python -m benchmarks.peers --model=shape:llama-3.2-1b --engines=sdpa,llama.cpp

Needs the extra `peers`: pip install -e '.[peers]'. Engines are transformers with PyTorch's SDPA
(`sdpa`) and eager attention (`eager`) in float32, both again in bfloat16 (`sdpa-bfloat16`,
`eager-bfloat16`), and llama.cpp on a float32 GGUF file with its default cache of float16
(`llama.cpp`). All use as many threads.

First every engine continues the prompts greedily, and how many tokens are those of sinkjax is
printed: all of them, where float32 allows; an engine in float32 that differs where sinkjax's two
likeliest logits lie further apart than --tolerance fails the run.

A prefill ends with the first new token on the host; a decode is all of its steps. Rates of the
machine and the baseline against itself are as in experiments.timing.
"""

import contextlib
import dataclasses
import importlib.metadata
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

import sinkjax
from benchmarks.engines import Engine, LlamaCpp, Sinkjax, Transformers
from benchmarks.processors import keep_to_processors
from sinkjax.accounts.limits import Limit, decode_limit, prefill_limit
from sinkjax.cli import flags as cli
from sinkjax.cli import terminal
from sinkjax.cli.settings import define_settings, numbers, read_settings
from sinkjax.cli.tool import ShapeSettings
from sinkjax.environment import environment
from sinkjax.errors import InputError
from sinkjax.masks.mask import SinkMask
from sinkjax.models.digest import model_digest, tokens_digest
from sinkjax.report.table import Table
from sinkjax.studies import texts as inputs
from sinkjax.studies.results import Results, identity, read_records
from sinkjax.studies.timing.machine import machine_calls
from sinkjax.studies.timing.measured import AGAIN, BASELINE, Measured
from sinkjax.studies.timing.pairs import Call, interleave
from sinkjax.studies.timing.study import STAGES
from sinkjax.studies.timing.tables import cell_label, machine_table, show_ratio

define_settings(ShapeSettings)
_ENGINES = flags.DEFINE_list(
    "engines",
    ["sdpa", "eager", "sdpa-bfloat16", "eager-bfloat16", "llama.cpp"],
    "What runs beside sinkjax.",
)
_STAGES = flags.DEFINE_list("stages", list(STAGES), "What is timed, each by itself.")
_BATCHES = flags.DEFINE_list("batch_sizes", ["1"], "Rows of a batch.")
_LENGTHS = flags.DEFINE_list("lengths", ["512"], "Tokens of every row's prompt.")
_STEPS = flags.DEFINE_integer("generated", 16, "Tokens that a decode gives each row.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Samples of each engine, in a cell.", 2)
_WARMUP = flags.DEFINE_integer("warmup", 1, "Runs of each engine before its samples.", 1)
_THREADS = flags.DEFINE_integer("threads", 2, "Threads of every engine.")
_TOLERANCE = flags.DEFINE_float("tolerance", 0.05, "Logits that are closer may swap places.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the text's places, order and resamples.", 0)
_OUTPUT = flags.DEFINE_string("output_dir", "results/peers", "Folder for the records.")

_SETTLE = 0.05  # seconds in which another engine's waiting threads go to sleep
_TRANSFORMERS = {
    "sdpa": ("sdpa", "float32"),
    "eager": ("eager", "float32"),
    "sdpa-bfloat16": ("sdpa", "bfloat16"),
    "eager-bfloat16": ("eager", "bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class _Cell:
    """One record: a stage at a batch size and a length, by every engine."""

    stage: str
    batch_size: int
    prompt_length: int

    @property
    def count(self) -> int:
        """New tokens of each row."""
        return 1 if self.stage == "prefill" else _STEPS.value

    def limit(self, config: sinkjax.LlamaConfig) -> Limit:
        """The limit in float32."""
        mask, rows, length = SinkMask.full(config), self.batch_size, self.prompt_length
        if self.stage == "prefill":
            return prefill_limit(config, mask, rows, length, 4)
        return decode_limit(config, mask, rows, length + (self.count + 1) // 2, 4) * self.count


def main() -> int:
    cells, tokens_of = _cells()
    keep_to_processors(_THREADS.value)
    with _engines() as (model, engines), contextlib.ExitStack() as resources:
        specification = _specification(model)
        results = resources.enter_context(Results(_OUTPUT.value, specification))
        machine = machine_calls()
        with tqdm(total=len(cells) * _ROUNDS.value, unit=" rounds") as bar:
            for cell in cells:
                tokens = tokens_of(cell)
                fields = {**specification, **dataclasses.asdict(cell)}
                fields |= {"kind": "peers", "tokens_sha256": tokens_digest(tokens)}
                bar.set_postfix_str(cell_label(fields), refresh=False)
                record_id = identity(fields)
                if record_id in results:
                    bar.update(_ROUNDS.value)
                    continue
                result = _timed(cell, tokens, model.config, engines, machine, bar.update)
                record = {"id": record_id, **fields, "result": result}
                results.append({**record, "environment": _environment()})
    records = read_records(_OUTPUT.value)[1]
    console = terminal.console()
    for table in (_times_table(records), machine_table(records)):
        terminal.print_table(console, table)
    return int(any(_differences(record) for record in records))


def _cells() -> tuple[list[_Cell], Callable[[_Cell], np.ndarray]]:
    """The cells, and where their prompts come from: text, or chance where there is no tokenizer."""
    batches = numbers("batch_sizes", _BATCHES.value, int)
    lengths = numbers("lengths", _LENGTHS.value, int)
    problems = [
        f"--engines={name}: known are {', '.join((*_TRANSFORMERS, 'llama.cpp'))}"
        for name in _ENGINES.value
        if name not in _TRANSFORMERS and name != "llama.cpp"
    ]
    problems += [
        f"--stages={name}: use {' or '.join(STAGES)}"
        for name in _STAGES.value
        if name not in STAGES
    ]
    problems += [
        f"--{flag.name}={value}: give 1 or more"
        for flag, values in ((_BATCHES, batches), (_LENGTHS, lengths))
        for value in values
        if value < 1
    ]
    if flags.FLAGS.dtype != "float32":
        problems.append(f"--dtype={flags.FLAGS.dtype}: sinkjax is held to float32 here")
    if problems:
        raise InputError(*problems)
    cells = [
        _Cell(stage, batch, length)
        for stage in _STAGES.value
        for length in lengths
        for batch in batches
    ]
    settings = read_settings(ShapeSettings)
    config = settings.load_config()

    def by_chance(cell: _Cell) -> np.ndarray:
        shape = (cell.batch_size, cell.prompt_length)
        return np.random.default_rng(_SEED.value).integers(config.vocab_size, size=shape)

    if settings.is_shape():
        return cells, lambda cell: by_chance(cell).astype(np.int32)
    tokenizer = settings.load_tokenizer()
    text = inputs.read_text(inputs.CHOOSE, max(batches), _SEED.value)
    text.check(tokenizer, "never", dict.fromkeys(lengths, max(batches)))
    return cells, lambda cell: text.at_length(
        tokenizer, "never", cell.prompt_length, cell.batch_size
    )


@contextlib.contextmanager
def _engines() -> Iterator[tuple[sinkjax.Llama, dict[str, Engine]]]:
    """The model, and all that run it, by name; sinkjax as the baseline, first."""
    model = read_settings(ShapeSettings).load(_SEED.value)
    engines: dict[str, Engine] = {BASELINE: Sinkjax(model)}
    with tempfile.TemporaryDirectory() as folder:
        if set(_ENGINES.value) & set(_TRANSFORMERS):
            sinkjax.save_safetensors(model, folder)
        for name in _ENGINES.value:
            if name in _TRANSFORMERS:
                attention, dtype = _TRANSFORMERS[name]
                engine = Transformers(pathlib.Path(folder), attention, dtype, _THREADS.value)
            else:
                engine = LlamaCpp(model, _THREADS.value)
            engines[name] = engine
        yield model, engines


def _specification(model: sinkjax.Llama) -> dict[str, Any]:
    return {
        "experiment": "peers",
        "model": {"name": flags.FLAGS.model, "model_digest": model_digest(model)},
        "engines": list(_ENGINES.value),
        "generated": _STEPS.value,
        "rounds": _ROUNDS.value,
        "warmup": _WARMUP.value,
        "threads": _THREADS.value,
        "seed": _SEED.value,
    }


def _timed(
    cell: _Cell,
    tokens: np.ndarray,
    config: sinkjax.LlamaConfig,
    engines: dict[str, Engine],
    machine: tuple[dict[str, Call], dict[str, float]],
    on_round: Callable[[], Any],
) -> dict[str, Any]:
    """The "result" of a cell's record."""
    agreement = _agreement(tokens, cell.count, engines)
    if cell.stage == "prefill":
        calls = {name: engine.prefill(tokens) for name, engine in engines.items()}
    else:
        calls = {name: engine.decode(tokens, cell.count) for name, engine in engines.items()}
    read_and_multiply, amounts = machine
    load = [os.getloadavg()]
    samples = interleave(
        {**calls, AGAIN: calls[BASELINE], **read_and_multiply},
        rounds=_ROUNDS.value,
        warmup=_WARMUP.value,
        seed=_SEED.value,
        settle=_SETTLE,
        on_round=on_round,
    )
    load.append(os.getloadavg())
    measured = Measured(samples, None, amounts, _SEED.value)
    limit = cell.limit(config)
    made = cell.batch_size * (cell.prompt_length if cell.stage == "prefill" else cell.count)
    return {
        "clock": "host",
        "machine": measured.machine(),
        "load_average": [list(averages) for averages in load],
        "engines": {
            name: {
                "name": engine.name,
                "is_float32": engine.is_float32,
                **measured.program(name, limit, limit, made),
                "agreement": agreement[name],
            }
            for name, engine in engines.items()
        },
        "baseline_again": measured.program(AGAIN, limit, limit, made),
    }


def _agreement(tokens: np.ndarray, count: int, engines: dict[str, Engine]) -> dict[str, Any]:
    """How many greedy tokens of each engine are those of sinkjax, up to each row's first other."""
    ours = engines[BASELINE].greedy(tokens, count)
    agreement = {}
    for name, engine in engines.items():
        same = np.cumprod(engine.greedy(tokens, count) == ours, axis=1).sum(axis=1)
        margins = [
            engines[BASELINE].margin(np.concatenate([tokens[row], ours[row, :first]]))
            for row, first in enumerate(same)
            if first < count and engine.is_float32
        ]
        agreement[name] = {"same": int(same.sum()), "of": ours.size, "margins": margins}
    return agreement


def _differences(record: dict[str, Any]) -> list[str]:
    """Engines in float32 that differ where logits are not close."""
    return [
        engine["name"]
        for engine in record["result"]["engines"].values()
        if max(engine["agreement"]["margins"], default=0.0) > _TOLERANCE.value
    ]


def _environment() -> dict[str, Any]:
    versions = environment()
    for package in ("torch", "cyllama"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {**versions, "glibc_tunables": os.environ.get("GLIBC_TUNABLES", "")}


def _times_table(records: list[dict[str, Any]]) -> Table:
    rows, notes = [], []
    for record in records:
        for index, engine in enumerate(record["result"]["engines"].values()):
            seconds, ratio, agreement = engine["seconds"], engine["ratio"], engine["agreement"]
            share = f"{engine['limit']['share']['value']:.0%}" if engine["is_float32"] else "-"
            shown = "1" if ratio is None else show_ratio(ratio, 2)
            label = "" if index else cell_label(record)
            rows.append(
                (
                    label,
                    engine["name"],
                    f"{1e3 * seconds['median']:.1f}",
                    f"{1e3 * seconds['least']:.1f}",
                    f"{engine['tokens_per_second']:.1f}",
                    share,
                    shown,
                    f"{agreement['same']}/{agreement['of']}",
                )
            )
        notes += [
            f"{cell_label(record)}: {name} DIFFERS where logits are not close."
            for name in _differences(record)
        ]
    return Table(
        title=f"{records[0]['model']['name']}: sinkjax's baseline beside others, float32",
        columns=(
            "batch x tokens",
            "engine",
            "median\nms",
            "least\nms",
            "tokens\na second",
            "limit to\nmedian",
            "time to\nsinkjax's [95%]",
            "same\ntokens",
        ),
        rows=rows,
        notes=(
            f"{records[0]['rounds']} rounds after {records[0]['warmup']} of warm-up, by turns, on "
            f"{records[0]['threads']} threads each; PyTorch runs transformers' model. Limit: bytes "
            "and FLOPs of the step in float32 over the machine's rates. Same: greedy tokens "
            "like sinkjax's, up to a row's first other one.",
            *notes,
        ),
        labels=2,
    )


if __name__ == "__main__":
    cli.run(main, renamed={"prompt_lengths": "lengths"})
