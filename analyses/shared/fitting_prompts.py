"""Which prompts fit a model: answers of one token each, and texts that differ but are of one length in tokens."""

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Literal

from analyses.shared.prompts import Prompt, PromptSet
from interp.errors import InputError
from interp.models.gpt import HookedGPT

Part = Literal["answer", "wrong", "corrupted"]
PARTS: tuple[Part, ...] = ("answer", "wrong", "corrupted")
NAMES = {"answer": "the answer", "wrong": "the wrong answer"}


def fitting(model: HookedGPT, prompts: PromptSet, using: Collection[Part] = PARTS) -> PromptSet:
    """The prompts that fit the model, in order; the note says how many were left out and why.

    Left out are prompts with an answer or wrong answer that is not one token of the model, and those whose clean and
    corrupted texts differ in length or not at all in its tokens; entries that a prompt does not have are not looked at.
    In a set with `exchange` each corrupted text is found here: the next prompt as long in tokens with another answer.

    Args:
        using: the entries that will be used; others may be as they are.

    Raises InputError where no prompt fits.
    """
    if model.tokenizer is None:
        return prompts
    fit = _Fit(model, using)
    kept = [prompt for prompt in prompts if fit.answers(prompt)]
    if prompts.exchange:
        kept = fit.exchanged(kept)
    kept = [prompt for prompt in kept if fit.pair(prompt)]
    n, left = len(prompts), "; ".join(f"{count}: {reason}" for reason, count in fit.left.most_common())
    if not kept:
        raise InputError(f"none of {n} prompts fits this model: {left}"[:240], fit.expected, fit.hint)
    if len(kept) == n and not prompts.exchange:
        return prompts
    first, _, more = left.partition(": ")
    said = f" {len(kept)} of {n} prompts; {first} left out: {more}." if left else ""
    return PromptSet(prompts=tuple(kept), note=(prompts.note + said).strip())


@dataclass
class _Fit:
    """Counts why prompts are left out; of the first one it keeps what its tokens are."""

    model: HookedGPT
    using: Collection[Part]
    left: Counter[str] = field(default_factory=Counter)
    known: dict[str, str] = field(default_factory=dict)
    """What is wrong with each answer; empty for one token."""
    expected: str = ""
    hint: str = ""

    def leave(self, reason: str, expected: str, hint: str = "") -> bool:
        """Counts; always False."""
        self.left[reason] += 1
        self.expected, self.hint = self.expected or expected, self.hint or hint[:160]
        return False

    def answers(self, prompt: Prompt) -> bool:
        for part, name in NAMES.items():
            text = getattr(prompt, part) if part in self.using else ""
            if text and self._misfit(text):
                return self.leave(f"{name} is not one token of this model", "expected one token", self._misfit(text))
        return True

    def pair(self, prompt: Prompt) -> bool:
        if not prompt.corrupted or "corrupted" not in self.using:
            return True
        clean, corrupted = (self.model.to_tokens(text)[0].tolist() for text in (prompt.clean, prompt.corrupted))
        if clean == corrupted:
            return self.leave("clean and corrupted text are the same", "expected at least one token to differ")
        if len(clean) != len(corrupted):
            lengths = f"{len(clean)} and {len(corrupted)} tokens: {prompt.clean!r}, {prompt.corrupted!r}"
            return self.leave("clean and corrupted text differ in length", "expected texts as long in tokens", lengths)
        return True

    def exchanged(self, prompts: list[Prompt]) -> list[Prompt]:
        """Each with the next prompt of its length whose answer is another."""
        alike = defaultdict[int, list[Prompt]](list)
        lengths = [self.model.to_tokens(prompt.clean).shape[1] for prompt in prompts]
        for prompt, length in zip(prompts, lengths, strict=True):
            alike[length].append(prompt)
        found, places = [], Counter[int]()
        for prompt, length in zip(prompts, lengths, strict=True):
            places[length] += 1
            others = alike[length][places[length] :] + alike[length][: places[length] - 1]
            other = next((one for one in others if one.answer != prompt.answer), None)
            if other is None:
                self.leave("no other input as long has another answer", "expected two inputs of one length in tokens")
            else:
                found.append(replace(prompt, corrupted=other.clean, wrong=other.answer))
        return found

    def _misfit(self, text: str) -> str:
        if text not in self.known:
            try:
                self.model.to_single_token(text)
                self.known[text] = ""
            except InputError as error:
                self.known[text] = str(error).splitlines()[0]
        return self.known[text]
