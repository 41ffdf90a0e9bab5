"""Layers compiled each by itself against like layers as one loop: compiling, prefill, decoding.

  python -m benchmarks.layers
  python -m benchmarks.layers --model=shape:smollm2-135m,shape:llama-3.2-1b --lengths=64

The two forms of a program (`--layers` of experiments.generate) are timed by turns: tracing and
compiling everything, one prefill, and greedy decoding after it. The unrolled program takes part
twice where it runs, so that its ratio to itself tells how far the others are to be relied on. A
ratio is the median over rounds, its interval resamples them. Weights are random for shape:NAME,
which takes as long as trained ones.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import sinkjax
from sinkjax.cli import flags as cli
from sinkjax.cli import terminal
from sinkjax.cli.settings import define_settings, read_settings
from sinkjax.cli.tool import ShapeSettings
from sinkjax.environment import num_threads
from sinkjax.errors import InputError, Problem, each
from sinkjax.models.abstract import abstract_model
from sinkjax.programs.compile import LAYERS
from sinkjax.report.table import Table
from sinkjax.studies.settings import setting
from sinkjax.studies.timing.measured import AGAIN
from sinkjax.studies.timing.pairs import Call, Samples, interleave, ratio, summary
from sinkjax.studies.timing.stages import decode_call, prefill_call
from sinkjax.studies.timing.tables import show_ratio


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Models(ShapeSettings):
    model: tuple[str, ...] = setting(
        ("smollm2-135m",), "Models, or shapes, with commas between them, as for `sinkjax inspect`."
    )


define_settings(_Models)
_BATCH = flags.DEFINE_integer("batch_sizes", 1, "Rows of a batch.", 1)
_LENGTH = flags.DEFINE_integer("lengths", 512, "Tokens of every row's prompt.", 1)
_GENERATED = flags.DEFINE_integer("generated", 16, "Tokens that are decoded after the prompt.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 11, "Samples of each prefill and decode.", 3)
_COMPILED = flags.DEFINE_integer("compile_rounds", 3, "Samples of each compilation.", 3)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of tokens, order, resamples and weights.", 0)

_UNROLLED, _SCANNED = LAYERS


def main() -> None:
    if jax.config.jax_compilation_cache_dir:
        raise InputError("JAX_COMPILATION_CACHE_DIR is set: unset it, or compiling is not timed")
    settings = read_settings(_Models)
    if not settings.model:
        raise InputError(Problem("model", "", "name at least one model"))
    models = [dataclasses.replace(settings, model=name) for name in settings.model]
    each(models, _check)
    rows = [row for chosen in models for row in _rows(chosen)]
    note = (
        f"Medians of {_ROUNDS.value} rounds after 2 of warm-up, of compiling {_COMPILED.value}, on "
        f"{num_threads()} threads. {_BATCH.value} row(s), {flags.FLAGS.dtype}."
    )
    columns = ("model", "", *LAYERS, "scanned to\nunrolled", "unrolled to\nitself")
    table = Table("Layers each by itself, and like ones as one loop", columns, rows, (note,), 2)
    terminal.print_table(terminal.console(), table)


def _check(chosen: _Models) -> None:
    context = chosen.load_config().max_length
    if _LENGTH.value + _GENERATED.value > context:
        raise InputError(
            f"--lengths={_LENGTH.value} and --generated={_GENERATED.value} are more than the "
            f"context of --model={chosen.model}, {context} tokens; give less"
        )


def _rows(chosen: _Models) -> list[tuple[str, ...]]:
    """Times how long each form of one model takes to compile, to prefill and to decode."""
    compiled = functools.partial(
        sinkjax.compile,
        batch_size=_BATCH.value,
        prefill_lengths=(_LENGTH.value,),
        max_length=_LENGTH.value + _GENERATED.value,
    )
    shapes = abstract_model(chosen.load_config(), jnp.dtype(chosen.dtype))
    compiling = {form: Call(functools.partial(compiled, shapes, layers=form)) for form in LAYERS}
    rows = [_row(chosen.model, "compiling", "s", _timed(compiling, _COMPILED.value, warmup=0))]

    model = chosen.load(_SEED.value)
    programs = {form: compiled(model, layers=form) for form in LAYERS}
    rng, shape = np.random.default_rng(_SEED.value), (_BATCH.value, _LENGTH.value)
    tokens = rng.integers(model.config.vocab_size, size=shape).astype(np.int32)
    prefill = {form: prefill_call(program, tokens) for form, program in programs.items()}
    decode = {
        form: decode_call(program, tokens, _GENERATED.value) for form, program in programs.items()
    }
    stages = {f"prefill {_LENGTH.value}": prefill, f"decode {_GENERATED.value}": decode}
    for what, calls in stages.items():
        samples = _timed({**calls, AGAIN: calls[_UNROLLED]}, _ROUNDS.value, warmup=2)
        rows.append(_row(chosen.model, what, "ms", samples))
    return rows


def _timed(calls: dict[str, Call], rounds: int, warmup: int) -> dict[str, Samples]:
    return interleave(calls, rounds=rounds, warmup=warmup, seed=_SEED.value)


def _row(name: str, what: str, unit: str, samples: dict[str, Samples]) -> tuple[str, ...]:
    scale = {"s": 1, "ms": 1e3}[unit]

    def held(form: str) -> str:
        if form not in samples:
            return "-"
        slower = ratio(samples[form].seconds, samples[_UNROLLED].seconds, _SEED.value)
        return show_ratio(slower, 2)

    medians = (summary(samples[form].seconds)["median"] for form in LAYERS)
    times = (f"{scale * median:.1f} {unit}" for median in medians)
    return name, what, *times, held(_SCANNED), held(AGAIN)


if __name__ == "__main__":
    cli.run(main, renamed={"batch_size": "batch_sizes", "prompt_length": "lengths"})
