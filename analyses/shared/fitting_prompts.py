"""Which prompts fit a model: answers of one token each, and texts that differ but are of one length in tokens."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
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
    Of several right and wrong answers each is known by its first token; tokens that begin both say nothing and are out.

    Args:
        using: the entries that will be used; others may be as they are.

    Raises InputError where no prompt fits.
    """
    if model.tokenizer is None:
        return prompts
    fit = _Fit(model, using)
    alike = sum(bool(prompt.answers) for prompt in prompts)
    several = alike > 0 and {"answer", "wrong"} <= set(using)
    if several and alike < len(prompts):
        raise InputError(f"{alike} of {len(prompts)} prompts have several answers", "expected all of them, or none")
    cut = [fit.sets(prompt) if several else prompt for prompt in prompts]
    kept = [prompt for prompt in cut if prompt is not None and fit.answers(prompt)]
    if prompts.exchange:
        kept = fit.exchanged(kept)
    kept = [prompt for prompt in kept if fit.pair(prompt)]
    n, left = len(prompts), "; ".join(f"{count}: {reason}" for reason, count in fit.left.most_common())
    if not kept:
        raise InputError(f"none of {n} prompts fits this model: {left}"[:240], fit.expected, fit.hint)
    if len(kept) == n and not prompts.exchange and not several:
        return prompts
    first, _, more = left.partition(": ")
    said = f" {len(kept)} of {n} prompts; {first} left out: {more}." if left else ""
    said += f" {fit.said(kept)}" * several
    return PromptSet(prompts=tuple(kept), note=(prompts.note + said).strip())


@dataclass
class _Fit:
    """Counts why prompts are left out; of the first one it keeps what its tokens are."""

    model: HookedGPT
    using: Collection[Part]
    left: Counter[str] = field(default_factory=Counter)
    known: dict[str, str] = field(default_factory=dict)
    """What is wrong with each answer; empty for one token."""
    firsts: dict[str, str] = field(default_factory=dict)
    """The first token of each of several answers, as text; empty where it cannot be told."""
    cut: bool = False
    """Whether any of several answers is more than one token."""
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

    def sets(self, prompt: Prompt) -> Prompt | None:
        """With each of several answers as its first token."""
        right, wrong = ({self._first(text): None for text in texts} for texts in (prompt.answers, prompt.wrongs))
        answers = tuple(token for token in right if token and token not in wrong)
        wrongs = tuple(token for token in wrong if token and token not in right)
        if not answers or not wrongs:
            self.leave("no token begins right answers alone, or wrong ones alone", "expected one of each at least")
            return None
        self.cut = self.cut or {*right, *wrong} != {*prompt.answers, *prompt.wrongs}
        return replace(prompt, answers=answers, wrongs=wrongs, answer=answers[0], wrong=wrongs[0])

    def said(self, prompts: list[Prompt]) -> str:
        """Of several answers: how many, and what became of them."""
        counts = [(len(prompt.answers), len(prompt.wrongs)) for prompt in prompts]
        right, wrong = (_range(some) for some in zip(*counts, strict=True))
        said = f"Several answers are right alike ({right} tokens) and several wrong ({wrong}); what concerns one of "
        said += f"each reads the first, as {prompts[0].answer!r} and {prompts[0].wrong!r}."
        first = " Answers of several tokens count by their first, where it does not begin right and wrong ones alike."
        return said + first * self.cut

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

    def _first(self, text: str) -> str:
        if text not in self.firsts:
            token = text
            if self._misfit(text):
                pieces = [piece for piece in self.model.to_str_tokens(text, prepend_bos=False) if piece.strip()]
                token = next((piece for piece in pieces[:1] if text.startswith(piece) and not self._misfit(piece)), "")
            self.firsts[text] = token
        return self.firsts[text]

    def _misfit(self, text: str) -> str:
        if text not in self.known:
            try:
                self.model.to_single_token(text)
                self.known[text] = ""
            except InputError as error:
                self.known[text] = str(error).splitlines()[0]
        return self.known[text]


def _range(counts: Sequence[int]) -> str:
    return f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(min(counts))
