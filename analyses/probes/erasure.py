"""Erasing a concept from activations: LEACE from the statistics that the probes are fitted from.

Belrose et al. 2023, "LEACE: Perfect linear concept erasure in closed form": the smallest affine change after which the
classes have equal means, so that no linear probe does better than the classes' shares. The eraser itself is made by the
library `concept-erasure`, whose streaming fitter holds the same sums as `Statistics`.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyses.probes.base import class_means
from analyses.probes.data import Activations
from analyses.probes.moments import Array, ClassMeans, Moments, Statistics
from interp.errors import InterpError
from interp.interventions import Affine, Index, erase


@dataclass(frozen=True, eq=False)
class Eraser:
    """x -> x - left right (x - center)."""

    left: Tensor  # [d rank] float64
    right: Tensor  # [rank d]
    center: Tensor  # [d]

    @property
    def rank(self) -> int:
        """How many directions it removes."""
        return self.left.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        """x [*batch d] without the concept, in its own dtype; computed in float64."""
        wide = x.double()
        left, right, center = (part.to(x.device) for part in (self.left, self.right, self.center))
        return (wide - (wide - center) @ right.T @ left.T).to(x.dtype)

    def at(self, name: str, *, pos: Index = None) -> Affine:
        """As an intervention at one hook point, for `model.hooks` and sweeps; in the activation's own dtype."""
        return erase(name, self.right.T, self.left.T, self.center, pos=pos)

    def removed(self, statistics: Statistics) -> float:
        """The share of the variance of such activations that it takes out."""
        return float(1 - np.trace(self.of(statistics).x.scatter) / np.trace(statistics.x.scatter))

    def of(self, statistics: Statistics) -> Statistics:
        """The statistics of the erased activations."""
        left, right, center = (part.numpy() for part in (self.left, self.right, self.center))
        keep = np.eye(len(center)) - left @ right
        x, y = statistics.x, class_means(statistics)

        def moved(points: Array) -> Array:
            return np.asarray((points - center) @ keep.T + center)

        return Statistics(
            Moments(x.n, moved(x.mean), keep @ x.scatter @ keep.T), ClassMeans(y.classes, y.counts, moved(y.means))
        )


def leace_fitter(statistics: Statistics) -> Any:
    """The library's fitter, having seen the rows that the statistics were made of. Raises InterpError without it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it compiles a part that is not used here
            from concept_erasure import LeaceFitter
    except ImportError as error:
        raise InterpError(
            "erasing a concept needs the library concept-erasure", "it is not installed", "pip install concept-erasure"
        ) from error
    x, y = statistics.x, class_means(statistics)
    # The covariance is not shrunk, so that the change is the smallest for these rows; no direction is too weak to go.
    options = {"shrinkage": False, "constrain_cov_trace": False, "svd_tol": 1e-7}
    fitter = LeaceFitter(len(x.mean), len(y.classes), dtype=torch.float64, **options)
    fitter.n = torch.tensor(x.n)
    fitter.mean_x, fitter.mean_z = torch.from_numpy(x.mean), torch.from_numpy(y.counts / x.n)
    fitter.sigma_xx_ = torch.from_numpy(x.scatter)
    fitter.sigma_xz_ = torch.from_numpy(((y.means - x.mean) * y.counts[:, None]).T)
    return fitter


def leace(statistics: Statistics) -> Eraser:
    """The eraser of the concept whose classes the statistics know. Raises InterpError without concept-erasure."""
    made = leace_fitter(statistics).eraser
    kept = made.proj_left.norm(dim=0) > 0
    return Eraser(made.proj_left[:, kept], made.proj_right[kept], torch.from_numpy(statistics.x.mean))


def random_eraser(statistics: Statistics, like: Eraser, seed: int, *, as_loud: bool = False) -> Eraser:
    """What LEACE would be for another concept, in random directions that leave this one as it is.

    As many directions as `like` removes, drawn evenly in whitened coordinates among those uncorrelated with what it
    removes. With `as_loud` they are weighted by a power of the standard deviations, found by bisection so that they
    take out as much variance as `like` does (or the nearest there is).
    """
    values, vectors = np.linalg.eigh(statistics.x.scatter / statistics.x.n)
    kept = values > values[-1] * len(values) * np.finfo(float).eps
    values, vectors = values[kept], vectors[:, kept]
    spread = np.sqrt(values)[:, None]
    concept, _ = np.linalg.qr(spread * (vectors.T @ like.right.numpy().T))
    drawn = np.random.default_rng([seed, 5]).normal(size=(len(values), like.rank))
    wanted = like.removed(statistics) * values.sum()

    def directions(power: float) -> Array:
        weighted = drawn * (values / values[-1])[:, None] ** power
        found, _ = np.linalg.qr(weighted - concept @ (concept.T @ weighted))
        return np.asarray(found)

    low, high = (-1.0, 2.0) if as_loud else (0.0, 0.0)
    for _ in range(40 if as_loud else 0):
        middle = (low + high) / 2
        loud = (values[:, None] * directions(middle) ** 2).sum()
        low, high = (middle, high) if loud < wanted else (low, middle)
    chosen = directions((low + high) / 2)
    left, right = vectors @ (spread * chosen), (chosen / spread).T @ vectors.T
    return Eraser(torch.from_numpy(left), torch.from_numpy(right), torch.from_numpy(statistics.x.mean))


@dataclass(frozen=True, eq=False)
class Erased:
    """Activations with a concept erased at one hook point."""

    data: Activations
    name: str
    eraser: Eraser

    @property
    def names(self) -> tuple[str, ...]:
        return self.data.names

    @property
    def manifest(self) -> Any:
        return self.data.manifest

    def width(self, name: str) -> int:
        return self.data.width(name)

    def match(self, names: Any) -> list[str]:
        return self.data.match(names)

    def batches(self, names: Any, *, rows: Any = None, batch: int = 8192) -> Any:
        """As of the data, the erased hook point changed."""
        for x, index in self.data.batches(names, rows=rows, batch=batch):
            if isinstance(x, dict) and self.name in x:
                x[self.name] = self.eraser(torch.from_numpy(x[self.name].astype(np.float64))).numpy()
            yield x, index
