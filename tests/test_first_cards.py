"""The first cards of a report are different facts, and their numbers are those that slow ways find; any other number,
or another component's, would be seen.

SmolLM2 is asked where INTERP_MODELS names a directory that holds it, as in `test_real_models.py`.
"""

import os
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from by_hand import NUMBERS, ByHand, head_of

import interp
from analyses.shared.findings import SUBJECTS, Card, Found, cards
from analyses.shared.panels import Finding
from interp.models.gpt import HookedGPT
from reports.running.report import report

MODELS = Path(os.environ.get("INTERP_MODELS", "/nowhere"))
ANALYSES = [
    "surprise", "next-token", "attention-patterns", "logit-lens", "direct-logit-attribution", "ablation", "head-roles",
    "head-circuits", "composition", "neurons", "residual-stream", "embeddings", "architecture",
]  # fmt: skip
"""All that reach the first screen, without the probes, whose training takes long."""
TEXTS = {
    "biography": "Sir Harold Whitcombe was born in Leeds. In 1874 Harold Whitcombe moved to London, where Harold "
    "Whitcombe became a professor of history.",
    "likings": "Anna likes apples and Ben likes pears. Clara likes apples and David likes pears. When Anna and Ben "
    "went to the market, Anna bought",
    "manual": "During missions , players select each unit using a top @-@ down view of the map : once a character is "
    "selected , the player moves the character around the field in third @-@ person .",
}


@cache
def first_cards(model: HookedGPT, text: str) -> list[Card]:
    sections = report(model, text, analyses=ANALYSES).sections
    return cards((finding, one.name) for one in sections for finding in one.result.findings())[:5]


def told(card: Card) -> list[Found]:
    return [(card.first, card.analysis), *card.others]


def agrees(finding: Finding, number: float) -> bool:
    """To what float32 gives after some ten layers."""
    return finding.value == pytest.approx(number, rel=1e-4, abs=2e-5)


def stands_in(number: float, text: str) -> bool:
    """Whether one of the numbers of a sentence is this one, to the digits that are written; counts are exact."""
    written = re.findall(r"(?<![\w.])(\N{MINUS SIGN}?)\+?(\d+(?:\.\d+)?)(%?)(?!\w)", text.replace(",", ""))
    for sign, digits, percent in written:
        scale = (-1 if sign else 1) / (100 if percent else 1)
        half = 0.501 * 10.0 ** -len(digits.partition(".")[2]) * abs(scale)
        if "." not in digits and not percent:
            half = min(half, 0.01 * abs(number))
        if abs(float(digits) * scale - number) <= half:
            return True
    return False


def check(model: HookedGPT, text: str) -> None:
    shown, hand = first_cards(model, text), ByHand(model, text)
    assert len(shown) == 5
    for card in shown:
        for finding, analysis in told(card):
            number = hand.number(finding, analysis)
            print(f"{analysis}/{finding.key} {finding.about}: {finding.value:.6g}, by hand {number:.6g}")
            assert agrees(finding, number), (card.text, number)
            assert not agrees(replace(finding, value=finding.value * 1.001 + 1e-4), number)
            if not card.others or finding.short:
                assert stands_in(number, card.text), (card.text, number)
                assert not stands_in(number * 1.1 + 0.02, finding.short or card.text)
    check_different(shown)


def check_different(shown: list[Card]) -> None:
    """No two cards are about one component, nor about one subject."""
    about = [card.first.about for card in shown if card.first.about]
    assert len(set(about)) == len(about)
    keys = [(card.analysis, card.first.key) for card in shown]
    assert len({SUBJECTS.get(key, key) for key in keys}) == len(keys)


@pytest.fixture(scope="module")
def tiny() -> HookedGPT:
    return interp.load("tiny")


@pytest.mark.parametrize(
    "text", ["biography", *(pytest.param(text, marks=pytest.mark.slow) for text in list(TEXTS)[1:])]
)
def test_the_first_cards_are_measured_again(tiny: HookedGPT, text: str) -> None:
    check(tiny, TEXTS[text])


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_the_first_cards_of_smollm2_are_measured_again(text: str) -> None:
    if not (MODELS / "smollm2").exists():
        pytest.skip("INTERP_MODELS names no directory that holds smollm2")
    check(interp.load(str(MODELS / "smollm2")), TEXTS[text])


def test_another_heads_number_is_another(tiny: HookedGPT) -> None:
    """The control of each slow way: with another component it gives another number."""
    hand = ByHand(tiny, TEXTS["biography"])
    for card in first_cards(tiny, TEXTS["biography"]):
        for finding, analysis in told(card):
            if "H" in finding.about:
                layer, head = head_of(finding.about)
                other = f"L{(layer + 2) % tiny.config.n_layers}H{head}"
                assert not agrees(finding, NUMBERS[analysis, finding.key](hand, replace(finding, about=other)))
