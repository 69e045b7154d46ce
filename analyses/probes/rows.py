"""Probes that need the rows themselves, several times: what they keep, and how parts are joined."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from analyses.probes.base import Probe, Read, as_classes
from analyses.probes.moments import CHUNK, Array, ClassMeans, Moments, Statistics, Targets, as_labels, as_rows
from interp.errors import InputError


class RowsProbe(Probe):
    """A probe whose solution is no function of small statistics, so that it reads the rows once a step.

    `fit_stream` keeps nothing but the way to read the data again. `partial_fit` keeps the rows it was given: copied in
    their own dtype, or, for memory-mapped arrays, as the map, which stays on disk. `merge` joins what two probes keep.
    Solving waits until the solution is asked for, so that many portions cost one solution.
    """

    _statistics: Statistics | None = None

    def __init__(self) -> None:
        self._forget()

    def partial_fit(self, X: Any, y: Any) -> Self:
        X = as_rows(X)
        y = as_labels(y, len(X)).copy()
        self.regression = self._is_regression(y)
        y = y if self.regression else as_classes(y)
        self._see(X, y)
        kept = X if isinstance(X, np.memmap) else X.copy()
        self._reads.append(lambda: [(kept, y)])
        return self

    def fit_stream(self, read: Read) -> Self:
        self._forget()
        for X, y in read():
            X = as_rows(X)
            y = as_labels(y, len(X))
            self.regression = self._is_regression(y)
            self._see(X, y if self.regression else as_classes(y))
        self._reads.append(read)
        self._solve()
        return self

    def merge(self, other: Self) -> Self:
        self._check_same(other)
        if other._statistics is not None:
            self._statistics = (
                other._statistics if self._statistics is None else self._statistics.merge(other._statistics)
            )
            self.regression = other.regression
            self._reads += other._reads
            self._forget_solution()
        return self

    def _see(self, X: Array, y: Array) -> None:
        new = Statistics.of(X, y, regression=self.regression)
        self._statistics = new if self._statistics is None else self._statistics.merge(new)
        self._forget_solution()

    def _is_regression(self, y: Array) -> bool:
        return False

    def _forget(self) -> None:
        self._statistics = None
        self._reads: list[Read] = []
        self._forget_solution()

    @property
    def statistics_(self) -> Statistics:
        """What was seen, in small."""
        if self._statistics is None:
            raise InputError(f"{type(self).__name__} has seen no data", "call fit or partial_fit first")
        return self._statistics

    @property
    def classes_(self) -> Array:
        y = self.statistics_.y
        if isinstance(y, Targets):
            raise InputError("classes of a regression", "expected a probe fitted to classes")
        return y.classes

    @property
    def n_features_in_(self) -> int:
        """Width of the activations."""
        return len(self.statistics_.x.mean)

    @abstractmethod
    def _solve(self) -> Any: ...

    def _check_classes(self) -> None:
        if isinstance(self.statistics_.y, ClassMeans) and len(self.statistics_.y.classes) < 2:
            raise InputError("labels of a single class", "expected at least two classes")

    def _passes(self) -> Iterator[tuple[Array, Array]]:
        """One pass over everything seen: X [row d] float64, and class numbers [row], or targets [row target]."""
        classes = None if self.regression else self.classes_
        for read in self._reads:
            for X, y in read():
                X, y = as_rows(X), np.asarray(y)
                for start in range(0, len(X), CHUNK):
                    part = y[start : start + CHUNK]
                    wide = X[start : start + CHUNK].astype(np.float64)
                    if classes is None:
                        yield wide, part.astype(np.float64).reshape(len(part), -1)
                    else:
                        yield wide, np.searchsorted(classes, as_classes(part))


def spread(x: Moments) -> Array:
    """[d] standard deviations, one where a feature never changes."""
    found = np.sqrt(x.variance)
    return np.where(found > 0, found, 1.0)
