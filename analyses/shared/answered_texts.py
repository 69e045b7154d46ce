"""What an analysis of answers runs on: inputs, a right and a wrong answer for each, and who chose them.

An input is what `analyses.shared.task` makes of a text: token ids, or source and target. Those of one length run
together as a batch; nothing is padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.shared.fitting_prompts import PARTS, fitting
from analyses.shared.metrics import TITLES, Readout, TokenChoice, token_ids, top_tokens
from analyses.shared.panels import Tokens
from analyses.shared.prompts import PromptSet, TextsOrPrompts
from analyses.shared.stacks import Model, labels_of
from analyses.shared.task import NextToken, Row, Task, batch, shape, sides, task_of
from interp.errors import InputError
from interp.models.kernels import wide

AT_ONCE = 32
"""Sequences in one forward pass."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Texts:
    """Inputs, an answer and a wrong answer for each, and where they came from."""

    rows: tuple[Row, ...]
    """[text] ids [1 pos], or source and target."""
    names: tuple[str, ...]
    places: tuple[int, ...]
    """[text] the position whose logits are those of the answer."""
    answer: Int[Tensor, " text"]
    wrong: Int[Tensor, " text"]
    clusters: tuple[str, ...] | None
    """[text] the template of each, where there is more than one template."""
    notes: tuple[str, ...]
    """How texts and answers were chosen, a sentence each."""
    own: tuple[str, ...] = ()
    """What the model chose itself, of answer, wrong answer and corruption."""
    sets: tuple[Int[Tensor, "text right"], Int[Tensor, "text wrong"]] | None = None
    """All right and all wrong answers, where those are several; -1 where a text has fewer."""

    def numbers(self) -> list[list[int]]:
        """Texts that run together: of one length, with the answer at one place."""
        kinds = list(zip(map(shape, self.rows), self.places, strict=True))
        return [[i for i, one in enumerate(kinds) if one == kind] for kind in dict.fromkeys(kinds)]

    def groups(self) -> list[tuple[list[int], Row]]:
        """Texts that run together: their numbers, and their ids as a batch."""
        return [(indices, batch([self.rows[i] for i in indices])) for indices in self.numbers()]

    def answers(self, model: Model) -> tuple[Tokens, Tokens]:
        """The answers and the wrong answers as labels."""
        return labels_of(model, self.answer), labels_of(model, self.wrong)

    def readout(self, task: Task, indices: list[int], names: Sequence[str], *, everywhere: bool = True) -> Readout:
        """Metrics of texts that run together; `everywhere`: a divergence is over all positions that predict."""
        rows, place = batch([self.rows[i] for i in indices]), self.places[indices[0]]
        answer, everywhere, last = self.answer[indices], everywhere and task.everywhere, sides(rows)[-1].shape[1] - 1
        clean = None
        if "kl" in names:
            clean = wide(task.run(rows) if everywhere else task.at_place(rows, place)[:, None]).log_softmax(-1)
        right, wrong = self.sets or (None, None)
        return Readout(
            names=tuple(names), tokens=sides(rows)[-1], answer=answer, wrong=self.wrong[indices], clean=clean,
            sets=None if right is None or wrong is None else (right[indices], wrong[indices]), everywhere=everywhere,
            at=None if place == last else place, following=task.following(rows, place, answer),
        ).narrowed()  # fmt: skip


def answering_logits(task: Task, rows: Sequence[Row]) -> Float[Tensor, "text d_vocab"]:
    """The logits of each input's answer, in float32 at least."""
    out: list[Tensor | None] = [None] * len(rows)
    kinds = [(shape(row), task.place(row)) for row in rows]
    for kind in dict.fromkeys(kinds):
        same = [i for i, one in enumerate(kinds) if one == kind]
        for start in range(0, len(same), AT_ONCE):
            some = same[start : start + AT_ONCE]
            for i, logits in zip(some, task.at_place(batch([rows[i] for i in some]), kind[1]), strict=True):
                out[i] = logits
    return torch.stack([logits for logits in out if logits is not None])


def resolve_texts(
    model: Model,
    tokens: TextsOrPrompts,
    *,
    answer: TokenChoice | None = None,
    wrong: TokenChoice | None = None,
    n: int = 12,
    seed: int = 0,
) -> Texts:
    """Texts, ids, a prompt set, or None for `n` generated prompts (of a decoder), as inputs with their answers.

    An answer that is not given is the prompt set's, or a translation's last token before its end, else the model's most
    likely token; a wrong answer that is not given is the prompt set's, else the most likely other token. Prompts that
    do not fit a decoder are left out (see `fitting`).
    """
    task = task_of(model)
    prompts = task.generated(n, seed) if tokens is None else fitted(task, tokens, answer=answer, wrong=wrong)
    return answered(task, prompts, answer, wrong)


def answered(task: Task, prompts: TextsOrPrompts, answer: TokenChoice | None, wrong: TokenChoice | None) -> Texts:
    """Prompts that fit, or texts, with the answers given, or else as `resolve_texts` says."""
    model = task.model
    texts: Any
    sets = None
    if isinstance(prompts, PromptSet):
        if answer is None and wrong is None and all(prompt.answers and prompt.wrongs for prompt in prompts):
            sets = (_padded(model, [prompt.answers for prompt in prompts]),
                    _padded(model, [prompt.wrongs for prompt in prompts]))  # fmt: skip
        texts = [prompt.clean for prompt in prompts]
        answer = all_or_none(prompts, "answer") if answer is None else answer
        wrong = all_or_none(prompts, "wrong") if wrong is None else wrong
        notes = [prompts.note] if prompts.note else []
        templates = tuple(prompt.template for prompt in prompts)
    else:
        texts, notes, templates = prompts, [], ()
    rows = task.rows(texts)
    given = task.answers(rows) if answer is None else token_ids(model, answer, len(rows))
    best, other = top_tokens(answering_logits(task, rows), given)
    by_model = answer is None and task.own(texts)
    own = (*(["answer"] if by_model else []), *(["wrong answer"] if wrong is None else []))
    notes += [*task.notes, *([task.own_answer] if by_model else [])]
    if wrong is None:
        notes.append("The wrong answer is the model's own too, the most likely other token.")
    return Texts(
        rows=tuple(rows),
        names=task.names(rows),
        places=tuple(map(task.place, rows)),
        answer=best,
        wrong=other if wrong is None else token_ids(model, wrong, len(rows)),
        clusters=templates if len(set(templates)) > 1 else None,
        notes=tuple(notes),
        own=own,
        sets=sets,
    )


def _padded(model: Model, answers: Sequence[Sequence[str]]) -> Int[Tensor, "text answer"]:
    """The ids of several answers of each text, -1 where one has fewer."""
    ids = {text: model.to_single_token(text) for some in answers for text in some}
    most = max(map(len, answers))
    rows = [[ids[text] for text in some] + [-1] * (most - len(some)) for some in answers]
    return torch.tensor(rows, device=model.device)


def fitted(task: Task, texts: TextsOrPrompts, **read: object) -> TextsOrPrompts:
    """A prompt set as it fits a decoder in those of PARTS that are `read`: None where they are the prompts' own."""
    if not isinstance(texts, PromptSet):
        return texts
    for part in (part for part in PARTS if part in read and read[part] is None):
        all_or_none(texts, part)  # before any is left out
    if not isinstance(task, NextToken):
        return texts
    return fitting(task.model, texts, [part for part in PARTS if part in read and read[part] is None])


def all_or_none(prompts: PromptSet, name: str) -> list[str] | None:
    """That entry of all prompts, None where no prompt has it. Raises InputError where some have it alone."""
    entries = [getattr(prompt, name) for prompt in prompts]
    if any(entries) and not all(entries):
        without = [number for number, entry in enumerate(entries, start=1) if not entry]
        what = f"{len(without)} of {len(entries)} prompts without {name!r}, prompt {without[0]} the first"
        raise InputError(what, "expected it of all of them, or of none")
    return entries if all(entries) else None


def own_answers(own: Sequence[str], metric: str, form: str = " ({})") -> str:
    """To be put after a metric's name: which of the answers it speaks of the model chose itself; empty where none."""
    both = metric in ("logit_diff", "prob_diff")
    spoken = ("answer", "wrong answer") if both else ("answer",) if metric in (*TITLES, "log_prob") else ()
    chosen = [name for name in own if name in spoken and metric not in ("loss", "kl")]
    return form.format(f"{' and '.join(chosen)} chosen by the model") if chosen else ""


def said_answers(answers: Sequence[str], wrongs: Sequence[str]) -> str:
    """The answers and wrong answers in a sentence; of many different ones the first four."""
    both = list(dict.fromkeys(f"{a!r} against {w!r}" for a, w in zip(answers, wrongs, strict=True)))
    return f"Answer against wrong answer: {'; '.join(both[:4])}{' and others' if len(both) > 4 else ''}."
