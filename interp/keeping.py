"""Work in pieces, each kept when it is done, so that a run that was stopped goes on: `with keeping(folder)`."""

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from interp.errors import InterpError
from interp.files import atomic_path

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Kept:
    folder: Path
    used: set[Path] = field(default_factory=set)


_kept: ContextVar[_Kept | None] = ContextVar("keeping", default=None)


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
