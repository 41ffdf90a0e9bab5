"""Ends a command in one line on Ctrl-C and SIGTERM, with the status that shells have for them."""

import contextlib
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

_AGAIN = 0.1  # seconds, more than a callback takes
_CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
_SCRIPTS = (_CHECKOUT / "experiments", _CHECKOUT / "benchmarks")


class _Stopped(KeyboardInterrupt):
    """A signal came."""


def is_command() -> bool:
    """Whether this process is a command of the project; others import it as a library."""
    script = pathlib.Path(*sys.argv[:1])
    return script.stem == "sinkjax" or script.resolve().parent in _SCRIPTS


def end_at_once() -> None:
    """Lets a signal end the process where nothing has to be closed: before work and after it."""
    _handle(_end)


@contextlib.contextmanager
def stoppable(more: str = "") -> Iterator[None]:
    """Lets the process end, where a signal stops what is done inside or comes after it.

    Args:
      more: to say beside that it was stopped.
    """
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
    _handle(stop)
    try:
        yield
    except BaseException as error:
        # What a signal raises in a call of XLA's can come out of it as an error of XLA's own.
        if came and not (isinstance(error, SystemExit) and not error.code):
            _handle(signal.SIG_DFL)  # a second one ends what still has to be closed
            sys.stderr.write(f"stopped{more}\n")
            _flush()
            os._exit(128 + came[0])  # else JAX waits for other processes, which wait for this one
        _over()
        raise
    _over()


def _over() -> None:
    """Lets a signal end the process while Python closes what is open."""
    end_at_once()  # first: a pipe that nobody reads takes its time
    _flush()


def _flush() -> None:
    with contextlib.suppress(OSError):  # a reader that went, of which Python tells
        sys.stdout.flush()


def _handle(handler: signal.Handlers | Callable[[int, FrameType | None], NoReturn]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as it is in a shell's background
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"stopped\n")  # sys.stderr is not for handlers, which may be called within it
    os._exit(128 + number)
