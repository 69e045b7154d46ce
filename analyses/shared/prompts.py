"""Prompt sets: pairs of texts that differ where it matters, and what a right and a wrong continuation would be.

Made here: of the indirect object task (Wang et al. 2022, "Interpretability in the Wild").
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeAlias

from torch import Tensor

from analyses.shared.prompt_files import entries_in, examples_in
from interp.errors import InputError
from interp.models.gpt import HookedGPT


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One text, and what belongs to it; fields that are not known are empty."""

    clean: str
    corrupted: str = ""
    """The same text, changed so that another answer is right; as long in tokens as the clean one."""
    answer: str = ""
    """The right next token after the clean text."""
    wrong: str = ""
    """The right next token after the corrupted text."""
    template: str = ""
    """What it was made from; texts of one template count as one cluster in intervals."""
    answers: tuple[str, ...] = ()
    """All that is right after the clean text, where that is more than one; `answer` is then the first that fits."""
    wrongs: tuple[str, ...] = ()
    """All that is wrong there; `wrong` is then the first that fits."""


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts, in order; accepted by every analysis in place of texts."""

    prompts: tuple[Prompt, ...]
    note: str = ""
    """How they came about, in a sentence."""
    exchange: bool = False
    """Whether `fitting` is to take as corrupted text another of these prompts, whose answer is then the wrong one."""

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def to_jsonl(self) -> str:
        """One JSON object a line, as `prompt_files` reads them."""
        lines = []
        for prompt in self.prompts:
            one = () if not prompt.answers else ("answer", "wrong")  # which the lists say too
            entry = {name: said for name, said in asdict(prompt).items() if said and name not in one}
            lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
        return "".join(lines)


TextsOrPrompts: TypeAlias = str | Sequence[str] | Tensor | PromptSet | None
"""Texts, token ids [batch pos], a prompt set, or None for generated prompts."""


def parse_prompts(lines: str | Iterable[str], *, where: str = "prompts", template: str = "") -> PromptSet:
    """A prompt set from a file, which may be of several kinds, told by what stands in it:

    - JSON lines: objects with clean and, where known, corrupted, answer, wrong, template (where several are right:
      lists answers, wrongs); or with clean_prefix, patch_prefix, clean_answer, patch_answer, case.
    - A table (CSV) with columns clean, corrupted, answer, wrong, template; or with clean, corrupted, corrupted_hard,
      whose answer is the one of two names that is not said again; or with clean, corrupted, label, two digits: right
      are all larger ones, wrong the others.
    - A JSON list of objects with input and output; or {"template": ..., "examples": such a list}. Corrupted texts are
      then chosen by `fitting`, which knows the tokens.

    Args:
        lines: the text of a file, or its lines; empty lines are skipped.
        where: the name of the file, for messages.
        template: a sentence for inputs and outputs, such as "The capital of {input} is". Answers get a space in front
            unless it ends in one.

    Raises InputError, with the number of the line, for anything else.
    """
    text = lines if isinstance(lines, str) else "\n".join(line.rstrip("\n") for line in lines)
    text = text.removeprefix("\ufeff")
    prompts = tuple(Prompt(**entry) for entry in entries_in(text, where, template))
    if not prompts:
        raise InputError(f"{where}: no prompts", "expected one JSON object a line, or a table with a column clean")
    return PromptSet(prompts=prompts, note=f"{len(prompts)} prompts from {where}.", exchange=examples_in(text))


# The indirect object task. {A} and {B} are the two names in one order or the other, {S} the one who acts.

TEMPLATES: tuple[str, ...] = (
    "When {A} and {B} came back from the {place}, {S} gave the {thing} to",
    "After {A} and {B} had met near the {place}, {S} handed a {thing} to",
    "While {A} and {B} were working at the {place}, {S} passed the {thing} to",
    "In the morning {A} and {B} walked to the {place}, where {S} sold a {thing} to",
    "Last year {A} and {B} lived near the {place}, and {S} sent a {thing} to",
    "Once {A} and {B} were alone in the {place}, {S} showed the {thing} to",
    "On the way to the {place} with {A} and {B}, {S} threw the {thing} to",
    "Then {A} and {B} had a long talk at the {place}. Later {S} left the {thing} to",
    "At the {place} the old man found {A} and {B}, just as {S} offered a {thing} to",
    "Because {A} and {B} were friends since the days at the {place}, {S} lent the {thing} to",
    "Two people, {A} and {B}, ran out of the {place}, and {S} brought a {thing} to",
    "Before the war {A} and {B} had a shop by the {place}, and {S} sold the {thing} to",
)
PLACES = (
    "house",
    "school",
    "church",
    "station",
    "river",
    "city",
    "market",
    "garden",
    "hospital",
    "bank",
    "park",
    "library",
)
THINGS = ("book", "letter", "ball", "ring", "gun", "map", "card", "picture", "table", "stone", "box", "gold")
NAMES = (
    "John", "Mary", "James", "Robert", "David", "William", "Thomas", "Charles", "Paul", "Peter", "George", "Henry",
    "Richard", "Michael", "Edward", "Mark", "Joseph", "Daniel", "Andrew", "Simon", "Martin", "Frank", "Adam", "Alan",
    "Arthur", "Walter", "Louis", "Albert", "Philip", "Stephen", "Jack", "Tom", "Jim", "Bob", "Bill", "Ben", "Sam",
    "Anna", "Anne", "Alice", "Jane", "Elizabeth", "Margaret", "Sarah", "Emma", "Laura", "Susan", "Ruth", "Rose",
    "Helen", "Kate", "Lisa", "Linda", "Karen", "Maria", "Julia", "Amy", "Lucy", "Ellen", "Diana", "Grace", "Claire",
    "Matthew", "Luke", "Alexander", "Benjamin", "Samuel", "Anthony", "Kevin", "Brian", "Steven", "Eric", "Ryan",
    "Scott", "Jason", "Justin", "Patrick", "Nicholas", "Jonathan", "Jacob", "Joshua", "Ian", "Roger", "Ralph",
    "Jennifer", "Jessica", "Nancy", "Betty", "Emily", "Rachel", "Rebecca", "Michelle", "Amanda", "Melissa", "Sophie",
)  # fmt: skip


def single_tokens(model: HookedGPT, words: Iterable[str]) -> dict[str, int]:
    """Those of the words that are one token after a space, with their ids."""
    found = {}
    for word in words:
        with suppress(InputError):
            found[word] = model.to_single_token(f" {word}")
    return found


def own_words(model: HookedGPT) -> list[str]:
    """The tokens of a space and letters, without the space, by id; encoding may cut a few of them otherwise."""
    tokenizer = model._tokenizer()
    whole = (tokenizer.token_bytes(token).decode("utf-8", "replace") for token in range(model.config.d_vocab))
    return [word[1:] for word in whole if word.startswith(" ") and word[1:].isalpha()]


def _names(model: HookedGPT) -> tuple[list[str], str]:
    """Names that are single tokens in this model; other such words, and a remark, where there are fewer than two."""
    names = list(single_tokens(model, NAMES))
    if len(names) >= 2:
        return names, ""
    words = sorted(single_tokens(model, own_words(model)), key=lambda word: (not word.istitle(), -len(word), word))[:20]
    if len(words) < 2:
        raise InputError(
            "this model's tokenizer has fewer than two words that are single tokens",
            "the indirect object task needs two",
            "give prompts of your own: clean, corrupted, answer, wrong",
        )
    return (
        words,
        " This tokenizer knows fewer than two of the usual first names as single tokens: other words stand for names.",
    )


def indirect_object_prompts(
    model: HookedGPT,
    n: int = 16,
    *,
    templates: Sequence[str] = TEMPLATES,
    corruption: Literal["swap", "other_names"] = "swap",
    seed: int = 0,
) -> PromptSet:
    """Prompts such as "When Mary and John came back ..., John gave the book to" -> " Mary".

    Names are single tokens in this model, places and things too where possible, so that the prompts of one template
    have one length. Templates and the two orders of the names (ABBA and BABA) take turns. No text occurs twice.

    Args:
        n: how many; fewer are made when there are not that many different ones.
        corruption: what becomes of the corrupted text. `swap`: the other person acts, so the wrong answer is right.
            `other_names`: three other people, so that neither answer is (Wang et al.'s ABC).

    Raises InputError for a tokenizer without two single-token words, or without five for `other_names`.
    """
    names, note = _names(model)
    if corruption == "other_names" and len(names) < 5:
        raise InputError(
            f"{len(names)} names are single tokens in this model", "other_names needs five", "use corruption='swap'"
        )
    places, things = (list(single_tokens(model, words)) or list(words) for words in (PLACES, THINGS))

    def draw(rng: random.Random, template: str, order: int) -> Prompt:
        giver, receiver = rng.sample(names, 2)
        words = {"place": rng.choice(places), "thing": rng.choice(things)}
        a, b = (receiver, giver) if order == 0 else (giver, receiver)
        clean, actor = template.format(A=a, B=b, S=giver, **words), receiver
        if corruption == "other_names":
            a, b, actor = rng.sample([name for name in names if name not in (giver, receiver)], 3)
        corrupted = template.format(A=a, B=b, S=actor, **words)
        return Prompt(clean=clean, corrupted=corrupted, answer=f" {receiver}", wrong=f" {giver}", template=template)

    found = different(draw, n, templates, "the indirect object task", seed)
    return replace(found, note=found.note + note)


def different(
    draw: Callable[[random.Random, str, int], Prompt], n: int, templates: Sequence[str], task: str, seed: int
) -> PromptSet:
    """`n` prompts with different clean texts; fewer where there are not that many.

    Args:
        draw: makes a prompt of a template in one of two orders, 0 and 1; templates and orders take turns.
        task: what they are prompts of, in words.

    Raises InputError for less than one.
    """
    rng, misses = random.Random(seed), 0
    found: dict[str, Prompt] = {}
    while len(found) < n and misses < 200:
        turn = len(found) + misses
        prompt = draw(rng, templates[turn % len(templates)], turn // len(templates) % 2)
        misses += prompt.clean in found
        found.setdefault(prompt.clean, prompt)
    if not found:
        raise InputError(f"{n} prompts", "expected at least 1")
    used = len({prompt.template for prompt in found.values()})
    note = f"{len(found)} generated prompts of {task} ({used} template{'s' * (used != 1)}, seed {seed})."
    return PromptSet(prompts=tuple(found.values()), note=note)
