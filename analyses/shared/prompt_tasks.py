"""Tasks that prompts are made for, by name: of a model's own vocabulary, any number, the same from one seed."""

import random
from collections.abc import Callable, Mapping, Sequence

from analyses.shared.prompts import Prompt, PromptSet, different, indirect_object_prompts, own_words, single_tokens
from interp.errors import InputError
from interp.models.gpt import HookedGPT

REPEATED: tuple[str, ...] = (
    "When {A} {B} met {C} {D}, then {last}",
    "First {A} {B} and then {C} {D}, and again {last}",
    "The list: {A} {B}, {C} {D}, {last}",
    "There were {A} {B} and {C} {D}. Later {last}",
    "Here {A} {B} came before {C} {D}, and then {last}",
)
"""Two pairs of words, of which the first word of one comes again."""
ENOUGH = 20
"""Capitalised words that will do; with fewer, others are taken too."""
CANDIDATES = 1000
"""Words looked at, the first of the vocabulary: the most frequent ones, for most tokenizers."""


def induction_prompts(
    model: HookedGPT, n: int = 16, *, templates: Sequence[str] = REPEATED, seed: int = 0
) -> PromptSet:
    """Prompts such as "There were Roman King and South World. Later Roman" -> " King" (Olsson et al. 2022).

    Corrupted texts have the first words of the two pairs exchanged, so that the other pair's second word is right.
    Words are single tokens, drawn anew for each prompt, so that nothing but the text tells which follows which.
    Templates and the pair that comes again take turns. No text occurs twice.

    Args:
        n: how many; fewer are made when there are not that many different ones.
        templates: with {A} {B} and {C} {D}, each after a space, and {last} at the end.

    Raises InputError for a tokenizer without four single-token words.
    """
    words = _vocabulary(model)

    def draw(rng: random.Random, template: str, order: int) -> Prompt:
        a, b, c, d = rng.sample(words, 4)
        last, answer, wrong = (a, b, d) if order == 0 else (c, d, b)
        clean, corrupted = (template.format(A=one, B=b, C=other, D=d, last=last) for one, other in ((a, c), (c, a)))
        return Prompt(clean=clean, corrupted=corrupted, answer=f" {answer}", wrong=f" {wrong}", template=template)

    return different(draw, n, templates, "repeated pairs of words", seed)


def _vocabulary(model: HookedGPT) -> list[str]:
    """Words that are one token after a space: capitalised ones of four letters or more where there are enough."""
    long = [word for word in own_words(model) if len(word) >= 4 and word.isascii()]
    for some in ([word for word in long if word.istitle()], long, own_words(model)):
        words = list(single_tokens(model, some[:CANDIDATES]))
        if len(words) >= ENOUGH:
            return words
    if len(words) < 4:
        raise InputError(
            f"{len(words)} words are single tokens in this model",
            "the induction task needs four",
            "give prompts of your own: clean, corrupted, answer, wrong",
        )
    return words


TASKS: Mapping[str, Callable[..., PromptSet]] = {"ioi": indirect_object_prompts, "induction": induction_prompts}
"""Name of a task -> what makes its prompts, of a model, how many, and a `seed`."""
