"""How files keep a model's weights: which tensor of a file holds which parameter, and how to read and write them.

A layout maps each of our parameters to a `Stored`: the file's tensor and the view of it that is ours. The same view
reads and writes, so what can be loaded can be saved. Every tensor's presence and shape is checked before any is used.
"""

import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from interp.errors import LoadError, nearest
from interp.files import atomic_path

Reader: TypeAlias = Callable[[], Tensor]
"""Reads one tensor of a file."""
Readers: TypeAlias = dict[str, tuple[tuple[int, ...], Reader]]
"""The tensors of a model's files by name: shape, and a function that reads one."""


@dataclass(frozen=True)
class Stored:
    """Where a file keeps one of our parameters."""

    key: str
    shape: tuple[int, ...]
    """Of the tensor in the file."""
    view: Callable[[Tensor], Tensor] = lambda x: x
    """The part of that tensor that is ours, as a view, with our order of axes (they may be flattened after it)."""
    default: float | None = None
    """What all its entries are where a file leaves it out; None: it must be there."""


Layout: TypeAlias = dict[str, Stored]
"""Our parameter -> where a file keeps it."""
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Of the parameters of a model, by our name."""


def linear(
    key: str, n_in: int, n_out: int, *, bias: bool = True, optional: bool = False
) -> tuple[Stored, Stored | None]:
    """Matrix and bias of a linear layer, whose matrix files hold as [out in] and we as [in out]."""
    weight = Stored(f"{key}.weight", (n_out, n_in), lambda x: x.T)
    return weight, Stored(f"{key}.bias", (n_out,), default=0.0 if optional else None) if bias else None


def norm(key: str, width: int, *, bias: bool = True) -> Layout:
    found = {"w": Stored(f"{key}.weight", (width,))}
    return found | ({"b": Stored(f"{key}.bias", (width,))} if bias else {})


def prefixed(layout: Mapping[str, Stored], ours: str, theirs: str) -> Layout:
    return {f"{ours}{name}": replace(stored, key=f"{theirs}{stored.key}") for name, stored in layout.items()}


def open_tensors(file: Path) -> Readers:
    """The tensors of a file by name. Raises LoadError for a file that cannot be read."""
    try:
        if file.suffix == ".safetensors":
            handle = safe_open(str(file), framework="pt", device="cpu")
            return {
                key: (tuple(handle.get_slice(key).get_shape()), partial(handle.get_tensor, key))
                for key in handle.keys()  # noqa: SIM118 (not a dict)
            }
        mapped = zipfile.is_zipfile(file)  # files of torch before 1.6 cannot be mapped
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        return {key: (tuple(x.shape), partial(tensors.__getitem__, key)) for key, x in tensors.items()}
    except (
        SafetensorError,
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        AttributeError,
        pickle.UnpicklingError,
    ) as error:
        raise LoadError(
            f"{file} cannot be read: {(str(error).splitlines() or [type(error).__name__])[0][:120]}",
            "expected whole weights in safetensors or torch format; the file may be cut short",
            "fetch it again",
        ) from error


def read_tensors(files: Iterable[Path], rename: Callable[[str], str]) -> Readers:
    return {rename(key): reader for file in files for key, reader in open_tensors(file).items()}


def fill(
    model: nn.Module,
    layout: Layout,
    readers: Readers,
    where: Path | str,
    *,
    leftover: Callable[[str, Readers], str],
    device: torch.device | None,
    dtype: torch.dtype | None,
) -> None:
    """Give a model on the meta device its weights, after all names and shapes have been checked.

    Tensors of a mapped file are used where they lie: the peak of memory is the weights themselves.

    Args:
        leftover: says what is wrong with the tensor of a name that is no parameter of ours; "" when nothing is.
        dtype: None keeps the dtype of the files.

    Raises LoadError, naming it, for a tensor that is missing, unknown or has another shape.
    """
    wanted = {stored.key: stored for stored in layout.values()}
    check_shapes(
        {key: shape for key, (shape, _) in readers.items()},
        {key: s.shape for key, s in wanted.items() if s.default is None or key in readers},
        where,
    )
    for key in readers.keys() - wanted.keys():
        problem = leftover(key, readers)
        if problem:
            raise LoadError(f"{where}: tensor {key} {problem}", f"shape {list(readers[key][0])}")
    state, read = {}, {}
    for name, parameter in model.named_parameters():
        stored = layout[name]
        if stored.key not in readers:
            state[name] = torch.full(parameter.shape, stored.default or 0.0, device=device, dtype=dtype)
            continue
        if stored.key not in read:
            read = {stored.key: readers[stored.key][1]()}  # parts of one tensor follow one another
        x = stored.view(read[stored.key]).reshape(parameter.shape).to(device=device, dtype=dtype)
        state[name] = x if x.is_contiguous() or x.mT.is_contiguous() else x.contiguous()
    model.load_state_dict(state, assign=True)


def check_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: Path | str
) -> None:
    """Raises LoadError, naming it, for a tensor that is missing or has another shape."""
    for key, shape in expected.items():
        if key not in found:
            close = nearest(key, list(found), 1)
            raise LoadError(
                f"{where}: tensor {key} is missing",
                f"expected shape {list(shape)}",
                f"nearest there: {close[0]}" if close else "",
            )
        if found[key] != shape:
            raise LoadError(
                f"{where}: tensor {key} has shape {list(found[key])}", f"expected {list(shape)} from config.json"
            )


def to_tensors(model: nn.Module, layout: Layout, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors of a file, from the parameters: what `fill` read, the other way round."""
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        stored, x = layout[name], parameter.detach().to(device="cpu", dtype=dtype)
        if stored.key not in found:
            found[stored.key] = x.new_zeros(stored.shape)
        part = stored.view(found[stored.key])
        part.copy_(x.reshape(part.shape))
    return found


def write_model(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write config.json and model.safetensors, each whole or not at all."""
    kind = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    write_json(directory / "config.json", {**config, "dtype": kind})
    with atomic_path(directory / "model.safetensors") as path:
        save_file({name: x.contiguous() for name, x in tensors.items()}, str(path), metadata={"format": "pt"})
        path.chmod(0o644)  # save_file leaves it readable by its owner alone


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises LoadError for what is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LoadError(f"{path} cannot be read: {error}", "expected JSON") from error
    if not isinstance(data, dict):
        raise LoadError(f"{path} holds {type(data).__name__}", "expected a JSON object")
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n")


def expect(data: Mapping[str, Any], where: str, usual: Mapping[str, Any]) -> None:
    """Raises LoadError for an entry that is there with another value: it would change the function."""
    for key, value in usual.items():
        if data.get(key, value) != value:
            raise LoadError(f"{where}: {key} = {data[key]!r}", f"expected {value!r}; other values are not supported")


def incomplete(error: Exception, where: str, kind: str) -> LoadError:
    """The error for a config.json that lacks an entry, or holds one of a wrong type."""
    what = f"no entry {error}" if isinstance(error, KeyError) else str(error)
    return LoadError(f"{where}: {what}", f"expected a {kind} config.json")
