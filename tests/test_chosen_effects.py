"""What a summary names as the largest: its interval allows for the choice, and q goes over the whole grid."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_gpt

from analyses.ablation import ablation
from analyses.activation_patching import activation_patching
from analyses.attribution_patching import attribution_patching
from analyses.compare import compare
from analyses.head_roles import head_roles
from analyses.neurons import neurons
from analyses.path_patching import path_patching
from analyses.shared.panels import Note, Result
from analyses.shared.prompts import Prompt, PromptSet
from analyses.shared.statistics import q_values, sign_flip_p_value

MODEL = make_gpt(d_vocab=60)
GENERATOR = torch.Generator().manual_seed(1)
CLEAN = torch.randint(0, 60, (12, 8), generator=GENERATOR)
CORRUPTED = CLEAN.clone()
CORRUPTED[:, 3] = (CORRUPTED[:, 3] + 1) % 60
PAIR: dict[str, Any] = {"answer": [1] * 12, "wrong": [2] * 12}


def words(result: Result, key: str) -> str:
    (note,) = [panel for panel in result.panels() if isinstance(panel, Note) and panel.key == key]
    return note.text


def planted(texts: int, strength: float = 1.0) -> list[Any]:
    """Results of which one effect is strong in every text, the others noise, and the pair's total effect two logits."""
    rng = np.random.default_rng(0)
    clean, corrupted = CLEAN[:texts], CORRUPTED[:texts]
    given = {name: ids[:texts] for name, ids in PAIR.items()}
    heads = activation_patching(MODEL, clean, corrupted, site="z", **given)
    paths = path_patching(MODEL, clean, corrupted, receivers="logits", **given)
    without = ablation(MODEL, clean)
    noise = rng.normal(scale=0.05, size=(texts, 8))
    noise[:, 5] += strength * (1 + 0.1 * np.arange(texts))
    measure = replace(heads.measure, clean=np.full(texts, 2.0), corrupted=np.zeros(texts))
    values = without.clean[:, None, None, :] + noise[:, :, None, None]
    (patched,) = heads.patched
    return [
        replace(without, values=values, token_effects=without.token_effects[:0]),  # texts alone, not their tokens
        replace(heads, measure=measure, patched=(replace(patched, values=tuple(noise.reshape(texts, 2, 4))),)),
        replace(paths, measure=measure, values=2.0 - np.pad(noise, ((0, 0), (0, 2)))[:, None]),
    ]


@pytest.mark.parametrize("texts", [7, 3])
def test_intervals_of_findings_are_wider_than_those_of_the_table(texts: int) -> None:
    for result in planted(texts):
        frame, (finding,) = result.summary(), result.findings()
        row = frame.iloc[(frame["effect"] - finding.value).abs().argmin()]
        assert row["effect"] == pytest.approx(finding.value)
        assert finding.low is not None
        assert finding.high is not None
        assert finding.low < row["low"] <= row["high"] < finding.high
        assert ("too few" in finding.text) == (texts == 3)
        assert (finding.p is None) == (texts == 3)
        assert finding.about == "L1H1"
        assert "Bonferroni level" in words(result, "methods")
    one = activation_patching(MODEL, CLEAN[:1], CORRUPTED[:1], answer=[1], wrong=[2])
    assert all(finding.low is None for finding in one.findings())
    assert not [panel for panel in one.panels() if panel.key == "methods"]


def test_noise_has_no_finding() -> None:
    """The same with the strong effect taken away."""
    assert all(result.findings() == [] for result in planted(7, strength=0.0))
    assert all(finding.p == 2 / 2**7 for result in planted(7) for finding in result.findings())


def test_half_of_enough_texts_choose_again_and_the_others_measure() -> None:
    for result in planted(12):
        (finding,) = result.findings()
        assert finding.held is not None
        assert finding.held.again
        assert finding.held.n == 6
        assert 0.9 < abs(finding.held.value) < 2.2
        assert finding.held.value != finding.value
        assert finding.held.low is not None
        assert "6 texts (drawn with seed 0) choose the largest alone" in words(result, "methods")
    assert all(finding.held is None for result in planted(7) for finding in result.findings())


def test_q_of_patching_goes_over_all_places_that_can_have_an_effect() -> None:
    result = activation_patching(MODEL, CLEAN, CORRUPTED, site="resid_pre,z", **PAIR)
    frame = result.summary()
    before = frame[(frame["site"] == "resid_pre") & frame["p"].isna()]
    assert len(before) >= MODEL.config.n_layers * 3  # the texts agree at three positions
    assert len(before) < (frame["site"] == "resid_pre").sum()
    assert (before["effect"] == 0).all()
    np.testing.assert_allclose(frame["q"], q_values(frame["p"].to_numpy()))
    assert f"over {frame['p'].notna().sum()} p-values" in words(result, "methods")


def test_q_of_neurons_and_of_edges() -> None:
    found = neurons(MODEL, CLEAN, count=5)
    np.testing.assert_allclose(found.q, q_values(sign_flip_p_value(found.effect["loss"])))
    assert found.panels()[0].frame["q"].tolist() == pytest.approx(found.q.tolist())
    assert neurons(MODEL, CLEAN[:1], count=5).q is None
    edges = attribution_patching(MODEL, CLEAN, CORRUPTED, sample=3, top=2, **PAIR)
    (table,) = [panel for panel in edges.panels() if panel.key == "edges"]
    p = sign_flip_p_value(edges.edge_scores[-1])
    known = np.isfinite(edges.edge_scores[-1, 0])
    assert np.sort(table.frame["q"]) == pytest.approx(np.sort(q_values(p[known]))[: len(table.frame)], abs=1)
    assert table.frame["q"].between(q_values(p[known]).min(), 1).all()


def test_choices_of_the_model_are_named_and_their_bias_is_said(toy_gpt: Any) -> None:
    own = activation_patching(toy_gpt, "The cat sat on the mat")
    assert own.pairs.own == ("answer", "wrong answer", "corruption")
    assert "(answer, wrong answer and corruption chosen by the model)" in own.findings()[0].text
    assert "lean downwards" in words(own, "choices")
    assert "say nothing of how well" in words(own, "choices")
    ids = activation_patching(MODEL, CLEAN, CORRUPTED, **PAIR)
    assert ids.pairs.own == ()
    for text in (ids.findings()[0].text, words(ids, "choices")):
        assert "chosen by the model" not in text
        assert "lean downwards" not in text
    logit = ablation(MODEL, CLEAN, metrics=("logit", "loss"))
    assert "(answer chosen by the model)" in logit.panels()[0].caption
    assert "chosen by the model" not in logit.panels()[1].caption
    given = ablation(MODEL, CLEAN, metrics=("logit",), answer=[1] * 12)
    assert "chosen by the model" not in given.panels()[0].caption


def test_templates_are_named_as_the_unit(toy_gpt: Any) -> None:
    prompts = [
        Prompt(clean=f"{start} {word}", corrupted=f"{start} {word}", answer=" a", wrong=" the", template=start)
        for start in ("The cat", "A dog", "The old man")
        for word in ("sat", "ran")
    ]
    found = ablation(toy_gpt, PromptSet(prompts=tuple(prompts)), answer=5, wrong=6)
    assert "over 3 templates" in found.panels()[0].caption
    assert "signs of templates" in next(p for p in found.panels() if p.key == "table").caption
    assert "6 texts made from 3 templates" in words(found, "methods")


def test_roles_and_comparisons_tell_the_chosen_head_with_a_wider_interval() -> None:
    roles = head_roles(MODEL, samples=6).random
    for index in range(2):
        each, chosen = roles.interval.ends(index, 0, 0), roles.chosen(index, 0, 0)
        assert chosen[0] < each[0] < each[1] < chosen[1]
    other = make_gpt(d_vocab=60, seed=3)
    loss = compare(MODEL, CLEAN, other=other).findings()[0]
    assert loss.low < loss.value < loss.high
