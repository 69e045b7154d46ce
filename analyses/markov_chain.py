"""The model as a Markov chain: every state, every transition, where it settles and how fast.

Question: a model that reads a fixed number of tokens is a machine with finitely many states (its last tokens) and a
probability on each arrow between them. What does that machine look like, and what does it do in the long run?

Method (after Karpathy's baby GPT, 2023): every sequence of `context` tokens is a state, and the model's probabilities
for the next token are the arrows: the oldest token drops out, the new one is put at the end. States shorter than the
context lead into these and are never seen again. Closed classes are the sets of states that are never left; the
stationary distribution of one is the share of time spent in each of its states. Entropy rate: the mean uncertainty of
the next token in the long run, in bits a token (Cover and Thomas 2006, theorem 4.2.4). Mixing time: the first step
after which the distribution, whatever the start, is within 1/4 of the stationary one in total variation (Levin, Peres
and Wilmer 2017, section 4.5); it exists only where there is one closed class and no period.

With a text, the transitions that occur in it are counted beside the model's probabilities.

What the numbers do not show: anything about models whose states cannot be listed. A state holds its tokens at positions
0, 1, 2 and so on, as if the text began there, and has no beginning-of-text token in front.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.shared.axes import Axes, lines
from analyses.shared.capabilities import analysis
from analyses.shared.chains import (
    closed_classes,
    distances,
    entropy_bits,
    mixing_time,
    period,
    second_eigenvalue,
    stationary,
)
from analyses.shared.inputs import TextOrTokens, sequences, token_labels, token_list
from analyses.shared.panels import Bars, Finding, Graph, Lines, Note, Panel, Result, Table, Tokens
from interp.errors import InputError
from interp.models.gpt import Batch, HookedGPT

LIMIT = 1024
"""Most states that are listed: what is measured needs the square, and its powers."""
DRAWN = 32
"""Most states that are drawn as a graph."""


@dataclass(frozen=True, kw_only=True)
class ClosedClass:
    """States that lead to each other and never out again."""

    members: tuple[int, ...]
    """Indices of its states."""
    period: int
    """1 where the chain can be in any member at any late time; p where it goes round p groups in turn."""
    stationary: np.ndarray
    """[state] the share of time spent in each state in the long run; zero outside the class."""
    entropy_rate: float
    """Bits a token."""


@dataclass(frozen=True, kw_only=True)
class MarkovChainResult(Result):
    """The chain of one model."""

    alphabet: Tokens
    """[token] the vocabulary."""
    context: int
    """Tokens in a full state."""
    temperature: float
    states: tuple[tuple[int, ...], ...]
    """[state] token ids, in counting order: state i is i written in base d_vocab."""
    transitions: np.ndarray
    """[state token] probability of each next token."""
    shorter: tuple[tuple[int, ...], ...]
    """States of fewer tokens, shortest first."""
    shorter_transitions: np.ndarray
    """[shorter token] their probabilities."""
    entropy: np.ndarray
    """[state] uncertainty of the next token, in bits."""
    classes: tuple[ClosedClass, ...]
    """Closed classes, the largest first."""
    second_eigenvalue: float
    """Largest absolute value of an eigenvalue of the chain besides the first; 1 with several classes or a period."""
    mixing_time: int | None
    """Steps; None where the chain does not mix, or not within about a million steps."""
    times: tuple[int, ...]
    """Steps at which the distance is given."""
    distance: np.ndarray
    """[time] distance of the worst start from the stationary distribution, 0 to 1; empty with several classes."""
    seen: np.ndarray | None
    """[state token] how often each transition occurs in the text, if there is one."""

    @property
    def matrix(self) -> np.ndarray:
        """[state state] the whole transition matrix."""
        return transition_matrix(self.transitions)

    @property
    def only_class(self) -> ClosedClass | None:
        """The closed class, where there is just one."""
        return self.classes[0] if len(self.classes) == 1 else None

    @property
    def time_share(self) -> np.ndarray:
        """[state] time spent in each state in the long run; the mean over closed classes where there are several."""
        return np.asarray(np.mean([part.stationary for part in self.classes], axis=0))

    def name(self, state: Sequence[int]) -> str:
        """A state as text."""
        parts = [token_list([self.alphabet[token]]) for token in state]
        return ("" if all(len(label) == 1 for label in self.alphabet) else "|").join(parts)

    @property
    def names(self) -> tuple[str, ...]:
        """[state] as text."""
        return tuple(self.name(state) for state in self.states)

    def probability(self, state: str, following: str) -> float:
        """The probability of going from one full state to another, both as in `names`; 0 if no arrow leads there.

        Raises InputError for a state there is not.
        """
        names = self.names
        for wanted in (state, following):
            if wanted not in names:
                raise InputError(f"state {wanted!r}", f"expected one of {', '.join(names[:8])}")
        return float(self.matrix[names.index(state), names.index(following)])

    def to_dataframe(self) -> pd.DataFrame:
        """One row per arrow: state, token, to, probability, time share of the state, and how often the text has it."""
        listed, before = [*self.shorter, *self.states], np.zeros(len(self.shorter))
        to = [[self.name((*state, token)[-self.context :]) for token in range(len(self.alphabet))] for state in listed]
        both = np.concatenate([self.shorter_transitions, self.transitions])
        share = np.concatenate([before, self.time_share])[:, None]
        names = [self.name(state) for state in listed]
        frame = Axes.of(both, state=names, token=self.alphabet).frame(
            "probability", to=np.array(to, dtype=object), **{"time share": share}
        )
        frame = frame[["state", "token", "to", "probability", "time share"]]
        if self.seen is None:
            return frame
        seen = np.concatenate([np.zeros((len(self.shorter), len(self.alphabet)), dtype=int), self.seen])
        return frame.assign(seen=seen.astype(int).ravel())

    def facts(self) -> dict[str, Any]:
        """Numbers of states, classes with period and entropy rate, mixing time and second eigenvalue."""
        return {
            "states": len(self.states),
            "states_with_shorter": len(self.states) + len(self.shorter),
            "classes": [
                {"states": [self.names[i] for i in part.members], "period": part.period,
                 "entropy_rate_bits": part.entropy_rate}
                for part in self.classes
            ],
            "mixing_time": self.mixing_time,
            "second_eigenvalue": self.second_eigenvalue,
            "context": self.context,
            "temperature": self.temperature,
        }  # fmt: skip

    def panels(self) -> list[Panel]:
        settling = [self._settling()] if len(self.distance) else []
        words = Note("long-run", "The long run", text=self.words())
        return [self.picture(), self._long_run(), *settling, self._arrows(), words]

    def picture(self, key: str = "graph", title: str = "The chain") -> Panel:
        """The chain as a graph, or as a heat map of its arrows where the states are too many for one."""
        if len(self.states) <= DRAWN:
            return self.graph(key, title)
        caption = "The probability of each next token (across) after each state (down); too many states for a graph."
        return Axes.of(self.transitions, state=self.names, **{"next token": self.alphabet}).matrix(
            key, title, caption, unit="probability", image=True
        )

    def graph(self, key: str = "graph", title: str = "The chain") -> Graph:
        """The states as circles, darker where more time is spent, and the arrows with their probabilities."""
        caption = (
            "Each circle is a state, the last tokens read; an arrow puts one token at the end. The number is the "
            "model's probability. The stronger a state's colour, the more time is spent in it in the long run."
        )
        return Graph(
            key, title, caption, nodes=self.names, columns=tuple(map(sum, self.states)), unit="probability",
            edges=edge_list(self.transitions), places=places(self.states, len(self.alphabet)), values=self.time_share,
        )  # fmt: skip

    def _long_run(self) -> Bars:
        share = self.time_share
        order = np.argsort(-share, kind="stable")[:DRAWN]
        classes = f", after starting in each of the {len(self.classes)} closed classes equally often"
        cut = f"; the {DRAWN} most visited of {len(share)} states" if len(share) > DRAWN else ""
        return Axes.of(share[order], state=[self.names[i] for i in order]).bars(
            "stationary", "Where the chain is in the long run", "The stationary distribution: the share of time in "
            f"each state{classes * (len(self.classes) > 1)}{cut}.", unit="share of time",
        )  # fmt: skip

    def _settling(self) -> Lines:
        return lines(
            "settling", "How fast the start is forgotten", "Distance between where the chain is after so many steps "
            "and the stationary distribution, for the worst start (total variation, 1 means no overlap). Mixed, by "
            "convention, at 1/4.", {"worst start": self.distance, "mixed": np.full(len(self.times), 0.25)},
            x=np.array(self.times), x_axis="steps", y_axis="distance",
        )  # fmt: skip

    def _arrows(self) -> Table:
        caption = "Shorter states come first; they lead into the full ones and are never returned to."
        caption += " The last column counts the text's own transitions." * (self.seen is not None)
        return Table("arrows", "Every arrow", caption, frame=self.to_dataframe(), tokens=frozenset({"token"}))

    def words(self) -> str:
        """Classes, entropy rate and mixing time in plain sentences."""
        whole = len(self.states) + len(self.shorter)
        said = [f"{len(self.states)} states of {self.context} tokens, {whole} counting shorter ones."]
        said += self._said_of_classes() if self.only_class is None else self._said_of_class(self.only_class)
        if self.seen is not None and not self.seen.sum():
            said.append("The text is too short to hold a transition.")
        return " ".join(said)

    def _said_of_classes(self) -> list[str]:
        few = [[self.names[i] for i in part.members[:6]] + ["…"] * (len(part.members) > 6) for part in self.classes[:8]]
        parts = "; ".join([f"{{{', '.join(names)}}}" for names in few] + ["…"] * (len(self.classes) > 8))
        return [
            f"There are {len(self.classes)} closed classes ({parts}): which one is entered depends on the start, there "
            "is no single stationary distribution, and no mixing time."
        ]

    def _said_of_class(self, only: ClosedClass) -> list[str]:
        outside = len(self.states) - len(only.members)
        said = [f"{outside} of them are left for good sooner or later."] * (outside > 0)
        said.append(f"The entropy rate is {only.entropy_rate:.3f} bits a token.")
        if only.period > 1:
            said.append(
                f"The chain has period {only.period}: it goes round in turn and never settles, so there is no mixing "
                "time; the shares of time are still right as averages."
            )
        elif self.mixing_time is None:
            said.append("It does not mix within a million steps.")
        else:
            said.append(
                f"The mixing time is {self.mixing_time} step{'s' * (self.mixing_time != 1)} (to within 1/4 of the "
                f"stationary distribution, whatever the start); each step leaves {self.second_eigenvalue:.3f} of the "
                "slowest part."
            )
        return said

    def findings(self) -> list[Finding]:
        only = self.only_class
        if only is None:
            text = f"The chain has {len(self.classes)} closed classes; where it ends depends on where it starts."
            return [Finding(text, "long-run", 0.5, float(len(self.classes)), "classes", kind="size")]
        top = int(np.argmax(only.stationary))
        text = (
            f"In the long run the model is in state {self.names[top]} for {only.stationary[top]:.0%} of the time, and "
            f"each token holds {only.entropy_rate:.2f} bits."
        )
        return [Finding(text, "stationary", 0.5, only.entropy_rate, "bits a token", kind="size")]


@analysis(place=76, needs=("next token",), runs=True)
def markov_chain(
    model: HookedGPT,
    tokens: TextOrTokens | None = None,
    *,
    context: Annotated[int, "tokens in a state, at most the model's context"],
    temperature: Annotated[float, "divides the logits; 0 always takes the most probable token"] = 1.0,
) -> MarkovChainResult:
    """List a model's states and measure the chain they form.

    Args:
        tokens: a text whose transitions are counted for comparison; without one, none are.

    Raises NotApplicable for a model that predicts no next token, InputError for a context or temperature that cannot
    be, and for more than LIMIT states.
    """
    d_vocab = model.config.d_vocab
    if not 1 <= context <= model.config.n_ctx:
        raise InputError(f"context {context}", f"expected 1 to {model.config.n_ctx}, this model's context")
    if not (temperature >= 0 and np.isfinite(temperature)):
        raise InputError(f"temperature {temperature}", "expected 0 or more")
    if context > 1000 or d_vocab**context > LIMIT:
        raise InputError(
            f"{d_vocab:,} tokens and a context of {context} give {d_vocab:,} ^ {context} states",
            f"expected at most {LIMIT:,}",
            "this analysis is for very small models; a smaller --context has fewer states",
        )
    states = all_states(d_vocab, context)
    shorter = tuple(state for length in range(1, context) for state in all_states(d_vocab, length))
    transitions = next_token_probabilities(model, states, temperature)
    matrix = transition_matrix(transitions)
    classes = tuple(
        sorted((_closed(matrix, transitions, members) for members in closed_classes(matrix)), key=_largest_first)
    )
    one = classes[0] if len(classes) == 1 else None
    mixed = mixing_time(matrix, one.stationary) if one is not None and one.period == 1 else None
    times = _times(mixed)
    return MarkovChainResult(
        alphabet=alphabet(model),
        context=context,
        temperature=temperature,
        states=states,
        transitions=transitions,
        shorter=shorter,
        shorter_transitions=next_token_probabilities(model, shorter, temperature),
        entropy=entropy_bits(transitions),
        classes=classes,
        second_eigenvalue=second_eigenvalue(matrix),
        mixing_time=mixed,
        times=times,
        distance=np.array([]) if one is None else distances(matrix, one.stationary, times),
        seen=None if tokens is None else count_transitions(model, tokens, context),
    )


def all_states(d_vocab: int, context: int) -> tuple[tuple[int, ...], ...]:
    """Every sequence of `context` tokens, in counting order."""
    return tuple(itertools.product(range(d_vocab), repeat=context))


def alphabet(model: HookedGPT) -> Tokens:
    """[token] the vocabulary as labels; plain digits for a model of at most ten tokens without a tokenizer."""
    if model.tokenizer is None and model.config.d_vocab <= 10:
        return Tokens(map(str, range(model.config.d_vocab)))
    return token_labels(model, list(range(model.config.d_vocab)))


@torch.no_grad()
def next_token_probabilities(model: HookedGPT, states: Sequence[Sequence[int]], temperature: float = 1.0) -> np.ndarray:
    """[state token] the model's probabilities after each state, in float64; states of one length run together."""
    rows = []
    for _, group in itertools.groupby(states, key=len):
        logits = model(torch.tensor(list(group), device=model.device))[:, -1].double().cpu()
        if temperature == 0:
            rows.append(torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double())
        else:
            rows.append((logits / temperature).softmax(-1))
    return np.asarray(torch.cat(rows).numpy()) if rows else np.zeros((0, model.config.d_vocab))


def transition_matrix(transitions: np.ndarray) -> np.ndarray:
    """[state state] of [state token]: state i and token t lead to the last digits of i, then t."""
    n_states, d_vocab = transitions.shape
    matrix = np.zeros((n_states, n_states))
    start, token = np.divmod(np.arange(n_states * d_vocab), d_vocab)
    matrix[start, (start * d_vocab + token) % n_states] = transitions.ravel()
    return matrix


def edge_list(transitions: np.ndarray) -> tuple[tuple[int, int, float], ...]:
    """(from, to, probability) of every arrow that can be taken."""
    matrix = transition_matrix(transitions)
    return tuple((int(i), int(j), float(matrix[i, j])) for i, j in zip(*np.nonzero(matrix), strict=True))


def count_transitions(model: HookedGPT, tokens: TextOrTokens, context: int) -> np.ndarray:
    """[state token] how often each token follows each full state in the texts, which may be longer than the context."""
    d_vocab = model.config.d_vocab
    counts = np.zeros((d_vocab**context, d_vocab), dtype=int)
    for ids in _ids(model, tokens):
        for end in range(context, len(ids)):
            counts[state_index(ids[end - context : end], d_vocab), ids[end]] += 1
    return counts


def state_index(ids: Sequence[int], d_vocab: int) -> int:
    """The number that a state's token ids write in base d_vocab."""
    number = 0
    for token in ids:
        number = number * d_vocab + token
    return number


def _ids(model: HookedGPT, tokens: TextOrTokens) -> list[list[int]]:
    if isinstance(tokens, Batch):
        rows = [row[0].tolist() for row in sequences(model, tokens, longer=True)]
    elif isinstance(tokens, Tensor):
        rows = [row.tolist() for row in tokens.reshape(-1, tokens.shape[-1])]
    elif model.tokenizer is None:
        raise InputError("a text for a model without a tokenizer", "expected no text, or token ids [batch pos]")
    else:
        texts = [tokens] if isinstance(tokens, str) else list(tokens)
        rows = [model.tokenizer.encode(text) for text in texts]
        lost = [text for text, row in zip(texts, rows, strict=True) if model.tokenizer.to_string(row) != text]
        if lost:
            raise InputError(f"text {lost[0][:40]!r}", "expected only what the model's vocabulary can write")
    outside = [token for row in rows for token in row if not 0 <= token < model.config.d_vocab]
    if outside:
        raise InputError(f"token id {outside[0]}", f"expected 0 to {model.config.d_vocab - 1}, this model's vocabulary")
    return rows


def places(states: Sequence[Sequence[int]], d_vocab: int) -> tuple[tuple[float, float], ...]:
    """Where to draw each state, so that most arrows are short: x by how high its tokens are, y by how late they come.

    States whose tokens lie towards the ends are moved outwards, which gives the usual picture of the eight states of
    three bits: a hexagon with two states inside. States that would lie on each other are pushed apart.
    """
    late = np.arange(len(states[0])) - (len(states[0]) - 1) / 2
    outer = late**2 - np.mean(late**2)
    tokens = np.array(states, dtype=float) / max(1, d_vocab - 1)
    x = tokens.mean(1) - 0.07 * tokens @ outer / max(float(np.abs(outer).max()), 1e-9)
    y = tokens @ late / max(float(late[late > 0].sum()), 1.0)
    where = np.stack([2.4 * x, 0.8 * y], axis=1)
    least = 0.8 * math.sqrt(2.4 * 1.6 / len(states))
    for _ in range(200):
        between = where[:, None] - where[None, :]
        gap = np.linalg.norm(between, axis=-1)
        np.fill_diagonal(gap, np.inf)
        push = np.clip(least - gap, 0, None) / np.maximum(gap, 1e-9)
        where = where + 0.2 * np.einsum("ij,ijk->ik", push, between)
    return tuple((float(a), float(b)) for a, b in where)


def _closed(matrix: np.ndarray, transitions: np.ndarray, members: np.ndarray) -> ClosedClass:
    inside = matrix[np.ix_(members, members)]
    share = np.zeros(len(matrix))
    share[members] = stationary(inside)
    return ClosedClass(
        members=tuple(members.tolist()),
        period=period(inside),
        stationary=share,
        entropy_rate=float(share @ entropy_bits(transitions)),
    )


def _largest_first(part: ClosedClass) -> tuple[int, int]:
    return -len(part.members), part.members[0]


def _times(mixed: int | None) -> tuple[int, ...]:
    """Every step up to three mixing times where these are few, else powers of two."""
    last = 3 * mixed if mixed else 12
    if last <= 60:
        return tuple(range(max(last, 6) + 1))
    return (0, *(2**k for k in range(last.bit_length())))
