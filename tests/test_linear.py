"""Products by whichever kernel is fastest: the same numbers as float64 gives, gradients where they are wanted."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from interp.linear import _ONEDNN, ACTIVATIONS, SMALL, affine, linear, pack

LARGE = (300, 70, 60)  # rows, in, out: enough multiplications for the other kernel
assert LARGE[0] * LARGE[1] * LARGE[2] > SMALL


def exact(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, act: str | None) -> torch.Tensor:
    out = x.double() @ weight.double() + (0 if bias is None else bias.double())
    return out if act is None else ACTIVATIONS[act](out)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To what summing 70 float32 products of normal numbers can lose."""
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=0)


@given(
    rows=st.integers(0, 400),
    act=st.sampled_from([None, *ACTIVATIONS]),
    biased=st.booleans(),
    columns=st.sampled_from([slice(None), slice(7, 60), slice(0, 1)]),
    seed=st.integers(0, 9),
)
def test_any_product_is_that_of_float64(rows: int, act: str | None, biased: bool, columns: slice, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(rows, LARGE[1]), torch.randn(LARGE[1], 90)[:, columns]
    bias = torch.randn(weight.shape[1]) if biased else None
    with torch.no_grad():
        close(affine(x, weight, bias, act=act), exact(x, weight, bias, act))
        close(linear(x, pack(weight), bias, act=act), exact(x, weight, bias, act))


def test_batches_and_strides_and_infinities_pass_through() -> None:
    weight = torch.randn(LARGE[1], LARGE[2])
    x = torch.randn(2, LARGE[1], LARGE[0]).transpose(1, 2)
    x[0, 3, 4], x[1, 5, 6] = torch.inf, torch.nan
    with torch.no_grad():
        torch.testing.assert_close(affine(x, weight, None), x @ weight, atol=2e-5, rtol=0, equal_nan=True)


def test_gradients_are_those_of_the_plain_product() -> None:
    x, weight = torch.randn(LARGE[0], LARGE[1]), torch.randn(LARGE[1], LARGE[2])
    pairs = []
    for product in (lambda x, w: affine(x, w, None, act="gelu"), lambda x, w: F.gelu(x @ w)):
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        product(*leaves).square().sum().backward()
        pairs.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*pairs, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(_ONEDNN is None, reason="this PyTorch has no oneDNN")
def test_the_tolerance_would_catch_sixteen_bit_products() -> None:
    x, weight = torch.randn(LARGE[0], LARGE[1]), torch.randn(LARGE[1], LARGE[2])
    with torch.no_grad(), pytest.raises(AssertionError):
        close(affine(x.bfloat16(), weight.bfloat16(), None), exact(x, weight, None, None))
