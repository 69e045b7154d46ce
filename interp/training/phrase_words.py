"""The words of the French-English grammar (`interp.training.phrases`), with what agreement needs to know of each.

Nouns, adjectives and verbs stand in `phrase_words.toml`, a line each.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Noun:
    french: str
    feminine: bool
    english: str
    plural: str
    """In English; in French it follows from the noun."""


@dataclass(frozen=True)
class Adjective:
    masculine: str
    feminine: str
    english: str
    before: bool = False
    """Whether it stands before its noun in French."""

    def agreeing(self, feminine: bool, plural: bool) -> str:
        form = self.feminine if feminine else self.masculine
        return pluralised(form) if plural else form


@dataclass(frozen=True)
class Verb:
    french: tuple[str, ...]
    """Forms for je, tu, il, nous, vous, ils."""
    english: str
    third: str
    """With he, she and it."""
    food: bool = False
    """Whether only food can be its object."""


_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def _rows(table: str, between: str | None = None) -> list[list[str]]:
    return [line.split(between) for line in _TABLES[table].splitlines()]


def _nouns(table: str) -> tuple[Noun, ...]:
    return tuple(Noun(french, gender == "f", one, many) for french, gender, one, many in _rows(table))


def _adjectives(table: str, before: bool = False) -> tuple[Adjective, ...]:
    return tuple(Adjective(masculine, feminine, english, before) for masculine, feminine, english in _rows(table))


PEOPLE, FOOD, PLACES = _nouns("people"), _nouns("food"), _nouns("places")
THINGS = FOOD + _nouns("things")
JOBS, OF_PEOPLE, OF_THINGS = _adjectives("jobs"), _adjectives("of_people"), _adjectives("of_things")
IN_FRONT = _adjectives("in_front", before=True)
NAMES = {"Paul": False, "Marie": True, "Pierre": False, "Julie": True}
"""Name -> whether feminine."""
VERBS = tuple(Verb(tuple(forms.split()), one, third, bool(food)) for forms, one, third, *food in _rows("verbs", " | "))
GO = Verb(("vais", "vas", "va", "allons", "allez", "vont"), "go", "goes")
BE, BE_ENGLISH = ({False: now.split(), True: past.split()} for now, past in zip(*_rows("be", " | "), strict=True))
"""Whether past -> forms for each person."""
PRONOUNS = ["je", "tu", "il", "nous", "vous", "ils"]
I_YOU = {"je": "I", "tu": "you", "il": "he", "elle": "she", "nous": "we", "vous": "you", "ils": "they", "elles": "they"}
OFTEN = {"souvent": "often", "toujours": "always", "aussi": "also"}
WHEN = {"aujourd'hui": "today", "maintenant": "now", "ici": "here"}
DETERMINERS = {english: tuple(forms) for english, *forms in _rows("determiners")}
"""English -> French: masculine, feminine, plural."""
VOWELS = "aeiouéèêœh"
"""Letters before which French words are elided; every h here is mute."""


def pluralised(french: str) -> str:
    """The plural of a French noun or adjective."""
    if french[-1] in "sxz":
        return french
    if french.endswith("al"):
        return french[:-1] + "ux"
    return french + ("x" if french.endswith(("eau", "eu")) and french != "bleu" else "s")
