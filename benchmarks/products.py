"""One-row products by form: how fast XLA reads a weight, by how it is stored and multiplied.

  python -m benchmarks.products
  python -m benchmarks.products --batch_sizes=8 --shapes=576x1536,2048x2048

A decode step reads every weight once for a few rows, so its time is that of reading memory, and the
form of each product decides how near to it the program comes. Every form multiplies `--batch_sizes`
rows by many weights of one shape, together larger than the caches, in one program; forms are timed
in turns, so that all see the same machine. Shown is the median rate of each, in GB/s of weights,
and its ratio to `x @ w`. The last form is what `sinkjax.compile` chooses, under its options.
"""

import statistics
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from absl import flags

from sinkjax.attention.products import CpuProducts
from sinkjax.cli import flags as cli
from sinkjax.cli import terminal
from sinkjax.errors import InputError, each
from sinkjax.programs.options import CPU_OPTIONS
from sinkjax.report.table import Table

_ROWS = flags.DEFINE_integer(
    "batch_sizes", 1, "Rows that are multiplied: the batch of a decode step."
)
_SHAPES = flags.DEFINE_list(
    "shapes",
    ["576x576", "576x960", "576x1536", "1536x576", "576x3072", "576x49152"],
    "Inputs x outputs of the weights; the default has those of smollm2-135m.",
)
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Times that each form is timed.")
_BYTES = flags.DEFINE_integer("bytes", 150_000_000, "Bytes of weights in a program, at least.")

# name: (whether the weight is stored [out, in], product, XLA's options)
_FORMS: dict[str, tuple[bool, Callable[[jax.Array, jax.Array], jax.Array], Mapping | None]] = {
    "x @ w [in, out]": (False, lambda x, w: x @ w, None),
    "bd,fd->bf [out, in]": (True, lambda x, w: jnp.einsum("bd,fd->bf", x, w), None),
    "fd,bd->fb [out, in]": (True, lambda x, w: jnp.einsum("fd,bd->fb", w, x).T, None),
    "as programs do": (True, lambda x, w: CpuProducts().project(x[None], w)[0][0], CPU_OPTIONS),
}


def main() -> None:
    rows = []
    for shape in each(_SHAPES.value, _shape):
        rates = _rates(*shape)
        base = statistics.median(rates["x @ w [in, out]"])
        for form, samples in rates.items():
            median = statistics.median(samples)
            spread = f"{min(samples):.1f} to {max(samples):.1f}"
            name = f"{shape[0]} x {shape[1]}"
            rows.append((name, form, f"{median:.1f}", spread, f"{median / base:.2f}"))
    terminal.print_table(
        terminal.console(),
        Table(
            title=f"{_ROWS.value} row(s) by a float32 weight, GB/s of weights",
            columns=("inputs x outputs", "form", "median", "least to most", "to x @ w"),
            rows=tuple(rows),
            labels=2,
        ),
    )


def _shape(text: str) -> tuple[int, int]:
    inputs, _, outputs = text.partition("x")
    if not (inputs.isdecimal() and outputs.isdecimal() and int(inputs) and int(outputs)):
        raise InputError(f"--shapes={text}: write inputs x outputs, such as 576x1536")
    return int(inputs), int(outputs)


def _rates(inputs: int, outputs: int) -> dict[str, list[float]]:
    """Samples of every form, in GB/s."""
    count = max(2, -(-_BYTES.value // (4 * inputs * outputs)))
    programs = {name: _program(name, inputs, outputs, count) for name in _FORMS}
    samples: dict[str, list[float]] = {name: [] for name in _FORMS}
    for _ in range(_ROUNDS.value):
        for name, run in programs.items():
            start = time.perf_counter()
            run().block_until_ready()
            seconds = time.perf_counter() - start
            samples[name].append(4 * inputs * outputs * count / seconds / 1e9)
    return samples


def _program(name: str, inputs: int, outputs: int, count: int) -> Callable[[], jax.Array]:
    """Products with `count` weights, each waiting for the one before, as layers do."""
    transposed, product, options = _FORMS[name]
    shape = (outputs, inputs) if transposed else (inputs, outputs)
    weights = [jnp.full(shape, 1e-3, jnp.float32) for _ in range(count)]
    x = jnp.ones((_ROWS.value, inputs), jnp.float32)

    def chain(x: jax.Array, weights: list[jax.Array]) -> jax.Array:
        y = jnp.zeros((x.shape[0], outputs), jnp.float32)
        for w in weights:
            y = product(x + 1e-30 * y[:, :1], w)
        return y

    compiled = jax.jit(chain).lower(x, weights).compile(compiler_options=options and dict(options))
    compiled(x, weights).block_until_ready()
    return lambda: compiled(x, weights)


if __name__ == "__main__":
    cli.run(main, renamed={"rows": "batch_sizes", "samples": "rounds"})
