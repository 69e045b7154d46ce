"""Linear probes in closed form from sufficient statistics: ridge, discriminant analysis, mean differences, centroids.

All are exact in one pass, whatever the portions and their order. `coef_` and `intercept_` act on raw activations.
"""

from typing import Any, Literal

import numpy as np
from scipy import linalg

from analyses.probes.base import MomentProbe, binary, class_means, softmax
from analyses.probes.moments import Array, Statistics, Targets
from interp.errors import InputError


class RidgeProbe(MomentProbe):
    """Least squares with an L2 penalty; regression where the labels are floats, else classes.

    min ||y - X w - b||^2 + alpha ||w||^2, the intercept unpenalised, as scikit-learn's Ridge. Classes are met as +1 and
    -1, one against the rest, as its RidgeClassifier does; their least-squares scores estimate 2 P(class | x) - 1, and
    `predict_proba` gives (1 + score) / 2, clipped to 0 ... 1 and made to sum to one: rough, where LDAProbe is not.

    Args:
        alpha: strength of the penalty.
        standardise: penalise w in units of each feature's standard deviation, as if X had been standardised first.
        task: "auto" tells regression from classes by the labels' type.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        standardise: bool = False,
        task: Literal["auto", "classification", "regression"] = "auto",
    ) -> None:
        self.alpha = alpha
        self.standardise = standardise
        self.task = task

    @property
    def coef_(self) -> Array:
        """[class d] or [target d]; [d] for two classes or one target, as scikit-learn's."""
        coef = self._solve()[0]
        return np.asarray(coef[0]) if len(coef) == 1 else coef

    @property
    def intercept_(self) -> Array:
        """[class] or [target]; a number for two classes or one target."""
        intercept = self._solve()[1]
        return np.asarray(intercept[0]) if len(intercept) == 1 else intercept

    def _is_regression(self, y: Array) -> bool:
        return self.task == "regression" or (self.task == "auto" and (y.dtype.kind == "f" or y.ndim == 2))

    def _solved(self, statistics: Statistics) -> tuple[Array, Array]:
        if self.alpha < 0:
            raise InputError(f"alpha = {self.alpha}", "expected 0 or more")
        x, y = statistics.x, statistics.y
        if isinstance(y, Targets):
            cross, mean = y.cross, np.asarray(y.mean)
        else:
            cross = 2 * ((y.means - x.mean) * y.counts[:, None]).T
            mean = 2 * y.counts / x.n - 1
            if len(y.classes) == 2:
                cross, mean = cross[:, 1:], mean[1:]
        scale = np.where(x.variance > 0, x.variance, 1.0) if self.standardise else np.ones(len(x.mean))
        coef = np.asarray(solve_psd(x.scatter + np.diag(self.alpha * scale), cross).T)
        return coef, np.asarray(mean - coef @ x.mean)

    def predict_proba(self, X: Any) -> Array:
        if self.regression:
            return super().predict_proba(X)
        scores = self.decision_function(X)
        scores = np.stack([-scores, scores], 1) if scores.ndim == 1 else scores
        shares = np.clip((1 + scores) / 2, 0.0, 1.0)
        total = shares.sum(1, keepdims=True)
        even: Array = np.full_like(shares, 1 / shares.shape[1])
        found: Array = np.divide(shares, total, out=even, where=total > 0)
        return found


class LDAProbe(MomentProbe):
    """Linear discriminant analysis: normal classes with a common covariance, priors as observed.

    As scikit-learn's LinearDiscriminantAnalysis from version 1.9 on: the covariance within classes is the maximum
    likelihood one, divided by the number of rows, and directions without variance are left out.

    Args:
        shrinkage: 0 to 1, how far the covariance is drawn to a multiple of the identity with the same trace.
    """

    def __init__(self, *, shrinkage: float = 0.0) -> None:
        self.shrinkage = shrinkage

    def _solved(self, statistics: Statistics) -> tuple[Array, Array]:
        if not 0 <= self.shrinkage <= 1:
            raise InputError(f"shrinkage = {self.shrinkage}", "expected 0 to 1")
        covariance = statistics.within / statistics.x.n
        if self.shrinkage:
            size = np.trace(covariance) / len(covariance)
            covariance = (1 - self.shrinkage) * covariance + self.shrinkage * size * np.eye(len(covariance))
        return discriminants(statistics, covariance, statistics.x.mean)


class MassMeanProbe(MomentProbe):
    """The difference of class means as the direction (Marks and Tegmark 2023, "The Geometry of Truth", section 5).

    Within the directions that the means span (one, for two classes) the classes are told apart by their spread and
    frequency along them: discriminant analysis of the projected data, so that probabilities are calibrated. The
    direction itself sees no covariance, and so is the one along which moving activations moves class means.
    """

    def __init__(self) -> None:
        pass

    @property
    def direction_(self) -> Array:
        """[d] the second class' mean less the first's; for more classes [class d], each mean less the overall one."""
        y = class_means(self.statistics_)
        apart = y.means[1] - y.means[0] if len(y.classes) == 2 else y.means - self.statistics_.x.mean
        return np.asarray(apart)

    def _solved(self, statistics: Statistics) -> tuple[Array, Array]:
        y, center = class_means(statistics), statistics.x.mean
        _, sizes, directions = np.linalg.svd(y.means - y.means.mean(0), full_matrices=False)
        basis = directions[sizes > max(sizes[0], np.abs(y.means).max()) * 1e-10].T  # [d span]
        within = basis.T @ statistics.within @ basis / statistics.x.n
        coef, intercept = weights(within, (y.means - center) @ basis, y.counts)
        coef = coef @ basis.T
        return binary(coef, intercept - coef @ center)


class NearestCentroidProbe(MomentProbe):
    """The class whose mean is nearest; probabilities as of round normal classes of one width, equally frequent."""

    def __init__(self) -> None:
        pass

    def _solved(self, statistics: Statistics) -> tuple[Array, Array]:
        y, center = class_means(statistics), statistics.x.mean
        means = y.means - center
        intercept = -0.5 * (means**2).sum(1)
        return binary(means, intercept - means @ center)

    def predict_proba(self, X: Any) -> Array:
        variance = np.trace(self.statistics_.within) / self.statistics_.x.n / self.n_features_in_
        scores = self.decision_function(X)
        scores = np.stack([np.zeros_like(scores), scores], 1) if scores.ndim == 1 else scores
        return softmax(scores / max(variance, np.finfo(float).tiny))


def discriminants(statistics: Statistics, covariance: Array, center: Array) -> tuple[Array, Array]:
    """Linear discriminant functions for a given covariance within classes."""
    y = class_means(statistics)
    coef, intercept = weights(covariance, y.means - center, y.counts)
    return binary(coef, intercept - coef @ center)


def weights(covariance: Array, means: Array, counts: Array) -> tuple[Array, Array]:
    """log P(class | x) up to a constant, as coefficients [class d] and intercepts [class]; means [class d] centred."""
    coef = (inverse(covariance) @ means.T).T
    return coef, np.log(counts / counts.sum()) - 0.5 * (coef * means).sum(1)


def inverse(covariance: Array, smallest: float = 1e-8) -> Array:
    """Inverse over the directions that have variance: eigenvalues of the correlation matrix above `smallest`."""
    spread = np.sqrt(np.diag(covariance).clip(0))
    spread = np.where(spread > spread.max(initial=0.0) * 1e-12, spread, 1.0)
    values, vectors = np.linalg.eigh(covariance / np.outer(spread, spread))
    kept = values > smallest
    vectors = vectors[:, kept] / np.sqrt(values[kept]) / spread[:, None]
    return np.asarray(vectors @ vectors.T)


def solve_psd(matrix: Array, right: Array) -> Array:
    """matrix^-1 right for a symmetric matrix without negative eigenvalues; the shortest solution if it is singular."""
    try:
        return np.asarray(linalg.cho_solve(linalg.cho_factor(matrix), right))
    except linalg.LinAlgError:
        return np.asarray(linalg.pinvh(matrix) @ right)
