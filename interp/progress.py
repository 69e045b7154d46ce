"""How far a long loop is, for whoever wants to know: silent unless somebody listens (the command line does)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias, TypeVar

Item = TypeVar("Item")
Listener: TypeAlias = Callable[[int, int], None]
"""Called with the number of steps done and their total."""

_listener: ContextVar[Listener | None] = ContextVar("progress_listener", default=None)


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


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Everything tracked inside the block reports to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
