"""What all probes share: scikit-learn's estimator shape, without depending on it.

`fit`, `partial_fit`, `predict`, `predict_proba`, `score`, `get_params` and `set_params` behave as scikit-learn's do,
and what is learned has a trailing underscore. Beyond that: `merge` joins two probes that have seen different rows into
the one that has seen all of them, and `fit_stream` reads data that is too large to hold.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Self, TypeAlias

import numpy as np

from analyses.probes.moments import Array, ClassMeans, Statistics, as_labels, as_rows
from interp.errors import InputError

Read: TypeAlias = Callable[[], Iterable[tuple[Any, Any]]]
"""Called before each pass over the data; gives batches (X [row d], y [row])."""


class Probe(ABC):
    """Base of all probes."""

    regression = False
    """Whether the labels are numbers to be met rather than classes."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Change arguments of the constructor; the next fit uses them."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise InputError(f"{type(self).__name__} has no option {name!r}", f"expected one of {', '.join(known)}")
            setattr(self, name, value)
        self._forget_solution()
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.get_params().items())})"

    def fit(self, X: Any, y: Any) -> Self:
        """Learn from X [row d] and y [row], and from nothing seen before. Raises InputError for data it cannot use."""
        self._forget()
        self.partial_fit(X, y)
        self._solve()
        return self

    def fit_stream(self, read: Read) -> Self:
        """Learn from batches, and from nothing seen before; `read()` gives all of them and may be called repeatedly."""
        self._forget()
        for X, y in read():
            self.partial_fit(X, y)
        self._solve()
        return self

    @abstractmethod
    def partial_fit(self, X: Any, y: Any) -> Self:
        """Learn from more rows; in whatever order and portions they come, the result is that of `fit` on all."""

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """Learn what another probe has seen; this probe changes, the other does not."""

    @abstractmethod
    def _forget(self) -> None:
        """Back to before the first row."""

    @abstractmethod
    def _forget_solution(self) -> None:
        """What was solved for is out of date."""

    @abstractmethod
    def _solve(self) -> Any:
        """Solve, unless nothing has changed. Raises InputError when nothing was seen."""

    @abstractmethod
    def decision_function(self, X: Any) -> Array:
        """Scores [row class], or [row] for two classes: positive for the second; for regression the prediction."""

    @property
    @abstractmethod
    def classes_(self) -> Array:
        """[class] sorted labels."""

    def predict_proba(self, X: Any) -> Array:
        """[row class] probabilities, which sum to one. Raises InputError for regression."""
        if self.regression:
            raise InputError("probabilities of a regression", "expected a probe fitted to classes")
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], 1)
        return softmax(scores)

    def predict(self, X: Any) -> Array:
        """[row] classes, or for regression numbers of the targets' shape."""
        scores = self.decision_function(X)
        if self.regression:
            return scores
        codes = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)
        found: Array = self.classes_[codes]
        return found

    def score(self, X: Any, y: Any) -> float:
        """Accuracy; for regression R^2, the mean over targets."""
        guess = self.predict(X)
        y = as_labels(y, len(guess))
        if not self.regression:
            return float((guess == y).mean())
        guess, y = guess.reshape(len(y), -1), y.astype(float).reshape(len(y), -1)
        return float(np.mean(1 - ((y - guess) ** 2).sum(0) / ((y - y.mean(0)) ** 2).sum(0)))

    def _check_same(self, other: "Probe") -> None:
        if type(self) is not type(other) or repr(self) != repr(other):
            raise InputError(f"{self!r} merged with {other!r}", "expected two probes with the same options")


class MomentProbe(Probe):
    """A linear probe that is solved from sufficient statistics."""

    _statistics: Statistics | None = None
    _solution: tuple[Array, Array] | None = None

    @classmethod
    def from_statistics(cls, statistics: Statistics, **params: Any) -> Self:
        """The probe that has seen the rows which `statistics` were made of."""
        return cls(**params).take(statistics)

    def take(self, statistics: Statistics) -> Self:
        """Learn from rows of which only the statistics are known."""
        self._take(statistics)
        return self

    def partial_fit(self, X: Any, y: Any) -> Self:
        X = as_rows(X)
        y = as_labels(y, len(X))
        regression = self._is_regression(y)
        self._take(Statistics.of(X, y if regression else as_classes(y), regression=regression))
        return self

    def merge(self, other: Self) -> Self:
        self._check_same(other)
        if other._statistics is not None:
            self._take(other._statistics)
        return self

    def _is_regression(self, y: Array) -> bool:
        return False

    def _take(self, statistics: Statistics) -> None:
        self._statistics = statistics if self._statistics is None else self._statistics.merge(statistics)
        self.regression = not isinstance(self._statistics.y, ClassMeans)
        self._forget_solution()

    def _forget(self) -> None:
        self._statistics = None
        self._forget_solution()

    def _forget_solution(self) -> None:
        self._solution = None

    @property
    def statistics_(self) -> Statistics:
        """What was seen."""
        if self._statistics is None:
            raise InputError(f"{type(self).__name__} has seen no data", "call fit or partial_fit first")
        return self._statistics

    @property
    def classes_(self) -> Array:
        return class_means(self.statistics_).classes

    @property
    def n_features_in_(self) -> int:
        """Width of the activations."""
        return len(self.statistics_.x.mean)

    @property
    def coef_(self) -> Array:
        """[class d], [1 d] for two classes, [target d] for regression."""
        return self._solve()[0]

    @property
    def intercept_(self) -> Array:
        """[class], [1] for two classes, [target] for regression."""
        return self._solve()[1]

    @abstractmethod
    def _solved(self, statistics: Statistics) -> tuple[Array, Array]:
        """Coefficients and intercepts."""

    def _solve(self) -> tuple[Array, Array]:
        if self._solution is None:
            statistics = self.statistics_
            if not self.regression and len(class_means(statistics).classes) < 2:
                raise InputError("labels of a single class", "expected at least two classes")
            self._solution = self._solved(statistics)
        return self._solution

    def decision_function(self, X: Any) -> Array:
        return linear_scores(X, *self._solve())


def linear_scores(X: Any, coef: Array, intercept: Array) -> Array:
    """X coef' + intercept, [row class], or [row] when there is one row of coefficients."""
    X = as_rows(X)
    if X.shape[1] != coef.shape[1]:
        raise InputError(f"{X.shape[1]} features", f"expected {coef.shape[1]}, as the probe was fitted on")
    scores: Array = X.astype(np.float64) @ coef.T + intercept
    return scores[:, 0] if len(coef) == 1 else scores


def as_classes(y: Array) -> Array:
    """Labels fit to be classes: one column; floats only if they are whole. Raises InputError otherwise."""
    if y.ndim != 1:
        raise InputError(f"labels of shape {y.shape}", "expected one class for each row")
    if y.dtype.kind == "f" and not (np.isfinite(y).all() and (y == np.round(y)).all()):
        raise InputError("labels that are fractions", "expected classes", "RidgeProbe and MLPProbe do regression")
    return y.astype(str) if y.dtype.kind == "O" else y


def class_means(statistics: Statistics) -> ClassMeans:
    """The statistics' classes. Raises InputError for regression."""
    if not isinstance(statistics.y, ClassMeans):
        raise InputError("numbers as labels", "expected classes")
    return statistics.y


def binary(coef: Array, intercept: Array) -> tuple[Array, Array]:
    """Two rows of scores as the one that is positive for the second class; more rows as they are."""
    if len(coef) != 2:
        return coef, intercept
    return coef[1:] - coef[:1], intercept[1:] - intercept[:1]


def softmax(scores: Array) -> Array:
    """Over the last axis."""
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    shares: Array = scores / scores.sum(-1, keepdims=True)
    return shares
