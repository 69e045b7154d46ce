"""Being asked to end: Ctrl-C, and what schedulers (SIGTERM) and closing terminals (SIGHUP) send, as one exception."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

LATER = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that end a process at once unless it asks for more."""


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def signal_of(error: BaseException | None) -> int:
    """The signal that an interruption comes of, also when another exception was made of it; Ctrl-C's if unknown."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__cause__ or error.__context__
    return signal.SIGINT if error is None else error.number


@contextmanager
def signals_raise() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise `Stopped`, so that whatever Ctrl-C saves they save; ignored ones stay so."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with _handled([number for number in LATER if signal.getsignal(number) == signal.SIG_DFL], stop):
        yield


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Inside, the signals that ask to end are only noted, for a step that is cut off leaves weights and optimiser in
    disagreement.

    Gives the list of those that came. Where signals cannot be caught (another thread, or they are ignored) nothing
    changes.
    """
    came: list[int] = []
    ours = [n for n in (signal.SIGINT, *LATER) if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    with _handled(ours, lambda number, frame: came.append(number)):
        yield came


@contextmanager
def _handled(numbers: Sequence[int], handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
