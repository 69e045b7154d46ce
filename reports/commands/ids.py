"""Token ids in place of a text on the command line: as numbers, symbols, or a file of rows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import InputError, NotFoundError
from interp.untrusted import as_text

if TYPE_CHECKING:
    from interp.models.gpt import HookedGPT


def read_ids(given: str) -> list[list[int | str]]:
    """Rows of ids or symbols: "3 1 4", "a + b", a `.npy` of whole numbers [pos] or [batch pos], or a `.jsonl` of lists.

    Raises InputError for anything else, NotFoundError for a file that is not there.
    """
    path = Path(given).expanduser()
    if path.suffix not in (".npy", ".json", ".jsonl"):
        rows = [[_entry(word) for word in given.replace(",", " ").split()]]
    elif not path.is_file():
        raise NotFoundError(f"there is no file {given}", "expected ids such as '3 1 4', a .npy, or JSON lines")
    elif path.suffix == ".npy":
        rows = _from_numpy(path)
    else:
        rows = [
            _line(path, number, line)
            for number, line in enumerate(as_text(path.read_bytes(), path).splitlines(), 1)
            if line.strip()
        ]
    if not rows or not all(rows):
        raise InputError(f"--tokens {given[:60]!r} holds no ids", "expected ids such as '3 1 4', a .npy, or JSON lines")
    return rows


def _entry(word: str) -> int | str:
    return int(word) if word.removeprefix("-").isdigit() else word


def _from_numpy(path: Path) -> list[list[int | str]]:
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(
            f"{path} cannot be read: {str(error)[:80]}", "expected whole numbers, as numpy.save writes"
        ) from None
    if not isinstance(array, np.ndarray) or array.ndim not in (1, 2) or array.dtype.kind not in "iu":
        what = f"shape {array.shape} and {array.dtype}" if isinstance(array, np.ndarray) else "several arrays"
        raise InputError(f"{path} holds {what}", "expected whole numbers [pos] or [batch pos]")
    found: list[list[int | str]] = np.atleast_2d(array).tolist()
    return found


def _line(path: Path, number: int, line: str) -> list[int | str]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        row = None
    if not isinstance(row, list) or not all(type(x) is int or isinstance(x, str) for x in row):
        raise InputError(
            f"{path}, line {number}: {line[:50]!r}", "expected a JSON list of ids or symbols, such as [3, 1, 4]"
        )
    return row


def as_ids(rows: Sequence[Sequence[int | str]], model: "HookedGPT") -> list[list[int]]:
    """The rows as ids alone. Raises InputError for a symbol that is no token."""
    if any(isinstance(entry, str) for row in rows for entry in row) and model.tokenizer is None:
        raise InputError("symbols for a model without a tokenizer", "expected token ids, such as --tokens '3 1 4'")
    return [[entry if isinstance(entry, int) else model.to_single_token(entry) for entry in row] for row in rows]


def as_tokens(rows: Sequence[Sequence[int | str]], model: "HookedGPT") -> Any:
    """Ids [batch pos], or a Batch where rows differ in length. Raises InputError for a symbol that is no token."""
    from interp.models.gpt import Batch

    return Batch.of(as_ids(rows, model))


def one_row(rows: Sequence[Sequence[int | str]], model: "HookedGPT") -> Any:
    """All rows, one after the other, as ids [pos]."""
    import torch

    return torch.tensor([entry for row in as_ids(rows, model) for entry in row])
