"""Writing files so that a reader never sees half of one."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interp.errors import InterpError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed to it when the block succeeds, removed when it fails.

    A link stays a link: the file it points to is written. Raises InterpError when the folder cannot be written.
    """
    path = Path(os.path.realpath(path))
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise InterpError(f"{path} cannot be written: {error.strerror or error}", "choose another place") from error
    finally:
        if temporary.exists():
            temporary.unlink()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new temporary folder beside `path`; renamed to it when the block succeeds, else removed.

    Where `path` is there by then (somebody else was quicker), that one stays. Raises InterpError as `atomic_path` does.
    """
    temporary = _beside(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    except OSError as error:
        raise InterpError(f"{path} cannot be written: {error.strerror or error}", "choose another place") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Removes what writers of `path` that were killed have left beside it."""
    for leftover in path.parent.glob(f".{path.name[:40]}.*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A name that no other process uses, on this machine or on another that writes to the same disk."""
    return path.with_name(f".{path.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
