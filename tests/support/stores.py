"""What compiled programs do with the stores of keys and values."""

import re

import jax
import numpy as np

from sinkjax.attention.cache import Cache


def copies_of_stores(text: str, cache: Cache) -> list[str]:
    """Instructions of a compiled program that make another array as large as a store."""
    stores = [(layer.keys, layer.values) for layer in cache.layers]
    sizes = {store.size for store in jax.tree.leaves(stores)}
    copies = []
    for shape, instruction in re.findall(r"= \w+\[([\d,]*)\]\S* (copy\([^)]*\))", text):
        if int(np.prod([int(axis) for axis in shape.split(",") if axis])) in sizes:
            copies.append(f"[{shape}] {instruction}")
    return copies
