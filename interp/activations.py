"""Activations on disk, as `interp.extraction` writes them: `ActivationStore` reads them a batch at a time.

Files are memory-mapped: of data many times the size of the memory, only what a batch needs is read.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.errors import InputError, LoadError, NotFoundError
from interp.hooks import NameSpec, match_names
from interp.texts import SPLITS

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "interp activations 1"
HEADER, TEXTS, MANIFEST, CHECKSUMS, TENSOR = (
    "header.json", "texts.parquet", "manifest.parquet", "checksums.json", "activations",
)  # fmt: skip


def shard_name(shard: int) -> str:
    """The folder of a shard."""
    return f"shard-{shard:05d}"


class ActivationStore:
    """A folder of activations: rows are positions of texts, numbered through all shards.

    Attributes:
        header: what was extracted, from which weights, how; as in `header.json`.
        directory: the folder.
        names: full names of the hook points, in the model's order.
        labels: names of the label columns.
        n_texts, n_shards, n_rows: how many there are; a row is a stored position, over all shards.
    """

    def __init__(self, directory: str | Path, *, verify: bool = True, partial: bool = False) -> None:
        """
        Args:
            verify: compare the checksum of every file that is opened, once.
            partial: some shards may be missing (other processes are still writing them).

        Raises NotFoundError when the folder, or without `partial` a shard, is missing; LoadError for a damaged header.
        """
        self.directory = Path(directory).expanduser()
        self.verify = verify
        self.header = self._read_header()
        self.names: tuple[str, ...] = tuple(self.header["hook_points"])
        self.labels: tuple[str, ...] = tuple(self.header["labels"])
        self.n_texts, self.n_shards = int(self.header["n_texts"]), len(self.header["shard_rows"])
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
        self._check(path, self.header["texts_parquet_sha256"])
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
        frame, start = self._table(self._file(shard, MANIFEST), columns), self.shard_offset(shard)
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
        self._check(self.directory / TEXTS, self.header["texts_parquet_sha256"])
        for shard in range(self.n_shards):
            self.check_shard(shard)

    def check_shard(self, shard: int) -> None:
        """As `check`, of one shard."""
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
            raise LoadError(f"{path}: format {header.get('format')!r}", f"expected {FORMAT!r}")
        return header

    def _shard_folder(self, shard: int) -> Path:
        folder = self.directory / shard_name(shard)
        if not folder.is_dir():
            raise NotFoundError(
                f"{folder} is missing", f"expected {self.n_shards} shards", "the same extraction with --resume makes it"
            )
        return folder

    def _sums(self, shard: int) -> dict[str, str]:
        return _json_object(self._shard_folder(shard) / CHECKSUMS)

    def _file(self, shard: int, file: str) -> Path:
        """The path of a file of a shard, compared with its checksum."""
        path = self._shard_folder(shard) / file
        if not path.is_file():
            raise _missing(path)
        if self.verify and path not in self._checked:
            self._check(path, self._sums(shard).get(file, ""))
            self._checked.add(path)
        return path

    @staticmethod
    def _check(path: Path, expected: str) -> None:
        if not path.is_file():
            raise _missing(path)
        with open(path, "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
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


def _json_object(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(entries, dict):
        raise _damaged(path, "it holds no checksums")
    return entries


def _missing(path: Path) -> NotFoundError:
    return NotFoundError(
        f"{path} is missing",
        f"expected every file of {path.parent.name}",
        f"remove {path.parent}, then the same extraction with --resume makes it again",
    )


def _damaged(path: Path, why: str) -> LoadError:
    shard = path.parent.name.startswith("shard-")
    return LoadError(
        f"{path} is damaged: {why.splitlines()[0][:200]}",
        "expected it as it was written",
        f"remove {path.parent if shard else path}, then the same extraction with --resume makes it again",
    )
