"""What the weights are: their SHA-256, on disk and in memory; whether all of them are numbers."""

import hashlib
from typing import Any

import torch
from torch import nn

from interp.models.kernels import wide_dtype
from interp.models.pretrained import HookedModel


def weights_sha256(model: HookedModel[Any, Any]) -> str:
    """SHA-256 of the file the weights came from (what `sha256sum` prints), else of the tensors in name order."""
    if not model.weight_files:
        return parameters_sha256(model)
    digest = hashlib.sha256()
    for file in model.weight_files:
        with open(file, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def non_finite(model: nn.Module) -> list[str]:
    """Names of the parameters that hold NaN or an infinity; one pass over all weights."""
    bad = []
    for name, parameter in model.named_parameters():
        x = parameter.detach()
        if not x.is_meta and not x.sum(dtype=wide_dtype(x.dtype)).isfinite() and not x.isfinite().all():
            bad.append(name)
    return bad


def parameters_sha256(model: nn.Module) -> str:
    """SHA-256 of the tensors as they are now, in name order: another one after any change, or in another dtype."""
    digest = hashlib.sha256()
    for _, parameter in sorted(model.named_parameters()):
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
