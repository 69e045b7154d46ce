"""The French-English grammar: agreement, elision, what is held out, and which word stands for which."""

from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.training.phrase_words import pluralised
from interp.training.phrases import HELD_OUT, Sentence, is_held_out, reference, sentences

MANY = 6000


@pytest.fixture(scope="module")
def drawn() -> list[Sentence]:
    return list(islice(sentences("tests"), MANY))


def words(sentence: Sentence) -> tuple[list[str], list[str]]:
    return (
        [sentence.french[start:end] for start, end in sentence.french_spans],
        [sentence.english[start:end] for start, end in sentence.english_spans],
    )


def linked(sentence: Sentence) -> set[tuple[str, str]]:
    french, english = words(sentence)
    return {(french[i], english[j]) for i, j in sentence.links}


def find(drawn: list[Sentence], french: str) -> Sentence:
    return next(one for one in drawn if one.french.startswith(french))


def test_no_training_sentence_has_a_held_out_combination() -> None:
    train = list(islice(sentences("tests", "train"), MANY))
    held_out = list(islice(sentences("tests", "held out"), 1000))
    seen = set().union(*(one.combinations for one in train))
    assert len(seen) > 500
    assert not any(map(is_held_out, seen))
    assert all(one.combinations - seen for one in held_out), "each has a combination that training never joined"
    assert not {one.french for one in train} & {one.french for one in held_out}


def test_what_is_held_out_is_made_of_known_words() -> None:
    """Held out are combinations, not words: training has every word."""
    known = {word for one in islice(sentences("tests", "train"), MANY) for part in words(one) for word in part}
    new = {word for one in islice(sentences("tests", "held out"), 1000) for part in words(one) for word in part}
    assert len(new - known) <= 3, new - known


def test_the_student_is_held_out(drawn: list[Sentence]) -> None:
    assert ("je", "student") in HELD_OUT
    students = [one for one in drawn if ("je", "student") in one.combinations]
    assert students
    assert all(one.held_out for one in students)
    assert not any(
        "tudiant" in one.french and one.french.startswith(("Je ", "J'")) for one in drawn if not one.held_out
    )


def test_about_a_tenth_of_the_combinations_is_held_out(drawn: list[Sentence]) -> None:
    combinations = set().union(*(one.combinations for one in drawn))
    share = sum(map(is_held_out, combinations)) / len(combinations)
    assert 0.07 < share < 0.13


def test_the_same_seed_gives_the_same_sentences() -> None:
    first, again, other = (list(islice(sentences(seed), 50)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_french_sentence_has_one_translation(drawn: list[Sentence]) -> None:
    found: dict[str, str] = {}
    for one in drawn:
        assert found.setdefault(one.french, one.english) == one.english


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**9))
def test_spans_spell_the_sentence_and_links_stay_inside(seed: int) -> None:
    (one,) = islice(sentences(seed), 1)
    french, english = words(one)
    assert "".join(french) == one.french.replace(" ", "")
    assert "".join(english) == one.english.replace(" ", "")
    assert all(0 <= i < len(french) and 0 <= j < len(english) for i, j in one.links)
    assert {i for i, _ in one.links} >= {i for i, word in enumerate(french) if word in "?."}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**9))
def test_elision_and_articles(seed: int) -> None:
    """French: no `je`, `ne`, `le`, `la`, `que` before a vowel, and none elided before another letter. English: an."""
    (one,) = islice(sentences(seed), 1)
    french, english = (part.lower().rstrip(".?").split() for part in (one.french, one.english))
    for word, after in pairwise(french):
        assert not (word in ("je", "ne", "le", "la", "que") and after[0] in "aeiouéèêœh"), one.french
    for word in french:
        before, apostrophe, after = word.partition("'")
        assert not apostrophe or before == "aujourd" or after[0] in "aeiouéèêœh", one.french
    for word, after in pairwise(english):
        assert word not in ("a", "an") or (word == "an") == (after[0] in "aeiou"), one.english


PLURALS = [
    ("pomme", "pommes"),
    ("journal", "journaux"),
    ("gâteau", "gâteaux"),
    ("bleu", "bleus"),
    ("mauvais", "mauvais"),
]


@pytest.mark.parametrize(("one", "many"), PLURALS)
def test_plurals(one: str, many: str) -> None:
    assert pluralised(one) == many


def test_links_follow_words_that_change_places(drawn: list[Sentence]) -> None:
    def coloured(sentence: Sentence) -> bool:
        return "pomme rouge" in sentence.french and "red apple" in sentence.english

    sentence = next(one for one in islice(sentences("apples"), 100_000) if coloured(one))
    assert {("pomme", "apple"), ("rouge", "red")} <= linked(sentence)
    assert ("pomme", "red") not in linked(sentence)


def test_negation_questions_and_contractions_are_linked(drawn: list[Sentence]) -> None:
    no = linked(next(one for one in drawn if " ne " in one.french and "does not" in one.english))
    assert {("ne", "does"), ("ne", "not"), ("pas", "not")} <= no
    assert ("Est-ce", "Do") in linked(next(one for one in drawn if one.english.startswith("Do ")))
    market = linked(next(one for one in drawn if "au marché" in one.french))
    assert {("au", "to"), ("au", "the"), ("marché", "market")} <= market


def test_a_pronoun_agrees_with_one_noun_and_is_translated_by_it(drawn: list[Sentence]) -> None:
    found = [(one, place) for one in drawn if (place := reference(one))]
    assert len(found) > 300
    things = {"it": 0, "he": 0, "she": 0, "they": 0}
    for one, (pronoun, meant, other) in found:
        french, english = words(one)
        said = french[pronoun]
        things[english[english.index("because") + 1]] += 1
        assert said in ("il", "elle", "ils", "elles")
        # the articles of the two nouns tell their gender and number where they are marked
        marked = {"la": "elle", "cette": "elle", "une": "elle", "un": "il", "le": "il"}
        for noun, right in ((meant, True), (other, False)):
            article = french[noun - 1].lower()
            if article in marked:
                assert (marked[article] == said) == right, one.french
    assert min(things.values()) > 10, things


def test_other_sentences_have_no_reference(drawn: list[Sentence]) -> None:
    assert reference(find(drawn, "Est-ce")) is None
    assert all(reference(one) is None for one in drawn if "parce" not in one.french)
