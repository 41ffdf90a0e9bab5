"""Timing that can be believed: programs by turns, beside the baseline and beside the machine."""

from sinkjax.timing.google_benchmark import google_benchmark
from sinkjax.timing.limits import Limit, decode_limit, prefill_limit
from sinkjax.timing.machine import Machine
from sinkjax.timing.measured import AGAIN, BASELINE
from sinkjax.timing.pairs import Call, Samples, interleave, ratio, summary
from sinkjax.timing.run import (
    CLOCKS,
    STAGES,
    TimingCell,
    TimingSettings,
    Workload,
    plan_timing,
    run_timing,
)

__all__ = [
    "AGAIN",
    "BASELINE",
    "CLOCKS",
    "STAGES",
    "Call",
    "Limit",
    "Machine",
    "Samples",
    "TimingCell",
    "TimingSettings",
    "Workload",
    "decode_limit",
    "google_benchmark",
    "interleave",
    "plan_timing",
    "prefill_limit",
    "ratio",
    "run_timing",
    "summary",
]
