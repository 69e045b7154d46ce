"""What test_scale.py sends to workers: functions of a module, so that other processes can import them."""

import os
import signal
from pathlib import Path

from interp.errors import InputError
from interp.files import atomic_path
from interp.store.writing import Extraction


def square(x: int) -> int:
    return x * x


def whose(x: int) -> int:
    return os.getpid()


def die_once(folder: Path, fatal: int) -> None:
    """Kills its own process the first time it is called for an item, and notes every call."""
    marks = len(list(folder.glob(f"{fatal}.*")))
    (folder / f"{fatal}.{marks}").touch()
    if not marks:
        os.kill(os.getpid(), signal.SIGKILL)


def square_or_die(folder: Path, fatal: tuple[int, ...], x: int) -> int:
    if x in fatal:
        die_once(folder, x)
    return x * x


def refuse(x: int) -> int:
    if x == 3:
        raise InputError("three", "expected another number", "try four")
    return x


def extract_or_die(job: Extraction, folder: Path, fatal: int, shard: int) -> int:
    """Dies after the shard was computed and partly written."""
    if shard == fatal and not (folder / f"{shard}.0").exists():
        with atomic_path(job.out / f"shard-{shard:05d}", folder=True) as half:
            (half / "hook_embed.safetensors").write_bytes(b"half")
            die_once(folder, shard)
    return job.run(shard)
