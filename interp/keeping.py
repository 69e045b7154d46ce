"""Work in pieces, each kept when it is done, so that a run that was stopped goes on: `with keeping(folder)`."""

import hashlib
import io
import os
import pickle
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from interp.errors import InterpError
from interp.files import atomic_path

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Kept:
    folder: Path
    used: set[Path] = field(default_factory=set)


_kept: ContextVar[_Kept | None] = ContextVar("keeping", default=None)
KEPT = 500_000_000
"""Bytes of files that stay in the user's cache, those used last."""
UNKEPT = (pickle.PicklingError, TypeError, AttributeError)
"""What pickle raises for functions within functions, and for much that other languages hold."""
PLAIN = (str, bytes, int, float, complex, type(None), np.generic)
"""Types whose `repr` says all of a value."""
T = TypeVar("T")


@dataclass
class Memory:
    """What lives through runs, within `remembered`."""

    folder: Path
    clock: Callable[[], float] = time.perf_counter
    saved: float = 0.0
    """Seconds spent on what a later run will find."""
    once: dict[object, object] = field(default_factory=dict)
    """What was computed for keys and does not change before the block ends."""


_remembered: ContextVar[Memory | None] = ContextVar("remembered", default=None)


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
        key: all that the result depends on.
    """
    state = _kept.get()
    if state is None:
        return compute()
    path = state.folder / f"{digest(key)}.npz"
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
def remembered(folder: Path | None = None, clock: Callable[[], float] = time.perf_counter) -> Iterator[Memory]:
    """Inside the block `kept_whole` keeps what it computes, for later runs: in this folder, by default in the user's
    cache (`XDG_CACHE_HOME`, or `.cache` of the home), of which `KEPT` bytes stay. Models are taken to keep their
    weights until it ends."""
    place = folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "interp"
    memory = Memory(place, clock)
    token = _remembered.set(memory)
    try:
        yield memory
    finally:
        _remembered.reset(token)
        with suppress(OSError):
            _prune(place)


def current_memory() -> Memory | None:
    """What `remembered` gave, inside its block; None outside."""
    return _remembered.get()


def _prune(folder: Path) -> None:
    """Removes the files used longest ago, as long as all together are larger than `KEPT`."""
    found = [(path.stat(), path) for path in folder.glob("*.pickle")]
    total = 0
    for about, path in sorted(found, key=lambda one: -one[0].st_mtime):
        total += about.st_size
        if total > KEPT:
            path.unlink(missing_ok=True)


def kept_whole(key: Callable[[], Iterable[object]], compute: Callable[[], T]) -> T:
    """What `compute` gives: now, or in an earlier run of the same code within `remembered`; outside of it, now.

    A file that cannot be written, or is damaged, costs time and nothing else; so does what cannot be pickled.

    Args:
        key: gives all that the result depends on, as for `kept`; asked only inside `remembered`.
    """
    memory = _remembered.get()
    if memory is None:
        return compute()
    try:
        path = memory.folder / f"{digest((code(), *key()))}.pickle"
    except UNKEPT:
        return compute()
    with suppress(OSError, ValueError, pickle.UnpicklingError):
        raw = path.read_bytes()
        if hashlib.sha256(raw[32:]).digest() == raw[:32]:
            path.touch()
            found: T = pickle.loads(raw[32:])
            return found
    start, before = memory.clock(), memory.saved
    found = compute()
    with suppress(OSError, InterpError, *UNKEPT):
        raw = pickle.dumps(found)
        memory.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(hashlib.sha256(raw).digest() + raw)
        memory.saved = before + memory.clock() - start
    return found


@cache
def code() -> str:
    """A digest of all files of the project, and of what it stands on: other code may compute something else."""
    versions = [metadata.version(name) for name in ("torch", "numpy", "scipy", "pandas", "matplotlib")]
    whole = hashlib.sha256(repr((sys.version, versions)).encode())
    root = Path(__file__).parent.parent
    for package in ("interp", "analyses", "reports"):
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


def digest(key: Iterable[object]) -> str:
    """32 hexadecimal digits of the SHA-256 of all parts of a key."""
    whole = hashlib.sha256()
    for part in _parts(tuple(key)):
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.hexdigest()[:32]


def _parts(value: object) -> Iterator[bytes]:
    """All that a value says, as bytes: of dataclasses and collections each part."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        yield repr((value.dtype.str, value.shape)).encode()
        yield np.ascontiguousarray(value).tobytes()
    elif is_dataclass(value) and not isinstance(value, type):
        yield type(value).__qualname__.encode()
        for one in fields(value):
            yield from _parts(getattr(value, one.name))
    elif isinstance(value, (Mapping, tuple, list, np.ndarray)):
        inner: Iterable[Any] = value.items() if isinstance(value, Mapping) else value
        yield f"{type(value).__qualname__} of {len(value)}".encode()
        for part in inner:
            yield from _parts(part)
    else:
        yield repr(value).encode() if isinstance(value, PLAIN) else pickle.dumps(value)
