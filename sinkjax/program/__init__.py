"""Programs: models compiled ahead of time, what they cost, and text generated with them."""

from sinkjax.program.compile import DEFAULT_STEPS_PER_CALL, LAYERS, Program, compile
from sinkjax.program.dispatch import CROSSINGS, Dispatcher, Plan, Stage, compile_plan
from sinkjax.program.executable import Executable, Memory
from sinkjax.program.options import ATTENTION, DEFAULT_ATTENTION
from sinkjax.program.targets import TARGETS, target_device

__all__ = [
    "ATTENTION",
    "CROSSINGS",
    "DEFAULT_ATTENTION",
    "DEFAULT_STEPS_PER_CALL",
    "LAYERS",
    "TARGETS",
    "Dispatcher",
    "Executable",
    "Memory",
    "Plan",
    "Program",
    "Stage",
    "compile",
    "compile_plan",
    "target_device",
]
