"""Loading a model of any kind: what it is, is read from its files."""

from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import torch

from interp.errors import InputError, LoadError
from interp.loading.decoders import load_decoder
from interp.loading.encoders import load_encoder, load_encoder_decoder
from interp.loading.single_files import load_file
from interp.loading.sources import ENCODERS, check_dtype, choose_device, find, model_type, weight_files
from interp.migration import refuse_keywords
from interp.models.encoder import HookedEncoder
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.gpt import HookedGPT
from interp.models.pretrained import HookedModel

AnyModel: TypeAlias = HookedGPT | HookedEncoder | HookedEncoderDecoder

Kind = TypeVar("Kind", bound=HookedModel[Any, Any])


def load(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    **unknown: Any,
) -> AnyModel:
    """A model of any kind from a bundled name, a directory in Hugging Face layout, one file, or a hub id.

    Args:
        source: "tiny"; a directory, or a file of one of the kinds in `interp.loading.single_files`; or an id such
            as "gpt2" (looked up in the hub's cache first, downloaded only if absent).
        device: "auto" takes CUDA, then MPS, then the CPU.
        dtype: float32, bfloat16, float16 or float64, to which the weights are converted; "auto" keeps the files' own.

    Raises NotFoundError when there is no such model or the hub cannot be reached, LoadError when a file is damaged, a
    tensor is missing, unknown or has the wrong shape, or the model needs a part that is not supported.
    """
    refuse_keywords("from_pretrained", unknown)
    if not isinstance(source, (str, Path)):
        raise InputError(f"a model of type {type(source).__name__}", "expected a bundled name, a path or a hub id")
    check_dtype(None if dtype == "auto" else dtype)
    target, directory = choose_device(device), find(source)
    wanted = None if dtype == "auto" else dtype
    if directory.is_file():
        model: AnyModel = load_file(directory, target, wanted)
        model.source, model.weight_files = str(source), (directory,)
        return model
    kind = model_type(directory)
    if kind in ENCODERS:
        load_kind = load_encoder_decoder if kind == "marian" else load_encoder
        model = load_kind(directory, weight_files(directory), target, wanted)
    else:
        model = load_decoder(directory, target, wanted)
    model.source, model.weight_files = str(source), tuple(weight_files(directory))
    return model


def load_as(cls: type[Kind], source: str | Path, **options: Any) -> Kind:
    """As `load`; raises LoadError for a model of another kind."""
    model = load(source, **options)
    if not isinstance(model, cls):
        raise LoadError(
            f"{source} holds a {type(model).__name__}", f"expected a {cls.__name__}", "interp.load loads any kind"
        )
    return model
