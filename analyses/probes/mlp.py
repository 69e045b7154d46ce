"""A probe with one hidden layer: what a small non-linear reader finds that a linear one does not."""

from typing import Any, Literal, Self

import numpy as np
import torch
from torch import nn

from analyses.probes.base import Read
from analyses.probes.moments import Array, Statistics, Targets, as_labels, as_rows
from analyses.probes.rows import RowsProbe, spread
from interp.errors import InputError


class MLPProbe(RowsProbe):
    """Standardised activations, one hidden layer with ReLU, Adam; regression where the labels are floats, else classes.

    The standard deviations are those of the rows it learns from. With `validation` the weights of the best epoch are
    kept. The same rows in the same order and the same seed give the same probe; other portions are other batches, so
    unlike the linear probes this one depends on them a little.

    Args:
        hidden: units of the hidden layer.
        epochs: passes over the data.
        batch: rows of a step.
        lr, weight_decay: Adam's.
        seed: of the first weights and the order of rows.
    """

    def __init__(
        self,
        hidden: int = 64,
        *,
        epochs: int = 20,
        batch: int = 256,
        lr: float = 1e-3,
        weight_decay: float = 1e-3,
        seed: int = 0,
        task: Literal["auto", "classification", "regression"] = "auto",
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.epochs = epochs
        self.batch = batch
        self.lr = lr
        self.weight_decay = weight_decay
        self.seed = seed
        self.task = task

    def fit(self, X: Any, y: Any, *, validation: tuple[Any, Any] | None = None) -> Self:
        """Learn from X [row d] and y [row]; `validation` rows (X, y) of other texts choose the epoch."""
        self._forget()
        self.partial_fit(X, y)
        return self.choose(lambda: [validation]) if validation is not None else self._refit(None)

    def watch(self, read: Read, statistics: Statistics) -> Self:
        """Learn, at the next fit, from rows of classes whose statistics are known already."""
        self._forget()
        self._statistics = statistics
        self._reads.append(read)
        return self

    def fitted(self) -> Self:
        """Train now, rather than when first asked."""
        self._solve()
        return self

    def choose(self, read: Read) -> Self:
        """Train, and keep the epoch with the least loss on the rows that `read` gives, which must be of other texts."""
        return self._refit(read)

    def _is_regression(self, y: Array) -> bool:
        return self.task == "regression" or (self.task == "auto" and (y.dtype.kind == "f" or y.ndim == 2))

    def _forget_solution(self) -> None:
        self._network: nn.Sequential | None = None

    def _solve(self) -> nn.Sequential:
        if self._network is None:
            self._refit(None)
        assert self._network is not None
        return self._network

    @torch.enable_grad()
    def _refit(self, validation: Read | None) -> Self:
        self._check_classes()
        generator = torch.Generator().manual_seed(self.seed)
        y = self.statistics_.y
        out = len(y.mean) if isinstance(y, Targets) else len(y.classes)
        network = _network(self.n_features_in_, self.hidden, out, generator)
        optimiser = torch.optim.AdamW(network.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        best, kept = np.inf, None
        for _ in range(self.epochs):
            for X, target in self._passes():
                x, wanted = self._scaled(X), self._wanted(target)
                for rows in torch.randperm(len(x), generator=generator).split(self.batch):
                    optimiser.zero_grad()
                    self._loss(network(x[rows]), wanted[rows]).backward()
                    optimiser.step()
            if validation is not None:
                loss = self._validated(network, validation)
                if loss < best:
                    best, kept = loss, {name: value.clone() for name, value in network.state_dict().items()}
        if kept is not None:
            network.load_state_dict(kept)
        self._network = network.requires_grad_(False)
        return self

    def _loss(self, scores: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return (
            nn.functional.mse_loss(scores, wanted) if self.regression else nn.functional.cross_entropy(scores, wanted)
        )

    @torch.no_grad()
    def _validated(self, network: nn.Sequential, read: Read) -> float:
        total, n = 0.0, 0
        for X, y in read():
            y = as_labels(y, len(X))
            if self.regression:
                known, target = np.ones(len(y), dtype=bool), self._wanted(y.astype(float).reshape(len(y), -1))
            else:
                known = np.isin(y, self.classes_)
                target = self._wanted(np.searchsorted(self.classes_, y[known]))
            scores = network(self._scaled(as_rows(X)[known]))
            total, n = total + float(self._loss(scores, target)) * len(target), n + len(target)
        return total / max(n, 1)

    def _scaled(self, X: Array) -> torch.Tensor:
        x = self.statistics_.x
        return torch.from_numpy(((X - x.mean) / spread(x)).astype(np.float32))

    def _wanted(self, y: Array) -> torch.Tensor:
        """Class numbers as they are; numbers in units of their own standard deviation."""
        mean, size = self._units()
        return torch.from_numpy(((y - mean) / size).astype(np.float32) if self.regression else y)

    def _units(self) -> tuple[Array, Array]:
        y = self.statistics_.y
        if not isinstance(y, Targets):
            return np.zeros(1), np.ones(1)
        size = np.sqrt(y.scatter / y.n)
        return y.mean, np.where(size > 0, size, 1.0)

    @torch.no_grad()
    def decision_function(self, X: Any) -> Array:
        X = as_rows(X)
        if X.shape[1] != self.n_features_in_:
            raise InputError(f"{X.shape[1]} features", f"expected {self.n_features_in_}, as the probe was fitted on")
        scores: Array = self._solve()(self._scaled(X)).double().numpy()
        if self.regression:
            mean, size = self._units()
            scores = scores * size + mean
            return scores[:, 0] if scores.shape[1] == 1 else scores
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores


def _network(width: int, hidden: int, out: int, generator: torch.Generator) -> nn.Sequential:
    """Weights drawn from the generator alone, so that nobody else's random numbers change."""
    state = torch.random.get_rng_state()
    network = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))
    torch.random.set_rng_state(state)
    for layer in (network[0], network[2]):
        nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return network
