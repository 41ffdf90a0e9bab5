"""Statistics of sinks by slow counting in plain Python, and the arrays to count in: the oracle."""

import json
import statistics

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sinkjax.studies.sweep.cell import summarize_cell
from sinkjax.studies.sweep.lengths import summarize_lengths

THRESHOLD = 0.9

shapes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))


@st.composite
def sink_arrays(draw, shape=shapes):
    """bool [P, L, N], the corners (no sink, all sinks, whole layers of either) among them."""
    sinks = draw(hnp.arrays(bool, shape))
    layers = st.lists(st.integers(0, sinks.shape[1] - 1), unique=True)
    sinks[:, draw(layers)] = False
    sinks[:, draw(layers)] = True
    return sinks


def scores_of(sinks):
    """Scores under which exactly these heads are sinks."""
    return np.where(sinks, np.float32(0.95), np.float32(0.9))


def cell(sinks, seed=0, num_kv_heads=None):
    """The result of a model with so many key/value heads, or with one for each head."""
    norms, groups = np.ones(sinks.shape, np.float32), num_kv_heads or sinks.shape[2]
    result = summarize_cell(scores_of(sinks), norms, "mean", THRESHOLD, seed, groups)
    json.dumps(result, allow_nan=False)
    return result


def lengths_of(sinks_by_length, keys=None, lengths=None, min_share=0.9, seed=0):
    count = len(sinks_by_length)
    result = summarize_lengths(
        lengths or [2**exponent for exponent in range(1, count + 1)],
        [scores_of(sinks) for sinks in sinks_by_length],
        keys or ["same"] * count,
        "mean",
        THRESHOLD,
        seed,
        min_share,
    )
    json.dumps(result, allow_nan=False)
    return result


def pairs_of(sinks, layer):
    """(source is a sink, later is a sink) of every prompt, later layer and head."""
    num_prompts, num_layers, num_heads = sinks.shape
    return [
        (bool(sinks[prompt, layer, head]), bool(sinks[prompt, later, head]))
        for prompt in range(num_prompts)
        for later in range(layer + 1, num_layers)
        for head in range(num_heads)
    ]


def slow_rates(sinks, layer):
    """The conditional's rates by counting; None where undefined."""
    pairs = pairs_of(sinks, layer)
    given = [later for source, later in pairs if source]
    given_not = [later for source, later in pairs if not source]
    base = sum(later for _, later in pairs) / len(pairs)
    rates = {
        "given_sink": sum(given) / len(given) if given else None,
        "given_not": sum(given_not) / len(given_not) if given_not else None,
        "base_rate": base,
        "lift": sum(given) / len(given) / base if given and base else None,
        "phi": None,
    }
    if given and given_not and 0 < base < 1:
        source, later = np.array(pairs, float).T
        rates["phi"] = np.corrcoef(source, later)[0, 1]
    return rates


def slow_interval(values):
    """The interval from resampled values, None where undefined, by other means than numpy's."""
    values = sorted(value for value in values if value is not None)
    cuts = statistics.quantiles(values, n=40, method="inclusive")
    return cuts[0], cuts[-1]


def resamples_of(sinks, weights):
    """The resampled arrays themselves, each distinct one built once."""
    cache = {}
    for row in weights.astype(int):
        if row.tobytes() not in cache:
            cache[row.tobytes()] = np.repeat(sinks, row, axis=0)
        yield row.tobytes(), cache[row.tobytes()]


def slow_resampled(sinks, weights, function):
    """`function` of every resample of the prompts."""
    known = {}
    values = []
    for key, resample in resamples_of(sinks, weights):
        if key not in known:
            known[key] = function(resample)
        values.append(known[key])
    return values
