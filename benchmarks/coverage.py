"""How often intervals of a KL from few excerpts cover the mean that they are of.

  python -m benchmarks.coverage
  python -m benchmarks.coverage --measure --mask=tests/masks/earlier/512-gates.json

Of the KL of each of 200 excerpts of a text, n are drawn with replacement, as from a text without
end, and the interval of their mean is made in each of several ways; how often it holds the mean of
all 200 is printed. The KLs are those of benchmarks/coverage.npz, for the mean over all positions,
the last quarter and the 64 tokens after an excerpt; --measure makes that file again, which takes
some five minutes of a core a text, and twice as long for a novel.
"""

import functools
import math
import pathlib

import numpy as np
import scipy.special
from absl import flags

import sinkjax
from sinkjax.cli import flags as cli
from sinkjax.cli import terminal
from sinkjax.instruments.judge import SCORE_FROM, Judge
from sinkjax.report.formats import percent
from sinkjax.report.table import Table
from sinkjax.studies import texts
from sinkjax.studies.costs import GENERATED, late_from
from sinkjax.studies.resampling import LEVEL, RESAMPLES, estimate_kl, expanded_tail
from sinkjax.studies.subject import Subject

MEASURE = flags.DEFINE_bool("measure", False, "Measure the KLs again.")
MASK = flags.DEFINE_string(
    "mask", "tests/masks/earlier/512-gates.json", "Mask whose KLs are measured."
)
RUNS = flags.DEFINE_integer("runs", 4000, "Draws of excerpts.")

FILE = pathlib.Path(__file__).with_suffix(".npz")
COUNTS = (8, 16, 24, 32)
_EXCERPTS, _CHUNK = 200, 25
# The novels have room for 200 excerpts of 512 tokens and those after them, the other texts of 224.
_LENGTHS = {"mansfield-park": 512, "moby-dick": 512}
_NORMAL = float(scipy.special.ndtri((1 + LEVEL) / 2))


def measure(mask_name: str) -> dict[str, np.ndarray]:
    """The mean KL of each excerpt, by text and part: float16 [200]."""
    subject, saved = Subject.named("smollm2-135m"), sinkjax.load_mask(mask_name)
    model, means = subject.load(), {}
    for text in texts.SHIPPED:
        length = _LENGTHS.get(text, 224)
        excerpts = texts.read_text(text, _EXCERPTS, 0)
        rows = excerpts.at_length(subject.tokenizer, "tokenizer", length + GENERATED, _EXCERPTS)
        kl = [
            Judge(model, rows[start : start + _CHUNK], fills=saved.fills)(saved.mask)
            for start in range(0, _EXCERPTS, _CHUNK)
        ]
        scored = length - SCORE_FROM
        parts = {
            "mean": slice(0, scored),
            "late": slice(late_from(length) - SCORE_FROM, scored),
            "generated": slice(scored, None),
        }
        for name, columns in parts.items():
            means[f"{text}, {name}"] = np.concatenate(kl)[:, columns].mean(axis=1)
    return {name: values.astype(np.float16) for name, values in means.items()}


def coverage(values: np.ndarray, count: int, runs: int, seed: int = 0) -> dict[str, float]:
    """How often each way's interval of `count` drawn values holds the mean of all, by its name."""
    values = values.astype(np.float64)
    rng = np.random.default_rng(seed)
    drawn = values[rng.integers(len(values), size=(runs, count))]
    # One set of resamples for all runs, which are drawn apart.
    counts = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)
    resampled = drawn @ counts.T / count  # [runs, R]
    mean, spread = drawn.mean(axis=1), drawn.std(axis=1, ddof=1)
    t = float(scipy.special.stdtrit(count - 1, (1 + LEVEL) / 2))
    quantiles = functools.partial(np.quantile, resampled, axis=1)
    plain = quantiles([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    tails = {freedom: expanded_tail(count, freedom) for freedom in (count - 1, count - 3)}
    squares = np.square(drawn) @ counts.T / count
    spreads = np.sqrt(np.maximum(squares - np.square(resampled), 1e-18) * count / (count - 1))
    studentized = np.quantile(
        (resampled - mean[:, None]) / spreads, [(1 + LEVEL) / 2, (1 - LEVEL) / 2], axis=1
    )
    ours = [estimate_kl(values) for values in drawn]
    intervals = {
        "percentiles": plain,
        "percentiles, wider by √(n/(n-1))": mean + (plain - mean) * math.sqrt(count / (count - 1)),
        "percentiles, wider by t/z": mean + (plain - mean) * t / _NORMAL,
        "Student's t": mean + np.array([[-t], [t]]) * spread / math.sqrt(count),
        "BCa": _corrected(drawn, resampled, mean),
        "bootstrap-t": mean - studentized * spread,
        "expanded percentiles": quantiles([tails[count - 1], 1 - tails[count - 1]]),
        "the same, n - 3": quantiles([tails[count - 3], 1 - tails[count - 3]]),
        "the project's": np.array([[e[side] for e in ours] for side in ("low", "high")]),
    }
    truth = values.mean()
    return {
        name: float(np.mean((low <= truth) & (truth <= high)))
        for name, (low, high) in intervals.items()
    }


def _corrected(drawn: np.ndarray, resampled: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Bias-corrected and accelerated percentiles (Efron 1987): float64 [2, runs]."""
    count = drawn.shape[1]
    below = np.clip((resampled < mean[:, None]).mean(axis=1), 1e-4, 1 - 1e-4)
    bias = scipy.special.ndtri(below)
    change = (drawn - mean[:, None]) / (count - 1)  # of the mean, without each value
    skew = (change**3).sum(axis=1) / (6 * (change**2).sum(axis=1) ** 1.5)
    ordered, ends = np.sort(resampled, axis=1), []
    for z in (-_NORMAL, _NORMAL):
        share = scipy.special.ndtr(bias + (bias + z) / (1 - skew * (bias + z)))
        ranks = np.clip((share * RESAMPLES).astype(int), 0, RESAMPLES - 1)
        ends.append(np.take_along_axis(ordered, ranks[:, None], axis=1)[:, 0])
    return np.array(ends)


def main() -> None:
    if MEASURE.value:
        np.savez_compressed(FILE, **measure(MASK.value))
    for name, values in np.load(FILE).items():
        by_count = [coverage(values, count, RUNS.value) for count in COUNTS]
        terminal.print_table(
            terminal.console(),
            Table(
                title=f"{name}: how often {percent(LEVEL, 0)} intervals cover",
                columns=("interval", *(f"{count} excerpts" for count in COUNTS)),
                rows=[(way, *(percent(c[way]) for c in by_count)) for way in by_count[0]],
            ),
        )


if __name__ == "__main__":
    cli.run(main)
