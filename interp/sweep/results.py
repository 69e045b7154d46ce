"""The results of a sweep as they come in: kept by variant, saved to a checkpoint, taken up again from it."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.errors import InputError
from interp.files import atomic_path
from interp.interventions import Intervention
from interp.keeping import working_folder
from interp.sweep.inputs import Inputs, Model, listed

SAVE_EVERY = 2.0
"""Seconds between checkpoints; a kill loses no more than this and the chunk under way."""


_resumable: ContextVar["Resumable | None"] = ContextVar("resumable", default=None)


class Resumable:
    """A folder with one checkpoint a sweep."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.used = folder, Counter[str]()

    def file(self, identity: str, clean: Mapping[str, Tensor]) -> Path:
        """Where a sweep keeps what it has finished: those that differ in the metric alone are numbered."""
        shapes = repr([(name, tuple(x.shape)) for name, x in clean.items()])
        name = hashlib.sha256((identity + shapes).encode()).hexdigest()[:32]
        self.used[name] += 1
        return self._path(name, self.used[name])

    def _path(self, name: str, number: int) -> Path:
        return self.folder / f"{name}-{number}.sweep"

    def clear(self) -> None:
        """Removes the checkpoints of this block's sweeps."""
        for name, count in self.used.items():
            for number in range(1, count + 1):
                self._path(name, number).unlink(missing_ok=True)


@contextmanager
def resumable(folder: Path) -> Iterator[Resumable]:
    """Sweeps inside the block keep what they have finished in this folder, and take up again what lies there.

    The files go when the block ends as it should; after an error, Ctrl-C or a kill they stay for the next time, which
    has to make the same sweeps in the same order. Raises InterpError when the folder cannot be made.
    """
    kept = Resumable(folder)
    with working_folder(folder):
        token = _resumable.set(kept)
        try:
            yield kept
        finally:
            _resumable.reset(token)
        kept.clear()


class SweepInterrupted(KeyboardInterrupt):
    """Ctrl-C during a sweep. What was finished is here, and in the checkpoint if there is one."""

    def __init__(self, results: dict[str, Tensor], finished: Tensor) -> None:
        super().__init__(f"interrupted after {int(finished.sum())} of {len(finished)} variants")
        self.results = results
        """name -> [variant ...]; rows that are not finished are 0."""
        self.finished = finished
        """[variant] booleans."""


class Results:
    """name -> [variant ...], filled row by row."""

    def __init__(
        self, clean: Mapping[str, Tensor], count: int, checkpoint: Path | None, identity: Callable[[], str]
    ) -> None:
        """`clean`: results of the clean run, which fix names and shapes; `identity`: of the sweep, for its checkpoint.

        Raises InputError when the checkpoint there is of another sweep.
        """
        kept = _resumable.get()
        self._identity = identity() if checkpoint is not None or kept is not None else ""
        if checkpoint is None and kept is not None:
            checkpoint = kept.file(self._identity, clean)
        self.values = {name: x.new_zeros(count, *x.shape) for name, x in clean.items()}
        self.finished = torch.zeros(count, dtype=torch.bool)
        self._clean = dict(clean)
        self._path, self._saved = checkpoint, time.monotonic()
        if checkpoint is not None and checkpoint.exists():
            self._load(checkpoint)

    def put(self, variant: int, row: Mapping[str, Tensor]) -> None:
        """Some results of one variant."""
        for name, value in row.items():
            if name not in self.values or value.shape != self._clean[name].shape:
                raise InputError(
                    f"the metric gave {name!r} of shape {tuple(value.shape)}",
                    "expected the same names and shapes for every variant",
                )
            self.values[name][variant] = value

    def finish(self, variants: Sequence[int]) -> None:
        """Count variants as finished, and save if it is time."""
        self.finished[list(variants)] = True
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write the checkpoint, if there is to be one."""
        if self._path is None:
            return
        state = {"identity": self._identity, "finished": self.finished, "values": self.values, "clean": self._clean}
        with atomic_path(self._path) as temporary, temporary.open("wb") as stream:
            torch.save(state, stream)
        self._saved = time.monotonic()

    def _load(self, path: Path) -> None:
        state: dict[str, Any]
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            same = state["identity"] == self._identity and _close(state["clean"], self._clean)
        except Exception as error:
            raise InputError(f"{path} is no checkpoint of a sweep", hint="delete it, or name another file") from error
        if not same:
            raise InputError(f"{path} is the checkpoint of another sweep", hint="delete it, or name another file")
        self.finished = state["finished"]
        self.values = {name: x.to(self._clean[name].device) for name, x in state["values"].items()}


def _close(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two clean runs agree, up to rounding: of each result in units of its own largest size."""

    def close(x: Tensor, y: Tensor) -> bool:
        known = x[x.isfinite()]
        scale = float(known.abs().max()) if known.numel() else 0.0
        return torch.allclose(x, y, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)

    return a.keys() == b.keys() and all(
        a[name].shape == b[name].shape and close(a[name].double(), b[name].double().cpu()) for name in a
    )


def identity(
    model: Model, tokens: Inputs, options: Sequence[object], variants: Sequence[Sequence[Intervention]]
) -> str:
    """A hash of what a sweep runs, but for the metric: the clean results stand for it."""
    weights = [(name, float(p.double().sum()), float(p.double().norm())) for name, p in model.named_parameters()]
    digest = hashlib.sha256(repr((listed(tokens), options, weights)).encode())
    known: dict[int, str] = {}
    for variant in variants:
        for edit in variant:
            numbers = [_digested(value, known) for value in (edit.value, *edit.parameters())]
            digest.update(repr((type(edit).__name__, edit.name, edit.head, edit.pos, edit.unit, numbers)).encode())
        digest.update(b"|")
    return digest.hexdigest()


def _digested(value: object, known: dict[int, str]) -> object:
    """A number as it is, a tensor as its shape and a hash."""
    if not isinstance(value, Tensor):
        return value
    if id(value) not in known:
        numbers = value.detach().cpu().double().contiguous()
        known[id(value)] = hashlib.sha256(numbers.numpy().tobytes()).hexdigest()
    return tuple(value.shape), known[id(value)]
