"""Word alignment and pronouns, on attention that is put there, so that the answer is known."""

import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analyses.shared.word_alignment import (
    PLACES,
    _after_because,
    _words_of,
    cross_ablation,
    pronoun_places,
    pronoun_reference,
    word_alignment,
)
from interp import HookedEncoderDecoder
from interp.errors import InputError
from interp.training.phrases import Sentence, pronoun_pairs, reference, sentences
from reports.studies import _translation


@pytest.fixture(scope="module")
def model() -> HookedEncoderDecoder:
    return HookedEncoderDecoder.from_pretrained("fr-en", device="cpu")


@pytest.fixture(scope="module")
def drawn() -> list[Sentence]:
    return list(islice(sentences("alignment", "held out"), 12))


@pytest.fixture(scope="module")
def referring() -> list[Sentence]:
    return list(islice((one for one in sentences("reference") if reference(one)), 12))


class Planted:
    """Writes one head's pattern, sentence after sentence."""

    def __init__(self, patterns: list[np.ndarray], head: int) -> None:
        self.patterns, self.head, self.calls = patterns, head, 0

    def __call__(self, pattern: torch.Tensor, hook: Any) -> torch.Tensor:
        if len(pattern) > 1:  # translating, all sentences at once
            return pattern
        pattern = pattern.clone()
        pattern[0, self.head] = torch.from_numpy(self.patterns[self.calls % len(self.patterns)]).to(pattern)
        self.calls += 1
        return pattern


def aligned(model: HookedEncoderDecoder, one: Sentence, *, wrong: bool = False) -> np.ndarray:
    """[query key] all attention on the first source token of a linked word, or of one that is not linked."""
    source, target = _words_of(model, one)
    pattern = np.zeros((len(target) + 1, len(source) + 1))
    for query, word in enumerate(target):
        linked = {french for french, english in one.links if english == word}
        keys = [key for key, french in enumerate(source) if (french in linked) != wrong] or [0]
        pattern[query, keys[0]] = 1
    pattern[-1, -1] = 1
    return pattern


def test_a_head_that_looks_at_the_right_words_is_found(model: HookedEncoderDecoder, drawn: list[Sentence]) -> None:
    plant = Planted([aligned(model, one) for one in drawn], head=5)
    with model.hooks([("decoder.1.cross_attn.hook_pattern", plant)]):
        found = word_alignment(model, drawn)
    assert found.best == (1, 5)
    assert found.accuracy == 1
    assert found.control < 0.5
    frame = found.to_dataframe().set_index(["layer", "head"])
    assert frame.loc[(1, 5), "accuracy"] == 1


def test_a_head_that_looks_at_other_words_scores_nothing(model: HookedEncoderDecoder, drawn: list[Sentence]) -> None:
    plant = Planted([aligned(model, one, wrong=True) for one in drawn], head=5)
    with model.hooks([("decoder.1.cross_attn.hook_pattern", plant)]):
        found = word_alignment(model, drawn)
    assert found.share(found.right, 0)[1, 5] == found.share(found.right, 1)[1, 5] == 0


def test_training_makes_the_alignment(model: HookedEncoderDecoder, drawn: list[Sentence]) -> None:
    untrained = HookedEncoderDecoder(model.config, tokenizer=model.tokenizer)
    assert word_alignment(model, drawn).accuracy > 0.7
    assert word_alignment(untrained, drawn).accuracy < 0.5


@pytest.mark.skipif("INTERP_MODELS" not in os.environ, reason="INTERP_MODELS names no folder of larger models")
def test_a_real_model_aligns_words_too(drawn: list[Sentence]) -> None:
    real = HookedEncoderDecoder.from_pretrained(Path(os.environ["INTERP_MODELS"]) / "opus-mt-fr-en", device="cpu")
    found = word_alignment(real, drawn)
    assert found.accuracy > 0.9
    assert found.control < 0.4


def test_tokens_are_given_to_their_words(model: HookedEncoderDecoder) -> None:
    """Against splitting by hand: the tokens of a word, joined, are the word."""
    for one in islice(sentences("words"), 40):
        source, target = _words_of(model, one)
        for numbers, spans, text, ids in (
            (source, one.french_spans, one.french, model.to_source(one.french)[0, :-1]),
            (target, one.english_spans, one.english, model.to_target(one.english)[0, 1:]),
        ):
            joined = [""] * len(spans)
            for number, token in zip(numbers, model.to_str_tokens(ids), strict=True):
                joined[number] += token
            assert [word.strip() for word in joined] == [text[start:end] for start, end in spans]


@pytest.mark.parametrize(("choice", "accuracy"), [(1, 1.0), (2, 0.0)], ids=["noun meant", "other noun"])
def test_a_pronoun_that_looks_at_a_noun(
    model: HookedEncoderDecoder, referring: list[Sentence], choice: int, accuracy: float
) -> None:
    patterns = []
    for one in referring:
        source = np.array([*_words_of(model, one)[0], -1])
        pattern = np.zeros((len(source), len(source)))
        pattern[:, np.flatnonzero(source == reference(one)[choice])[0]] = 1
        patterns.append(pattern)
    with model.hooks([("encoder.2.attn.hook_pattern", Planted(patterns, head=3))]):
        found = pronoun_reference(model, referring)
    assert found.better[:, 2, 3].mean() == accuracy
    assert (found.best == (2, 3)) == (accuracy == 1)


def test_pairs_differ_where_they_say(model: HookedEncoderDecoder) -> None:
    for first, second in islice(pronoun_pairs(3), 20):
        assert first.french.partition("parce")[0] == second.french.partition("parce")[0]
        assert {_after_because(first.english), _after_because(second.english)} in ({"she", "it"}, {"he", "it"})
        assert _after_because(second.english) == "it"
    for first, second in islice(pronoun_pairs(3, same_pronoun=True), 20):
        assert first.french.partition("parce")[2] == second.french.partition("parce")[2]
        assert (_after_because(first.english) == "it", _after_because(second.english) == "it") == (False, True)


def test_the_pronouns_place_turns_what_differs_there(model: HookedEncoderDecoder) -> None:
    pairs = list(islice(pronoun_pairs(1), 12))
    found = pronoun_places(model, pairs)
    assert found.right.mean() == 1
    assert found.share("pronoun") > 0.9
    assert found.share("subject") < 0.1
    same = pronoun_places(model, [(one, one) for one, _ in pairs])
    assert not same.flipped.any(), "control: exchanging a sentence with itself"
    assert len(found.places) == len(PLACES) == found.flipped.shape[2]


def test_the_same_pronoun_is_told_apart_by_its_subject(model: HookedEncoderDecoder) -> None:
    found = pronoun_places(model, list(islice(pronoun_pairs(1, same_pronoun=True), 30)))
    assert found.share("subject") > 0.7
    assert found.share("pronoun") < 0.3


def test_without_cross_attention_the_source_does_not_matter(model: HookedEncoderDecoder) -> None:
    found = cross_ablation(model, ["Je suis étudiant.", "La pomme est rouge.", "Il va au bureau."])
    assert len(set(found.without)) == 1
    assert len(set(found.whole)) == 3, "control: with it, it does"


def test_too_few_sentences(model: HookedEncoderDecoder, drawn: list[Sentence]) -> None:
    with pytest.raises(InputError, match="expected at least two"):
        word_alignment(model, drawn[:1])
    plain = [one for one in drawn if reference(one) is None]
    with pytest.raises(InputError, match="too few sentences"):
        pronoun_reference(model, plain)


def test_the_claims_about_pronouns_can_fail(model: HookedEncoderDecoder) -> None:
    """Each claim's number follows its result: one that is planted turns the verdict."""
    claims = {claim.text: claim for claim in _translation.translation_item("").claims}
    pairs = pronoun_places(model, list(islice(pronoun_pairs(1), 8)))
    wrong = type(pairs)(**(vars(pairs) | {"written": tuple((b, a) for a, b in pairs.written)}))
    agreement = next(claim for text, claim in claims.items() if text.startswith("Agreement alone"))
    assert agreement.verdict(agreement.value({"agreement": pairs})) == "holds"
    assert agreement.verdict(agreement.value({"agreement": wrong})) == "does not hold"
    place = next(claim for text, claim in claims.items() if "own place" in text)
    moved = type(pairs)(**(vars(pairs) | {"flipped": np.zeros_like(pairs.flipped)}))
    assert place.verdict(place.value({"meaning": pairs})) == "holds"
    assert place.verdict(place.value({"meaning": moved})) == "does not hold"
