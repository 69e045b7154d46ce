"""What an extraction would take: bytes, and time as measured on a sample."""

import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from interp.errors import InputError
from interp.store.sequences import Sequences, divide
from interp.store.writing import Extraction, free_bytes, overlapped, own_shards


@dataclass(frozen=True)
class ExtractionPlan:
    """What an extraction would take."""

    texts: int
    positions: int
    """Stored positions, of this process' shards."""
    sequences: int
    shards: int
    """Of this process."""
    hook_points: dict[str, int]
    """Hook point -> bytes."""
    bytes: int
    """Of all activations; manifests add little."""
    free: int
    """Bytes that are free on the disk."""
    seconds: float
    """Measured on a sample of `sampled` positions, written to the same disk and removed."""
    sampled: int


def measure(job: Extraction, *, shard_index: int = 0, num_shards: int = 1, least: float = 2.0) -> ExtractionPlan:
    """How many bytes an extraction would write, and how long it would take: measured on sequences spread over it.

    Args:
        least: seconds that are spent on measuring, where there is enough to do.
    """
    mine = own_shards(job, shard_index, num_shards)
    rows = sum(job.shard_rows[shard] for shard in mine)
    above = next(folder for folder in (job.out, *job.out.absolute().parents) if folder.is_dir())
    spent, sampled, want = 0.0, 0, 4 * job.batch_tokens
    while spent < least and sampled < rows:
        try:
            with tempfile.TemporaryDirectory(prefix=".interp-plan-", dir=above) as folder:
                small = _sample(job, min(want, rows), Path(folder))
                start = time.perf_counter()
                list(overlapped(small, range(len(small.shards))))
                spent, sampled = time.perf_counter() - start, sum(small.shard_rows)
        except OSError as error:
            raise InputError(f"{above} cannot be written: {error.strerror}", "expected a place with room") from error
        want *= 4
    widths = {name: math.prod(shape) for name, shape in job.header["hook_points"].items()}
    return ExtractionPlan(
        texts=job.header["n_texts"],
        positions=rows,
        sequences=sum(job.shards[shard][1] - job.shards[shard][0] for shard in mine),
        shards=len(mine),
        hook_points={name: width * job.dtype.itemsize * rows for name, width in widths.items()},
        bytes=job.row_bytes * rows,
        free=free_bytes(job.out),
        seconds=spent * rows / max(1, sampled),
        sampled=sampled,
    )


def _sample(job: Extraction, rows: int, out: Path) -> Extraction:
    """A small extraction of sequences spread over the whole."""
    stored = job.sequences.stored
    count = max(1, min(len(stored), math.ceil(rows / max(1.0, float(stored.mean())))))
    chosen = np.unique(np.linspace(0, len(stored) - 1, count).round().astype(int))
    bounds = job.sequences.bounds
    source = np.concatenate([job.sequences.source[bounds[s] : bounds[s + 1]] for s in chosen])
    some = Sequences(source, np.concatenate([[0], np.cumsum(job.sequences.lengths[chosen])]))
    shards = tuple(divide(some.stored, job.header["processing"]["shard_tokens"]))
    header = job.header | {"shard_rows": [int(some.stored[first:end].sum()) for first, end in shards]}
    return replace(job, sequences=some, shards=shards, out=out, header=header)
