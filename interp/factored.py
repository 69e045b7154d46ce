"""A product of two matrices, kept as its factors: circuits such as W_V W_O are large, and of rank d_head at most."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError


@dataclass(frozen=True, eq=False)
class FactoredMatrix:
    """A B, with A [*stack rows inner] and B [*stack inner columns], and what can be said of it without multiplying out.

    Like Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits": `FactoredMatrix(model.W_V[0],
    model.W_O[0])` are the OV circuits of layer 0, one a head; `FactoredMatrix(model.W_Q[0], model.W_K[0].mT)` the QK
    circuits (where queries share keys, take `model.W_K[0].repeat_interleave(group, 0)`).
    """

    A: Float[Tensor, "*stack rows inner"]
    B: Float[Tensor, "*stack inner columns"]

    def __post_init__(self) -> None:
        """Raises InputError for factors that cannot be multiplied."""
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in (self.A, self.B)]
        if (
            not all(isinstance(x, Tensor) and x.ndim >= 2 for x in (self.A, self.B))
            or self.A.shape[-1] != self.B.shape[-2]
        ):
            raise InputError(
                f"factors of shape {shapes[0]} and {shapes[1]}", "expected [... rows inner] and [... inner columns]"
            )

    @property
    def shape(self) -> torch.Size:
        """[*stack rows columns]."""
        stack = torch.broadcast_shapes(self.A.shape[:-2], self.B.shape[:-2])
        return torch.Size((*stack, self.A.shape[-2], self.B.shape[-1]))

    @property
    def AB(self) -> Float[Tensor, "*stack rows columns"]:
        """The product, multiplied out."""
        return self.A @ self.B

    @property
    def T(self) -> "FactoredMatrix":
        """Its transpose."""
        return FactoredMatrix(self.B.mT, self.A.mT)

    def __matmul__(self, other: "Tensor | FactoredMatrix") -> "FactoredMatrix":
        """Times a matrix [*stack columns n], or another product."""
        if isinstance(other, FactoredMatrix):
            return FactoredMatrix(self.A, (self.B @ other.A) @ other.B)
        return FactoredMatrix(self.A, self.B @ other)

    def __rmatmul__(self, other: Float[Tensor, "*stack n rows"]) -> "FactoredMatrix":
        return FactoredMatrix(other @ self.A, self.B)

    def __getitem__(self, index: object) -> "FactoredMatrix":
        """Part of the stack, such as one head of one layer."""
        dims = len(self.shape) - 2
        chosen = index if isinstance(index, tuple) else (index,)
        if len(chosen) > dims or any(one is Ellipsis or one is None for one in chosen):
            raise InputError(
                f"index {index!r} of a stack with {dims} axes", "expected at most these; .AB[...] has entries"
            )
        stack = self.shape[:-2]
        A, B = self.A.expand(*stack, *self.A.shape[-2:]), self.B.expand(*stack, *self.B.shape[-2:])
        return FactoredMatrix(A[index], B[index])  # type: ignore[index]

    def svd(self) -> tuple[Tensor, Float[Tensor, "*stack inner"], Tensor]:
        """U [*stack rows inner], singular values in falling order, Vh [*stack inner columns].

        By the triangular factors of A and B' (Golub and Van Loan): the inner matrices are inner by inner.
        """
        Q, R = torch.linalg.qr(self.A)
        P, S = torch.linalg.qr(self.B.mT)
        U, values, Vh = torch.linalg.svd(R @ S.mT, full_matrices=False)
        return Q @ U, values, Vh @ P.mT

    @property
    def eigenvalues(self) -> Tensor:
        """Complex [*stack inner]; the product's others are zero. Raises InputError where it is not square.

        Those of A B that are not zero are those of B A, which is inner by inner.
        """
        if self.A.shape[-2] != self.B.shape[-1]:
            raise InputError(
                f"eigenvalues of a product of shape {tuple(self.shape)}", "expected as many rows as columns"
            )
        values: Tensor = torch.linalg.eigvals(self.B @ self.A)
        return values

    @property
    def trace(self) -> Float[Tensor, " *stack"]:
        return (self.A * self.B.mT).sum((-1, -2))

    def norm(self) -> Float[Tensor, " *stack"]:
        """Frobenius norm: the root of the sum of squared singular values."""
        squares: Tensor = ((self.A.mT @ self.A) * (self.B @ self.B.mT)).sum((-1, -2))
        return squares.clamp(min=0).sqrt()

    def __repr__(self) -> str:
        return f"FactoredMatrix({' x '.join(map(str, self.shape))}, rank at most {self.A.shape[-1]})"
