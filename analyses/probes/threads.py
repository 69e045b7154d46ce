"""How many threads numpy and scipy solve with."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import cache

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from analyses.probes.data import Activations

WIDE = 1024
"""Width from which on a second thread of a decomposition saves time."""


def few_threads(data: Activations, names: Iterable[str]) -> AbstractContextManager[object]:
    """Inside, matrices as wide as these activations are solved on one thread unless they are wide.

    Probes solve thousands of small systems. On a machine with other work the threads of each wait for one another: two
    were four to eleven times as slow as one.
    """
    narrow = max(map(data.width, names), default=0) < WIDE
    limited: AbstractContextManager[object] = _libraries().limit(limits=1 if narrow else None, user_api="blas")
    return limited


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()
