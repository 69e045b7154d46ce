"""Pieces of long work: found again by all that they depend on, computed anew when damaged, gone at the end."""

import os
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import interp.keeping
from analyses import embeddings
from analyses.shared.capabilities import identity
from analyses.shared.panels import Result, Table
from interp import HookedGPT
from interp.errors import InterpError
from interp.keeping import digest, keeping, kept, kept_whole, remembered
from reports.page.html import render
from reports.running.discovery import discover
from reports.running.report import report


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


def test_the_files_used_longest_ago_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seven numbers, about as long on disk each, three fit; the first was asked for again after the others."""

    def ask(number: int) -> None:
        kept_whole(lambda: (number,), lambda: done.append(number) or number)
        for age, path in enumerate(sorted(tmp_path.iterdir(), key=lambda one: one.stat().st_mtime)[::-1]):
            os.utime(path, (1e9 - age, 1e9 - age))  # as if time had passed

    done: list[int] = []
    with remembered(tmp_path):
        for number in (*range(7), 0):
            ask(number)
        size = max(path.stat().st_size for path in tmp_path.iterdir())
        monkeypatch.setattr(interp.keeping, "KEPT", 3 * size)
    assert len(list(tmp_path.iterdir())) == 3
    with remembered(tmp_path):
        for number in (0, 6, 5, 4):
            ask(number)
    assert done == [*range(7), 4]


def test_keys_tell_every_part_of_every_kind_apart() -> None:
    keys: list[object] = [
        1, "1", 1.0, (1,), [1], ((1,), ()), ((), (1,)), ("a", "b"), ("ab", ""), {"a": 1}, ("a", 1), None, np.arange(3),
        np.arange(3.0), np.arange(3.0)[:, None], np.arange(4.0), torch.zeros(5000), torch.ones(5000),
        pd.DataFrame({"a": np.arange(500)}), pd.DataFrame({"a": np.arange(500) % 499}),
    ]  # fmt: skip
    assert len({digest((key,)) for key in keys}) == len(keys)
    assert digest((np.arange(3.0), {"a": (1, "x")})) == digest((np.arange(6.0)[::2] / 2, {"a": (1, "x")}))


def test_time_spent_on_what_stays_is_counted_once(tmp_path: Path) -> None:
    now = [0.0]

    def takes(seconds: float) -> float:
        now[0] += seconds
        return seconds

    def outer() -> float:
        return takes(2) + kept_whole(lambda: ("inner",), lambda: takes(3))

    for saved in (5.0, 0.0):  # the second time all is there
        with remembered(tmp_path, clock=lambda: now[0]) as memory:
            takes(10)
            assert kept_whole(lambda: ("outer",), outer) == 5
        assert memory.saved == saved


def shown(result: Result) -> str:
    return digest(panel.frame.to_csv() if isinstance(panel, Table) else panel for panel in result.panels())


def test_what_weights_alone_decide_is_computed_once_and_shown_the_same(toy_gpt: HookedGPT, tmp_path: Path) -> None:
    chosen = [one for one in discover().values() if one.declared.weights_only]
    assert "weight_statistics" in [one.name for one in chosen]
    for one in chosen:
        fresh = shown(one.function()(toy_gpt, "one text"))
        with remembered(tmp_path / one.name):
            first = one.function()(toy_gpt, "another text, longer")
        files = sorted(path.name for path in (tmp_path / one.name).iterdir())
        with remembered(tmp_path / one.name):
            second = one.function()(toy_gpt, "a third")
        assert first is not second
        assert [shown(first), shown(second)] == [fresh, fresh], one.name
        assert files == sorted(path.name for path in (tmp_path / one.name).iterdir()) != []
    assert shown(embeddings(toy_gpt, "one text")) != shown(embeddings(toy_gpt, "another text"))


def page(model: HookedGPT, folder: Path) -> tuple[str, int]:
    """A page without its date and times, and how many files its run added to what is kept."""
    before = len(list(folder.iterdir()))
    with remembered(folder):
        made = report(model, "The cat sat on the mat", analyses=["surprise", "neurons"])
        sections = tuple(replace(section, seconds=0.0) for section in made.sections)
        text = render(replace(made, sections=sections, provenance=made.provenance | {"date": ""}))
    return text, len(list(folder.iterdir())) - before


def test_a_page_of_what_was_kept_is_the_same_to_the_last_byte(toy_gpt: HookedGPT, tmp_path: Path) -> None:
    (first, computed), (second, anew) = page(toy_gpt, tmp_path), page(toy_gpt, tmp_path)
    assert (first == second, computed, anew) == (True, 3, 0)
    other = deepcopy(toy_gpt)
    with torch.no_grad():
        other.blocks[1].mlp.W_in += 0.01
    assert page(other, tmp_path)[0] != first  # the control


def test_other_weights_options_or_hooks_are_computed_anew(toy_gpt: HookedGPT, tmp_path: Path) -> None:
    model, run = deepcopy(toy_gpt), discover()["weight_statistics"].function()

    def files() -> int:
        return len(list(tmp_path.iterdir()))

    with remembered(tmp_path):
        before = run(model)
        assert (files(), identity(model)) == (1, identity(toy_gpt))
        run(model, window=8)
        assert files() == 2
        with torch.no_grad():
            model.blocks[0].attn.W_O[0, 0, 0] += 1
        assert identity(model) != identity(toy_gpt)
        assert shown(run(model)) != shown(before)
        assert files() == 3
        model.tokenizer = None
        with model.hooks([("blocks.0.hook_resid_pre", lambda x, hook: x * 2)]):
            run(model)
        assert files() == 3
        run(model)
        assert files() == 4


def test_what_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with remembered(tmp_path / "file"):
        assert kept_whole(lambda: ("a",), lambda: 5) == 5
    with remembered(tmp_path / "there"):
        assert kept_whole(lambda: (lambda: 0,), lambda: 5) == 5
        assert kept_whole(lambda: ("b",), lambda: lambda: 5)() == 5
