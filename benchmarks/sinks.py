"""Times measure_sinks against transformers' attention maps, side by side, and compares the scores.

  python -m benchmarks.sinks
  python -m benchmarks.sinks --lengths=256,512,1024,2048 --rounds=21 --output=sinks.jsonl

Both take the same tokens of the same weights in float32, by turns in one process and on as many
threads. transformers runs with eager attention and output_attentions=True, without the output head
and without a cache; it only hands over the maps, and making scores of them is not timed.
measure_sinks gives every definition's scores. What either compiles or warms up goes before.

The ratio is the median over rounds of transformers' time by measure_sinks' time in the same round:
above 1, measure_sinks is faster. Its interval resamples rounds. Other work on the machine slows
both, and transformers' waiting threads more: the load average is printed beside the times, and an
idle machine is best.

Exits with status 1 where a score differs from what the maps give by more than 1e-5.
"""

import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

import sinkjax
from benchmarks.processors import keep_to_processors
from sinkjax.cli import flags as cli
from sinkjax.cli import terminal
from sinkjax.cli.settings import numbers
from sinkjax.environment import environment
from sinkjax.errors import InputError
from sinkjax.instruments.sinks import DEFAULT_TAIL
from sinkjax.report.table import Table
from sinkjax.studies import texts as inputs
from sinkjax.studies.resampling import LEVEL, RESAMPLES

_MODEL = flags.DEFINE_string(
    "model", "smollm2-135m", "Anything that sinkjax.load takes; transformers gets its weights."
)
_LENGTHS = flags.DEFINE_list("lengths", ["512", "1024"], "Tokens, one prompt of each length.")
_ROUNDS = flags.DEFINE_integer("rounds", 11, "Rounds; in each, both are timed.", lower_bound=3)
_THREADS = flags.DEFINE_integer("threads", 2, "Threads, and processors, of either side.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the text's places and of the resampling.", 0)
_OUTPUT = flags.DEFINE_string(
    "output", None, "New file for the raw samples: JSON lines, one a length."
)

_TOLERANCE = 1e-5
_TARGETS = {512: 1.0, 1024: 2.0}  # the least ratio that the project sets itself


def main() -> int:
    lengths = numbers("lengths", _LENGTHS.value, int)
    output = _new_file(_OUTPUT.value)
    keep_to_processors(_THREADS.value)
    model = sinkjax.load(_MODEL.value)
    theirs = _transformers_model(model)
    tokenizer = sinkjax.load_tokenizer(_MODEL.value)
    text = inputs.read_text(inputs.CHOOSE, 1, _SEED.value)
    text.check(tokenizer, "never", dict.fromkeys(lengths, 1))
    records = []
    for length in lengths:
        tokens = text.at_length(tokenizer, "never", length, 1)
        records.append({"model": _MODEL.value, **_measure(model, theirs, tokens)})
        if output:
            with output.open("a") as file:
                file.write(json.dumps(records[-1], allow_nan=False) + "\n")
    terminal.print_table(terminal.console(), _table(records))
    return int(any(record["largest_error"] > _TOLERANCE for record in records))


def _new_file(name: str | None) -> pathlib.Path | None:
    """Makes the file of the raw samples, before any long work."""
    if name is None:
        return None
    path = pathlib.Path(name)
    try:
        path.touch(exist_ok=False)
    except OSError as error:
        raise InputError(
            f"--output={name} cannot be made: {error.strerror}; give a new file in a folder that "
            "can be written"
        ) from error
    return path


def _transformers_model(model: sinkjax.Llama) -> Callable[[np.ndarray], Any]:
    """transformers without its output head, on the same weights: tokens to attention maps."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise InputError(
            "PyTorch is needed to run transformers: install what tests need, pip install '.[test]'"
        ) from error

    torch.set_num_threads(_THREADS.value)
    with tempfile.TemporaryDirectory() as folder:
        sinkjax.save_safetensors(model, folder)
        theirs = transformers.AutoModel.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        ).eval()

    def maps(tokens: np.ndarray) -> Any:
        with torch.inference_mode():
            ids = torch.as_tensor(tokens, dtype=torch.long)
            return theirs(ids, output_attentions=True, use_cache=False).attentions

    return maps


def _measure(
    model: sinkjax.Llama, theirs: Callable[[np.ndarray], Any], tokens: np.ndarray
) -> dict[str, Any]:
    """The record of one prompt, int [1, T]: largest error and raw seconds."""

    def ours() -> sinkjax.HeadStats:
        return jax.block_until_ready(sinkjax.measure_sinks(model, jnp.asarray(tokens)))

    start = time.perf_counter()
    stats = ours()
    first = time.perf_counter() - start
    wanted = _scores_of_maps(theirs(tokens))
    error = max(
        float(np.abs(np.asarray(stats.score(name))[0] - values).max())
        for name, values in wanted.items()
    )
    functions = {"sinkjax": ours, "transformers": lambda: theirs(tokens)}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    load = [os.getloadavg()[0]]
    length = tokens.shape[1]
    for number in tqdm(range(_ROUNDS.value), f"{length} tokens", unit="round", leave=False):
        for name in list(functions)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            result = functions[name]()
            seconds[name].append(time.perf_counter() - start)
            del result  # giving memory back belongs to nobody's time
    load.append(os.getloadavg()[0])
    return {
        "length": length,
        "largest_error": error,
        "first_call_s": first,
        "seconds": seconds,
        "ratio": _ratio(seconds),
        "threads": _THREADS.value,
        "load_average": load,
        "seed": _SEED.value,
        "environment": environment(),
    }


def _scores_of_maps(maps: Any) -> dict[str, np.ndarray]:
    """Scores on the first token, [L, N] by definition, of L torch [1, N, T, T] attention maps.

    Without log-odds, of which maps whose shares round to 1 hold no trace.
    """
    share = np.stack([layer[0, :, :, 0].numpy() for layer in maps])  # [L, N, T]
    later = share[..., 1:]
    uniform = 1 / np.arange(2, share.shape[-1] + 1)
    return {
        "mean": share.mean(axis=-1, dtype=np.float64),
        "mean_excl_first": later.mean(axis=-1, dtype=np.float64),
        "last": later[..., -1],
        "tail": later[..., -DEFAULT_TAIL:].mean(axis=-1, dtype=np.float64),
        "min": later.min(axis=-1),
        "excess": (later - uniform).mean(axis=-1, dtype=np.float64),
    }


def _ratio(seconds: dict[str, list[float]]) -> dict[str, float]:
    """The median ratio of a round, with the percentile bootstrap's interval over rounds."""
    ratios = np.divide(seconds["transformers"], seconds["sinkjax"])
    rng = np.random.default_rng(_SEED.value)
    resampled = np.median(rng.choice(ratios, (RESAMPLES, ratios.size)), axis=1)
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"value": float(np.median(ratios)), "low": float(low), "high": float(high)}


def _table(records: list[dict[str, Any]]) -> Table:
    rows = []
    for record in records:
        ratio, target = record["ratio"], _TARGETS.get(record["length"])
        met = "" if target is None else f"≥ {target:g}: {'met' if ratio['low'] >= target else 'no'}"
        ours, theirs = (np.median(record["seconds"][name]) for name in ("sinkjax", "transformers"))
        rows.append(
            (
                f"{record['length']}",
                f"{ours:.3f}",
                f"{theirs:.3f}",
                f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]",
                met,
                f"{record['largest_error']:.1e}",
                f"{record['first_call_s']:.1f}",
            )
        )
    loads = [load for record in records for load in record["load_average"]]
    return Table(
        title=f"Sink scores of {_MODEL.value}: measure_sinks and transformers' attention maps",
        columns=(
            "tokens",
            "sinkjax s",
            "transformers s",
            f"times as fast [{LEVEL:.0%}]",
            "target",
            "largest error",
            "first call s",
        ),
        rows=tuple(rows),
        notes=(
            f"Medians of {_ROUNDS.value} rounds on {_THREADS.value} threads; the first call "
            f"compiles. Load average of the machine {min(loads):.1f} to {max(loads):.1f}.",
        ),
    )


if __name__ == "__main__":
    cli.run(main, renamed={"samples": "rounds"})
