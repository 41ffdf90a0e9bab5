"""Programs: models compiled ahead of time, what they cost, and text generated with them."""

from sinkjax.program.compile import Program, compile
from sinkjax.program.executable import Executable, Memory
from sinkjax.program.targets import TARGETS, target_device

__all__ = [
    "TARGETS",
    "Executable",
    "Memory",
    "Program",
    "compile",
    "target_device",
]
