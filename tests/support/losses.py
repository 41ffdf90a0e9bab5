"""Losses from whole logits, in float64: the oracle."""

import numpy as np


def log_probabilities(logits):
    wide = np.asarray(logits).astype(np.float64)
    return wide - np.logaddexp.reduce(wide, axis=-1, keepdims=True)


def kl_of(logits, other):
    """float64 [B, T]."""
    p, q = log_probabilities(logits), log_probabilities(other)
    return (np.exp(p) * (p - q)).sum(axis=-1)


def nll_of(logits, tokens):
    """float64 [B, T - 1]."""
    chosen = np.take_along_axis(log_probabilities(logits)[:, :-1], tokens[:, 1:, None], axis=-1)
    return -chosen[..., 0]
