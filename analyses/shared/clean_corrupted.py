"""What an intervention analysis runs on: sequences of ids with an answer each, alone or beside corrupted versions.

Texts of one length run together as a batch [batch pos]; nothing is padded.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.shared.inputs import TextOrTokens, sequences, text_names, token_labels
from analyses.shared.metrics import (
    TITLES,
    UNITS,
    CustomReadout,
    Readout,
    TokenChoice,
    check_metrics,
    log_probability,
    token_ids,
    top_tokens,
)
from analyses.shared.panels import Note, Tokens
from analyses.shared.prompts import TEMPLATES, PromptSet, TextsOrPrompts, indirect_object_prompts
from analyses.shared.statistics import independent
from interp.errors import InputError
from interp.interventions import Replace
from interp.models.gpt import HookedGPT
from interp.models.kernels import wide
from interp.sweep import Variant, sweep

PatchingMetric = Literal["logit_diff", "logit", "prob", "rank", "kl"]
PATCHING_METRICS: tuple[str, ...] = get_args(PatchingMetric)
Direction = Literal["denoise", "noise"]
TRIED = 64
"""Most tokens that are tried when a text has to be corrupted."""
AT_ONCE = 32
"""Sequences in one forward pass."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Texts:
    """Sequences, an answer and a wrong answer after each, and where they came from."""

    rows: tuple[Int[Tensor, "1 pos"], ...]
    names: tuple[str, ...]
    answer: Int[Tensor, " text"]
    wrong: Int[Tensor, " text"]
    clusters: tuple[str, ...] | None
    """[text] the template of each, where there is more than one template."""
    notes: tuple[str, ...]
    """How texts and answers were chosen, a sentence each."""
    own: tuple[str, ...] = ()
    """What the model chose itself, of answer, wrong answer and corruption."""

    def groups(self) -> list[tuple[list[int], Int[Tensor, "batch pos"]]]:
        """Texts of one length together: their numbers, and their ids as a batch."""
        lengths = list(dict.fromkeys(row.shape[1] for row in self.rows))
        chosen = [[i for i, row in enumerate(self.rows) if row.shape[1] == length] for length in lengths]
        return [(indices, torch.cat([self.rows[i] for i in indices])) for indices in chosen]

    def answers(self, model: HookedGPT) -> tuple[Tokens, Tokens]:
        """The answers and the wrong answers as labels."""
        return token_labels(model, self.answer), token_labels(model, self.wrong)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs(Texts):
    """Clean sequences with a corrupted one of the same length for each."""

    corrupted: tuple[Int[Tensor, "1 pos"], ...]

    def paired(self) -> list[tuple[list[int], Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]]:
        """Pairs of one length together: their numbers, clean ids, corrupted ids."""
        return [(indices, clean, torch.cat([self.corrupted[i] for i in indices])) for indices, clean in self.groups()]

    def said(self) -> str:
        """How many pairs a mean is of, and what its interval is over, in a sentence."""
        n, unit = independent(len(self.rows), self.clusters)
        if len(self.rows) == 1:
            return "One pair of texts, so no interval."
        over = f"95 % intervals, each for itself, over {n} {unit}" if n > 1 else "one template, so no interval"
        return f"Mean of {len(self.rows)} pairs of texts; {over}."

    def choices(
        self, measured: "Measure", answers: Sequence[str], wrongs: Sequence[str], notes: Sequence[str] = ()
    ) -> Note:
        """How the two runs and the answers were chosen, and the metric of each run."""
        runs = (
            f"The {measured.title} is {measured.clean.mean():.3g} in the clean and {measured.corrupted.mean():.3g} in "
            "the corrupted run."
        )
        said = [*self.notes, *notes, said_answers(answers, wrongs), runs]
        return Note(key="choices", title="The two runs", text=" ".join(said))


def last_logits(model: HookedGPT, rows: Sequence[Tensor]) -> Float[Tensor, "text d_vocab"]:
    """The logits after each sequence, in float32 at least."""
    out: list[Tensor | None] = [None] * len(rows)
    for length in dict.fromkeys(row.shape[1] for row in rows):
        same = [i for i, row in enumerate(rows) if row.shape[1] == length]
        for start in range(0, len(same), AT_ONCE):
            some = same[start : start + AT_ONCE]
            ends = model.run_to(torch.cat([rows[i] for i in some]))[:, -1]  # the rest is never unembedded
            for i, logits in zip(some, model.unembedded(model.ln_final(ends)), strict=True):
                out[i] = logits
    stacked = torch.stack([logits for logits in out if logits is not None])
    return wide(stacked)


def resolve_texts(
    model: HookedGPT,
    tokens: TextsOrPrompts,
    *,
    answer: TokenChoice | None = None,
    wrong: TokenChoice | None = None,
    n: int = 12,
    seed: int = 0,
) -> Texts:
    """Texts, ids, a prompt set, or None for `n` generated prompts, as sequences with their answers.

    An answer that is not given is the prompt set's, else the model's most likely token; a wrong answer that is not
    given is the prompt set's, else the most likely other token.
    """
    prompts = indirect_object_prompts(model, n, seed=seed) if tokens is None else tokens
    texts: TextOrTokens
    if isinstance(prompts, PromptSet):
        texts = [prompt.clean for prompt in prompts]
        answer = _all_or_none([prompt.answer for prompt in prompts]) if answer is None else answer
        wrong = _all_or_none([prompt.wrong for prompt in prompts]) if wrong is None else wrong
        notes = [prompts.note] if prompts.note else []
        templates = tuple(prompt.template for prompt in prompts)
    else:
        texts, notes, templates = prompts, [], ()
    rows = sequences(model, texts, at_least=2)
    logits = last_logits(model, rows)
    given = None if answer is None else token_ids(model, answer, len(rows))
    best, other = top_tokens(logits, given)
    own = (*(["answer"] if given is None else []), *(["wrong answer"] if wrong is None else []))
    if given is None:
        notes.append(
            "The answer is the model's own, its most likely next token. A largest logit tends to fall whatever is "
            "changed, so effects on it lean downwards."
        )
    if wrong is None:
        notes.append("The wrong answer is the model's own too, the most likely other token.")
    return Texts(
        rows=tuple(rows),
        names=text_names(model, rows),
        answer=best,
        wrong=other if wrong is None else token_ids(model, wrong, len(rows)),
        clusters=templates if len(set(templates)) > 1 else None,
        notes=tuple(notes),
        own=own,
    )


def resolve_pairs(
    model: HookedGPT,
    clean: TextsOrPrompts,
    corrupted: TextOrTokens | None,
    *,
    answer: TokenChoice | None = None,
    wrong: TokenChoice | None = None,
    n: int = 12,
    seed: int = 0,
) -> Pairs:
    """Clean and corrupted sequences with their answers.

    Nothing given: `n` prompts from one template. No corrupted text given: one token of each clean text is changed, the
    one whose change lowers the answer's probability most. A wrong answer that is not given is the most likely token
    after the corrupted text that is not the answer.

    Raises InputError when a corrupted text is longer or shorter in tokens than its clean text.
    """
    if clean is None:
        clean = indirect_object_prompts(model, n, templates=TEMPLATES[:1], seed=seed)
    texts = resolve_texts(model, clean, answer=answer, wrong=wrong)
    notes = list(texts.notes)
    given: TextOrTokens | None
    if corrupted is None and isinstance(clean, PromptSet):
        given = _all_or_none([prompt.corrupted for prompt in clean])
        known_wrong = wrong is not None or _all_or_none([prompt.wrong for prompt in clean]) is not None
    else:
        given, known_wrong = corrupted, wrong is not None
    if given is None:
        rows, said = corrupt(model, texts, seed=seed)
        notes += said
    else:
        rows = sequences(model, given)
    if len(rows) != len(texts.rows):
        raise InputError(f"{len(rows)} corrupted texts for {len(texts.rows)} clean ones", "expected one for each")
    for one, other in zip(texts.rows, rows, strict=True):
        _check_pair(model, one, other)
    wrong_ids = texts.wrong
    if not known_wrong:
        notes = [note for note in notes if not note.startswith("The wrong answer")]
        notes.append("The wrong answer is the most likely token after the corrupted text (the answer left out).")
        wrong_ids = top_tokens(last_logits(model, rows), texts.answer)[1]
    fields = {name: getattr(texts, name) for name in ("rows", "names", "answer", "clusters")}
    chosen = {"answer": "answer" in texts.own, "wrong answer": not known_wrong, "corruption": given is None}
    own = tuple(name for name, by_model in chosen.items() if by_model)
    if "wrong answer" in own or "corruption" in own:
        notes.append(
            f"With {' and '.join(name for name in own if name != 'answer')} so chosen, the clean run favours the "
            "answer by more than the corrupted one in nearly any model: the gap and shares of it say nothing of how "
            "well this one does the task."
        )
    return Pairs(**fields, wrong=wrong_ids, notes=tuple(notes), own=own, corrupted=tuple(rows))


def _all_or_none(entries: list[str]) -> list[str] | None:
    return entries if all(entries) else None


def _check_pair(model: HookedGPT, clean: Tensor, corrupted: Tensor) -> None:
    if clean.shape != corrupted.shape:
        raise InputError(
            f"the clean text has {clean.shape[1]} tokens, the corrupted one {corrupted.shape[1]}",
            f"expected as many: {' | '.join(token_labels(model, clean))}"[:150],
            f"received: {' | '.join(token_labels(model, corrupted))}"[:150],
        )
    if torch.equal(clean, corrupted):
        raise InputError("the clean and the corrupted text are the same", "expected at least one token to differ")


_known: ContextVar[dict[Any, tuple[HookedGPT, list[Tensor], list[str]]] | None] = ContextVar("known", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """Inside the block what `corrupt` finds for a model and texts is found once: change no weights there."""
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def corrupt(model: HookedGPT, texts: Texts, *, seed: int = 0) -> tuple[list[Int[Tensor, "1 pos"]], list[str]]:
    """Each text with one token changed, and a sentence on each change.

    Up to TRIED places (neither the beginning-of-text token nor the last token) are tried with another token of the same
    text; the change that lowers the answer's probability most is kept.
    """
    known = _known.get()
    if known is None:
        return _corrupt(model, texts, seed)
    key = id(model), seed, tuple(tuple(row[0].tolist()) for row in texts.rows), tuple(texts.answer.tolist())
    if key not in known:
        known[key] = (model, *_corrupt(model, texts, seed))  # the model too, so that its id stays its own
    return known[key][1], known[key][2]


def _corrupt(model: HookedGPT, texts: Texts, seed: int) -> tuple[list[Tensor], list[str]]:
    rng, rows, notes = random.Random(seed), [], []
    bos = None if model.tokenizer is None else model.tokenizer.bos
    for number, row in enumerate(texts.rows):
        ids = row[0].tolist()
        places = list(range(1 if ids[0] == bos else 0, len(ids) - 1)) or [len(ids) - 1]
        places = sorted(rng.sample(places, min(TRIED, len(places))))
        tried, variants = row.repeat(len(places), 1), list[Variant]()
        for i, place in enumerate(places):
            others = sorted({token for token in ids if token not in (ids[place], bos)})
            others = others or [token for token in range(model.config.d_vocab) if token not in (ids[place], bos)]
            tried[i, place] = rng.choice(others)
            embedded = model.W_E[tried[i, place]] * model.config.embed_scale
            variants.append(Replace(name="hook_embed", pos=place, value=embedded))

        def likely(logits: Tensor, answer: Tensor = texts.answer[number]) -> dict[str, Tensor]:
            return {"answer": log_probability(logits[:, 0], answer.expand(1))}

        worst = int(sweep(model, row, variants, likely, read=[-1])["answer"][:, 0].argmin())
        rows.append(tried[worst : worst + 1])
        before, after = (token_labels(model, x[places[worst] : places[worst] + 1])[0] for x in (row[0], tried[worst]))
        which = f" of text {number + 1}" if len(texts.rows) > 1 else ""
        notes.append(
            f"No corrupted text was given: token {places[worst]}{which}, {before!r}, became {after!r}, which of "
            f"{len(places)} changes tried lowered the answer's probability most."
        )
    return rows, notes


def position_labels(model: HookedGPT, rows: Sequence[Tensor]) -> Tokens | tuple[str, ...]:
    """Labels for the positions of all texts: the token where all agree, else that of the first and an ellipsis.

    Where lengths differ the labels are numbers from the end, as long as the shortest text.
    """
    lengths = {row.shape[1] for row in rows}
    if len(lengths) > 1:
        return tuple(str(place) for place in range(-min(lengths), 0))
    labels = [token_labels(model, row) for row in rows]
    return Tokens(column[0] if len(set(column)) == 1 else f"{column[0]}…" for column in zip(*labels, strict=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class Measure:
    """A metric of pairs, by name or as a user's own function, and its values on the two unpatched runs."""

    title: str
    """What it is, in words."""
    unit: str
    readouts: tuple[Readout | CustomReadout, ...]
    """[group] the metric as a function of logits, one for each of `pairs.paired()`."""
    clean: np.ndarray
    """[text]"""
    corrupted: np.ndarray
    """[text]"""


def measure(
    model: HookedGPT, pairs: Pairs, metric: str | Callable[[Tensor], Tensor], read: Sequence[int] = (-1,)
) -> Measure:
    """The metric of a patching experiment: about the answers at the last position, or a function of the logits.

    Args:
        metric: one of PATCHING_METRICS, or a function of logits [batch read d_vocab] that returns [batch].
        read: the positions that such a function gets, in this order.
    """
    name = check_metrics([metric], PATCHING_METRICS)[0] if isinstance(metric, str) else "metric"
    values = np.zeros((2, len(pairs.rows)))
    readouts: list[Readout | CustomReadout] = []
    readout: Readout | CustomReadout
    for indices, clean, corrupted in pairs.paired():
        if isinstance(metric, str):
            readout = _readout(model, pairs, indices, name)
        else:
            readout = CustomReadout(function=metric, read=list(read))
        readouts.append(readout)
        for row, tokens in enumerate((clean, corrupted)):
            found = sweep(model, tokens, [()], readout, read=readout.read, vocab=readout.vocab)
            values[row, indices] = found[name][0].double().cpu()
    title = TITLES.get(name, "your metric") + own_answers(pairs.own, name)
    unit = UNITS.get(name, "units of the metric")
    return Measure(title=title, unit=unit, readouts=tuple(readouts), clean=values[0], corrupted=values[1])


def _readout(model: HookedGPT, pairs: Pairs, indices: list[int], name: str) -> Readout:
    tokens = torch.cat([pairs.rows[i] for i in indices])
    clean = last_logits(model, [pairs.rows[i] for i in indices])[:, None].log_softmax(-1) if name == "kl" else None
    answer, wrong = pairs.answer[indices], pairs.wrong[indices]
    return Readout(names=(name,), tokens=tokens, clean=clean, everywhere=False, answer=answer, wrong=wrong).narrowed()


def own_answers(own: Sequence[str], metric: str) -> str:
    """To be put after a metric's name: which of the answers it speaks of the model chose itself; empty where none."""
    spoken = {"logit_diff": ("answer", "wrong answer")}.get(metric, ("answer",) if metric in TITLES else ())
    chosen = [name for name in own if name in spoken and metric not in ("loss", "kl")]
    return f" ({' and '.join(chosen)} chosen by the model)" if chosen else ""


def said_answers(answers: Sequence[str], wrongs: Sequence[str]) -> str:
    """The answers and wrong answers in a sentence; of many different ones the first four."""
    both = list(dict.fromkeys(f"{a!r} against {w!r}" for a, w in zip(answers, wrongs, strict=True)))
    return f"Answer against wrong answer: {'; '.join(both[:4])}{' and others' if len(both) > 4 else ''}."


def first_difference(clean: Int[Tensor, "batch pos"], corrupted: Int[Tensor, "batch pos"]) -> int:
    """The first position at which any pair differs."""
    return int((clean != corrupted).any(0).int().argmax())


def notable(share: float, low: float | None, high: float | None, q: float | None = None) -> float:
    """The weight of a finding: more for a larger share of what could be found, little where it may be chance."""
    if q is not None and np.isfinite(q) and q > 0.05:
        return 0.1
    if low is not None and high is not None and not (low > 0 or high < 0):
        return 0.1
    return 0.2 + 0.7 * min(abs(share), 1.0)
