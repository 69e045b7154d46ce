"""Activations on disk, as `interp.store.writing` writes them: `ActivationStore` reads them a batch at a time.

Files are memory-mapped: of data many times the size of the memory, only what a batch needs is read.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.errors import InputError, LoadError, NotFoundError
from interp.hooks import NameSpec, match_names
from interp.store.texts import SPLITS

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "interp activations 2"
"""In format 1 a shard did not say what it belongs to."""
HEADER, TEXTS, MANIFEST, CHECKSUMS, TENSOR = (
    "header.json", "texts.parquet", "manifest.parquet", "checksums.json", "activations",
)  # fmt: skip


_HEADER_KINDS = {
    "model": str, "weights_sha256": str, "hook_points": dict, "dtype": str, "processing": dict, "labels": dict,
    "n_texts": int, "n_rows": int, "shard_rows": list, "texts_parquet_sha256": str,
}  # fmt: skip
_MAY_DIFFER = ("model", "texts_parquet_sha256", "header_sha256")
"""Entries of a header that may be others for the same activations: a model may lie elsewhere on another machine."""


class DamagedError(LoadError):
    """A file of a store that is not as it was written."""


def shard_name(shard: int) -> str:
    """The folder of a shard."""
    return f"shard-{shard:05d}"


def identity(header: Mapping[str, Any]) -> str:
    """SHA-256 of what an extraction is: model, texts and options. Every shard says which one it belongs to."""
    told = {name: value for name, value in header.items() if name not in _MAY_DIFFER}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


class ActivationStore:
    """A folder of activations: rows are positions of texts, numbered through all shards.

    Attributes:
        header: what was extracted, from which weights, how; as in `header.json`.
        directory: the folder.
        names: full names of the hook points, in the model's order.
        labels: names of the label columns.
        n_texts, n_shards, n_rows: how many there are; a row is a stored position, over all shards.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        verify: bool = True,
        partial: bool = False,
        header: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            verify: compare the checksum of every file that is opened, once. That each shard is of this extraction, and
                in its place, is compared in any case.
            partial: some shards may be missing (other processes are still writing them).
            header: in place of the one in the folder.

        Raises NotFoundError when the folder, or without `partial` a shard, is missing; LoadError for a damaged header,
        or one of another format.
        """
        self.directory = Path(directory).expanduser()
        self.verify = verify
        self.header: dict[str, Any] = self._read_header() if header is None else dict(header)
        self.names: tuple[str, ...] = tuple(self.header["hook_points"])
        self.labels: tuple[str, ...] = tuple(self.header["labels"])
        self.n_texts, self.n_shards = int(self.header["n_texts"]), len(self.header["shard_rows"])
        self._identity = identity(self.header)
        self._known_sums: dict[int, dict[str, str]] = {}
        self._checked: set[Path] = set()
        self._offsets = np.concatenate([[0], np.cumsum(self.header["shard_rows"])]).astype(np.int64)
        self.n_rows = int(self._offsets[-1])
        if not partial:
            for shard in range(self.n_shards):
                self._shard_folder(shard)

    def __repr__(self) -> str:
        return f"ActivationStore({str(self.directory)!r}, {self.n_rows} rows, {len(self.names)} hook points)"

    # What is there.

    def shape(self, name: NameSpec) -> tuple[int, ...]:
        """What a hook point holds for one position: (d_model,), (head, d_head), ..."""
        return tuple(self.header["hook_points"][self._one(name)])

    def width(self, name: NameSpec) -> int:
        """Length of a row: the product of `shape`."""
        return math.prod(self.shape(name))

    def match(self, names: NameSpec) -> list[str]:
        """Full names of the stored hook points meant, as in `model.match`; negative layers count from the last stored.

        Raises HookNameError.
        """
        return match_names(names, list(self.names))

    def shard_offset(self, shard: int) -> int:
        """The number of the shard's first row."""
        return int(self._offsets[self._number(shard)])

    # Tables.

    @cached_property
    def texts(self) -> "pd.DataFrame":
        """One row a text: text (its number), id, split, tokens."""
        path = self.directory / TEXTS
        self.check_texts()
        return self._table(path)

    @cached_property
    def manifest(self) -> "pd.DataFrame":
        """One row a stored position, its number as index.

        Columns: text (number), position (place in the text, from 0), token, the labels, split, sequence and place
        (where the model saw it, beginning token counted), shard, row (in the shard).
        """
        import pandas as pd

        return pd.concat([self.shard_manifest(shard) for shard in range(self.n_shards)])

    def shard_manifest(self, shard: int, columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """The manifest of one shard, or some columns of it; the index is the row's number in the store."""
        path, start = self._file(shard, MANIFEST), self.shard_offset(shard)
        frame, expected = self._table(path, columns), self.header["shard_rows"][shard]
        if len(frame) != expected:
            raise _damaged(path, f"it has {len(frame)} rows, expected {expected}")
        return frame.set_axis(range(start, start + len(frame)))

    @cached_property
    def _split(self) -> np.ndarray:
        """[row] numbers of SPLITS."""
        columns = (self.shard_manifest(shard, ["split"])["split"].astype("category") for shard in range(self.n_shards))
        return np.concatenate([column.cat.set_categories(list(SPLITS)).cat.codes for column in columns])

    # Activations.

    def batches(
        self,
        names: str | Sequence[str],
        *,
        split: str | None = None,
        rows: np.ndarray | Sequence[int] | None = None,
        shards: Sequence[int] | None = None,
        batch: int = 8192,
        dtype: Any = np.float32,
    ) -> Iterator[tuple[Any, np.ndarray]]:
        """Activations, a batch at a time, in the order of the rows.

        Args:
            names: one hook point, full or short; or several, then each batch is a dictionary by full name.
            split: rows of texts in this split only: train, validation or test.
            rows: these rows only: their numbers, or a mask [row].
            shards: rows of these shards only.
            batch: rows of a batch, at most; no batch crosses from one shard to the next.
            dtype: of the arrays: float32 or float64 (float16 where the files are).

        Yields:
            [row d], or name -> [row d]; and the rows' numbers, ascending.

        Raises NotFoundError or LoadError, naming the file, for one that is missing or damaged.
        """
        single = isinstance(names, str)
        chosen = [self._one(names)] if single else self.match(names)
        if batch < 1:
            raise InputError(f"batch = {batch}", "expected at least 1")
        mask = self._mask(split, rows)
        for shard in range(self.n_shards) if shards is None else sorted({self._number(shard) for shard in shards}):
            start, end = self._offsets[shard], self._offsets[shard + 1]
            index = np.arange(end - start) if mask is None else np.flatnonzero(mask[start:end])
            if not len(index):
                continue
            tensors = {name: self._tensor(shard, name) for name in chosen}
            for first in range(0, len(index), batch):
                part = index[first : first + batch]
                values = {name: _take(x, part, dtype) for name, x in tensors.items()}
                yield values[chosen[0]] if single else values, part + start

    def load(
        self,
        name: str,
        *,
        split: str | None = None,
        rows: np.ndarray | Sequence[int] | None = None,
        dtype: Any = np.float32,
    ) -> tuple[np.ndarray, np.ndarray]:
        """All chosen rows at once: [row d] and their numbers. Arguments as in `batches`."""
        none = np.empty((0, self.width(name)), dtype=dtype), np.empty(0, dtype=np.int64)
        values, numbers = zip(none, *self.batches(name, split=split, rows=rows, dtype=dtype), strict=True)
        return np.concatenate(values), np.concatenate(numbers)

    def check(self) -> None:
        """Compare all checksums. Raises NotFoundError or LoadError, naming the file, for the first that is wrong."""
        self.check_texts()
        for shard in range(self.n_shards):
            self.check_shard(shard)

    def check_texts(self) -> None:
        """As `check`, of the table of texts."""
        self._check(self.directory / TEXTS, self.header["texts_parquet_sha256"])

    def check_shard(self, shard: int) -> None:
        """As `check`, of one shard."""
        self._known_sums.pop(shard, None)
        for file in (*(f"{name}.safetensors" for name in self.names), MANIFEST):
            self._check(self._shard_folder(shard) / file, self._sums(shard).get(file, ""))

    # Files.

    def _one(self, name: NameSpec) -> str:
        found = self.match(name)
        if len(found) > 1:
            some = ", ".join(found[:4])
            raise InputError(f"{name!r} is {len(found)} hook points", f"expected one of {some}", "or give a list")
        return found[0]

    def _number(self, shard: int) -> int:
        if not 0 <= shard < self.n_shards:
            raise InputError(f"shard {shard}", f"expected 0 to {self.n_shards - 1}")
        return int(shard)

    def _mask(self, split: str | None, rows: np.ndarray | Sequence[int] | None) -> np.ndarray | None:
        mask = None
        if rows is not None:
            given = np.asarray(rows)
            if given.dtype == bool and given.shape != (self.n_rows,):
                raise InputError(f"a mask of shape {given.shape}", f"expected ({self.n_rows},), one entry a row")
            if given.dtype != bool and given.size and not 0 <= given.min() <= given.max() < self.n_rows:
                raise InputError(f"rows {given.min()} to {given.max()}", f"expected 0 to {self.n_rows - 1}")
            mask = np.zeros(self.n_rows, dtype=bool)
            mask[given if given.dtype == bool else given.astype(np.int64)] = True
        if split is not None:
            if split not in SPLITS:
                raise InputError(f"split {split!r}", f"expected one of {', '.join(SPLITS)}")
            own = self._split == SPLITS.index(split)
            mask = own if mask is None else mask & own
        return mask

    def _read_header(self) -> dict[str, Any]:
        path = self.directory / HEADER
        if not path.is_file():
            raise NotFoundError(
                f"{self.directory} has no {HEADER}", "expected a folder that extract_activations has written"
            )
        header = _json_object(path)
        told = header.pop("header_sha256", "")
        if told != hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest():
            raise _damaged(path, "its checksum does not agree")
        if header.get("format") != FORMAT:
            raise LoadError(
                f"{path}: format {str(header.get('format'))[:80]!r}", f"expected {FORMAT!r}", "extract them again"
            )
        wrong = _ill_formed(header)
        if wrong:
            raise _damaged(path, f"{wrong} is {str(header.get(wrong))[:80]!r}")
        return header

    def _shard_folder(self, shard: int) -> Path:
        folder = self.directory / shard_name(shard)
        if not folder.is_dir():
            raise NotFoundError(
                f"{folder} is missing", f"expected {self.n_shards} shards", "the same extraction with --resume makes it"
            )
        return folder

    def _sums(self, shard: int) -> dict[str, str]:
        """The checksums of a shard, which say what it is."""
        if shard not in self._known_sums:
            path = self._shard_folder(shard) / CHECKSUMS
            found = _json_object(path)
            if found.get("extraction") != self._identity:
                raise _foreign(path, f"{path.parent} is of another extraction: other model, texts or options")
            if found.get("shard") != shard:
                raise _foreign(path, f"{path.parent} holds shard {str(found.get('shard'))[:20]}")
            self._known_sums[shard] = found
        return self._known_sums[shard]

    def _file(self, shard: int, file: str) -> Path:
        """The path of a file of a shard, compared with its checksum."""
        path = self._shard_folder(shard) / file
        if not path.is_file():
            raise _missing(path)
        sums = self._sums(shard)
        if self.verify and path not in self._checked:
            self._check(path, sums.get(file, ""))
            self._checked.add(path)
        return path

    @staticmethod
    def _check(path: Path, expected: str) -> None:
        if not path.is_file():
            raise _missing(path)
        try:
            with open(path, "rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise _unreadable(path, error) from error
        if found != expected:
            raise _damaged(path, "its checksum does not agree")

    def _tensor(self, shard: int, name: str) -> Tensor:
        """[row d], memory-mapped."""
        path = self._file(shard, f"{name}.safetensors")
        try:
            with safe_open(str(path), framework="pt", device="cpu") as handle:
                x: Tensor = handle.get_tensor(TENSOR)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, str(error)) from error
        expected = (int(self._offsets[shard + 1] - self._offsets[shard]), self.width(name))
        if tuple(x.shape) != expected:
            raise _damaged(path, f"it has shape {list(x.shape)}, expected {list(expected)}")
        return x

    @staticmethod
    def _table(path: Path, columns: Sequence[str] | None = None) -> "pd.DataFrame":
        import pandas as pd

        try:
            return pd.read_parquet(path, engine="pyarrow", columns=None if columns is None else list(columns))
        except (ValueError, OSError) as error:
            raise _damaged(path, str(error)) from error


def _take(x: Tensor, index: np.ndarray, dtype: Any) -> np.ndarray:
    """Rows of a mapped tensor as an array of their own."""
    wanted = getattr(torch, np.dtype(dtype).name)
    first, last = int(index[0]), int(index[-1])
    part = x[first : last + 1] if last - first + 1 == len(index) else x[torch.from_numpy(index)]
    return part.to(wanted, copy=True).numpy()


def _ill_formed(header: Mapping[str, Any]) -> str:
    """The first entry of a header that is not of its kind, or does not agree with the others."""
    for name, kind in _HEADER_KINDS.items():
        if type(header.get(name)) is not kind:
            return name
    if not all(isinstance(kind, str) for kind in header["labels"].values()):
        return "labels"
    shapes = header["hook_points"].items()
    if not all(
        "/" not in name and isinstance(shape, list) and shape and all(map(_is_count, shape)) for name, shape in shapes
    ):
        return "hook_points"
    if not all(map(_is_count, header["shard_rows"])) or sum(header["shard_rows"]) != header["n_rows"]:
        return "shard_rows"
    return "" if _is_count(header["n_texts"]) else "n_texts"


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < 2**48


def _json_object(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _missing(path) from None
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(entries, dict):
        raise _damaged(path, "it holds no checksums")
    return entries


def _unreadable(path: Path, error: OSError) -> LoadError:
    return LoadError(
        f"{path} cannot be read: {error.strerror or error}",
        "expected files that this user may read",
        "ask their owner, or change their permissions" if isinstance(error, PermissionError) else "",
    )


def _foreign(path: Path, what: str) -> LoadError:
    return LoadError(
        what,
        "expected the shard that was written in this place for the extraction in header.json",
        f"remove {path.parent}, then the same extraction with --resume makes it again",
    )


def _missing(path: Path) -> NotFoundError:
    return NotFoundError(f"{path} is missing", f"expected every file of {path.parent.name}", _again(path))


def _damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(
        f"{path} is damaged: {(why.splitlines() or [''])[0][:200]}", "expected it as it was written", _again(path)
    )


def _again(path: Path) -> str:
    shard = path.parent.name.startswith("shard-")
    return f"{f'remove {path.parent}, then ' if shard else ''}the same extraction with --resume makes it again"
