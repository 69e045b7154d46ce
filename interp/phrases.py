"""A small French-English grammar: sentences, their translations, and which word stands for which.

What the small translation model learns from. It has gender, number, agreement, elision, negation, questions, word
order that differs (`la pomme rouge`, `the red apple`), and pronouns whose translation depends on what they stand for:
`la femme voit le chien parce qu'il est noir` (it) or `parce qu'elle est contente` (she).

Held out from training are combinations of a subject with its complement: about a tenth of all pairs such as
(je, student) or (apple, red). No training sentence contains one of these, in any number, tense or form.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Literal
from zlib import crc32

from interp.phrase_words import (
    BE,
    BE_ENGLISH,
    DETERMINERS,
    FOOD,
    GO,
    I_YOU,
    IN_FRONT,
    JOBS,
    NAMES,
    OF_PEOPLE,
    OF_THINGS,
    OFTEN,
    PEOPLE,
    PLACES,
    PRONOUNS,
    THINGS,
    VERBS,
    VOWELS,
    WHEN,
    Adjective,
    Noun,
    Verb,
    pluralised,
)

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


@dataclass
class _Words:
    """Words in both languages with keys that say which belong together; a word may carry several, by spaces."""

    french: list[tuple[str, str]] = field(default_factory=list)
    english: list[tuple[str, str]] = field(default_factory=list)

    def both(self, french: str, english: str, key: str) -> None:
        """Add what one language and the other say for the same thing, in one place."""
        self.french += [(word, key) for word in french.split()]
        self.english += [(word, key) for word in english.split()]

    def extend(self, other: "_Words", prefix: str = "") -> None:
        """Add the words of another, its keys prefixed so that they do not meet those here."""
        for mine, theirs in ((self.french, other.french), (self.english, other.english)):
            mine += [(word, " ".join(prefix + key for key in keys.split())) for word, keys in theirs]


@dataclass(frozen=True)
class _Subject:
    words: _Words
    name: str
    person: int
    """0 to 5: je, tu, il, nous, vous, ils."""
    feminine: bool
    plural: bool
    thing: bool = False

    @property
    def pronoun(self) -> tuple[str, str]:
        """What stands for a third person in the next clause: French, English."""
        french = ("elle" if self.feminine else "il") + "s" * self.plural
        return french, "it" if self.thing and not self.plural else I_YOU[french]

    def referred_to(self) -> "_Subject":
        """The same, as a pronoun."""
        words = _Words()
        words.both(*self.pronoun, "s")
        return replace(self, words=words)


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
    combinations: set[tuple[str, str]] = set()
    words, kind = _Words(), rng.random()
    if kind < 0.55:
        question = rng.random() < 0.2
        if rng.random() < 0.5:
            words = _being(rng, _subject(rng), combinations, question)
        else:
            words, _ = _doing(rng, _subject(rng), combinations, question)
        mark = "?" if question else "."
    else:
        mark = "."
        if kind < 0.75:
            subject = _subject(rng, third=True)
            first, taken_up = _being(rng, subject, combinations), [subject]
            conjunction = rng.choice((("et", "and"), ("mais", "but")))
        else:
            subject = _subject(rng, thing=False)
            first, thing = _doing(rng, subject, combinations, referable=True)
            taken_up, conjunction = _referents(subject, thing), ("parce que", "because")
        words.extend(first, "1")
        words.both(*conjunction, "link")
        words.extend(_being(rng, rng.choice(taken_up).referred_to(), combinations, adjective=True), "2")
    words.both(mark, mark, "end")
    return _spelled(words, frozenset(combinations))


def _referents(subject: _Subject, thing: _Subject | None) -> list[_Subject]:
    """What a third-person pronoun can take up without doubt: gender or number tells subject and object apart."""
    if thing is None or subject.person not in (2, 5):
        return [thing] if thing else []
    return [subject, thing] if subject.pronoun[0] != thing.pronoun[0] else []


def _subject(rng: Random, third: bool = False, thing: bool | None = None) -> _Subject:
    kind, words, plural = rng.random(), _Words(), rng.random() < 0.3
    if kind < 0.4 and not third:
        person = rng.randrange(6)
        feminine = rng.random() < 0.5
        french = PRONOUNS[person].replace("il", "elle") if feminine else PRONOUNS[person]
        words.both(french, I_YOU[french], "s")
        return _Subject(words, french, person, feminine, person in (3, 5) or (person == 4 and plural))
    if kind < 0.5 and thing is None:
        name = rng.choice(list(NAMES))
        words.both(name, name, "s")
        return _Subject(words, name, 2, NAMES[name], plural=False)
    is_thing = rng.random() < 0.5 if thing is None else thing
    noun = rng.choice(THINGS if is_thing else PEOPLE)
    words = _noun_phrase(rng, noun, plural, rng.choice(("the", "the", "this", "my", "your", "our", "their")), "s")
    return _Subject(words, noun.english, 5 if plural else 2, noun.feminine, plural, is_thing)


def _noun_phrase(
    rng: Random, noun: Noun, plural: bool, determiner: str, key: str, adjective: Adjective | None = None
) -> _Words:
    """Such as `la petite pomme`, `the small apple`."""
    french, english = [(pluralised(noun.french) if plural else noun.french, f"{key}noun")], []
    if adjective is not None:
        french.insert(0 if adjective.before else 1, (adjective.agreeing(noun.feminine, plural), f"{key}adj"))
        english.append((adjective.english, f"{key}adj"))
    english.append((noun.plural if plural else noun.english, f"{key}noun"))
    article = DETERMINERS[determiner][2 if plural else int(noun.feminine)]
    if article == "des" and adjective is not None and adjective.before:
        article = "de"
    if french[0][0][0] in VOWELS:
        article = {"ma": "mon", "ta": "ton", "ce": "cet"}.get(article, article)
    if determiner in ("a", "this") and plural:
        determiner = {"a": "some", "this": "these"}[determiner]
    elif determiner == "a":
        determiner = _a(english[0][0])
    return _Words([(article, f"{key}det"), *french], [(determiner, f"{key}det"), *english])


def _being(
    rng: Random,
    subject: _Subject,
    combinations: set[tuple[str, str]],
    question: bool = False,
    adjective: bool = False,
) -> _Words:
    """`je suis étudiant`, `la pomme n'est pas rouge`; with `adjective` the complement is one."""
    past, negative = rng.random() < 0.25, not question and rng.random() < 0.25
    rest, kind = _Words(), rng.random()
    if not adjective and not subject.thing and kind < 0.4:
        job = rng.choice(JOBS)
        french, english = job.agreeing(subject.feminine, subject.plural), job.english
        rest.both(french, english + "s" if subject.plural else f"{_a(english)} {english}", "c")
        combinations.add((subject.name, english))
    elif not adjective and kind < 0.55:
        place = rng.choice(PLACES)
        rest.both("dans", "in", "in")
        rest.extend(_noun_phrase(rng, place, False, rng.choice(("the", "this", "our")), "c"))
        combinations.add((subject.name, place.english))
    else:
        quality = rng.choice(IN_FRONT + (OF_THINGS if subject.thing else OF_PEOPLE))
        if rng.random() < 0.25:
            rest.both(*rng.choice((("très", "very"), ("trop", "too"))), "very")
        rest.both(quality.agreeing(subject.feminine, subject.plural), quality.english, "c")
        combinations.add((subject.name, quality.english))
    verb = [(BE_ENGLISH[past][subject.person], "v")]
    words = _Words(_french_verb(subject, BE[past][subject.person], negative, question), [])
    words.english += verb + subject.words.english if question else subject.words.english + verb
    words.english += [("not", "neg")] if negative else []
    words.extend(rest)
    return words


def _doing(
    rng: Random,
    subject: _Subject,
    combinations: set[tuple[str, str]],
    question: bool = False,
    referable: bool = False,
) -> tuple[_Words, _Subject | None]:
    """`elle mange souvent la pomme rouge`, `nous allons au marché`; and the object, as what a pronoun takes up.

    With `referable` the object is one that a pronoun can take up without doubt.
    """
    negative, rest, thing = not question and rng.random() < 0.25, _Words(), None
    if not referable and rng.random() < 0.15:
        verb, place = GO, rng.choice(PLACES)
        rest = _noun_phrase(rng, place, False, "the", "c")
        if rest.french[0][0] == "le" and place.french[0] not in VOWELS:
            rest.french[0] = ("au", "to cdet")
        else:
            rest.french.insert(0, ("à", "to"))
        rest.english.insert(0, ("to", "to"))
        combinations.add((subject.name, place.english))
    else:
        verb = rng.choice(VERBS)
        while True:
            noun, plural = rng.choice(FOOD if verb.food else THINGS), rng.random() < 0.3
            thing = _Subject(_Words(), noun.english, 5 if plural else 2, noun.feminine, plural, thing=True)
            if not referable or _referents(subject, thing):
                break
        quality = rng.choice(IN_FRONT + OF_THINGS) if rng.random() < 0.4 else None
        determiner = rng.choice([name for name in DETERMINERS if name != "a" or not negative])
        rest = _noun_phrase(rng, noun, plural, determiner, "c", quality)
        combinations.add((subject.name, noun.english))
        if quality is not None:
            combinations.add((noun.english, quality.english))
    often = rng.choice(list(OFTEN)) if rng.random() < 0.2 else ""
    adverb = [(OFTEN[often], "often")] if often else []
    third = subject.person == 2 and not negative and not question
    english_verb = [(word, "v") for word in (verb.third if third else verb.english).split()]
    do = [("does" if subject.person == 2 else "do", "do")]
    words = _Words(_french_verb(subject, verb.french[subject.person], negative, question), [])
    words.english += do + subject.words.english if question else subject.words.english
    words.english += [*do, ("not", "neg")] if negative else []
    words.english += adverb + english_verb
    words.french += [(often, "often")] if often else []
    words.extend(rest)
    if rng.random() < 0.2 and not referable:
        when = rng.choice(list(WHEN))
        words.both(when, WHEN[when], "when")
    return words, thing


def _french_verb(subject: _Subject, form: str, negative: bool, question: bool) -> list[tuple[str, str]]:
    """The subject and the verb, with what negation and question put around them."""
    asked = [("est-ce", "do"), ("que", "do")] if question else []
    around = ([("ne", "do neg")], [("pas", "neg")]) if negative else ([], [])
    return [*asked, *subject.words.french, *around[0], (form, "v"), *around[1]]


def _a(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _spelled(words: _Words, combinations: frozenset[tuple[str, str]]) -> Sentence:
    """The sentence as it is written, and where its words stand."""
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
    return Sentence(french, english, french_spans, english_spans, links, combinations)


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
    forms = {
        pluralised(noun.french) if many else noun.french: (noun.feminine, many)
        for noun in PEOPLE + THINGS
        for many in (False, True)
    }
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
        verb, quality = rng.choice([verb for verb in VERBS if not verb.food]), rng.choice(IN_FRONT)
        feminine = rng.random() < 0.5
        first = _person_and_thing(rng, feminine)
        second = _person_and_thing(rng, not feminine) if same_pronoun else first
        yield _because(first, first[0], verb, quality), _because(second, second[1], verb, quality)


def _person_and_thing(rng: Random, feminine: bool) -> tuple[_Subject, _Subject]:
    """A person of this gender and a thing of the other."""
    person = rng.choice([noun for noun in PEOPLE if noun.feminine == feminine])
    thing = rng.choice([noun for noun in THINGS if noun.feminine != feminine])
    return (
        _Subject(_noun_phrase(rng, person, False, "the", "s"), person.english, 2, feminine, False),
        _Subject(_noun_phrase(rng, thing, False, "the", "c"), thing.english, 2, not feminine, False, thing=True),
    )


def _because(nouns: tuple[_Subject, _Subject], meant: _Subject, verb: Verb, quality: Adjective) -> Sentence:
    words, second, pronoun = _Words(), _Words(), meant.referred_to()
    words.extend(nouns[0].words, "1")
    words.both(verb.french[2], verb.third, "1v")
    words.extend(nouns[1].words, "1")
    words.both("parce que", "because", "link")
    second.extend(pronoun.words)
    second.both("est", "is", "v")
    second.both(quality.agreeing(meant.feminine, False), quality.english, "c")
    words.extend(second, "2")
    words.both(".", ".", "end")
    return _spelled(words, frozenset({(nouns[0].name, nouns[1].name), (meant.name, quality.english)}))
