"""Sufficient statistics of activations and labels: small, exact in float64, and mergeable in any order.

Everything is kept centred, and two parts are joined by the pairwise update of Chan, Golub and LeVeque 1983, "Algorithms
for Computing the Sample Variance", eq. 2.1: sums of raw squares would lose digits where the mean is large beside the
spread. Their size depends on the width alone, never on the number of rows, so that every hook point of a model can be
accumulated in one pass over data of any size, on any number of workers.

Shapes: X [row d], class means [class d], scatter [d d] (not divided by the number of rows).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from interp.errors import InputError

Array = NDArray[Any]
CHUNK = 8192
"""Rows widened to float64 at a time."""


def as_rows(X: Any) -> Array:
    """X as a NumPy array [row d], in its own dtype where NumPy has it. Raises InputError for another shape."""
    if isinstance(X, torch.Tensor):
        X = X.detach().cpu()
        X = X.float().numpy() if X.dtype is torch.bfloat16 else X.numpy()
    X = np.asanyarray(X)  # a memory map stays one
    if X.ndim != 2 or X.dtype.kind not in "fiub":
        raise InputError(f"activations of shape {X.shape} and {X.dtype}", "expected numbers [row, feature]")
    rows: Array = X
    return rows


def as_labels(y: Any, rows: int) -> Array:
    """y as a NumPy array, [row] or [row target]. Raises InputError when its length is not that of the activations."""
    y = y.detach().cpu().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)
    if y.ndim not in (1, 2) or len(y) != rows:
        raise InputError(f"labels of shape {y.shape} for {rows} rows", "expected one label for each row")
    return np.asarray(y)


@dataclass(frozen=True, eq=False)
class Moments:
    """How many rows, their mean and their scatter."""

    n: int
    mean: Array  # [d] float64
    scatter: Array  # [d d] float64: sum over rows of (x - mean)(x - mean)'

    @classmethod
    def of(cls, X: Any) -> "Moments":
        """Of the rows of X [row d]. Raises InputError for numbers that are not finite."""
        X = as_rows(X)
        found = cls(0, np.zeros(X.shape[1]), np.zeros((X.shape[1], X.shape[1])))
        for start in range(0, len(X), CHUNK):
            part = X[start : start + CHUNK]
            mean = part.mean(0, dtype=np.float64)
            if not np.isfinite(mean).all():
                raise InputError("activations that are NaN or infinite", "expected finite numbers")
            part = part - mean  # float64
            found = found.merge(cls(len(part), mean, part.T @ part))
        return found

    def merge(self, other: "Moments") -> "Moments":
        """Of the rows of both."""
        if not self.n or not other.n:
            return self if self.n else other
        n = self.n + other.n
        apart = other.mean - self.mean
        scatter = self.scatter + other.scatter
        scatter += np.outer(apart, apart * (self.n * other.n / n))
        return Moments(n, self.mean + apart * (other.n / n), scatter)

    @property
    def variance(self) -> Array:
        """[d], divided by the number of rows."""
        return np.diag(self.scatter) / max(self.n, 1)


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """For each class: how many rows, and their mean."""

    classes: Array  # [class] sorted
    counts: Array  # [class] int64
    means: Array  # [class d] float64

    @classmethod
    def of(cls, X: Any, y: Any) -> "ClassMeans":
        """Of the rows of X [row d] with labels y [row]."""
        X = as_rows(X)
        classes, codes = np.unique(as_labels(y, len(X)), return_inverse=True)
        sums, counts = np.zeros((len(classes), X.shape[1])), np.bincount(codes, minlength=len(classes))
        for start in range(0, len(X), CHUNK):
            part, code = X[start : start + CHUNK].astype(np.float64, copy=False), codes[start : start + CHUNK]
            member = np.zeros((len(classes), len(part)))
            member[code, np.arange(len(part))] = 1.0
            sums += member @ part
        return cls(classes, counts, sums / counts[:, None])

    def merge(self, other: "ClassMeans") -> "ClassMeans":
        """Of the rows of both, with the classes of both."""
        classes = np.union1d(self.classes, other.classes)
        counts, means = np.zeros(len(classes), dtype=np.int64), np.zeros((len(classes), self.means.shape[1]))
        for part in (self, other):
            place = np.searchsorted(classes, part.classes)
            counts[place] += part.counts
            means[place] += (part.means - means[place]) * (part.counts / counts[place])[:, None]
        return ClassMeans(classes, counts, means)


@dataclass(frozen=True, eq=False)
class Targets:
    """For regression: the targets' mean and spread, and how they vary with the activations."""

    n: int
    mean_x: Array  # [d]
    mean: Array  # [target]
    cross: Array  # [d target]: sum over rows of (x - mean_x)(y - mean)
    scatter: Array  # [target]: sum over rows of (y - mean)^2

    @classmethod
    def of(cls, X: Any, y: Any) -> "Targets":
        """Of the rows of X [row d] with targets y [row] or [row target]."""
        X = as_rows(X).astype(np.float64)
        y = as_labels(y, len(X)).astype(np.float64).reshape(len(X), -1)
        if not np.isfinite(y).all():
            raise InputError("targets that are NaN or infinite", "expected finite numbers")
        mean_x, mean = X.mean(0), y.mean(0)
        y = y - mean
        return cls(len(X), mean_x, mean, (X - mean_x).T @ y, (y**2).sum(0))

    def merge(self, other: "Targets") -> "Targets":
        """Of the rows of both."""
        n = self.n + other.n
        x, y = other.mean_x - self.mean_x, other.mean - self.mean
        share, weight = other.n / n, self.n * other.n / n
        return Targets(
            n,
            self.mean_x + x * share,
            self.mean + y * share,
            self.cross + other.cross + np.outer(x, y) * weight,
            self.scatter + other.scatter + y**2 * weight,
        )


@dataclass(frozen=True, eq=False)
class Statistics:
    """All that a linear probe needs to know of its data."""

    x: Moments
    y: ClassMeans | Targets

    @classmethod
    def of(cls, X: Any, y: Any, *, regression: bool = False) -> "Statistics":
        """Of the rows of X [row d] with labels or targets y."""
        X = as_rows(X)
        return cls(Moments.of(X), Targets.of(X, y) if regression else ClassMeans.of(X, y))

    def merge(self, other: "Statistics") -> "Statistics":
        """Of the rows of both. Raises InputError for another width, or labels of another kind."""
        if self.x.mean.shape != other.x.mean.shape:
            raise InputError(f"{len(other.x.mean)} features", f"expected {len(self.x.mean)}, as before")
        x = self.x.merge(other.x)
        if isinstance(self.y, ClassMeans) and isinstance(other.y, ClassMeans):
            return Statistics(x, self.y.merge(other.y))
        if isinstance(self.y, Targets) and isinstance(other.y, Targets):
            return Statistics(x, self.y.merge(other.y))
        raise InputError("classes and numbers as labels of one probe", "expected one kind")

    @cached_property
    def within(self) -> Array:
        """[d d] scatter of the rows around the mean of their class."""
        assert isinstance(self.y, ClassMeans)
        apart = (self.y.means - self.x.mean) * np.sqrt(self.y.counts)[:, None]
        return np.asarray(self.x.scatter - apart.T @ apart)
