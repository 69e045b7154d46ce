"""How the variants of a sweep share one matrix: which rows are whose, and the weights that they are multiplied by."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from interp.models.kernels import pack
from interp.sweep.edits import Positions, common


class Layout(NamedTuple):
    """Which variants, and which of their positions, the rows of a matrix are: [variant batch pos] flattened."""

    parts: tuple[tuple[int, Positions], ...]
    batch: int

    def views(self, x: Tensor) -> Iterator[tuple[int, Positions, Tensor]]:
        """Each variant's part of x [rows ...], as [batch pos ...]."""
        rows = x.split([self.batch * len(positions) for _, positions in self.parts])
        for (variant, positions), part in zip(self.parts, rows, strict=True):
            yield variant, positions, part.view(self.batch, len(positions), *x.shape[1:])


class Ask(NamedTuple):
    """What attention has to do for a variant."""

    before: Positions
    """Where its keys and values may differ from the clean ones."""
    after: Positions
    """Whose queries are answered."""
    explicit: bool
    """Whether scores and pattern are to be seen, so that the fused kernel cannot be used."""
    variant: int

    @property
    def asking(self) -> Positions:
        """Whose queries are not the clean ones."""
        return common(self.before, self.after)


class Matrices:
    """Weights of one layer as the products like them best: where many rows share them, laid out anew once."""

    def __init__(self, *, many: bool) -> None:
        self.many = many
        self.kept: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, weight: Tensor) -> Tensor:
        """W [in out], for `linear`."""
        if not self.many:
            return weight.T
        return self._packed((id(weight),), lambda: weight)

    def joined(self, weights: Sequence[Tensor]) -> Tensor:
        """Several matrices side by side, for one product of many rows instead of several."""
        return self._packed(tuple(map(id, weights)), lambda: torch.cat(tuple(weights), dim=1))

    def _packed(self, key: tuple[int, ...], weight: Callable[[], Tensor]) -> Tensor:
        if key not in self.kept:
            self.kept[key] = pack(weight())
        return self.kept[key]
