"""What patching runs on: inputs with an answer each (`answered_texts`), each beside a corrupted version."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from analyses.shared.answered_texts import (
    Texts,
    all_or_none,
    answered,
    answering_logits,
    fitted,
    own_answers,
)
from analyses.shared.inputs import TextOrTokens
from analyses.shared.metrics import (
    TITLES,
    UNITS,
    CustomReadout,
    Readout,
    TokenChoice,
    check_metrics,
    top_tokens,
)
from analyses.shared.panels import Note, Panel, Table, Tokens, TokenStrip
from analyses.shared.prompts import TEMPLATES, PromptSet, TextsOrPrompts
from analyses.shared.stacks import Model
from analyses.shared.statistics import independent
from analyses.shared.task import Row, Task, batch, shape, sides, task_of
from interp.errors import InputError
from interp.interventions import Replace
from interp.sweep import Pair, Variant, sweep
from interp.sweep.inputs import listed

PatchingMetric = Literal["logit_diff", "logit", "prob", "prob_diff", "rank", "kl", "log_prob"]
PATCHING_METRICS: tuple[str, ...] = get_args(PatchingMetric)
Direction = Literal["denoise", "noise"]
TRIED = 64
"""Most tokens that are tried when a text has to be corrupted."""


@dataclass(frozen=True, kw_only=True)
class PairStrip(TokenStrip):
    """A text and, token below token, another of its length; `values` are 1 where they differ, else 0."""

    below: Tokens
    """[pos] the other text."""
    names: tuple[str, str] = ("clean", "corrupted")


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs(Texts):
    """Clean inputs with a corrupted one of the same length for each."""

    corrupted: tuple[Row, ...]
    changes: tuple[str, ...]
    """[text] what was replaced by what and where, as in "'be' (8) is replaced by '4'"."""
    first: tuple[Tokens, Tokens]
    """Both texts of the first pair as labels, of a translation its sources."""

    def alone(self) -> "Pairs":
        """The first pair."""
        sets = self.sets and (self.sets[0][:1], self.sets[1][:1])
        return replace(
            self, rows=self.rows[:1], names=self.names[:1], places=self.places[:1], answer=self.answer[:1],
            wrong=self.wrong[:1], clusters=None, sets=sets, corrupted=self.corrupted[:1], changes=self.changes[:1],
        )  # fmt: skip

    def panels(self, measured: "Measure", answers: Tokens, wrongs: Tokens, floor: float) -> list[Panel]:
        """The pair, the metric of both runs, and how texts and answers were chosen: what all patching of it shares.

        Args:
            floor: the least total effect that is told, in the metric's unit.
        """
        clean, corrupted = self.first
        several = f"The first of {len(self.rows)} pairs" if len(self.rows) > 1 else "The pair"
        strip = PairStrip(
            "pair", f"{several}: the clean text above the corrupted one", f"Marked: {self.changes[0]}.",
            tokens=clean, below=corrupted, unit="differs",
            values=np.array([a != b for a, b in zip(clean, corrupted, strict=True)], dtype=float),
        )  # fmt: skip
        said = [*self.notes, "Only what differs between the two runs can have an effect when it is patched."]
        return [
            strip, self._runs(measured, answers, wrongs, floor), Note("choices", "The two runs", text=" ".join(said))
        ]  # fmt: skip

    def _runs(self, measured: "Measure", answers: Tokens, wrongs: Tokens, floor: float) -> Table:
        """One row a pair: answers, the metric of both runs, the total effect."""
        clean, corrupted, several = measured.clean, measured.corrupted, len(self.rows) > 1
        columns = {"text": self.names, "change": self.changes} if several else {}
        numbers = {"clean run": clean, "corrupted run": corrupted, "total effect": clean - corrupted}
        total = float((clean - corrupted).mean())
        mean = (
            f"Means: {clean.mean():.3g} in the clean and {corrupted.mean():.3g} in the corrupted runs, total effect "
            f"{total:+.3g}. " * several
        )
        verdict = "below it: patching shows nothing here" if not abs(total) >= floor else "above it"
        return Table(
            "runs", f"{measured.title[:1].upper()}{measured.title[1:].partition(' (')[0]} of both runs",
            f"Total effect: clean minus corrupted run, what patching everything would change. {mean}Its floor is "
            f"{floor:g} {measured.unit}, and it is {verdict}. {self.said()}",
            frame=pd.DataFrame(columns | {"answer": answers, "wrong answer": wrongs} | numbers),
            tokens=frozenset({"answer", "wrong answer"}), units=dict.fromkeys(numbers, measured.unit),
        )  # fmt: skip

    def paired(self) -> list[tuple[list[int], Row, Row]]:
        """Pairs of one length together: their numbers, clean ids, corrupted ids."""
        return [(indices, clean, batch([self.corrupted[i] for i in indices])) for indices, clean in self.groups()]

    def said(self) -> str:
        """How many pairs a mean is of, and what its interval is over, in a sentence."""
        n, unit = independent(len(self.rows), self.clusters)
        if len(self.rows) == 1:
            return "One pair of texts, so no interval."
        over = f"95 % intervals, each for itself, over {n} {unit}" if n > 1 else "one template, so no interval"
        return f"Mean of {len(self.rows)} pairs of texts; {over}."

    def question(self, metric: str, title: str, answers: Sequence[str], wrongs: Sequence[str]) -> str:
        """What is measured, of which answers, when what is replaced; a sentence begins with it."""
        both = list(dict.fromkeys(zip(answers, wrongs, strict=True)))
        what = title[:1].upper() + title[1:]
        if metric == "logit_diff":
            what = f"{both[0][0]!r} over {both[0][1]!r}" if len(both) == 1 else "Answers over wrong answers"
        own = [name for name in self.own if metric == "logit_diff" or name == "corruption"]
        first, last = ", ".join(own[:-1]), "".join(own[-1:])
        chosen = f" ({first}{' and ' * bool(first)}{last} chosen by the model)" if own else ""
        when = f"when {self.changes[0]}" if len(self.changes) == 1 else f"mean of {len(self.rows)} pairs of texts"
        return f"{what}{chosen}, {when}"


def resolve_pairs(
    model: Model,
    clean: TextsOrPrompts,
    corrupted: TextOrTokens | None,
    *,
    answer: TokenChoice | None = None,
    wrong: TokenChoice | None = None,
    n: int = 12,
    seed: int = 0,
) -> Pairs:
    """Clean and corrupted inputs with their answers.

    Nothing given: `n` prompts from one template, of a decoder. Of a translation the sources are corrupted, the targets
    stay the clean ones'. No corrupted text given: one token of each clean text is changed, the one whose change lowers
    the answer's probability most. A wrong answer that is not given is the most likely token after the corrupted text
    that is not the answer. Prompts that do not fit a decoder are left out (see `fitting`).

    Raises InputError when a corrupted text is longer or shorter in tokens than its clean text.
    """
    task = task_of(model)
    if clean is None:
        clean = task.generated(n, seed, TEMPLATES[:1])
    clean = fitted(task, clean, answer=answer, wrong=wrong, corrupted=corrupted)
    texts = answered(task, clean, answer, wrong)
    notes = list(texts.notes)
    given: TextOrTokens | None
    if corrupted is None and isinstance(clean, PromptSet):
        given = all_or_none(clean, "corrupted")
        known_wrong = wrong is not None or all_or_none(clean, "wrong") is not None
    else:
        given, known_wrong = corrupted, wrong is not None
    if given is None:
        rows, said = corrupt(model, texts, seed=seed)
        notes += said
    else:
        rows = task.corrupted(given, texts.rows)
    if len(rows) != len(texts.rows):
        raise InputError(f"{len(rows)} corrupted texts for {len(texts.rows)} clean ones", "expected one for each")
    for one, other in zip(texts.rows, rows, strict=True):
        _check_pair(task, one, other)
    wrong_ids = texts.wrong
    if not known_wrong:
        notes = [note for note in notes if not note.startswith("The wrong answer")]
        notes.append("The wrong answer is the most likely token after the corrupted text (the answer left out).")
        wrong_ids = top_tokens(answering_logits(task, rows), texts.answer)[1]
    fields = {name: getattr(texts, name) for name in ("rows", "names", "places", "answer", "clusters", "sets")}
    chosen = {"answer": "answer" in texts.own, "wrong answer": not known_wrong, "corruption": given is None}
    own = tuple(name for name, by_model in chosen.items() if by_model)
    if "wrong answer" in own or "corruption" in own:
        notes.append(
            f"With {' and '.join(name for name in own if name != 'answer')} so chosen, the clean run favours the "
            "answer by more than the corrupted one in nearly any model: the gap and shares of it say nothing of how "
            "well this one does the task."
        )
    changes = tuple(_change(task, one, other) for one, other in zip(texts.rows, rows, strict=True))
    clean_labels, corrupted_labels = (task.labels(sides(row)[0]) for row in (texts.rows[0], rows[0]))
    return Pairs(
        **fields, wrong=wrong_ids, notes=tuple(notes), own=own, corrupted=tuple(rows), changes=changes,
        first=(clean_labels, corrupted_labels),
    )  # fmt: skip


def _change(task: Task, clean: Row, corrupted: Row) -> str:
    """What was replaced by what, and where; of many tokens only how many and between which positions."""
    one, other = sides(clean)[0], sides(corrupted)[0]
    places = (one != other)[0].nonzero()[:, 0].tolist()
    if len(places) > 2:
        return f"{len(places)} tokens from {places[0]} to {places[-1]} are replaced"
    before, after = task.labels(one[:, places]), task.labels(other[:, places])
    parts = [f"{a!r} ({place}) is replaced by {b!r}" for a, place, b in zip(before, places, after, strict=True)]
    return " and ".join(parts)


def _check_pair(task: Task, clean: Row, corrupted: Row) -> None:
    one, other = sides(clean)[0], sides(corrupted)[0]
    if shape(clean) != shape(corrupted):
        raise InputError(
            f"the clean {task.text} has {one.shape[1]} tokens, the corrupted one {other.shape[1]}",
            f"expected as many: {' | '.join(task.labels(one))}"[:150],
            f"received: {' | '.join(task.labels(other))}"[:150],
        )
    if torch.equal(one, other):
        raise InputError(
            f"the clean and the corrupted {task.text} are the same", "expected at least one token to differ"
        )
    if task.place(clean) != task.place(corrupted):
        raise InputError("the masked token stands elsewhere in the corrupted text", "expected the same place in both")


_known: ContextVar[dict[Any, tuple[Model, list[Row], list[str]]] | None] = ContextVar("known", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """Inside the block what `corrupt` finds for a model and texts is found once: change no weights there."""
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def corrupt(model: Model, texts: Texts, *, seed: int = 0) -> tuple[list[Row], list[str]]:
    """Each text (of a translation the source) with one token changed, and a sentence on each change.

    Up to TRIED places (neither the beginning-of-text token nor the last token) are tried with another token of the same
    text; the change that lowers the answer's probability (the whole target's) most is kept.
    """
    known = _known.get()
    if known is None:
        return _corrupt(model, texts, seed)
    key = id(model), seed, repr([listed(row) for row in texts.rows]), tuple(texts.answer.tolist())
    if key not in known:
        known[key] = (model, *_corrupt(model, texts, seed))  # the model too, so that its id stays its own
    return known[key][1], known[key][2]


def _corrupt(model: Model, texts: Texts, seed: int) -> tuple[list[Row], list[str]]:
    task, rng, rows, notes = task_of(model), random.Random(seed), [], []
    for number, row in enumerate(texts.rows):
        first, *others = sides(row)
        ids, places, never = first[0].tolist(), task.changeable(row), task.unchangeable(row)
        places = sorted(rng.sample(places, min(TRIED, len(places))))
        tried, variants = first.repeat(len(places), 1), list[Variant]()
        for i, place in enumerate(places):
            drawn = sorted({token for token in ids if token not in {ids[place], *never}})
            drawn = drawn or [token for token in range(model.config.d_vocab) if token not in {ids[place], *never}]
            tried[i, place] = rng.choice(drawn)
            name, embedded = task.embedded(tried[i, place])
            variants.append(Replace(name=name, pos=place, value=embedded))
        readout = texts.readout(task, [number], ("log_prob",))
        worst = int(sweep(model, row, variants, readout, read=readout.read)["log_prob"][:, 0].argmin())
        changed = tried[worst : worst + 1]
        rows.append(Pair(changed, *others) if others else changed)
        before, after = (task.labels(x[places[worst] : places[worst] + 1])[0] for x in (first[0], changed[0]))
        which = f" of {task.text} {number + 1}" if len(texts.rows) > 1 else ""
        notes.append(
            f"No corrupted {task.text} was given: token {places[worst]}{which}, {before!r}, became {after!r}, which of "
            f"{len(places)} changes tried {task.changed}."
        )
    return rows, notes


def position_labels(model: Model, rows: Sequence[Row], side: int = 0) -> Tokens | tuple[str, ...]:
    """Labels for the positions of all texts: the token where all agree, else that of the first and an ellipsis.

    Where lengths differ the labels are numbers from the end, as long as the shortest text.

    `side`: of a translation 0 for the sources, 1 for the targets.
    """
    task, ids = task_of(model), [sides(row)[side] for row in rows]
    lengths = {one.shape[1] for one in ids}
    if len(lengths) > 1:
        return tuple(str(place) for place in range(-min(lengths), 0))
    labels = [task.labels(one, side) for one in ids]
    return Tokens(column[0] if len(set(column)) == 1 else f"{column[0]}…" for column in zip(*labels, strict=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class Measure:
    """A metric of pairs, by name or as a user's own function, and its values on the two unpatched runs."""

    metric: str
    """Its name; `metric` for a function of one's own."""
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
    model: Model, pairs: Pairs, metric: str | Callable[[Tensor], Tensor] | None = None, read: Sequence[int] = (-1,)
) -> Measure:
    """The metric of a patching experiment: about the answers where they are predicted, or a function of the logits.

    Args:
        metric: one of PATCHING_METRICS, or a function of logits [batch read d_vocab] that returns [batch]. None: that
            of the sets of answers where several are right, else the task's.
        read: the positions that such a function gets, in this order.
    """
    task = task_of(model)
    if metric is None:
        metric = "prob_diff" if pairs.sets else task.metric
    name = check_metrics([metric], PATCHING_METRICS)[0] if isinstance(metric, str) else "metric"
    values = np.zeros((2, len(pairs.rows)))
    readouts: list[Readout | CustomReadout] = []
    for indices, clean, corrupted in pairs.paired():
        if isinstance(metric, str):
            readouts.append(pairs.readout(task, indices, (name,), everywhere=False))
        else:
            readouts.append(CustomReadout(function=metric, read=list(read)))
        readout = readouts[-1]
        for row, tokens in enumerate((clean, corrupted)):
            found = sweep(model, tokens, [()], readout, read=readout.read, vocab=readout.vocab)
            values[row, indices] = found[name][0].double().cpu()
    chosen = "" if name == "log_prob" and task.whole else own_answers(pairs.own, name)
    title = {**TITLES, "log_prob": task.log_prob}.get(name, "your metric") + chosen
    unit = {**UNITS, "log_prob": "nats"}.get(name, "units of the metric")
    return Measure(metric=name, title=title, unit=unit, readouts=tuple(readouts), clean=values[0], corrupted=values[1])


def first_difference(clean: Int[Tensor, "batch pos"], corrupted: Int[Tensor, "batch pos"]) -> int:
    """The first position at which any pair differs."""
    return int((clean != corrupted).any(0).int().argmax())
