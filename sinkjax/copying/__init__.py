"""Copying attention patterns from earlier layers: which source fits best, and what it costs."""

from sinkjax.copying.fit import SourceFit, fit_sources
from sinkjax.copying.masks import VARIANTS, copy_mask, shuffled_copies
from sinkjax.copying.patterns import copied_residuals
from sinkjax.copying.run import CopySettings, check_copies, count_tokens, run_copies

__all__ = [
    "VARIANTS",
    "CopySettings",
    "SourceFit",
    "check_copies",
    "copied_residuals",
    "copy_mask",
    "count_tokens",
    "fit_sources",
    "run_copies",
    "shuffled_copies",
]
