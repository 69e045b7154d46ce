"""Texts as rows that the model runs, rows in shards, rows of like length in batches: functions of the texts alone."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from interp.errors import InputError
from interp.store.texts import SPLITS, Corpus


class Sequences(NamedTuple):
    """The rows that the model runs, one after the other."""

    source: np.ndarray
    """[place] for all sequences: the position of the corpus that stands there; -1 for a beginning-of-text token."""
    bounds: np.ndarray
    """[sequence + 1], where each begins."""

    @property
    def lengths(self) -> np.ndarray:
        """[sequence], in tokens."""
        return np.diff(self.bounds)

    @property
    def stored(self) -> np.ndarray:
        """[sequence], positions of which activations are stored: all but beginning-of-text tokens."""
        return np.add.reduceat((self.source >= 0).astype(np.int64), self.bounds[:-1])


def rows_of(corpus: Corpus, context: int, *, bos: bool, packed: bool) -> Sequences:
    """Texts in windows that do not overlap, as long as the context allows with the beginning token in front.

    Each text has windows of its own; with `packed` all texts of a split are one stream, a beginning token before each.
    """
    width = context - bos
    if width < 1:
        raise InputError(f"a context of {context}", "expected room for a token after the beginning one")
    splits = [np.flatnonzero(corpus.split == split).tolist() for split in range(len(SPLITS))]
    beginning = [np.array([-1])] if bos else []
    pieces, lengths = [], []
    for texts in filter(len, splits) if packed else ([text] for text in range(len(corpus.ids))):
        spans = [np.arange(corpus.starts[text], corpus.starts[text + 1]) for text in texts]
        stream = np.concatenate([part for span in spans for part in (*beginning, span)])
        first = 0
        while first < len(stream):
            first += bos and stream[first] < 0  # the window's own beginning token stands for it
            window = stream[first : first + width]
            first += len(window)
            pieces += [*beginning, window]
            lengths.append(len(window) + bos)
    return Sequences(np.concatenate(pieces), np.concatenate([[0], np.cumsum(lengths)]))


def divide(stored: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """Sequences in shards of at most `size` stored positions, one sequence at least."""
    ends = np.cumsum(stored)
    first, before = 0, 0
    while first < len(stored):
        end = max(first + 1, int(np.searchsorted(ends, before + size, side="right")))
        yield first, end
        first, before = end, int(ends[end - 1])


def batches(lengths: np.ndarray, tokens: int) -> Iterator[list[int]]:
    """Sequences of like length together: at most `tokens` positions with padding, one sequence at least."""
    order: list[int] = np.argsort(-lengths, kind="stable").tolist()
    first = 0
    while first < len(order):
        end = first + max(1, tokens // int(lengths[order[first]]))
        yield order[first:end]
        first = end
