"""Pieces of long work: found again by all that they depend on, computed anew when damaged, gone at the end."""

from pathlib import Path

import numpy as np
import pytest

from interp.errors import InterpError
from interp.keeping import keeping, kept


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
