"""How far a long loop is, for whoever wants to know: silent unless somebody listens (the command line does)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias, TypeVar

Item = TypeVar("Item")
Listener: TypeAlias = Callable[[int, int], None]
"""Called with the number of steps done and their total."""

_listener: ContextVar[Listener | None] = ContextVar("progress_listener", default=None)
_hearer: ContextVar[Callable[[str], None] | None] = ContextVar("progress_hearer", default=None)


def track(items: Sequence[Item]) -> Iterator[Item]:
    """The items, one after the other, telling the listener before each and after the last how many are done."""
    for done, item in enumerate(items):
        tell(done, len(items))
        yield item
    tell(len(items), len(items))


def tell(done: int, total: int) -> None:
    """For loops that count for themselves (`sweep(progress=tell)`): how many of their steps are done."""
    listener = _listener.get()
    if listener is not None:
        listener(done, total)


def say(text: Callable[[], str]) -> None:
    """What is about to be done, and how long it may take, for whoever wants to know; else it is not worked out."""
    hearer = _hearer.get()
    if hearer is not None:
        hearer(text())


@contextmanager
def hearing(hearer: Callable[[str], None]) -> Iterator[None]:
    """Everything said inside the block goes to `hearer`."""
    token = _hearer.set(hearer)
    try:
        yield
    finally:
        _hearer.reset(token)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Everything tracked inside the block reports to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
