"""Labels that text itself gives: what a probe can look for without any annotated data.

Each task labels positions of a text from its tokens alone. A label says something about the token at that position, or
about what the model could have read up to it; -1 means that the position has none.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from interp.errors import InputError, nearest

Codes = NDArray[np.int32]
EDGES = (16, 64, 256)
"""Positions at which the next bucket begins."""


@dataclass(frozen=True)
class Window:
    """The part of one text that the model saw at once."""

    tokens: NDArray[np.int64]  # [pos]
    words: Sequence[str]  # [pos] the tokens as text
    places: NDArray[np.int64]  # [pos] position in the model


@dataclass(frozen=True)
class Task:
    """One built-in labelled task."""

    name: str
    question: str
    """Completes "where does the model know ...?"."""
    classes: tuple[str, ...]
    label: Callable[[Window], Codes]
    needs_words: bool = True
    """Whether the text of tokens is needed, and so a tokenizer."""


def _seen_before(window: Window) -> Codes:
    _, first = np.unique(window.tokens, return_index=True)
    found = np.ones(len(window.tokens), dtype=np.int32)
    found[first] = 0
    return found


def _capital(window: Window) -> Codes:
    starts = [word.lstrip()[:1] for word in window.words]
    return np.array([int(start.isupper()) if start.isalpha() else -1 for start in starts], dtype=np.int32)


def _in_quotation(window: Window) -> Codes:
    """After the last character of the token; a line break ends a quotation that was left open."""
    found, inside = np.zeros(len(window.words), dtype=np.int32), False
    for place, word in enumerate(window.words):
        for character in word:
            inside = False if character in "\n”" else True if character == "“" else inside ^ (character == '"')
        found[place] = inside
    return found


def _position(window: Window) -> Codes:
    return np.searchsorted(EDGES, window.places, side="right").astype(np.int32)


def _next_punctuation(window: Window) -> Codes:
    found = [int(is_punctuation(word)) for word in window.words[1:]]
    return np.array([*found, -1], dtype=np.int32)


def is_punctuation(word: str) -> bool:
    """Whether a token, blanks apart, begins with a punctuation sign (Unicode class P)."""
    start = word.lstrip()[:1]
    return bool(start) and unicodedata.category(start).startswith("P")


NO_YES = ("no", "yes")
TASKS = {
    task.name: task
    for task in (
        Task("seen-before", "that a token was seen before in this text", NO_YES, _seen_before, needs_words=False),
        Task("capital", "that a token begins with a capital letter", NO_YES, _capital),
        Task("in-quotation", "that it is inside a quotation", NO_YES, _in_quotation),
        Task("position", "how far into the text it is", ("0-15", "16-63", "64-255", "256-"), _position, False),
        Task("next-punctuation", "that the next token is punctuation", NO_YES, _next_punctuation),
    )
}


def find_task(name: str) -> Task:
    """The task of that name. Raises InputError, with the nearest names."""
    if name not in TASKS:
        close = nearest(name, list(TASKS))
        raise InputError(f"no label is called {name!r}", f"{'nearest' if close else 'expected one of'}: "
                         + ", ".join(close or TASKS))  # fmt: skip
    return TASKS[name]


def label_rows(task: Task, window: NDArray[np.int64], token: NDArray[np.int64], place: NDArray[np.int64],
               words: Sequence[str] | None) -> Codes:  # fmt: skip
    """[row] class numbers of a task, -1 for none.

    Args:
        window: [row] rows with the same number are one window of one text, and stand together, in order.
        token: [row] token ids.
        place: [row] position in the model.
        words: the text of every token id, where the task needs it.
    """
    found = np.full(len(token), -1, dtype=np.int32)
    if not len(token):
        return found
    starts = np.flatnonzero(np.r_[True, window[1:] != window[:-1]])
    for start, stop in zip(starts, np.r_[starts[1:], len(token)], strict=True):
        ids = token[start:stop]
        spelt = [words[one] for one in ids] if words is not None else []
        found[start:stop] = task.label(Window(ids, spelt, place[start:stop]))
    return found
