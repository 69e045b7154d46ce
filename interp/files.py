"""Writing files so that a reader never sees half of one."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interp.errors import InterpError


@contextmanager
def atomic_path(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed to it when the block succeeds, removed when it fails.

    A link stays a link: the file it points to is written. With `folder` the temporary path is a new folder, and where
    `path` is one by then (somebody else was quicker), that one stays. Raises InterpError when it cannot be written.
    """
    path = Path(os.path.realpath(path))
    # A name that no other process uses, on this machine or on another that writes to the same disk.
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        (temporary if folder else path.parent).mkdir(parents=True, exist_ok=True)
        yield temporary
        try:
            temporary.replace(path)
        except OSError:
            if not (folder and path.is_dir()):
                raise
    except OSError as error:
        raise InterpError(f"{path} cannot be written: {error.strerror or error}", "choose another place") from error
    finally:
        _remove(temporary)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a whole file as `atomic_path` does; text as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def remove_leftovers(path: Path) -> None:
    """Removes what writers of `path` that were killed have left beside it."""
    for leftover in path.parent.glob(f".{path.name[:40]}.*.tmp"):
        _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
