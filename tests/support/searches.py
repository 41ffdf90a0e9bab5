"""Searches without a folder of results."""

import types
from collections.abc import Callable

import numpy as np

from sinkjax.models.decoder import Llama
from sinkjax.studies.search.grow import SearchOutcome, SearchSettings, search_mask
from sinkjax.studies.store import Store


def search(
    model: Llama, ranking: np.ndarray, held: np.ndarray, settings: SearchSettings, **how
) -> SearchOutcome:
    """`search_mask`, which measures nothing twice."""
    return search_mask(model, ranking, held, settings, store_in({}), **how)


def store_in(
    kept: dict[str, dict[str, np.ndarray]],
    on_progress: Callable[[str, int], None] = lambda what, tokens: None,
) -> Store:
    """A store whose arrays lie in a dictionary."""
    results = types.SimpleNamespace(
        arrays=kept.get, put_arrays=lambda name, **arrays: kept.update({name: arrays})
    )
    return Store(results, "", on_progress)
