"""What a mask costs: each token's predictions held against the baseline's, and what comes of it."""

from sinkjax.quality.candidate import Candidate
from sinkjax.quality.compare import QualityStats, compare
from sinkjax.quality.continuation import compile_continuations, first_differences
from sinkjax.quality.passkey import Passkeys, hide_passkeys
from sinkjax.quality.run import SCORED, Cell, QualitySettings, plan_quality, run_quality
from sinkjax.quality.summary import (
    measured_quality,
    summarize_continuation,
    summarize_passkeys,
    summarize_quality,
)
from sinkjax.quality.tokens import compare_tokens, residuals, score_tokens

__all__ = [
    "SCORED",
    "Candidate",
    "Cell",
    "Passkeys",
    "QualitySettings",
    "QualityStats",
    "compare",
    "compare_tokens",
    "compile_continuations",
    "first_differences",
    "hide_passkeys",
    "measured_quality",
    "plan_quality",
    "residuals",
    "run_quality",
    "score_tokens",
    "summarize_continuation",
    "summarize_passkeys",
    "summarize_quality",
]
