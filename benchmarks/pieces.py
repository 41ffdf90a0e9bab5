"""A long prompt in pieces beside the same prompt at once: logits, memory and time.

  python -m benchmarks.pieces
  python -m benchmarks.pieces --lengths=32768 --mask="L0-29: 3f 3w(4,1024) 3s(first)"

Where the prompt is longer than the model's context, that is set to the prompt. Logits are the next
token's after the whole prompt; how far they differ is shown beside the largest. Memory is by how
much higher the process's resident memory stood at most than before (VmHWM, so on Linux alone): what
compiling takes and the parameters are left out. Each way runs once, so of its seconds no more than
the order of size is to be relied on.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx

import sinkjax
from sinkjax.cli import flags as cli
from sinkjax.cli import terminal
from sinkjax.cli.settings import define_settings, numbers, read_settings
from sinkjax.cli.tool import ShapeSettings
from sinkjax.models.abstract import abstract_model, fill_model
from sinkjax.programs.options import Choice, choose
from sinkjax.report.formats import size
from sinkjax.report.table import Table
from sinkjax.studies.candidates import fills_of, read_mask
from sinkjax.studies.timing.memory import resident_rise
from sinkjax.studies.timing.pairs import Call

define_settings(ShapeSettings)
_LENGTHS = flags.DEFINE_list("lengths", ["4096"], "Tokens of the prompt.")
_PIECE = flags.DEFINE_integer("piece", 512, "Tokens of a piece.", 1)
_MASKS = flags.DEFINE_multi_string(
    "mask", [], "A mask beside the baseline: its name, file or text."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the prompt's tokens and of random weights.", 0)

_Run = Callable[[], jax.Array]  # gives the logits [1, V] after a prompt


def main() -> None:
    settings = read_settings(ShapeSettings)
    model, rows = settings.load(_SEED.value), []
    for length in numbers("lengths", _LENGTHS.value, int):
        longer = _with_context(model, length)
        models = {"baseline": longer}
        for text in _MASKS.value:
            mask, files = read_mask(text, longer.config)
            models[text] = sinkjax.specialize(longer, mask, fills=fills_of(files).get(mask))
        rng = np.random.default_rng(_SEED.value)
        tokens = rng.integers(model.config.vocab_size, size=(1, length)).astype(np.int32)
        rows += [_row(name, model, tokens) for name, model in models.items()]
    columns = ("tokens", "", "at once", "memory (B)", "in pieces", "memory (B)", "differ", "of")
    notes = (
        f"{settings.model} in {settings.dtype}, random tokens, pieces of {_PIECE.value}. Differ: "
        "the logits after the prompt at most, of the largest one.",
    )
    table = Table("A prompt at once, and in pieces", columns, rows, notes, 2)
    terminal.print_table(terminal.console(), table)


def _with_context(model: sinkjax.Llama, length: int) -> sinkjax.Llama:
    """The same arrays in a model that is made for at least so many tokens."""
    config = dataclasses.replace(model.config, max_length=max(length, model.config.max_length))
    arrays = dict(nnx.to_flat_state(nnx.state(model)))
    abstract = abstract_model(config, model.embedding.dtype)
    return fill_model(abstract, lambda path: arrays[path].get_value())


def _row(name: str, model: sinkjax.Llama, tokens: np.ndarray) -> tuple[str, ...]:
    at_once, *cells = _measured(_at_once(model, tokens))
    in_pieces, *more = _measured(_in_pieces(model, tokens))
    difference, largest = np.abs(in_pieces - at_once).max(), np.abs(at_once).max()
    return str(tokens.shape[1]), name, *cells, *more, f"{difference:.1e}", f"{largest:.1f}"


def _measured(run: _Run) -> tuple[np.ndarray, str, str]:
    """What it gives, and the time and the memory that it took."""
    given = []

    def timed() -> None:
        start = time.perf_counter()
        given.extend([np.asarray(run()), time.perf_counter() - start])

    risen = resident_rise(Call(timed))
    logits, seconds = given
    return logits, f"{seconds:.1f} s", "-" if risen is None else size(risen)


def _at_once(model: sinkjax.Llama, tokens: np.ndarray) -> _Run:
    prefill, lengths, _ = _prefill(model, tokens, tokens)
    return lambda: prefill(model, tokens, lengths, lengths)[0]


def _in_pieces(model: sinkjax.Llama, tokens: np.ndarray) -> _Run:
    """Runs pieces as `sinkjax.programs.generate` does: the first is the short one."""
    length, piece = tokens.shape[1], min(_PIECE.value, tokens.shape[1])
    first, *others = np.split(tokens, range((length - 1) % piece + 1, length, piece), axis=1)
    prefill, lengths, cache = _prefill(model, tokens, first)
    of_first = np.full(1, first.shape[1], np.int32)

    def further(model, tokens, cache, lengths):
        return model.extend(tokens, cache, lengths=lengths, products=_choice().products)

    extend = others and _compiled(further, model, others[0], cache, lengths, donate=(2,))

    def run() -> jax.Array:
        logits, cache = prefill(model, first, of_first, lengths)
        for tokens in others:
            logits, cache = extend(model, tokens, cache, lengths)
        return logits

    return run


def _prefill(
    model: sinkjax.Llama, tokens: np.ndarray, first: np.ndarray
) -> tuple[jax.stages.Compiled, np.ndarray, Any]:
    """The program of a prompt's first tokens, the prompt's length [1], the shapes of the cache."""
    length = tokens.shape[1]
    lengths = np.full(1, length, np.int32)

    def prefill(model, tokens, lengths, final):
        how = {"max_length": length, "products": _choice().products}
        return model.prefill(tokens, lengths=lengths, final_lengths=final, **how)

    program = _compiled(prefill, model, first, lengths, lengths)
    return program, lengths, program.out_info[1]


@functools.cache
def _choice() -> Choice:
    return choose(jax.default_backend(), 1)


def _compiled(function: Callable, *arguments: Any, donate: tuple[int, ...] = ()) -> Any:
    """Compiles as `sinkjax.compile` compiles prompts."""
    lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
    return lowered.compile(compiler_options=dict(_choice().prompt_options))


if __name__ == "__main__":
    cli.run(main)
