"""Baby GPT as a Markov chain (after Andrej Karpathy): two tokens, three of context, every state and every arrow (S4).

After Karpathy's notebook: a GPT with two tokens and a context of three has eight states and can be drawn whole. It is
trained here from the same first weights, and reaches the same probabilities.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import numpy as np
import pandas as pd
import torch

from analyses.architecture import architecture
from analyses.markov_chain import MarkovChainResult, markov_chain
from analyses.shared.chains import state_bits
from analyses.shared.inputs import token_labels
from analyses.shared.panels import Note, Panel, Table
from interp.models.config import PRESETS
from reports.studies._baby import BabyTraining, train_baby
from reports.studies._parts import Claim, Item, Range, Results, Study, at_least, at_most, exactly

SEQUENCE = "111101111011110"
CL100K = 100_277
"""Tokens of the encoding cl100k_base, which GPT-4 was released with."""


def baby(
    *,
    sequence: Annotated[str, "what it is trained on, one character a token"] = SEQUENCE,
    context: Annotated[int, "tokens it reads at once"] = 3,
    vocabulary: Annotated[str | None, "its tokens, one character each (default: those of the sequence)"] = None,
    steps: Annotated[int, "training steps, all examples in each"] = 50,
    seed: Annotated[int, "decides the first weights"] = 1337,
) -> Study:
    """The study: trains (under two seconds by default), then asks."""
    vocabulary = "".join(sorted(set(sequence))) if vocabulary is None else vocabulary
    training = train_baby(sequence, vocabulary, context, steps, seed)
    model = training.trained
    as_in_article = (sequence, context, vocabulary, steps, seed) == (SEQUENCE, 3, "01", 50, 1337)
    return Study(
        title=f"Baby GPT as a Markov chain: {len(vocabulary)} tokens, context {context}",
        after="GPT as a finite-state Markov chain, a notebook by Andrej Karpathy (2023)",
        model=model,
        texts=(token_labels(model, model.tokenizer.encode(sequence)),) if model.tokenizer else (),
        runs={
            "shape": lambda: architecture(model),
            "training": lambda: training,
            "before": lambda: training.before,
            "after": lambda: training.after,
            "greedy": lambda: markov_chain(model, sequence, context=context, temperature=0),
            "further": lambda: train_baby(sequence, vocabulary, context, min(4 * steps, 400), seed),
        },
        items=(
            _model_item(as_in_article),
            _states_item(len(vocabulary), context),
            _training_item(as_in_article, training),
            _size_item(),
            _beyond_item(training),
        ),
        facts={"first weights": "nanoGPT's draws", "examples": len(sequence) - context},
    )


def _model_item(as_in_article: bool) -> Item:
    ratio = 1 / math.sqrt(8)
    parameters = Claim(
        text="The model has 12,656 parameters.",
        value=lambda r: r["shape"].total,
        measured="parameters, counted on the model",
        holds=exactly(12656),
    )
    return Item(
        address="S4.1",
        title="A GPT small enough to see whole",
        words="Four blocks of four heads, sixteen numbers wide: the same parts as GPT-2, with nothing left "
        "out.\n\nLook at how little of it depends on the vocabulary: almost all parameters are in the blocks.\n\nThe "
        "first weights are drawn in the order in which nanoGPT draws them, so that the seed gives the same model: "
        "PyTorch's own initial values first (and thrown away), then every matrix from a normal distribution with "
        "standard deviation 0.02, then those that write into the residual stream again, with 0.02 divided by the "
        "square root of twice the number of blocks.",
        shows=("shape.parameters", "shape.operations"),
        claims=(
            *([parameters] if as_in_article else []),
            Claim(
                text="Linear layers have no biases; layer norms do.",
                value=lambda r: float(sum(name.split(".")[-1].startswith("b_") for name, _ in _parameters(r))),
                measured="bias vectors outside layer norms",
                holds=exactly(0),
            ),
            Claim(
                text="The head is the embedding, used again.",
                value=lambda r: float(r["shape"].by_component["unembedding"]),
                measured="parameters of the unembedding's own",
                holds=exactly(0),
            ),
            Claim(
                text="Matrices that write into the residual stream start smaller, by 1 / sqrt(2 x 4 blocks) = 0.354.",
                value=lambda r: residual_ratio(r["training"]),
                measured="their standard deviation before training, relative to the other matrices",
                holds=Range(0.95 * ratio, 1.05 * ratio),
            ),
            Claim(
                text="The activation is the exact GELU, x times the normal distribution function.",
                value=lambda r: gelu_error(r["training"]),
                measured="largest difference from it between -6 and 6",
                holds=at_most(1e-6),
            ),
        ),
    )


def _states_item(d_vocab: int, context: int) -> Item:
    full = d_vocab**context
    every = sum(d_vocab**n for n in range(1, context + 1))
    return Item(
        address="S4.2",
        title="Every state and every arrow",
        words="What the model has just read is its state, and it has nothing else to remember with. Reading one more "
        "token drops the oldest and goes to another state: the model is a finite-state Markov chain, and its weights "
        "only set the numbers on the arrows.\n\nCompare the two pictures: before training the arrows of a state are "
        "about equally likely; after it some have won. States of stronger colour are visited more often in the long "
        "run.",
        shows=(
            lambda r: r["before"].picture("graph-before", "Before training"),
            lambda r: r["after"].picture("graph-after", "After training"),
            "after.arrows",
        ),
        claims=(
            Claim(
                text=f"There are {full:,} states.",
                value=lambda r: len(r["after"].states),
                measured="states of a full context that the model was asked about",
                holds=exactly(full),
            ),
            Claim(
                text=f"Counting shorter ones there are {every:,}.",
                value=lambda r: len(r["after"].states) + len(r["after"].shorter),
                measured="states of every length",
                holds=exactly(every),
            ),
            Claim(
                text="Before training the arrows out of a state are all about equally likely.",
                value=lambda r: float(np.abs(r["before"].transitions - 1 / d_vocab).max()),
                measured=f"largest distance of a probability from 1/{d_vocab}",
                holds=at_most(0.1),
            ),
            Claim(
                text="The probabilities on a state's arrows sum to one.",
                value=lambda r: float(np.abs(r["after"].transitions.sum(1) - 1).max()),
                measured="largest distance of a state's sum from one",
                holds=at_most(1e-12),
            ),
        ),
        differs="Shorter states are listed although nothing was trained on them: every example has a full context, so "
        "their numbers are what the untaught positions happen to say.",
    )


def _training_item(as_in_article: bool, training: BabyTraining) -> Item:
    examples = len(training.sequence) - training.before.context
    own: tuple[Claim, ...] = ()
    if as_in_article:
        own = (
            _arrow("101", "011", 0.79, "it is certain in the sequence"),
            _arrow("111", "110", 0.55, "in the sequence it is one in two"),
            _arrow("111", "111", 0.45, "in the sequence it is one in two"),
            _arrow("000", "001", 0.73, "although 000 never occurs"),
        )
    return Item(
        address="S4.3",
        title=f"{training.settings.steps} steps on {shortened(training.sequence)}",
        words=f"{examples} examples, each some tokens and the one that follows, all of them in every step.\n\n"
        "Follow the curves: up to a point the model only learns how often each token occurs, whatever came before; "
        "then it begins to tell states apart. Arrows that are certain in the sequence are not certain yet, for "
        "training stops early. States that never occur change as well, because all states share the same weights.",
        shows=("training.strip", "training.arrows"),
        claims=(
            *own,
            Claim(
                text="An arrow that is certain in the sequence becomes likelier.",
                value=lambda r: certain_gain(r["training"]),
                measured="smallest gain in probability among such arrows",
                holds=at_least(1e-3),
            ),
            Claim(
                text="States that never occur are moved too, not left at even odds.",
                value=lambda r: unseen_shift(r["training"]),
                measured="largest change of a probability in a state that never occurs",
                holds=at_least(0.05),
            ),
        ),
        differs=""
        if as_in_article
        else "Another sequence, vocabulary, context, seed or number of steps was asked for, so the article's "
        "figures are not checked here.",
    )


def _arrow(state: str, following: str, printed: float, why: str) -> Claim:
    return Claim(
        text=f"From {state} the chain goes to {following} with {printed:.0%}; {why}.",
        value=lambda r: r["after"].probability(state, following),
        measured="probability after training",
        holds=Range(printed - 0.005, printed + 0.005),
    )


def _size_item() -> Item:
    return Item(
        address="S4.4",
        title="How large is the state of a real model?",
        words="A real GPT is the same kind of machine with more states than could ever be listed: the vocabulary to "
        "the power of the context. Naming one of them takes context times log2(vocabulary) bits.\n\nThe formula is the "
        "article's; the table does it for each model, with the article's figures and with the published sizes.\n\nA "
        "kilobyte is 1,000 bytes here; with 1,024 the figures are 2 % lower.",
        shows=(state_sizes(),),
        claims=(
            _size("GPT-2's state is 31,984 bits: 2,048 tokens of 50,257.", lambda r: round(state_bits(50257, 2048)),
                  "bits, rounded", exactly(31984)),
            _size("That is 3,998 kB.", lambda r: round(state_bits(50257, 2048) / 8000, 3), "kB, rounded to bytes",
                  exactly(3998), exactly(3.998), "It is 3,998 bytes, which is 4.0 kB."),
            _size("GPT-2 reads 2,048 tokens.", lambda r: PRESETS["gpt2"].n_ctx, "context of GPT-2, tokens",
                  exactly(2048), exactly(1024),
                  "GPT-2 reads 1,024: 15,992 bits, or 2.0 kB. 2,048 is what the GPT-3 of the paper reads."),
            _size("GPT-3 reads 4,096 tokens.", lambda r: PRESETS["gpt3"].n_ctx, "context of GPT-3, tokens",
                  exactly(4096), exactly(2048), "The paper's GPT-3 reads 2,048: 4.0 kB. Later versions read 4,096."),
            _size("Then GPT-3's state takes 8 kB.", lambda r: state_bits(50257, 4096) / 8000, "kB at 4,096 tokens",
                  Range(7.5, 8.5)),
            _size("GPT-4, with up to 32,768 tokens, takes about 64 kB.", lambda r: state_bits(50257, 32768) / 8000,
                  "kB with GPT-2's vocabulary", Range(63.5, 64.5)),
        ),
        differs="GPT-4 has a vocabulary of its own, about twice as large (100,277 tokens): one bit more a token, 68 "
        "kB. Its sizes are not in a paper; they are those of its public encoding and interface.",
    )  # fmt: skip


def _size(
    text: str,
    value: Callable[[Results], float],
    measured: str,
    holds: Range,
    corrected: Range | None = None,
    correction: str = "",
) -> Claim:
    return Claim(
        text=text, value=value, measured=measured, holds=holds, corrected=corrected, correction=correction,
        then="does not hold",
    )  # fmt: skip


def _beyond_item(training: BabyTraining) -> Item:
    return Item(
        address="S4.5",
        title="Where the chain settles, how fast, and how sure it is",
        words="A chain like this one forgets where it started. What is left is a share of time for each state, and a "
        "mean uncertainty of the next token: the entropy rate, the loss that the model would have on its own "
        "text.\n\nFollow the curves: at first only the share of each token is learned, then states part from each "
        "other; with more training the chain goes on towards the sequence's own.\n\nMixing time: the first step after "
        "which the distribution over states, whatever the start, is within 1/4 of the stationary one in total "
        "variation. Always taking the likeliest token (temperature 0) makes the chain deterministic: then it runs into "
        "a cycle and stays in it.",
        shows=(
            "after.stationary",
            "after.settling",
            "training.sharpening",
            "training.table",
            lambda r: _retitled(r["further"].sharpening(), "further", "The same, trained longer"),
            lambda r: Note(key="after", title="After training", text=r["after"].words()),
            lambda r: Note(key="greedy", title="At temperature 0", text=cycles(r["greedy"])),
        ),
        claims=(
            Claim(
                text="Training makes the chain surer of itself.",
                value=lambda r: _rate(r["after"]) - _rate(r["before"]),
                measured="change of the entropy rate, bits a token",
                holds=at_most(-1e-3),
            ),
            Claim(
                text="No model with this context can bring the loss below the uncertainty of the examples themselves.",
                value=lambda r: min(r["further"].losses.values()) - r["further"].least_loss,
                measured="lowest loss of the longer training above that, bits a token",
                holds=at_least(0),
            ),
            Claim(
                text="The stationary distribution stays as it is when the chain makes a step.",
                value=lambda r: stationary_error(r["after"]),
                measured="largest change of a state's share",
                holds=at_most(1e-12),
            ),
        ),
    )


# Measurements, each a function of results alone.


def _parameters(results: Results) -> list[tuple[str, object]]:
    return list(results["training"].untrained.named_parameters())


def residual_ratio(training: BabyTraining) -> float:
    """Standard deviation of the matrices that write into the residual stream over that of the other matrices."""
    model = training.untrained
    writing = np.concatenate([x.detach().numpy().ravel() for x in (model.W_O, model.W_out)])
    others = np.concatenate([x.detach().numpy().ravel() for x in (model.W_Q, model.W_K, model.W_V, model.W_in)])
    return float(writing.std() / others.std())


def gelu_error(training: BabyTraining) -> float:
    """How far the model's activation is from x Phi(x) computed with the error function."""
    x = np.linspace(-6, 6, 241)
    exact = np.array([v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x])
    mlp = training.untrained.blocks[0].mlp
    assert mlp is not None  # BabyGPT has one
    return float(np.abs(mlp.act(torch.from_numpy(x)).numpy() - exact).max())


def certain_gain(training: BabyTraining) -> float:
    """The smallest gain among arrows that are the only way on in the sequence; NaN where there are none."""
    counts = training.counts
    certain = (counts > 0) & (counts == counts.sum(1, keepdims=True))
    gains = (training.after.transitions - training.before.transitions)[certain]
    return float(gains.min()) if gains.size else math.nan


def unseen_shift(training: BabyTraining) -> float:
    """The largest change of a probability in states that never occur; NaN where every state does."""
    unseen = training.counts.sum(1) == 0
    changes = np.abs(training.after.transitions - training.before.transitions)[unseen]
    return float(changes.max()) if changes.size else math.nan


def stationary_error(chain: MarkovChainResult) -> float:
    """How much one step changes the distribution that should not change."""
    return max(float(np.abs(c.stationary @ chain.matrix - c.stationary).max()) for c in chain.classes)


def _rate(chain: MarkovChainResult) -> float:
    return chain.only_class.entropy_rate if chain.only_class is not None else math.nan


# Panels of this study alone.


def _retitled(panel: Panel, key: str, title: str) -> Panel:
    return replace(panel, key=key, title=title)


def state_sizes() -> Table:
    """Bits and bytes of one state, with the article's numbers and with the published ones."""
    rows = [
        ("baby", "as in the article", 2, 3),
        ("GPT-2", "as in the article", 50257, 2048),
        ("GPT-2", "as published", PRESETS["gpt2"].d_vocab, PRESETS["gpt2"].n_ctx),
        ("GPT-3", "as in the article", 50257, 4096),
        ("GPT-3", "as published", PRESETS["gpt3"].d_vocab, PRESETS["gpt3"].n_ctx),
        ("GPT-4", "as in the article", 50257, 32768),
        ("GPT-4", "with its own vocabulary", CL100K, 32768),
    ]
    frame = pd.DataFrame(rows, columns=["model", "sizes", "vocabulary", "context"])
    bits = [state_bits(v, n) for *_, v, n in rows]
    frame["bits"] = [round(b) for b in bits]
    frame["kilobytes"] = [b / 8000 for b in bits]
    frame["states"] = [f"{v**n:,}" if n * math.log10(v) < 6 else f"10^{int(n * math.log10(v)):,}" for *_, v, n in rows]
    return Table(
        key="sizes", title="The size of a state", frame=frame, caption="One state, written as compactly as can be."
    )


def cycles(chain: MarkovChainResult) -> str:
    """Where the deterministic chain ends up, in words."""
    texts = []
    for part in chain.classes[:4]:
        state, text = part.members[0], ""
        for _ in part.members:
            token = int(chain.transitions[state].argmax())
            text += chain.alphabet[token]
            state = int(chain.matrix[state].argmax())
        texts.append(f"{text} (period {part.period})")
    more = "" if len(chain.classes) <= 4 else f" and {len(chain.classes) - 4} more"
    ends = "one cycle" if len(texts) == 1 else f"{len(chain.classes)} cycles"
    return f"Taking the likeliest token each time the chain ends in {ends}, repeating: {', '.join(texts)}{more}."


def shortened(text: str, limit: int = 30) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
