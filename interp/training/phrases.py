"""A small French-English grammar: sentences, their translations, and which word stands for which.

What the small translation model learns from. It has gender, number, agreement, elision, negation, questions, word
order that differs (`la pomme rouge`, `the red apple`), and pronouns whose translation depends on what they stand for:
`la femme voit le chien parce qu'il est noir` (it) or `parce qu'elle est contente` (she).

Held out from training are combinations of a subject with its complement: about a tenth of all pairs such as
(je, student) or (apple, red). No training sentence contains one of these, in any number, tense or form.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Literal
from zlib import crc32

from interp.training import phrase_words as lexicon
from interp.training.phrase_words import I_YOU, VOWELS, Adjective, Noun, Verb, pluralised

Part = Literal["train", "held out"]

HELD_OUT = {("je", "student"), ("woman", "student"), ("apple", "good")}
"""Combinations held out whatever their hash: those of the examples."""
SHARE = 10
"""One combination in so many is held out by its hash."""


@dataclass(frozen=True)
class Sentence:
    """A sentence in both languages."""

    french: str
    english: str
    french_spans: tuple[tuple[int, int], ...]
    """First character, and the one after the last, of each French word, punctuation included."""
    english_spans: tuple[tuple[int, int], ...]
    links: tuple[tuple[int, int], ...]
    """Pairs of a French and an English word, by number, that stand for each other; some words have none, some two."""
    combinations: frozenset[tuple[str, str]]
    """Subjects with their complements."""

    @property
    def held_out(self) -> bool:
        """Whether training never sees it."""
        return any(map(is_held_out, self.combinations))


@dataclass(frozen=True)
class _Words:
    """Words in both languages with keys that say which belong together; a word may carry several, by spaces."""

    french: list[tuple[str, str]]
    english: list[tuple[str, str]]
    combinations: frozenset[tuple[str, str]] = frozenset()
    """Subjects with their complements."""

    def __add__(self, other: "_Words") -> "_Words":
        both = self.combinations | other.combinations
        return _Words(self.french + other.french, self.english + other.english, both)

    def prefixed(self, prefix: str) -> "_Words":
        """The same with longer keys, so that they do not meet those of other words."""

        def keyed(words: list[tuple[str, str]]) -> list[tuple[str, str]]:
            return [(word, " ".join(prefix + key for key in keys.split())) for word, keys in words]

        return _Words(keyed(self.french), keyed(self.english), self.combinations)


def _both(french: str, english: str, key: str) -> _Words:
    """What one language and the other say for the same thing, in one place."""
    return _Words([(word, key) for word in french.split()], [(word, key) for word in english.split()])


@dataclass(frozen=True)
class _Subject:
    words: _Words
    name: str
    person: int
    """0 to 5: je, tu, il, nous, vous, ils."""
    feminine: bool
    plural: bool
    thing: bool = False

    @classmethod
    def of(cls, noun: Noun, words: _Words, plural: bool = False, thing: bool = False) -> "_Subject":
        return cls(words, noun.english, 5 if plural else 2, noun.feminine, plural, thing)

    @property
    def pronoun(self) -> tuple[str, str]:
        """What stands for a third person in the next clause: French, English."""
        french = ("elle" if self.feminine else "il") + "s" * self.plural
        return french, "it" if self.thing and not self.plural else I_YOU[french]

    def referred_to(self) -> "_Subject":
        """The same, as a pronoun."""
        return replace(self, words=_both(*self.pronoun, "s"))


def is_held_out(combination: tuple[str, str]) -> bool:
    return combination in HELD_OUT or crc32(" ".join(combination).encode()) % SHARE == 0


def sentences(seed: int | str, part: Part | None = None) -> Iterator[Sentence]:
    """Random sentences without end, always the same for the same seed; only of one part, if it is named."""
    rng = Random(f"phrases {seed}")
    while True:
        drawn = sentence(rng)
        if part is None or drawn.held_out == (part == "held out"):
            yield drawn


def sentence(rng: Random) -> Sentence:
    """One random sentence: a clause, or two of which the second takes up the subject or the object of the first."""
    kind = rng.random()
    if kind < 0.55:
        question, being = rng.random() < 0.2, rng.random() < 0.5
        words = _being(rng, _subject(rng), question) if being else _doing(rng, _subject(rng), question)[0]
        return _spelled(words, "?" if question else ".")
    if kind < 0.75:
        subject = _subject(rng, third=True)
        first, taken_up = _being(rng, subject), [subject]
        conjunction = rng.choice((("et", "and"), ("mais", "but")))
    else:
        subject = _subject(rng, thing=False)
        first, thing = _doing(rng, subject, referable=True)
        taken_up, conjunction = _referents(subject, thing), ("parce que", "because")
    second = _being(rng, rng.choice(taken_up).referred_to(), adjective=True)
    return _spelled(_two_clauses(first, conjunction, second), ".")


def _two_clauses(first: _Words, conjunction: tuple[str, str], second: _Words) -> _Words:
    return first.prefixed("1") + _both(*conjunction, "link") + second.prefixed("2")


def _referents(subject: _Subject, thing: _Subject | None) -> list[_Subject]:
    """What a third-person pronoun can take up without doubt: gender or number tells subject and object apart."""
    if thing is None or subject.person not in (2, 5):
        return [thing] if thing else []
    return [subject, thing] if subject.pronoun[0] != thing.pronoun[0] else []


def _subject(rng: Random, third: bool = False, thing: bool | None = None) -> _Subject:
    kind, plural = rng.random(), rng.random() < 0.3
    if kind < 0.4 and not third:
        person = rng.randrange(6)
        feminine = rng.random() < 0.5
        french = lexicon.PRONOUNS[person].replace("il", "elle") if feminine else lexicon.PRONOUNS[person]
        plural = person in (3, 5) or (person == 4 and plural)
        return _Subject(_both(french, I_YOU[french], "s"), french, person, feminine, plural)
    if kind < 0.5 and thing is None:
        name = rng.choice(list(lexicon.NAMES))
        return _Subject(_both(name, name, "s"), name, 2, lexicon.NAMES[name], plural=False)
    is_thing = rng.random() < 0.5 if thing is None else thing
    noun = rng.choice(lexicon.THINGS if is_thing else lexicon.PEOPLE)
    words = _noun_phrase(noun, plural, rng.choice(("the", "the", "this", "my", "your", "our", "their")), "s")
    return _Subject.of(noun, words, plural, is_thing)


def _noun_phrase(noun: Noun, plural: bool, determiner: str, key: str, adjective: Adjective | None = None) -> _Words:
    """Such as `la petite pomme`, `the small apple`."""
    french, english = [(pluralised(noun.french) if plural else noun.french, f"{key}noun")], []
    if adjective is not None:
        french.insert(0 if adjective.before else 1, (adjective.agreeing(noun.feminine, plural), f"{key}adj"))
        english.append((adjective.english, f"{key}adj"))
    english.append((noun.plural if plural else noun.english, f"{key}noun"))
    article = lexicon.DETERMINERS[determiner][2 if plural else int(noun.feminine)]
    if article == "des" and adjective is not None and adjective.before:
        article = "de"
    if french[0][0][0] in VOWELS:
        article = {"ma": "mon", "ta": "ton", "ce": "cet"}.get(article, article)
    if determiner in ("a", "this") and plural:
        determiner = {"a": "some", "this": "these"}[determiner]
    elif determiner == "a":
        determiner = _a(english[0][0])
    return _Words([(article, f"{key}det"), *french], [(determiner, f"{key}det"), *english])


def _being(rng: Random, subject: _Subject, question: bool = False, adjective: bool = False) -> _Words:
    """`je suis étudiant`, `la pomme n'est pas rouge`; with `adjective` the complement is one."""
    past, negative = rng.random() < 0.25, not question and rng.random() < 0.25
    kind = rng.random()
    if not adjective and not subject.thing and kind < 0.4:
        job = rng.choice(lexicon.JOBS)
        french, english = job.agreeing(subject.feminine, subject.plural), job.english
        rest = _both(french, english + "s" if subject.plural else f"{_a(english)} {english}", "c")
    elif not adjective and kind < 0.55:
        place = rng.choice(lexicon.PLACES)
        english = place.english
        rest = _both("dans", "in", "in") + _noun_phrase(place, False, rng.choice(("the", "this", "our")), "c")
    else:
        quality = rng.choice(lexicon.IN_FRONT + (lexicon.OF_THINGS if subject.thing else lexicon.OF_PEOPLE))
        degree = rng.choice((("très", "very"), ("trop", "too"))) if rng.random() < 0.25 else ("", "")
        english = quality.english
        rest = _both(*degree, "very") + _both(quality.agreeing(subject.feminine, subject.plural), english, "c")
    forms = lexicon.BE[past][subject.person], lexicon.BE_ENGLISH[past][subject.person]
    words = _begun(subject, *forms, "v", negative, question) + rest
    return replace(words, combinations=frozenset({(subject.name, english)}))


def _doing(
    rng: Random, subject: _Subject, question: bool = False, referable: bool = False
) -> tuple[_Words, _Subject | None]:
    """`elle mange souvent la pomme rouge`, `nous allons au marché`; and the object, as what a pronoun takes up.

    With `referable` the object is one that a pronoun can take up without doubt.
    """
    negative, thing = not question and rng.random() < 0.25, None
    if not referable and rng.random() < 0.15:
        verb, place = lexicon.GO, rng.choice(lexicon.PLACES)
        rest = _both("à", "to", "to") + _noun_phrase(place, False, "the", "c")
        if rest.french[1][0] == "le" and place.french[0] not in VOWELS:
            rest.french[:2] = [("au", "to cdet")]
        combinations = {(subject.name, place.english)}
    else:
        verb = rng.choice(lexicon.VERBS)
        while True:
            noun, plural = rng.choice(lexicon.FOOD if verb.food else lexicon.THINGS), rng.random() < 0.3
            thing = _Subject.of(noun, _both("", "", ""), plural, thing=True)
            if not referable or _referents(subject, thing):
                break
        quality = rng.choice(lexicon.IN_FRONT + lexicon.OF_THINGS) if rng.random() < 0.4 else None
        determiner = rng.choice([name for name in lexicon.DETERMINERS if name != "a" or not negative])
        rest = _noun_phrase(noun, plural, determiner, "c", quality)
        combinations = {(subject.name, noun.english)}
        if quality is not None:
            combinations.add((noun.english, quality.english))
    often = rng.choice(list(lexicon.OFTEN)) if rng.random() < 0.2 else ""
    when = rng.choice(list(lexicon.WHEN)) if rng.random() < 0.2 and not referable else ""
    third, plain = subject.person == 2, not negative and not question
    do = "" if plain else "does" if third else "do"
    words = (
        _begun(subject, verb.french[subject.person], do, "do", negative, question)
        + _both(often, lexicon.OFTEN.get(often, ""), "often")
        + _both("", verb.third if third and plain else verb.english, "v")
        + rest
        + _both(when, lexicon.WHEN.get(when, ""), "when")
    )
    return replace(words, combinations=frozenset(combinations)), thing


def _begun(
    subject: _Subject, french: str, english: str, key: str, negative: bool = False, question: bool = False
) -> _Words:
    """Subject and verb (in English perhaps only an auxiliary), with what negation and question put around them."""
    asked = [("est-ce", "do"), ("que", "do")] if question else []
    around = ([("ne", "do neg")], [("pas", "neg")]) if negative else ([], [])
    verb = [(word, key) for word in english.split()]
    theirs = subject.words.english
    return _Words(
        [*asked, *subject.words.french, *around[0], (french, "v"), *around[1]],
        [*(verb + theirs if question else theirs + verb), *([("not", "neg")] if negative else [])],
    )


def _a(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _spelled(words: _Words, mark: str) -> Sentence:
    """The sentence as it is written, with a mark at its end, and where its words stand."""
    words += _both(mark, mark, "end")
    elided = [word for word, _ in words.french]
    for number, after in enumerate(elided[1:]):
        if elided[number] in ("je", "ne", "le", "la", "que") and after[0] in VOWELS:
            elided[number] = elided[number][:-1] + "'"
    french, french_spans = _joined(elided, "?")
    english, english_spans = _joined([word for word, _ in words.english], "")
    links = tuple(
        (i, j)
        for i, (_, ours) in enumerate(words.french)
        for j, (_, theirs) in enumerate(words.english)
        if set(ours.split()) & set(theirs.split())
    )
    return Sentence(french, english, french_spans, english_spans, links, words.combinations)


def _joined(words: list[str], spaced: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Words with spaces between, but not after an apostrophe, nor before a mark that is not in `spaced`."""
    text, spans = "", []
    for word in words:
        glued = not text or text.endswith("'") or (re.fullmatch(r"\W", word) and word not in spaced)
        text += "" if glued else " "
        spans.append((len(text), len(text) + len(word)))
        text += word
    return text[0].upper() + text[1:], tuple(spans)


def reference(sentence: Sentence) -> tuple[int, int, int] | None:
    """Of a sentence in which a pronoun can take up one of two nouns: the French words that are the pronoun, the noun it
    agrees with, and the other noun, by number. None for every other sentence."""
    words = [sentence.french[start:end].lower() for start, end in sentence.french_spans]
    known = lexicon.PEOPLE + lexicon.THINGS
    forms = {noun.french: (noun.feminine, False) for noun in known}
    forms |= {pluralised(noun.french): (noun.feminine, True) for noun in known}
    if "parce" not in words:
        return None
    pronoun = words.index("parce") + 2
    wanted = (words[pronoun].startswith("elle"), words[pronoun].endswith("s"))
    nouns = [number for number, word in enumerate(words[:pronoun]) if word in forms]
    meant = [number for number in nouns if forms[words[number]] == wanted]
    if len(nouns) != 2 or len(meant) != 1:
        return None
    return pronoun, meant[0], next(number for number in nouns if number != meant[0])


def pronoun_pairs(seed: int | str, *, same_pronoun: bool = False) -> Iterator[tuple[Sentence, Sentence]]:
    """Pairs of sentences in which the pronoun means the subject in the first, the object in the second. Without end.

    They differ in the agreement of pronoun and adjective alone: `la femme voit le chien parce qu'elle est grande`
    (she), `parce qu'il est grand` (it). With `same_pronoun` they differ in the nouns alone: `la femme voit le chien
    parce qu'elle est grande` (she), `le roi voit la table parce qu'elle est grande` (it).
    """
    rng = Random(f"pronoun pairs {seed}")
    while True:
        verb, quality = rng.choice([verb for verb in lexicon.VERBS if not verb.food]), rng.choice(lexicon.IN_FRONT)
        feminine = rng.random() < 0.5
        first = _person_and_thing(rng, feminine)
        second = _person_and_thing(rng, not feminine) if same_pronoun else first
        yield _because(first, first[0], verb, quality), _because(second, second[1], verb, quality)


def _person_and_thing(rng: Random, feminine: bool) -> tuple[_Subject, _Subject]:
    """A person of this gender and a thing of the other."""
    person = rng.choice([noun for noun in lexicon.PEOPLE if noun.feminine == feminine])
    thing = rng.choice([noun for noun in lexicon.THINGS if noun.feminine != feminine])
    return (
        _Subject.of(person, _noun_phrase(person, False, "the", "s")),
        _Subject.of(thing, _noun_phrase(thing, False, "the", "c"), thing=True),
    )


def _because(nouns: tuple[_Subject, _Subject], meant: _Subject, verb: Verb, quality: Adjective) -> Sentence:
    said = _begun(nouns[0], verb.french[2], verb.third, "v") + nouns[1].words
    why = _begun(meant.referred_to(), "est", "is", "v")
    why += _both(quality.agreeing(meant.feminine, False), quality.english, "c")
    combinations = frozenset({(nouns[0].name, nouns[1].name), (meant.name, quality.english)})
    words = replace(_two_clauses(said, ("parce que", "because"), why), combinations=combinations)
    return _spelled(words, ".")
