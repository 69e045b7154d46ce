"""Writing files so that a reader never sees half of one."""

import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interp.errors import InterpError

_HERE = re.sub(r"[^A-Za-z0-9]", "-", socket.gethostname())[:20]
_BORN = time.time()


@contextmanager
def atomic_path(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed to it when the block succeeds, removed when it fails, or by
    the next one that writes to the folder when this process is killed.

    A link stays a link: the file it points to is written. With `folder` the temporary path is a new folder, and where
    `path` is one by then (somebody else was quicker), that one stays. Raises InterpError when it cannot be written,
    whichever library found that out.
    """
    path = Path(os.path.realpath(path))
    # A name that no other process uses, on this machine or on another that writes to the same disk.
    temporary = path.with_name(f".{path.name[:40]}.{_HERE}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        (temporary if folder else path.parent).mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        yield temporary
        try:
            temporary.replace(path)
        except OSError:
            if not (folder and path.is_dir()):
                raise
    except Exception as error:
        why = failed_write(error)
        if why is None:
            raise
        raise InterpError(f"{path} cannot be written: {why}", "choose another place, or make room") from error
    finally:
        _remove(temporary)


def failed_write(error: BaseException | None) -> str | None:
    """What the system said, where an error comes of a file that cannot be written; None for any other.

    Libraries in Rust name the system's error in their text; torch raises another one while Python's is under way.
    """
    if error is None or isinstance(error, InterpError):
        return None
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if told := re.search(r"\(os error (\d+)\)", str(error)):
        return os.strerror(int(told[1]))
    return failed_write(error.__context__) if isinstance(error, RuntimeError) else None


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a whole file as `atomic_path` does; text as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def remove_leftovers(folder: Path) -> None:
    """Removes what `atomic_path` has left in a folder in processes of this machine that are gone."""
    for leftover in folder.glob(f".*.{_HERE}.*-*.tmp"):
        process = leftover.name.split(".")[-2].partition("-")[0]
        if process.isdigit() and not _living(int(process), leftover):
            _remove(leftover)


def _living(process: int, leftover: Path) -> bool:
    """Whether a process is there that may be writing this; one of an earlier process with our number is not ours."""
    try:
        if process == os.getpid():
            return leftover.stat().st_mtime >= _BORN
        os.kill(process, 0)
    except (ProcessLookupError, FileNotFoundError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
