"""Ends a script in one line on Ctrl-C and SIGTERM, with the status that shells have for them."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from absl import flags

_AGAIN = 0.1  # seconds, more than a callback takes
_SIGNALS = signal.SIGINT, signal.SIGTERM


class _Stopped(KeyboardInterrupt):
    """A signal came."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Lets the process end, where a signal stops what is done inside, with 130 or 143."""
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
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as it is in a shell's background
            signal.signal(number, stop)
    try:
        yield
    except BaseException as error:
        # What a signal raises in a call of XLA's can come out of it as an error of XLA's own.
        if not came or (isinstance(error, SystemExit) and not error.code):
            raise
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)  # a second one ends what still has to be closed
        # A study goes on with what its folder holds; nothing else has that flag.
        goes_on = "; the same command goes on" if "output_dir" in flags.FLAGS else ""
        print(f"stopped{goes_on}", file=sys.stderr)
        sys.exit(128 + came[0])
