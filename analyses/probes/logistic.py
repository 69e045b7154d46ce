"""Logistic regression over data of any size: full-data optimum, every pass a sum over batches.

min C sum_i loss(y_i, W x_i + b) + ||W||^2 / 2, intercepts unpenalised: scikit-learn's LogisticRegression, with one row
of weights for two classes and the symmetric multinomial form for more. Value and gradient are sums over rows, so shards
and workers add up to exactly what one machine would see, and order changes rounding only.

Method: L-BFGS in coordinates in which the curvature is about one. Where all rows are predicted with the classes'
shares p, the Hessian is M x S with M = diag(p) - p p' and S the covariance of X, which the first pass gives; so W is
written in the eigenvectors of M, and each of these rows as u L^-1 with L L' = m S + 1 / (C n). That takes some tens of
passes.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import numpy as np
from scipy import linalg, optimize

from analyses.probes.base import Read, class_means, linear_scores
from analyses.probes.moments import Array, Statistics, as_labels
from analyses.probes.rows import RowsProbe, spread
from interp.errors import InputError
from interp.keeping import Arrays, kept

PATH = (0.0001, 0.001, 0.01, 0.1, 1.0)
"""Values of C worth trying for standardised activations."""


class LogisticProbe(RowsProbe):
    """Logistic regression with an L2 penalty.

    Args:
        C: inverse strength of the penalty, or several: then `fit` or `choose` picks one by loss on validation rows.
        standardise: penalise W in units of each feature's standard deviation, as if X had been standardised first.
        max_iter: most steps for one C; a step is one pass over the data, seldom two.
        tol: see `minimise`; the default is exact to about 1e-6 in probability.
    """

    _solution: tuple[Array, Array] | None = None
    _start: tuple[Array, Array] | None = None

    def __init__(
        self, C: float | Sequence[float] = 1.0, *, standardise: bool = False, max_iter: int = 500, tol: float = 1e-8
    ) -> None:
        super().__init__()
        self.C = C
        self.standardise = standardise
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, X: Any, y: Any, *, validation: tuple[Any, Any] | None = None) -> Self:
        """Learn from X [row d] and y [row].

        Args:
            validation: rows of other texts, (X, y), on which one of several values of C is chosen.
        """
        self._forget()
        self.partial_fit(X, y)
        if validation is not None:
            return self.choose(lambda: [validation])
        self._solve()
        return self

    def choose(self, read: Read) -> Self:
        """Keep the value of C with the least loss on the rows that `read` gives, which must be of other texts."""
        tried, losses, found, start = sorted(self._path()), list[float](), list[tuple[Array, Array]](), None
        for C in tried:
            start = self._optimum(C, start)
            found.append(start)
            losses.append(log_loss(read(), *start, self.classes_))
        best = int(np.argmin(losses))
        self._solution, self.C_ = found[best], tried[best]
        self.losses_ = dict(zip(tried, losses, strict=True))
        return self

    def start_from(self, other: "LogisticProbe") -> Self:
        """Begin the next search at another's solution, such as that for a stronger penalty."""
        self._start = other._solve()
        return self

    def fit_objective(self, statistics: Statistics, objective: "Objective", key: Sequence[object] = ()) -> Self:
        """Learn from rows that somebody else sums over, such as workers; see `minimise`.

        `key` says which rows and labels these are: then `interp.keeping` keeps the solution.
        """
        self._statistics = statistics
        self._check_classes()
        self.C_ = self._single()
        scale = spread(statistics.x) if self.standardise else None

        def solve() -> Arrays:
            coef, intercept, steps = minimise(
                objective, statistics, self.C_, scale=scale, start=self._start, max_iter=self.max_iter, tol=self.tol
            )
            return {"coef": coef, "intercept": intercept, "steps": np.array(steps)}

        settings = (self.C_, self.standardise, self.max_iter, self.tol)
        found = kept(("logistic", *settings, *(self._start or ()), *key), solve) if key else solve()
        self._solution, self.n_iter_ = (found["coef"], found["intercept"]), int(found["steps"])
        return self

    @property
    def coef_(self) -> Array:
        """[class d], [1 d] for two classes."""
        return self._solve()[0]

    @property
    def intercept_(self) -> Array:
        """[class], [1] for two classes."""
        return self._solve()[1]

    def decision_function(self, X: Any) -> Array:
        return linear_scores(X, *self._solve())

    def _forget_solution(self) -> None:
        self._solution = None

    def _path(self) -> list[float]:
        values = [float(C) for C in np.atleast_1d(np.asarray(self.C, dtype=float))]
        if not values or min(values) <= 0:
            raise InputError(f"C = {self.C}", "expected numbers above 0")
        return values

    def _solve(self) -> tuple[Array, Array]:
        if self._solution is None:
            self.C_ = self._single()
            self._solution = self._optimum(self.C_, None)
        return self._solution

    def _single(self) -> float:
        values = self._path()
        if len(values) > 1:
            raise InputError(
                f"{len(values)} values of C and nothing to choose by",
                "expected rows of other texts",
                "fit(X, y, validation=(X, y)), or choose(read) after partial_fit",
            )
        return values[0]

    def _optimum(self, C: float, start: tuple[Array, Array] | None) -> tuple[Array, Array]:
        self._check_classes()
        scale = spread(self.statistics_.x) if self.standardise else None
        coef, intercept, self.n_iter_ = minimise(
            lambda coef, intercept: value_and_gradient(self._passes(), coef, intercept),
            self.statistics_,
            C,
            scale=scale,
            start=start,
            max_iter=self.max_iter,
            tol=self.tol,
        )
        return coef, intercept


Objective = Callable[[Array, Array], tuple[float, Array, Array]]
"""Coefficients [class d] and intercepts [class] -> loss summed over rows, and its gradients."""


def minimise(
    objective: Objective,
    statistics: Statistics,
    C: float,
    *,
    scale: Array | None = None,
    start: tuple[Array, Array] | None = None,
    max_iter: int = 500,
    tol: float = 1e-8,
) -> tuple[Array, Array, int]:
    """The optimum of C objective + ||coef scale||^2 / 2: coefficients, intercepts, iterations.

    Args:
        objective: the loss over all rows; on several workers, the sum of their parts.
        statistics: of the same rows, for the coordinates to search in.
        scale: [d] standard deviations, to penalise coefficients in these units.
        start: where to begin, such as the optimum for a stronger penalty.
        tol: largest gradient at the optimum, per row and in units of the curvature.
    """
    x, y = statistics.x, class_means(statistics)
    n, d, share = x.n, len(x.mean), y.counts / x.n
    penalty = (np.ones(d) if scale is None else scale**2) / (C * n)
    curvature, turn = _class_coordinates(share)  # [row], [class row]
    jitter = 1e-12 * max(float(x.variance.max()), 1e-300)
    roots = [linalg.cholesky(h * x.scatter / n + np.diag(penalty + jitter), lower=True) for h in curvature]
    steps = np.sqrt(curvature)

    def unpack(u: Array) -> tuple[Array, Array]:
        u = u.reshape(len(roots), d + 1)
        pairs = zip(roots, u[:, :d], strict=True)
        coef = turn @ np.stack([linalg.solve_triangular(root, row, lower=True, trans="T") for root, row in pairs])
        return coef, turn @ (u[:, d] / steps) - coef @ x.mean

    def pack(coef: Array, intercept: Array) -> Array:
        rows = np.stack([root.T @ row for root, row in zip(roots, turn.T @ coef, strict=True)])
        return np.column_stack([rows, turn.T @ (intercept + coef @ x.mean) * steps]).ravel()

    def evaluate(u: Array) -> tuple[float, Array]:
        coef, intercept = unpack(u)
        loss, by_coef, by_intercept = objective(coef, intercept)
        by_coef = turn.T @ ((by_coef - np.outer(by_intercept, x.mean)) / n + coef * penalty)
        rows = [linalg.solve_triangular(root, row, lower=True) for root, row in zip(roots, by_coef, strict=True)]
        gradient = np.column_stack([np.stack(rows), turn.T @ by_intercept / n / steps]).ravel()
        return loss / n + 0.5 * float((coef**2 * penalty).sum()), gradient

    first = np.log(share[1:] / share[0]) if len(share) == 2 else np.log(share)
    begin = pack(np.zeros((len(turn), d)), first) if start is None else pack(*start)
    options = {"maxiter": max_iter, "maxfun": 2 * max_iter, "gtol": tol, "ftol": 1e-16, "maxcor": 30}
    found = optimize.minimize(evaluate, begin, jac=True, method="L-BFGS-B", options=options)  # type: ignore[call-overload]
    if np.abs(found.jac).max() > max(100 * tol, 1e-6):
        warnings.warn(f"logistic probe: no optimum after {found.nit} steps; raise max_iter, or lower C", stacklevel=3)
    return *unpack(found.x), int(found.nit)


def _class_coordinates(share: Array) -> tuple[Array, Array]:
    """Eigenvalues [row] and eigenvectors [class row] of diag(p) - p p', the one that is zero left out.

    Adding the same to every class' score changes no probability, so nothing is lost. For two classes there is one row
    of weights, and the curvature is p (1 - p).
    """
    if len(share) == 2:
        return share[:1] * share[1:], np.ones((1, 1))
    values, vectors = np.linalg.eigh(np.diag(share) - np.outer(share, share))
    return values[1:], vectors[:, 1:]


def value_and_gradient(
    batches: Iterable[tuple[Array, Array]], coef: Array, intercept: Array
) -> tuple[float, Array, Array]:
    """Cross-entropy in nats summed over rows, and its gradients with respect to coef [class d] and intercept [class].

    Sums of parts are the whole's, so shards can be added up. `batches` gives X [row d] and class numbers [row].
    """
    loss, by_coef, by_intercept = 0.0, np.zeros_like(coef), np.zeros_like(intercept)
    for X, codes in batches:
        scores = X @ coef.T + intercept
        if len(coef) == 1:
            margin = scores[:, 0] * np.where(codes == 1, 1.0, -1.0)
            loss += float(np.logaddexp(0.0, -margin).sum())
            slope = -np.where(codes == 1, 1.0, -1.0) * _sigmoid(-margin)
            residual = slope[:, None]
        else:
            scores -= scores.max(1, keepdims=True)
            row = np.arange(len(codes))
            picked = scores[row, codes]
            np.exp(scores, out=scores)
            total = scores.sum(1)
            loss += float((np.log(total) - picked).sum())
            residual = scores / total[:, None]
            residual[row, codes] -= 1.0
        by_coef += residual.T @ X
        by_intercept += residual.sum(0)
    return loss, by_coef, by_intercept


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -x))


def log_loss(batches: Iterable[tuple[Any, Any]], coef: Array, intercept: Array, classes: Array) -> float:
    """Mean cross-entropy in nats of rows with known classes; rows of a class that was never seen are left out."""
    total, n = 0.0, 0
    for X, y in batches:
        y = as_labels(y, len(X))
        y = y.astype(str) if y.dtype.kind == "O" else y
        known = np.isin(y, classes)
        codes = np.searchsorted(classes, y[known])
        loss, _, _ = value_and_gradient([(np.asarray(X)[known].astype(np.float64), codes)], coef, intercept)
        total, n = total + loss, n + int(known.sum())
    return total / max(n, 1)
