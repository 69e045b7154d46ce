"""How files keep a model's weights: which tensor of a file holds which parameter, and how to read and write them.

A layout maps each of our parameters to a `Stored`: the file's tensor and the view of it that is ours. The same view
reads and writes, so what can be loaded can be saved. Every tensor's presence and shape is checked before any is used.
"""

import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from interp.errors import LoadError, nearest
from interp.files import atomic_path
from interp.untrusted import read_json, reading, regular, write_json

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


WEIGHTS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Dtypes that weights have; integers and eight-bit floats mean nothing without scales that other files keep."""


def open_tensors(file: Path) -> Readers:
    """The tensors of a file by name. Raises LoadError for a file that cannot be read, or is damaged."""
    with reading(file, "expected whole weights in safetensors or torch format; the file may be cut short"):
        if regular(file).suffix == ".safetensors":
            handle = safe_open(str(file), framework="pt", device="cpu")
            return {
                key: (tuple(handle.get_slice(key).get_shape()), partial(handle.get_tensor, key))
                for key in handle.keys()  # noqa: SIM118 (not a dict)
            }
        tensors = read_torch(file)
        for key, x in tensors.items() if isinstance(tensors, Mapping) else ():
            if not isinstance(key, str) or not isinstance(x, Tensor):
                nested = "a checkpoint of training? give the file itself to load" if isinstance(x, Mapping) else ""
                raise LoadError(f"{file} holds {type(x).__name__} as {key!r:.40}", "expected tensors by name", nested)
            if x.layout is not torch.strided or x.is_quantized or x.device.type != "cpu":
                raise LoadError(f"{file}: tensor {key} is sparse, quantised or empty", "expected plain tensors")
        return {key: (tuple(x.shape), partial(tensors.__getitem__, key)) for key, x in tensors.items()}


def read_torch(file: Path) -> Any:
    """What `torch.save` wrote, without running any code of it, after a look at the checksums in it.

    Files of torch before 1.6 have no checksums. Raises LoadError for a damaged file, or one that would need code.
    """
    mapped = zipfile.is_zipfile(file)
    if mapped:
        _check_zip(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        raise LoadError(
            f"{file} holds more than tensors and plain values, or is damaged",
            "expected weights as torch.save(model.state_dict(), ...) writes them",
        ) from None


def _check_zip(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if len({entry.filename for entry in entries}) < len(entries):
            raise LoadError(f"{file}: one of its entries is there twice", "expected what torch.save writes")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise LoadError(f"{file}: its entries are compressed", "expected what torch.save writes")
        if damaged := archive.testzip():
            raise LoadError(f"{file}: {damaged} has another checksum than the file says", "expected an undamaged file")


WRAPPERS = re.compile(r"((_orig_mod|module)\.)*")
"""What torch.compile and data parallelism put before every name."""


def read_tensors(files: Iterable[Path], rename: Callable[[str], str]) -> Readers:
    """The tensors of all files, by their new names.

    Raises LoadError for a name that two tensors get, or where an index beside the files says otherwise than they do.
    """
    found: Readers = {}
    holder: dict[str, Path] = {}

    def plain(key: str) -> str:
        return rename(WRAPPERS.sub("", key, count=1))

    for file in files:
        for key, reader in open_tensors(file).items():
            name = plain(key)
            if name in found:
                raise LoadError(
                    f"{file}: tensor {key} is there twice, also in {holder[name].name}", "expected one of each name"
                )
            found[name], holder[name] = reader, file
        _check_index(file, {name for name, own in holder.items() if own == file}, plain)
    return found


WHOLE = ("model.safetensors", "pytorch_model.bin")
"""Files that hold all weights; others are shards, named by an index beside them."""


def _check_index(file: Path, there: set[str], rename: Callable[[str], str]) -> None:
    """Raises LoadError where the index that a shard belongs to names other tensors as its own."""
    stem = next((name for name in WHOLE if name.endswith(file.suffix)), "")
    index = file.with_name(f"{stem}.index.json")
    if file.name in WHOLE or not index.exists():
        return
    named = {rename(key) for key, shard in read_json(index)["weight_map"].items() if shard == file.name}
    for key in sorted(named ^ there):
        has = "lacks" if key in named else "has"
        raise LoadError(f"{file} {has} tensor {key}, unlike {index.name} says", "expected shards of one checkpoint")


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
            with reading(f"{where}: tensor {stored.key}", "expected whole weights"):
                read = {stored.key: readers[stored.key][1]()}  # parts of one tensor follow one another
            if read[stored.key].dtype not in WEIGHTS:
                kind = str(read[stored.key].dtype).removeprefix("torch.")
                raise LoadError(f"{where}: tensor {stored.key} is {kind}", "expected float32, 64, 16 or bfloat16")
        x = stored.view(read[stored.key]).reshape(parameter.shape).to(device=device, dtype=dtype)
        state[name] = x if x.is_contiguous() or x.mT.is_contiguous() else x.contiguous()
    model.load_state_dict(state, assign=True)


def check_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: Path | str
) -> None:
    """Raises LoadError, naming it, for a tensor that is missing or has another shape."""
    for key, shape in expected.items():
        if key not in found:
            close = [name for name in found if name.endswith(f".{key}")] or nearest(key, list(found), 1)
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


def expect(data: Mapping[str, Any], where: str, usual: Mapping[str, Any]) -> None:
    """Raises LoadError for an entry that is there with another value: it would change the function."""
    for key, value in usual.items():
        if data.get(key, value) != value:
            raise LoadError(f"{where}: {key} = {data[key]!r}", f"expected {value!r}; other values are not supported")


def incomplete(error: Exception, where: str, kind: str) -> LoadError:
    """The error for a config.json that lacks an entry, or holds one of a wrong type."""
    what = f"no entry {error}" if isinstance(error, KeyError) else str(error)
    return LoadError(f"{where}: {what}", f"expected a {kind} config.json")
