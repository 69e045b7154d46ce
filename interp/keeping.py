"""Work in pieces, each kept when it is done, so that a run that was stopped goes on: `with keeping(folder)`."""

import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from interp.errors import InterpError
from interp.files import atomic_path

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Kept:
    folder: Path
    used: set[Path] = field(default_factory=set)


_kept: ContextVar[_Kept | None] = ContextVar("keeping", default=None)
_remembered: ContextVar[Path | None] = ContextVar("remembered", default=None)
KEPT = 40
"""Files that stay in the user's cache."""
T = TypeVar("T")


@contextmanager
def keeping(folder: Path | None) -> Iterator[None]:
    """Inside the block `kept` keeps what it computes in this folder (None: nowhere), and finds what lies there.

    The files go when the block ends as it should; after an error, Ctrl-C or a kill they stay for the next time. Raises
    InterpError when the folder cannot be made.
    """
    if folder is None:
        yield
        return
    state = _Kept(folder)
    with working_folder(folder):
        token = _kept.set(state)
        try:
            yield
        finally:
            _kept.reset(token)
        for path in state.used:
            path.unlink(missing_ok=True)


@contextmanager
def working_folder(folder: Path) -> Iterator[None]:
    """A folder that is there inside the block, and after it only if something is left in it.

    Raises InterpError when it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InterpError(f"{folder} cannot be made: {error.strerror or error}", "choose another place") from error
    try:
        yield
    finally:
        with suppress(OSError):  # stays unless it is empty
            folder.rmdir()


def kept(key: Iterable[object], compute: Callable[[], Arrays]) -> Arrays:
    """What `compute` gives: now, or in an earlier run that was stopped.

    Args:
        key: all that the result depends on: arrays, by their bytes, and plain values, by their `repr`.
    """
    state = _kept.get()
    if state is None:
        return compute()
    path = state.folder / f"{_digest(key)}.npz"
    found = _read(path)
    if found is None:
        found = compute()
        out = io.BytesIO()
        np.savez(out, **found)  # type: ignore[arg-type]
        with atomic_path(path) as temporary:
            temporary.write_bytes(out.getvalue())
    state.used.add(path)
    return found


@contextmanager
def remembered(folder: Path | None = None) -> Iterator[None]:
    """Inside the block `kept_whole` keeps what it computes, for later runs: in this folder, by default in the user's
    cache (`XDG_CACHE_HOME`, or `.cache` of the home), of which the `KEPT` files used last stay."""
    token = _remembered.set(folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "interp")
    try:
        yield
    finally:
        _remembered.reset(token)


def kept_whole(key: Callable[[], Iterable[object]], compute: Callable[[], T]) -> T:
    """What `compute` gives: now, or in an earlier run of the same code within `remembered`; outside of it, now.

    A file that cannot be written, or is damaged, costs time and nothing else.

    Args:
        key: gives all that the result depends on, as for `kept`; asked only inside `remembered`.
    """
    folder = _remembered.get()
    if folder is None:
        return compute()
    path = folder / f"{_digest((_code(), *key()))}.pickle"
    with suppress(OSError, ValueError, pickle.UnpicklingError):
        raw = path.read_bytes()
        if hashlib.sha256(raw[32:]).digest() == raw[:32]:
            path.touch()
            found: T = pickle.loads(raw[32:])
            return found
    found = compute()
    raw = pickle.dumps(found)
    with suppress(OSError, InterpError):
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(hashlib.sha256(raw).digest() + raw)
        for old in sorted(folder.glob("*.pickle"), key=lambda one: one.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)
    return found


@cache
def _code() -> str:
    """A digest of all files of the project: other code may compute something else."""
    whole = hashlib.sha256(torch.__version__.encode() + np.__version__.encode())
    root = Path(__file__).parent.parent
    for package in ("interp", "analyses"):
        for path in sorted((root / package).rglob("*.py")):
            whole.update(path.read_bytes())
    return whole.hexdigest()


def _read(path: Path) -> Arrays | None:
    """The arrays of a file; None where there is none, or it is damaged and has to be computed anew."""
    if not path.is_file():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _digest(key: Iterable[object]) -> str:
    whole = hashlib.sha256()
    for part in key:
        if isinstance(part, np.ndarray):
            whole.update(repr((part.dtype.str, part.shape)).encode())
            whole.update(np.ascontiguousarray(part).tobytes())
        else:
            whole.update(repr(part).encode())
    return whole.hexdigest()[:32]
