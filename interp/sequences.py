"""Texts as rows that the model runs, rows in shards, rows of like length in batches: functions of the texts alone."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from interp.errors import InputError
from interp.texts import SPLITS, Corpus


class Sequences(NamedTuple):
    """The rows that the model runs, one after the other."""

    source: np.ndarray
    """[place] for all sequences: the position of the corpus that stands there; -1 for a beginning-of-text token."""
    bounds: np.ndarray
    """[sequence + 1], where each begins."""
    packed: bool

    @property
    def lengths(self) -> np.ndarray:
        """[sequence], in tokens."""
        return np.diff(self.bounds)

    @property
    def stored(self) -> np.ndarray:
        """[sequence], positions of which activations are stored: all but beginning-of-text tokens."""
        return np.add.reduceat((self.source >= 0).astype(np.int64), self.bounds[:-1])


def one_text_a_row(corpus: Corpus, context: int, bos: bool) -> Sequences:
    """Each text in windows that do not overlap, as long as the context allows with the beginning token in front."""
    width = context - bos
    if width < 1:
        raise InputError(f"a context of {context}", "expected room for a token after the beginning one")
    pieces, lengths = [], []
    for start, end in zip(corpus.starts[:-1].tolist(), corpus.starts[1:].tolist(), strict=True):
        for first in range(start, end, width):
            piece = np.arange(first, min(first + width, end))
            pieces += [np.array([-1]), piece] if bos else [piece]
            lengths.append(len(piece) + bos)
    return Sequences(np.concatenate(pieces), np.concatenate([[0], np.cumsum(lengths)]), packed=False)


def packed_rows(corpus: Corpus, context: int, bos: bool) -> Sequences:
    """All texts of a split in one stream, a beginning token before each, cut into windows behind one more of them."""
    width = context - bos
    if width < 1:
        raise InputError(f"a context of {context}", "expected room for a token after the beginning one")
    pieces, lengths = [], []
    for split in range(len(SPLITS)):
        stream: list[np.ndarray] = []
        for text in np.flatnonzero(corpus.split == split).tolist():
            stream += [np.array([-1])] if bos else []
            stream.append(np.arange(corpus.starts[text], corpus.starts[text + 1]))
        whole = np.concatenate(stream) if stream else np.empty(0, dtype=np.int64)
        first = 0
        while first < len(whole):
            first += bos and whole[first] < 0  # the window's own beginning token stands for it
            window = whole[first : first + width]
            first += len(window)
            pieces += [np.array([-1]), window] if bos else [window]
            lengths.append(len(window) + bos)
    return Sequences(np.concatenate(pieces), np.concatenate([[0], np.cumsum(lengths)]), packed=True)


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
    chosen: list[int] = []
    for place in np.argsort(-lengths, kind="stable").tolist():
        if chosen and (len(chosen) + 1) * int(lengths[chosen[0]]) > tokens:
            yield chosen
            chosen = []
        chosen.append(place)
    if chosen:
        yield chosen
