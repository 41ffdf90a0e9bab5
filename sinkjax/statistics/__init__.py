"""Sink scores to shares, conditionals and changes with length. Pure numpy, no I/O."""

from sinkjax.statistics.cell import is_sink, summarize_cell
from sinkjax.statistics.lengths import summarize_lengths
from sinkjax.statistics.resampling import LEVEL, RESAMPLES, resample_counts

__all__ = [
    "LEVEL",
    "RESAMPLES",
    "is_sink",
    "resample_counts",
    "summarize_cell",
    "summarize_lengths",
]
