"""Masks for tests: every path, mixed inside key/value groups and not, windows and copies.

A drawn mask shrinks towards the baseline.
"""

import itertools
import json
import pathlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import strategies as st

from sinkjax import InputError, LlamaConfig
from sinkjax.masks.mask import SinkMask
from sinkjax.masks.paths import FILLS, Copy, Full, Path, Sink, Window

CONFIG = LlamaConfig(
    vocab_size=11,
    num_layers=4,
    num_heads=6,
    num_kv_heads=2,
    head_dim=5,
    embed_dim=7,
    mlp_dim=13,
    max_length=32,
    norm_eps=1e-5,
)
"""A shape for which masks are made where any will do."""


MEANS = (
    SinkMask.from_text("L0: 6f | L1: 2s(mean) 4f | L2: 6s(zero) | L3: 5f s(mean)"),
    np.random.default_rng(0).normal(size=(4, 6, 5)).astype(np.float32),
)
"""A mask of that shape with `sink(mean)` heads, and fills for it."""

EARLIER = pathlib.Path(__file__).parents[1] / "masks" / "earlier"
"""Files of masks that shipped with an earlier version, and have to stay readable."""


def problems_of(function, *args, **kwargs) -> tuple[str, ...]:
    """The problems that a call is refused for, as they are said."""
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    return tuple(map(str, caught.value.problems))


def counts_per_layer(mask: SinkMask) -> list[Counter[str]]:
    """How many heads of each layer are on each kind of path."""
    return [Counter(path.kind for path in paths) for paths in mask.heads]


def is_part(part: SinkMask, whole: SinkMask) -> bool:
    """Whether all heads that one mask masks are on the same path in another."""
    pairs = zip(itertools.chain(*part.heads), itertools.chain(*whole.heads), strict=True)
    return all(path in (Full(), other) for path, other in pairs)


def write_scores(folder: pathlib.Path, scores: Sequence[Sequence[float]], window: Window) -> None:
    """Writes scores [L, K] and their window as DuoAttention publishes them."""
    np.savetxt(folder / "full_attention_heads.tsv", scores, delimiter="\t")
    config = {"sink_size": window.sinks, "recent_size": window.recent, "threshold": 0.5}
    (folder / "config.json").write_text(json.dumps(config))


def windows(max_sinks: int = 3, max_recent: int = 6) -> st.SearchStrategy[Window]:
    return st.builds(Window, st.integers(0, max_sinks), st.integers(1, max_recent))


def sinks(fills: tuple[str, ...] = FILLS) -> st.SearchStrategy[Sink]:
    return st.builds(Sink, st.sampled_from(fills))


@st.composite
def masks(
    draw,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    *,
    fills: tuple[str, ...] = FILLS,
    max_sinks: int = 3,
    max_recent: int = 6,
) -> SinkMask:
    """Valid masks of L layers, N query heads and K key/value heads a layer.

    Args:
      fills: that `sink` heads may have; without `mean` no calibrated means are needed.
      max_sinks, max_recent: of windows; against T they decide which windows cover a prompt.
    """
    window = st.sampled_from(draw(st.lists(windows(max_sinks, max_recent), min_size=1, max_size=3)))
    layers: list[tuple[Path, ...]] = []
    sources: list[Copy] = []  # copies that a later layer may make
    for layer in range(num_layers):
        kinds = [st.just(Full()), sinks(fills), window]
        if sources:
            kinds.append(st.sampled_from(sources))
        path = st.one_of(kinds)
        heads: list[Path] = []
        for _ in range(num_kv_heads):
            size = num_heads // num_kv_heads
            whole = draw(st.booleans())  # groups that agree are where keys, values and cache go
            heads += [draw(path)] * size if whole else [draw(path) for _ in range(size)]
        layers.append(tuple(heads))
        sources += [
            Copy(layer, head) for head, path in enumerate(heads) if isinstance(path, Full | Window)
        ]
    return SinkMask(tuple(layers))
