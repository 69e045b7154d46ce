"""Pieces of long work: found again by all that they depend on, computed anew when damaged, gone at the end."""

from pathlib import Path

import numpy as np
import pytest

from interp.errors import InterpError
from interp.keeping import KEPT, keeping, kept, kept_whole, remembered


def test_pieces_are_found_again_by_their_key(tmp_path: Path) -> None:
    folder, done = tmp_path / "kept", list[str]()

    def piece(name: str, x: np.ndarray) -> np.ndarray:
        def compute() -> dict[str, np.ndarray]:
            done.append(name)
            return {"y": x * 2}

        return kept((name, x), compute)["y"]

    ones, halves = np.ones(3), np.full(3, 0.5)

    def stopped(first: bool) -> None:
        np.testing.assert_array_equal(piece("a", ones), 2 * ones)
        if not first:
            np.testing.assert_array_equal(piece("a", halves), ones)
            piece("a", ones.astype(np.float32))
            piece("b", ones)
        raise KeyboardInterrupt

    for first in (True, False):
        with pytest.raises(KeyboardInterrupt), keeping(folder):
            stopped(first)
    assert done == ["a", "a", "a", "b"]  # values, dtype and name tell pieces apart; the first was there
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:-30])
    with keeping(folder):
        np.testing.assert_array_equal(piece("a", ones), 2 * ones)
    assert done[4:] == ["a"]
    assert len(list(folder.iterdir())) == 3  # those that this run did not use


def test_outside_nothing_is_kept_and_a_folder_must_be_possible(tmp_path: Path) -> None:
    with keeping(None):
        assert kept(("x",), lambda: {"y": np.ones(1)})["y"] == 1
    (tmp_path / "file").touch()
    with pytest.raises(InterpError, match="cannot be made"), keeping(tmp_path / "file" / "kept"):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_whole_results_are_found_again_only_inside_and_only_unharmed(tmp_path: Path) -> None:
    done: list[str] = []

    def compute() -> dict[str, np.ndarray]:
        done.append("now")
        return {"x": np.arange(3.0)}

    def ask(key: str) -> np.ndarray:
        return kept_whole(lambda: (key, np.ones(2)), compute)["x"]

    ask("a")
    assert (len(done), list(tmp_path.iterdir())) == (1, [])
    with remembered(tmp_path / "cache"):
        for _ in range(3):
            np.testing.assert_array_equal(ask("a"), np.arange(3.0))
        assert len(done) == 2
        ask("b")
        assert len(done) == 3
        for path in (tmp_path / "cache").iterdir():
            raw = bytearray(path.read_bytes())
            raw[-5] ^= 1
            path.write_bytes(raw)
        np.testing.assert_array_equal(ask("a"), np.arange(3.0))
        assert len(done) == 4
        for number in range(KEPT + 5):
            ask(str(number))
        assert len(list((tmp_path / "cache").iterdir())) == KEPT


def test_a_place_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with remembered(tmp_path / "file"):
        assert kept_whole(lambda: ("a",), lambda: 5) == 5
