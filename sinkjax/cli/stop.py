"""Ends a script in one line on Ctrl-C and SIGTERM, with the status that shells have for them."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from absl import flags

from sinkjax.interrupts import end_at_once, handle

_AGAIN = 0.1  # seconds, more than a callback takes


class _Stopped(KeyboardInterrupt):
    """A signal came."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Lets the process end, where a signal stops what is done inside or comes after it."""
    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        came.append(number)
        raise _Stopped

    def lost(raised: "sys.UnraisableHookArgs") -> None:
        # A signal that waits for a long call of XLA to end is often seen in a callback, such as the
        # one that JAX has the garbage collector call. What is raised there goes no further.
        if not isinstance(raised.exc_value, _Stopped):
            return say_lost(raised)
        again = threading.Timer(_AGAIN, signal.raise_signal, came[:1])
        again.daemon = True
        again.start()

    say_lost, sys.unraisablehook = sys.unraisablehook, lost
    handle(stop)
    try:
        yield
    except BaseException as error:
        # What a signal raises in a call of XLA's can come out of it as an error of XLA's own.
        if came and not (isinstance(error, SystemExit) and not error.code):
            handle(signal.SIG_DFL)  # a second one ends what still has to be closed
            # A study goes on with what its folder holds; nothing else has that flag.
            goes_on = "; the same command goes on" if "output_dir" in flags.FLAGS else ""
            print(f"stopped{goes_on}", file=sys.stderr)
            sys.exit(128 + came[0])
        _over()
        raise
    _over()


def _over() -> None:
    """Lets a signal end the process while Python closes what is open."""
    with contextlib.suppress(OSError):  # a reader that went, of which Python tells
        print(end="", flush=True)
    handle(end_at_once)
