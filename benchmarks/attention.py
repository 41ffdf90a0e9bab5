"""One layer's attention over a prompt: blocks of queries, blocks of keys too, PyTorch's SDPA.

  python -m benchmarks.attention
  python -m benchmarks.attention --lengths=4096 --heads=32 --kv_heads=8 --rounds=5
  python -m benchmarks.attention --lengths=8000 --heads=3 --kv_heads=1 --paths='window(4,4256)'

Random queries, keys and values in float32, one row, on all cores; forms are timed by turns, and a
ratio is the median over rounds, its interval from resampled rounds. The forms in JAX are compiled
with the options that `sinkjax.compile` takes for prompts; blocks of keys are left out where
programs have none: up to 1,024 tokens, and in windows of fewer than 512. `its products alone` is
what blocks of keys come to without a softmax: the least that XLA's library of products leaves. SDPA
is left out without PyTorch. Beside a window of --paths stands full attention in place of both.
GFLOP/s are of what the path needs at least.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from sinkjax.accounts.formulas import needed_pairs
from sinkjax.attention.blocks import group_keys, group_queries, scores, weighted_sums
from sinkjax.attention.kernels import Xla
from sinkjax.attention.products import CpuProducts
from sinkjax.attention.stream import STREAMED
from sinkjax.cli import flags as cli
from sinkjax.cli import terminal
from sinkjax.cli.settings import numbers
from sinkjax.environment import num_threads
from sinkjax.errors import InputError, about
from sinkjax.masks.paths import Full, Window, parse_path
from sinkjax.programs.options import CPU_OPTIONS, CPU_PROMPT_OPTIONS
from sinkjax.report.table import Table
from sinkjax.studies.timing.pairs import Call, interleave, ratio, summary
from sinkjax.studies.timing.tables import show_ratio

_LENGTHS = flags.DEFINE_list("lengths", ["512", "1024", "4096"], "Tokens of the prompt.")
_HEADS = flags.DEFINE_integer("heads", 9, "Query heads; the default is smollm2-135m's.", 1)
_KV_HEADS = flags.DEFINE_integer("kv_heads", 3, "Key/value heads, a divisor of heads.", 1)
_HEAD_DIM = flags.DEFINE_integer("head_dim", 64, "Size of a head.", 1)
_PATH = flags.DEFINE_string("paths", "full", "Path of the heads: full, or a window.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Samples of each form.", 3)

_FORMS = {
    "blocks of queries": (Xla(), CPU_PROMPT_OPTIONS),
    "the same, registers of 256 bits": (Xla(), CPU_OPTIONS),
    "blocks of keys too": (Xla(streams=True), CPU_PROMPT_OPTIONS),
}
_FIRST, *_ = _FORMS
_BESIDE = "full attention, as programs do"


def main() -> None:
    with about("paths", _PATH.value):
        path = parse_path(_PATH.value, (Full.kind, Window.kind))
    if _HEADS.value % _KV_HEADS.value:
        raise InputError(
            f"--heads={_HEADS.value} is no multiple of --kv_heads={_KV_HEADS.value}: give one"
        )
    lengths = numbers("lengths", _LENGTHS.value, int)
    if any(length < 1 for length in lengths):
        raise InputError(f"--lengths={','.join(_LENGTHS.value)}: write whole numbers above 0")
    rows = [row for length in lengths for row in _rows(length, path)]
    shape = f"{_HEADS.value} heads in {_KV_HEADS.value} groups, of size {_HEAD_DIM.value}"
    note = f"Medians of {_ROUNDS.value} rounds after 1 of warm-up, on {num_threads()} threads."
    columns = ("tokens", "form", "median ms", "GFLOP/s", f"times as fast as\n{_FIRST} [95%]")
    terminal.print_table(
        terminal.console(), Table(f"Attention on {path}, {shape}", columns, rows, (note,), 2)
    )


def _rows(length: int, path: Full | Window) -> list[tuple[str, ...]]:
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.normal(size=(1, length, heads, _HEAD_DIM.value)).astype(np.float32)
        for heads in (_HEADS.value, _KV_HEADS.value, _KV_HEADS.value)
    )
    calls = {
        name: _in_jax(kernel, options, path, q, k, v)
        for name, (kernel, options) in _FORMS.items()
        if not kernel.streams or kernel.streamed(path, length)
    }
    if path != Full():
        calls[_BESIDE] = _in_jax(Xla(streams=True), CPU_PROMPT_OPTIONS, Full(), q, k, v)
    else:
        calls["its products alone"] = _compiled(_products, CPU_PROMPT_OPTIONS, q, k, v)
    if importlib.util.find_spec("torch") and path == Full():
        calls["PyTorch SDPA"] = _in_torch(q, k, v)
    samples = interleave(calls, rounds=_ROUNDS.value, warmup=1, seed=0)
    rows = []
    for name, of_form in samples.items():
        pairs = needed_pairs(Full() if name == _BESIDE else path, length)
        needed = 4 * pairs * _HEADS.value * _HEAD_DIM.value
        median = summary(of_form.seconds)["median"]
        faster = show_ratio(ratio(samples[_FIRST].seconds, of_form.seconds), 2)
        cells = (f"{1e3 * median:.2f}", f"{needed / median / 1e9:.0f}", faster)
        rows.append((str(length), name, *cells))
    return rows


def _in_jax(kernel: Xla, options: Any, path: Full | Window, *heads: np.ndarray) -> Call:
    attend = functools.partial(kernel.attend, path=path, products=CpuProducts())
    return _compiled(attend, options, *heads)


def _products(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Scores, and sums of values by them, of every block of queries and each of keys up to it."""
    settle, length = CpuProducts().settle, k.shape[1]
    block = min(STREAMED, length)
    queries, keys, values = group_queries(q, k.shape[2]), group_keys(k), group_keys(v)
    pairs = [(a, b) for a in range(0, length, block) for b in range(0, a + 1, block)]

    def of_pair(sums: jax.Array, pair: jax.Array) -> tuple[jax.Array, None]:
        cut = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=block)
        q = cut(queries, pair[0], axis=3)
        k, v = (cut(x, pair[1], axis=2) for x in (keys, values))
        return settle(sums + weighted_sums(settle(scores(q, k)), v)), None

    start = jnp.zeros((*queries.shape[:3], block, v.shape[-1]), jnp.float32)
    return jax.lax.scan(of_pair, start, jnp.asarray(pairs, jnp.int32))[0]


def _compiled(attend: Callable[..., jax.Array], options: Any, *heads: np.ndarray) -> Call:
    heads = tuple(map(jnp.asarray, heads))
    compiled = jax.jit(attend).lower(*heads).compile(compiler_options=dict(options))
    return Call(lambda: jax.block_until_ready(compiled(*heads)))


def _in_torch(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> Call:
    import torch

    torch.set_num_threads(num_threads())
    repeats = q.shape[2] // k.shape[2]
    q, k, v = (torch.from_numpy(x).transpose(1, 2).contiguous() for x in (q, k, v))
    k, v = (x.repeat_interleave(repeats, dim=1) for x in (k, v))  # as transformers hands them over
    attend = torch.nn.functional.scaled_dot_product_attention

    def run() -> None:
        with torch.no_grad():
            attend(q, k, v, is_causal=True)

    return Call(run)


if __name__ == "__main__":
    cli.run(main, renamed={"path": "paths"})
