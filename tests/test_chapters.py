"""Chapters of a page: what is shared is said once, estimates stand by what they estimate, two texts side by side."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_gpt
from report_samples import Sample

import reports
from analyses.activation_patching import activation_patching
from analyses.attention_patterns import attention_patterns
from analyses.attribution_patching import attribution_patching
from analyses.path_patching import path_patching
from analyses.shared.clean_corrupted import PairStrip
from analyses.shared.panels import AttentionGrid, Note, Panel, Table
from analyses.shared.patching_result import Effects
from reports.page.chapters import arranged, on_one_scale
from reports.page.html import Report, Section, render

SHARED, OWN = Note(key="pair", title="The pair", text="Both texts."), Note(key="own", title="Own", text="One's own.")
VALUES = np.arange(6.0).reshape(2, 3)
PATCHING = ("activation_patching", "attribution_patching", "path_patching")


def effects(key: str, values: np.ndarray, *quantity: str, estimated: bool = False, **more: Any) -> Effects:
    rows, columns = (tuple(map(str, range(size))) for size in values.shape)
    return Effects(
        key, key, values=values, rows=rows, columns=columns, row_axis="layer", column_axis="head", unit="logits",
        diverging=True, family="f", quantity=quantity, estimated=estimated, **more,
    )  # fmt: skip


def shown(*sections: tuple[Panel, ...]) -> tuple[list[str], list[list[str]]]:
    """Addresses of the head and of each member, for sections named a, b, ..."""
    made = arranged([("abc"[i], panels) for i, panels in enumerate(sections)])
    return [one.id for one in made.head], [[one.id for one in views] for views in made.members]


def test_what_sections_begin_with_alike_is_shown_once() -> None:
    assert shown((SHARED, OWN), (OWN,), (SHARED, OWN)) == (["a-pair"], [["a-own"], ["b-own"], ["c-own"]])


@pytest.mark.parametrize("other", [replace(SHARED, text="Other texts."), replace(SHARED, key="other")])
def test_what_differs_stays_where_it_is(other: Note) -> None:
    assert shown((SHARED, OWN), (other, OWN)) == ([], [["a-pair", "a-own"], [f"b-{other.key}", "b-own"]])
    assert shown((OWN, SHARED), (SHARED, OWN))[0] == []  # alike, but not in front
    assert shown((SHARED,), (SHARED, OWN))[0] == []  # all that the first shows


def test_the_head_answers_to_every_address_and_its_sections_follow_it() -> None:
    def section(name: str, *panels: Panel) -> Section:
        return Section(name, name, "", Sample(panels), 0.0, "Chapter")

    made = (section("x", OWN), section("a", SHARED, OWN), section("b", SHARED, OWN))
    page = render(Report("r", (), made, {}))
    assert page.count("Both texts.") == 1
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    wanted = ["a-pair", "a", "a-own", "b", "b-own", "x", "x-own"]
    assert [one for one in ids if one in wanted] == wanted
    assert "b-pair" in ids
    alone = render(Report("r", (), tuple(replace(one, chapter="") for one in made), {}))
    assert alone.count("Both texts.") == 2  # sections of no chapter share nothing


def test_an_estimate_stands_beside_what_it_estimates_and_says_how_well() -> None:
    rng = np.random.default_rng(0)
    guess = VALUES + rng.normal(size=VALUES.shape)
    exact, estimate = effects("z", VALUES, "z"), effects("eap", guess, "z", estimated=True)
    made = arranged([("a", (exact, OWN)), ("b", (estimate, OWN))])
    assert [[one.id for one in views] for views in made.members] == [["a-z", "b-eap", "a-own"], ["b-own"]]
    assert [[one.id for one in views] for views in made.moved] == [[], ["b-eap"]]
    known = np.corrcoef(VALUES.ravel(), guess.ravel())[0, 1]
    assert f"over 6 cells: {known:.2f}." in made.members[0][1].note
    assert known < 0.99
    for other in (effects("eap", guess, "q", estimated=True), effects("eap", guess.T, "z", estimated=True),
                  effects("eap", guess, "z")):  # fmt: skip
        apart = arranged([("a", (exact, OWN)), ("b", (other, OWN))])
        assert [one.id for one in apart.members[0]] == ["a-z", "a-own"]
        assert "cells" not in "".join(one.note for views in apart.members for one in views)


def test_agreement_leaves_out_what_was_not_measured_and_needs_numbers_that_vary() -> None:
    guess = np.where(VALUES == 5, np.nan, 2 * VALUES)
    note = arranged([("a", (effects("z", VALUES, "z"),)), ("b", (effects("e", guess, "z", estimated=True),))])
    assert "over 5 cells: 1.00." in note.members[0][1].note
    flat = effects("e", np.ones((2, 3)), "z", estimated=True)
    assert arranged([("a", (effects("z", VALUES, "z"),)), ("b", (flat,))]).members[0][1].note == ""


def test_one_scale_across_a_chapter() -> None:
    (_, (large,)), (_, (small, note)) = on_one_scale(
        [("a", [effects("l", VALUES)]), ("b", [effects("s", -VALUES / 9), OWN])]
    )
    assert large.scale == small.scale == (-5 / 9, 5.0)
    assert note is OWN


@pytest.fixture(scope="module")
def made(toy_gpt: Any) -> Report:
    text = "The cat sat on the mat. The cat sat on the"
    return reports.report(toy_gpt, text, analyses=["attention_patterns", *PATCHING])


def test_the_three_patchings_open_with_one_pair(made: Report, toy_gpt: Any) -> None:
    page = render(made)
    assert page.count("The two runs <a") == page.count('data-kind="aligned"') == 1
    for name in PATCHING:
        assert page.count(f'id="{name}"') == page.count(f'id="{name}-pair"') == page.count(f'id="{name}-runs"') == 1
    alone = reports.report(toy_gpt, "The cat sat on the mat. The cat sat", analyses=["path_patching"])
    assert render(alone).count('data-kind="aligned"') == 1


def test_matrices_of_the_chapter_are_on_one_scale(made: Report) -> None:
    legends = re.findall(
        r'<p class="legend"><span>([^<]+)</span>', render(made).split('class="chapter" id="chapter-2"')[1]
    )
    assert len(legends) > 5
    assert len(set(legends)) == 1


def test_the_viewer_offers_the_corrupted_text(made: Report, toy_gpt: Any) -> None:
    attention, activation = made.sections[:2]
    pairs = activation.result.pairs
    of_both = (attention.result, attention, attention_patterns(toy_gpt, pairs.corrupted[0]))
    own, both, other = (next(p for p in one.panels() if isinstance(p, AttentionGrid)) for one in of_both)
    np.testing.assert_array_equal(both.patterns[0], own.patterns[0])
    np.testing.assert_array_equal(both.patterns[1], other.patterns[0])
    assert np.abs(both.patterns[1] - own.patterns[0]).max() > 1e-4
    assert both.tokens == pairs.first
    assert pairs.changes[0] in both.names[1]
    without = reports.report(toy_gpt, "The cat sat on the mat", analyses=["attention_patterns"])
    assert without.sections[0].beside == ()


MODEL = make_gpt(dtype=torch.float64, n_layers=2, n_heads=2, d_model=16)
CLEAN = torch.randint(0, 300, (2, 6), generator=torch.Generator().manual_seed(3))
CORRUPTED = CLEAN.clone()
CORRUPTED[0, 2], CORRUPTED[1, 1] = 7, 8


def both_ways(direction: Any) -> tuple[Any, Any]:
    given: dict[str, Any] = {"answer": [11, 12], "wrong": [21, 22], "direction": direction}
    exact = activation_patching(MODEL, CLEAN, CORRUPTED, site="z", **given)
    return exact, attribution_patching(MODEL, CLEAN, CORRUPTED, methods=("eap",), sample=1000, top=1, **given)


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_what_names_the_same_quantity_is_the_same(direction: str) -> None:
    """Patching a head's z truly is what the estimates of heads are estimates of; in the other direction it is not."""
    exact, estimated = both_ways(direction)
    (z,) = [panel for panel in exact.panels() if isinstance(panel, Effects)]
    (eap,) = [panel for panel in estimated.panels() if isinstance(panel, Effects)]
    assert z.quantity == eap.quantity != ()
    assert (z.estimated, eap.estimated) == (False, True)
    heads = [i for i, node in enumerate(estimated.nodes) if node.kind == "head"]
    truth = estimated.true_nodes.mean(0)[heads].reshape(z.values.shape)
    np.testing.assert_allclose(z.values, truth, rtol=0, atol=1e-10)
    back = both_ways("denoise" if direction == "noise" else "noise")[0]
    (other,) = [panel for panel in back.panels() if isinstance(panel, Effects)]
    assert other.quantity != z.quantity
    assert np.abs(other.values - truth).max() > 1e-4


def test_the_pair_says_what_both_runs_give() -> None:
    given: dict[str, Any] = {"answer": [11, 12], "wrong": [21, 22]}
    weak = activation_patching(MODEL, CLEAN, CORRUPTED, **given)
    strip, runs, choices = weak.panels()[:3]
    assert isinstance(strip, PairStrip)
    assert strip.values.tolist() == [0, 0, 1, 0, 0, 0]
    assert [a != b for a, b in zip(strip.tokens, strip.below, strict=True)] == [x == 1 for x in strip.values]
    assert isinstance(runs, Table)
    np.testing.assert_array_equal(runs.frame["total effect"], weak.measure.clean - weak.measure.corrupted)
    assert "below it: patching shows nothing" in runs.caption  # random weights
    assert isinstance(choices, Note)
    paths = path_patching(MODEL, CLEAN, CORRUPTED, receivers="logits", **given).panels()
    assert [(one.key, one.caption) for one in paths[:3]] == [(one.key, one.caption) for one in weak.panels()[:3]]
    strong = activation_patching(MODEL, CLEAN, CORRUPTED, metric=lambda logits: 1e3 * logits[:, -1, 0], **given)
    assert "above it" in strong.panels()[1].caption
