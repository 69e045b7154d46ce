"""Built-in labels against texts read by eye."""

import numpy as np
import pytest

from analyses.shared.token_features import TASKS, Window, find_task, is_punctuation, label_rows
from interp.errors import InputError


def labels(task: str, words: list[str], places: list[int] | None = None) -> list[int]:
    ids = [sorted(set(words)).index(word) for word in words]
    window = Window(np.array(ids), words, np.array(places or range(len(words))))
    return TASKS[task].label(window).tolist()


def test_seen_before() -> None:
    assert labels("seen-before", ["a", " b", "a", "c", " b", "b"]) == [0, 0, 1, 0, 1, 0]


def test_capital() -> None:
    assert labels("capital", ["The", " river", " Thames", ",", "\n", " É", "1874", "A1"]) == [1, 0, 1, -1, -1, 1, -1, 1]


def test_in_quotation() -> None:
    words = ["He", ' "', "no", '"', ' "yes', " she", '".', "\n", '"open', "\n", "end", "“", "in", "”"]
    assert labels("in-quotation", words) == [0, 1, 1, 0, 1, 1, 0, 0, 1, 0, 0, 1, 1, 0]


def test_position() -> None:
    assert labels("position", ["x"] * 6, [1, 15, 16, 63, 64, 256]) == [0, 0, 1, 1, 2, 3]


def test_next_punctuation() -> None:
    assert labels("next-punctuation", ["Hm", ",", " (", "so", "…", " $"]) == [1, 1, 0, 1, 0, -1]  # $ is a symbol
    assert [is_punctuation(word) for word in (" -", "a.", "", " ", "«")] == [True, False, False, False, True]


def test_windows_are_labelled_apart() -> None:
    """A token is new again in the next window, and nothing follows the last one of a window."""
    words = ["a", "b", "."]
    token, window, place = np.array([0, 1, 0, 0, 2, 2]), np.array([7, 7, 7, 3, 3, 3]), np.array([1, 2, 3, 1, 2, 3])
    assert label_rows(TASKS["seen-before"], window, token, place, None).tolist() == [0, 0, 1, 0, 0, 1]
    assert label_rows(TASKS["next-punctuation"], window, token, place, words).tolist() == [0, 0, -1, 1, 1, -1]
    assert label_rows(TASKS["capital"], window[:0], token[:0], place[:0], words).tolist() == []


def test_an_unknown_label_is_met_with_the_nearest() -> None:
    with pytest.raises(InputError, match="seen-before"):
        find_task("seen-befor")
