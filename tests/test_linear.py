"""Products by whichever kernel is fastest: the same numbers as float64 gives, gradients where they are wanted."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.models.kernels import _ONEDNN, ACTIVATIONS, SMALL, affine, linear, pack

LARGE = (300, 70, 60)  # rows, in, out: enough multiplications for the other kernel
assert LARGE[0] * LARGE[1] * LARGE[2] > SMALL


def exact(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, act: str | None) -> torch.Tensor:
    out = x.double() @ weight.double() + (0 if bias is None else bias.double())
    return out if act is None else ACTIVATIONS[act](out)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To what summing 70 float32 products of normal numbers can lose."""
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=0)


@settings(deadline=None)
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
        by = None if act is None else ACTIVATIONS[act]
        for found in (affine(x, weight, bias, act=by), linear(x, pack(weight), bias, act=by)):
            expected = exact(x, weight, bias, act)
            close(*((found.sqrt(), expected.sqrt()) if act == "relu2" else (found, expected)))


def test_batches_and_strides_and_infinities_pass_through() -> None:
    weight = torch.randn(LARGE[1], LARGE[2])
    x = torch.randn(2, LARGE[1], LARGE[0]).transpose(1, 2)
    x[0, 3, 4], x[1, 5, 6] = torch.inf, torch.nan
    with torch.no_grad():
        torch.testing.assert_close(affine(x, weight, None), x @ weight, atol=2e-5, rtol=0, equal_nan=True)


def test_gradients_are_those_of_the_plain_product() -> None:
    x, weight = torch.randn(LARGE[0], LARGE[1]), torch.randn(LARGE[1], LARGE[2])
    pairs = []
    for product in (lambda x, w: affine(x, w, None, act=F.gelu), lambda x, w: F.gelu(x @ w)):
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        product(*leaves).square().sum().backward()
        pairs.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*pairs, rtol=1e-4, atol=1e-4)


def test_a_bias_with_strides_and_nan_in_every_non_linearity() -> None:
    """The kernel takes no notice of a bias' strides, and its relu would make 0 of NaN."""
    x, weight = torch.randn(LARGE[0], LARGE[1]), torch.randn(LARGE[1], LARGE[2])
    with torch.no_grad():
        for bias in (torch.randn(2 * LARGE[2])[::2], torch.randn(1).expand(LARGE[2])):
            close(affine(x, weight, bias), exact(x, weight, bias, None))
        x[3] = torch.nan
        for act in ACTIVATIONS.values():
            assert affine(x, weight, None, act=act).isnan().nonzero()[:, 0].unique().tolist() == [3]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # PyTorch's own derivatives
def test_transforms_of_pytorch_get_the_kernel_that_they_know() -> None:
    """Forward derivatives, lower precision on request and the compiler, all without gradients."""
    x, weight = torch.randn(LARGE[0], LARGE[1]), torch.randn(LARGE[1], LARGE[2])
    with torch.no_grad():
        _, tangent = torch.func.jvp(lambda x: affine(x, weight, None), (x,), (torch.ones_like(x),))
        torch.testing.assert_close(tangent, weight.sum(0).expand_as(tangent), rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert affine(x, weight, None).dtype == torch.bfloat16
        traced = []
        compiled = torch.compile(affine, backend=lambda graph, inputs: (traced.append(str(graph.graph)), graph)[1])
        torch.testing.assert_close(compiled(x, weight, None), affine(x, weight, None), rtol=1e-4, atol=1e-4)
    assert "nn.linear" in traced[0]
    assert "_linear_pointwise" not in traced[0]


def test_models_can_be_pickled() -> None:
    for act in ACTIVATIONS.values():
        x = torch.randn(5)
        assert torch.equal(pickle.loads(pickle.dumps(act))(x), act(x))


def test_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.models.kernels._ONEDNN", None)
    x, weight = torch.randn(LARGE[0], LARGE[1]), torch.randn(LARGE[1], LARGE[2])
    with torch.no_grad():
        assert not pack(weight).is_mkldnn
        close(linear(x, pack(weight), None, act=ACTIVATIONS["gelu"]), exact(x, weight, None, "gelu"))


@pytest.mark.skipif(_ONEDNN is None, reason="this PyTorch has no oneDNN")
def test_the_tolerance_would_catch_sixteen_bit_products() -> None:
    x, weight = torch.randn(LARGE[0], LARGE[1]), torch.randn(LARGE[1], LARGE[2])
    with torch.no_grad(), pytest.raises(AssertionError):
        close(affine(x.bfloat16(), weight.bfloat16(), None), exact(x, weight, None, None))
