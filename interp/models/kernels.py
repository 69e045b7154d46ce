"""x W + b, and the non-linearity after it, by the fastest exact kernel at hand.

PyTorch multiplies float32 matrices on the CPU with MKL, which leaves half of an AMD processor's arithmetic unused. The
oneDNN kernel that comes with PyTorch (its compiler uses it) does not; it works in float32 like the other, and was
measured 2.0 to 3.2 times as fast for GPT-2 small's matrices. It knows no gradients, so training keeps to MKL. Like all
of PyTorch's products it may round to sixteen bits after `torch.set_float32_matmul_precision("medium")`.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

_ONEDNN = (
    torch.ops.mkldnn._linear_pointwise.default
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    else None
)


def _squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "relu2": _squared_relu,
    "silu": F.silu,
}
"""Non-linearities by name."""
_FUSED: dict[Callable[[Tensor], Tensor] | None, tuple[str, list[float], str]] = {
    ACTIVATIONS["gelu_new"]: ("gelu", [], "tanh"),
    ACTIVATIONS["gelu"]: ("gelu", [], "none"),
    ACTIVATIONS["silu"]: ("swish", [], ""),
}
"""What the kernel does by itself; not its relu, which makes 0 of NaN."""
SMALL = 1 << 20
"""Multiplications below which starting the other kernel costs more than it saves."""


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or the dtype itself where it is wider: what sums and norms are computed in."""
    return torch.promote_types(dtype, torch.float32)


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(wide_dtype(x.dtype))


def times(x: Tensor, y: Tensor) -> Tensor:
    """x y, in x's own memory where no gradient is wanted: a new large tensor costs more than the product."""
    return x * y if torch.is_grad_enabled() else x.mul_(y)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    act: Callable[[Tensor], Tensor] | None = None,
    factor: Tensor | None = None,
) -> Tensor:
    """x W^T + b with W [out in], then a non-linearity; in float32 on the CPU it may be summed in another order.

    Args:
        weight: [out in], or what `pack` made of a matrix [in out].
        act: one of `ACTIVATIONS`, which the kernel may do by itself, or any other function; None for none.
        factor: what the result is multiplied by, element by element.
    """
    if weight.is_mkldnn or _suits(weight, x.numel() * weight.shape[0], x):
        if not weight.is_mkldnn and not (weight.is_contiguous() or weight.T.is_contiguous()):
            weight = weight.contiguous()  # the kernel reads some columns of a matrix a thousand times more slowly
        bias = None if bias is None else bias.contiguous()  # it takes no notice of a bias' strides
        fused = _FUSED.get(act)
        if factor is not None and act is None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, factor, weight, bias, "mul")  # type: ignore[no-any-return]
        out = _ONEDNN(x, weight, bias, *(fused or ("none", [], "")))  # type: ignore[misc]
    else:
        fused, out = None, F.linear(x, weight, bias)
    out = out if act is None or fused else act(out)
    return out if factor is None else times(out, factor)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None, *, act: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """x W + b with W [in out], the field's right-multiplied layout; then a non-linearity."""
    return linear(x, weight.T, bias, act=act)


def pack(weight: Tensor) -> Tensor:
    """W [in out] as `linear` likes it best: for a matrix that many others are multiplied by. A copy, or a view."""
    if not _suits(weight, SMALL):
        return weight.T
    return torch.ops.mkldnn._reorder_linear_weight(weight.T, None)  # type: ignore[no-any-return]


def _suits(weight: Tensor, multiplications: int, *others: Tensor) -> bool:
    """Whether the product is one for oneDNN."""
    return (
        _ONEDNN is not None
        and not torch.is_grad_enabled()
        and forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and multiplications >= SMALL
        and all(x.is_cpu and x.dtype == torch.float32 for x in (weight, *others))
    )
