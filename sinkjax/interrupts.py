"""Ends a command in one line on Ctrl-C and SIGTERM where nothing has to be closed."""

import os
import pathlib
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

_CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
_SCRIPTS = (_CHECKOUT / "experiments", _CHECKOUT / "benchmarks")


def is_command() -> bool:
    """Whether this process is a command of the project; others import it as a library."""
    script = pathlib.Path(*sys.argv[:1])
    return script.stem == "sinkjax" or script.resolve().parent in _SCRIPTS


def handle(handler: signal.Handlers | Callable[[int, FrameType | None], NoReturn]) -> None:
    """Has a function called on Ctrl-C and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as it is in a shell's background
            signal.signal(number, handler)


def end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """A handler for before a command's work and after it, with the status that shells have."""
    os.write(2, b"stopped\n")  # print is not for handlers, which may be called within it
    os._exit(128 + number)
