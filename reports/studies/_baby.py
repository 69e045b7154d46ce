"""The baby GPT of S4: its shape, its training, and the chain at every tenth step."""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.markov_chain import (
    DRAWN,
    LIMIT,
    MarkovChainResult,
    all_states,
    markov_chain,
    next_token_probabilities,
    transition_matrix,
)
from analyses.shared.chains import closed_classes, entropy_bits, stationary
from analyses.shared.panels import Graph, Lines, Note, Panel, Result, Table
from interp.errors import InputError, check_seed
from interp.models.config import GPTConfig
from interp.models.gpt import HookedGPT
from interp.text.tokenizer import Tokenizer
from interp.training.gpt import build, next_token_loss, train
from interp.training.settings import Stage, TrainSettings

PICTURES, POINTS = 5, 50
"""Pictures of the chain after the first one, and points of each curve, evenly spaced in the training."""
SMALL = 64
"""Most states of a chain whose entropy rate is computed at every point of the curve."""


@dataclass(frozen=True, kw_only=True)
class BabyTraining(Result):
    """One training run, looked at every few steps."""

    settings: TrainSettings
    sequence: str
    untrained: HookedGPT
    trained: HookedGPT
    chains: Mapping[int, MarkovChainResult]
    """Step -> the chain after so many steps; the first is step 0."""
    losses: Mapping[int, float]
    """Step -> cross-entropy of the examples' next tokens, in bits; at more steps than `chains`."""
    transitions: Mapping[int, np.ndarray]
    """Step -> [state token], at the steps of `losses`."""

    @property
    def before(self) -> MarkovChainResult:
        return self.chains[0]

    @property
    def after(self) -> MarkovChainResult:
        return self.chains[max(self.chains)]

    @property
    def counts(self) -> np.ndarray:
        """[state token] how often each arrow occurs in the sequence."""
        assert self.before.seen is not None
        return self.before.seen

    @cached_property
    def data_entropy_rate(self) -> float:
        """Entropy rate, in bits a token, of the chain whose probabilities are the sequence's own frequencies.

        No model that sees only one state at a time can be more certain and right. NaN where the sequence ends in a
        state from which it never shows a way on, or falls into several closed classes.
        """
        seen = self.counts.sum(1) > 0
        matrix = transition_matrix(self.counts)
        if not seen.any() or matrix[:, ~seen].any():
            return float("nan")
        matrix = matrix[np.ix_(seen, seen)] / self.counts[seen].sum(1, keepdims=True)
        return chain_rate(matrix)

    @property
    def least_loss(self) -> float:
        """The lowest loss that any model with this context can have on the examples, in bits: their own uncertainty."""
        totals = self.counts.sum(1)
        shares = self.counts / np.maximum(totals, 1)[:, None]
        return float(totals @ entropy_bits(shares) / totals.sum())

    def to_dataframe(self) -> pd.DataFrame:
        """One row a picture: step, loss, entropy rate, uncertainty of seen and unseen states, mixing time."""
        seen = self.counts.sum(1) > 0
        rows = [
            {
                "step": step,
                "loss": self.losses[step],
                "entropy rate": chain.only_class.entropy_rate if chain.only_class else np.nan,
                "seen states": _mean(chain.entropy[seen]),
                "other states": _mean(chain.entropy[~seen]),
                "time in seen": float(chain.only_class.stationary[seen].sum()) if chain.only_class else np.nan,
                "mixing time": np.nan if chain.mixing_time is None else float(chain.mixing_time),
            }
            for step, chain in self.chains.items()
        ]
        return pd.DataFrame(rows)

    def panels(self) -> list[Panel]:
        return [self.strip(), self.sharpening(), self._arrows(), self._table()]

    def strip(self) -> Panel:
        """The chain at each step as small pictures, where it is small enough to draw."""
        if len(self.before.states) > DRAWN:
            text = f"{len(self.before.states)} states are too many to draw; the numbers are in the table of all arrows."
            return Note(key="strip", title="The chain during training", text=text)
        last = self.after.graph()
        ends = [(start, stop) for start, stop, _ in last.edges]
        return Graph(
            key="strip",
            title="The chain during training",
            caption=f"After {', '.join(map(str, self.chains))} steps. States of stronger colour are visited more often "
            "in the long run; wider arrows are likelier. Numbers stand on arrows of at least one half.",
            nodes=last.nodes,
            columns=last.columns,
            edges=last.edges,
            unit=last.unit,
            places=last.places,
            values=last.values,
            frames={
                f"step {step}" if step else "before training": (
                    np.array([chain.matrix[end] for end in ends]),
                    chain.time_share,
                )
                for step, chain in self.chains.items()
            },
        )

    def sharpening(self) -> Lines:
        seen = self.counts.sum(1) > 0
        entropies = {step: entropy_bits(transitions) for step, transitions in self.transitions.items()}
        series = {
            "loss on the examples": np.array(list(self.losses.values())),
            "states of the sequence": np.array([_mean(bits[seen]) for bits in entropies.values()]),
            "states never seen": np.array([_mean(bits[~seen]) for bits in entropies.values()]),
        }
        if len(seen) <= SMALL:
            rates = [chain_rate(transition_matrix(transitions)) for transitions in self.transitions.values()]
            series["entropy rate of the chain"] = np.array(rates)
        series["least possible loss"] = np.full(len(self.losses), self.least_loss)
        series["entropy rate of the sequence"] = np.full(len(self.losses), self.data_entropy_rate)
        return Lines(
            key="sharpening",
            title="The chain sharpens",
            caption="Uncertainty about the next token, in bits; for groups of states the plain mean. The last two are "
            "what a perfect learner with this context would reach: the loss on the examples, and the rate of its "
            "chain.",
            x=np.array(list(self.losses), dtype=float),
            series={name: values for name, values in series.items() if np.isfinite(values).any()},
            x_axis="training step",
            y_axis="bits a token",
        )

    def _arrows(self) -> Lines:
        """The probability of the last token after each state, or after the most frequent ones."""
        order = np.argsort(-self.counts.sum(1), kind="stable")[:8]
        label = self.before.alphabet[-1]
        return Lines(
            key="arrows",
            title=f"The probability of {label} after each state",
            caption="One curve a state, those that occur most often in the sequence first. Curves that lie on each "
            "other mean that the model does not tell these states apart yet.",
            x=np.array(list(self.losses), dtype=float),
            series={self.before.names[i]: np.array([t[i, -1] for t in self.transitions.values()]) for i in order},
            x_axis="training step",
            y_axis="probability",
        )

    def _table(self) -> Table:
        return Table(
            key="table",
            title="Through training, in numbers",
            caption="Loss, entropy rate and the mean uncertainty of seen and other states in bits a token; mixing time "
            "in steps; time in seen: the share of time spent in states of the sequence. A dash: it does not exist "
            "there.",
            frame=self.to_dataframe(),
        )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def chain_rate(matrix: np.ndarray) -> float:
    """Entropy rate of a chain [state state] in bits a step; NaN with several closed classes."""
    first, *more = closed_classes(matrix)
    inside = matrix[np.ix_(first, first)]
    return float("nan") if more else float(stationary(inside) @ entropy_bits(inside))


def baby_settings(*, d_vocab: int, context: int, examples: int, steps: int, seed: int) -> TrainSettings:
    """The article's: four layers of four heads, width 16, AdamW on every parameter alike, nanoGPT's initial weights."""
    return TrainSettings(
        config=GPTConfig(
            n_layers=4, n_heads=4, d_model=16, n_ctx=context, d_vocab=d_vocab, bias=False, tied=True, act_fn="gelu"
        ),
        stages=(Stage(steps=steps, batch=examples, length=context),),
        optimiser="adamw",
        lr=1e-3,
        betas=(0.9, 0.999),
        weight_decay=0.1,
        decay_all=True,
        warm_up=0,
        nanogpt_draws=True,
        seed=seed,
        dtype="float32",
    )


def examples_of(ids: list[int], context: int) -> tuple[Tensor, Tensor]:
    """Every window of the sequence with the token after it; only that last target counts (the others are -1)."""
    windows = torch.tensor([ids[start : start + context] for start in range(len(ids) - context)])
    targets = torch.full_like(windows, -1)
    targets[:, -1] = torch.tensor(ids[context:])
    return windows, targets


def train_baby(sequence: str, vocabulary: str, context: int, steps: int, seed: int) -> BabyTraining:
    """Train on every window of the sequence at once, and look at the chain a few times.

    Raises InputError for options that cannot be.
    """
    check(sequence, vocabulary, context, steps, seed)
    tokenizer = Tokenizer.of_characters(vocabulary)
    batch = examples_of(tokenizer.encode(sequence), context)
    settings = baby_settings(d_vocab=len(vocabulary), context=context, examples=len(batch[0]), steps=steps, seed=seed)
    every, picture = max(1, steps // POINTS), max(1, steps // PICTURES)
    pictures = {0, *range(picture, steps, picture), steps}
    looks = iter(sorted({*range(0, steps, every), steps, *pictures}))
    chains: dict[int, MarkovChainResult] = {}
    losses: dict[int, float] = {}
    transitions: dict[int, np.ndarray] = {}

    def look(model: HookedGPT) -> dict[str, float]:
        model.tokenizer = tokenizer
        step = next(looks)
        if step in pictures:
            chains[step] = markov_chain(model, sequence, context=context)
        transitions[step] = next_token_probabilities(model, all_states(len(vocabulary), context))
        with torch.no_grad():
            losses[step] = float(next_token_loss(model, *batch)) / len(batch[0]) / math.log(2)
        return {}

    untrained = build(settings)
    look(untrained)
    with tempfile.TemporaryDirectory() as folder:
        trained = train(
            settings, out=Path(folder), batches=lambda step: batch, evaluate=look, evaluate_every=every, device="cpu"
        )
    trained.source = f"baby GPT, seed {seed}, {steps} steps"
    trained.weight_files = ()  # they are gone
    return BabyTraining(
        settings=settings,
        sequence=sequence,
        untrained=untrained,
        trained=trained,
        chains=chains,
        losses=losses,
        transitions=transitions,
    )


def check(sequence: str, vocabulary: str, context: int, steps: int, seed: int) -> None:
    """Raises InputError for what cannot be trained on, or has more states than can be listed."""
    check_seed(seed)
    if steps < 1:
        raise InputError(f"steps {steps}", "expected at least 1")
    if context < 1:
        raise InputError(f"context {context}", "expected at least 1")
    missing = sorted(set(sequence) - set(vocabulary))
    if missing:
        raise InputError(
            f"the sequence holds {missing[0]!r}", f"expected only characters of the vocabulary {vocabulary!r}"
        )
    if len(sequence) <= context:
        raise InputError(
            f"a sequence of {len(sequence)} characters",
            f"expected more than {context}, the context",
            "give a longer --sequence or a smaller --context",
        )
    if len(vocabulary) ** min(context, 1000) > LIMIT:
        raise InputError(
            f"{len(vocabulary)} characters and a context of {context} give more than {LIMIT:,} states",
            "expected fewer, so that all can be listed",
            "give a smaller --context or --vocabulary",
        )
