"""Searches without a folder of results."""

import types

import numpy as np

from sinkjax.models.decoder import Llama
from sinkjax.studies.search.grow import SearchOutcome, SearchSettings, search_mask
from sinkjax.studies.store import Store


def search(
    model: Llama, ranking: np.ndarray, held: np.ndarray, settings: SearchSettings, **how
) -> SearchOutcome:
    """`search_mask`, which measures nothing twice."""
    kept = {}
    results = types.SimpleNamespace(
        arrays=kept.get, put_arrays=lambda name, **arrays: kept.update({name: arrays})
    )
    store = Store(results, "", lambda what, tokens: None)
    return search_mask(model, ranking, held, settings, store, **how)
