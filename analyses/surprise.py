"""How well the model does on a text: its loss at every token, beside what guessing without a model costs.

Question: does this model know this kind of text at all, and which of its tokens come as a surprise?

Method: the surprise of a token is minus the natural logarithm of the probability that the model gave it, in nats, after
all tokens before it; their mean is the loss, and its exponential the perplexity: the number of equally likely tokens
among which the model was as undecided. Two guesses without a model stand beside it. The uniform guess gives every token
of the vocabulary the same chance. The guess by frequency gives each token its share in a sample of English prose (175
kB of encyclopaedia articles, cut by this model's own tokenizer, one added to each count), whatever stands before it.

A model whose loss is not clearly below the uniform guess (paired t-test over the tokens, one-sided, 1 %, and at least a
tenth of a nat) looks untrained: then nothing that other analyses find in it was learned from text like this.

What the numbers do not show: whether the text was in the training data; a text seen before surprises less. Losses of
models with different vocabularies cannot be compared token by token.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.shared.capabilities import analysis, once_a_model
from analyses.shared.inputs import TextOrTokens, sequences, text_names, token_labels
from analyses.shared.panels import WHOLE, Finding, Headline, Panel, Result, Table, Tokens, TokenStrip
from analyses.shared.statistics import paired_t_p_value
from interp.models.gpt import HookedGPT
from interp.models.kernels import wide
from interp.text.documents import read_documents
from interp.text.tokenizer import Tokenizer
from interp.training.evaluation import SAMPLE

LEVEL, LEAST = 0.01, 0.1
"""Chance of error, and nats a token, by which a model must beat the uniform guess to look trained."""
SHOWN = 5
"""Candidates for the next token."""


@dataclass(frozen=True, kw_only=True)
class SurpriseResult(Result):
    """The loss of every token of every text."""

    tokens: tuple[Tokens, ...]
    """[text] the tokens of each, the first included, which nothing predicts."""
    names: tuple[str, ...]
    """[text] a short name of each."""
    losses: tuple[np.ndarray, ...]
    """[text] of [pos - 1], nats: of every token but the first."""
    by_frequency: tuple[np.ndarray, ...]
    """The same for the guess by frequency; empty for a model without a tokenizer."""
    uniform: float
    """Nats: of the uniform guess, whatever the token."""
    following: Tokens
    """[candidate] the likeliest tokens after the first text."""
    probabilities: np.ndarray
    """[candidate]"""
    about: tuple[tuple[str, str], ...]
    """What the model is: names and values."""

    def to_dataframe(self) -> pd.DataFrame:
        """One row a predicted token: text, position, token, loss, by_frequency (nats; NaN without a tokenizer)."""
        frames = []
        for text, (tokens, loss) in enumerate(zip(self.tokens, self.losses, strict=True)):
            guess = self.by_frequency[text] if self.by_frequency else np.full(len(loss), np.nan)
            columns = {"text": text, "position": np.arange(1, len(tokens)), "token": tokens[1:]}
            frames.append(pd.DataFrame(columns | {"loss": loss, "by_frequency": guess}))
        return pd.concat(frames, ignore_index=True)

    def facts(self) -> dict[str, float]:
        return {"loss": self.loss, "perplexity": self.perplexity, "uniform": self.uniform, "by_frequency": self.guess}

    @property
    def loss(self) -> float:
        """Mean over all predicted tokens, nats."""
        return float(np.concatenate(self.losses).mean())

    @property
    def guess(self) -> float:
        """The same of the guess by frequency; NaN without a tokenizer."""
        return float(np.concatenate(self.by_frequency).mean()) if self.by_frequency else float("nan")

    @property
    def perplexity(self) -> float:
        """Equally likely tokens as undecided as the model was, e to the loss."""
        return float(np.exp(min(self.loss, 700.0)))

    @property
    def untrained(self) -> bool:
        """Whether the loss is not clearly below the uniform guess."""
        gain = self.uniform - np.concatenate(self.losses)
        if gain.mean() < LEAST:
            return True
        return len(gain) > 1 and bool(gain.std() > 0) and float(paired_t_p_value(gain, greater=True)) > LEVEL

    def headline(self) -> Headline:
        guesses = [("by word frequency alone", self.guess), ("by a uniform guess", self.uniform)]
        measured = [
            ("loss", f"{self.loss:.2f} nats a token"),
            ("perplexity", f"{self.perplexity:,.1f}" if self.perplexity < 1e6 else f"{self.perplexity:.2g}"),
            *((name, f"{value:.2f} nats") for name, value in guesses if np.isfinite(value)),
        ]
        return Headline(
            facts=(*self.about, *measured), strips=tuple(map(self._strip, range(len(self.tokens)))),
            following=self.following, probabilities=self.probabilities,
        )  # fmt: skip

    def _strip(self, text: int) -> TokenStrip:
        several = len(self.tokens) > 1
        return TokenStrip(
            f"strip-{text}" if several else "strip", f"Surprise, {self.names[text]}" if several else "Surprise",
            f"Loss {self.losses[text].mean():.2f} nats a token; the first token is not predicted.",
            tokens=self.tokens[text], values=np.concatenate([[np.nan], self.losses[text]]), unit="nats",
        )  # fmt: skip

    def panels(self) -> list[Panel]:
        frame = pd.DataFrame({"text": self.names, "tokens": [len(loss) for loss in self.losses]})
        frame["loss"] = [float(loss.mean()) for loss in self.losses]
        frame["perplexity"] = np.exp(np.minimum(frame["loss"], 700.0))
        if self.by_frequency:
            frame["by frequency"] = [float(loss.mean()) for loss in self.by_frequency]
        frame["uniform"] = self.uniform
        caption = "Mean over the predicted tokens of each text; the two last columns are guesses without a model."
        units = dict.fromkeys(("loss", "by frequency", "uniform"), "nats a token")
        table = Table("loss", "Loss", caption, frame=frame, units=units)
        return [table, *map(self._strip, range(len(self.tokens)))]

    def findings(self) -> list[Finding]:
        beside = [f"word frequency alone costs {self.guess:.2f}"] if self.by_frequency else []
        beside.append(f"a uniform guess costs {self.uniform:.2f}")
        measured = f"{self.loss:.2f} nats a token on this text, where {' and '.join(beside)}."
        if self.untrained:
            said = f"looks untrained, {self.loss:.2f} nats a token where {beside[-1]}"
            return [self._finding(f"The model looks untrained: {measured}", "warning", 1.0, said)]
        said = f"loss {self.loss:.2f} nats a token"
        if self.by_frequency and self.loss >= self.guess:
            text = f"The model is no better than word frequencies: {measured}"
            return [self._finding(text, "warning", 0.95, f"no better than word frequencies, {said}")]
        return [self._finding(f"Loss {measured}", "size", 0.3, said)]

    def _finding(self, text: str, kind: Literal["warning", "size"], weight: float, short: str) -> Finding:
        return Finding(text, "loss", weight, self.loss, "nats a token", kind=kind, about=WHOLE, short=short)


@analysis(place=5, needs=("next token",), runs=True)
@torch.no_grad()
def surprise(model: HookedGPT, tokens: TextOrTokens) -> SurpriseResult:
    """The loss of every token, beside guesses without a model.

    Args:
        tokens: a text, several, or token ids [batch pos]; two tokens at least.

    Raises InputError for what `sequences` refuses.
    """
    rows = sequences(model, tokens, at_least=2)
    logits = [wide(model(row)[0]) for row in rows]
    losses = tuple(_losses(x[:-1], row[0, 1:]) for x, row in zip(logits, rows, strict=True))
    best = logits[0][-1].softmax(-1).topk(min(SHOWN, logits[0].shape[-1]))
    guesses: tuple[np.ndarray, ...] = ()
    if (tokenizer := model.tokenizer) is not None:
        counted = once_a_model(model, "frequencies", lambda: _frequencies(tokenizer, model.config.d_vocab))
        guesses = tuple(-counted[row[0, 1:].cpu().numpy()] for row in rows)
    return SurpriseResult(
        tokens=tuple(token_labels(model, row) for row in rows), names=text_names(model, rows), losses=losses,
        by_frequency=guesses, uniform=float(np.log(logits[0].shape[-1])), following=token_labels(model, best.indices),
        probabilities=best.values.cpu().numpy(), about=_about(model),
    )  # fmt: skip


def _losses(logits: Float[Tensor, "pos d_vocab"], targets: Tensor) -> np.ndarray:
    found: np.ndarray = torch.nn.functional.cross_entropy(logits, targets, reduction="none").double().cpu().numpy()
    return found


@lru_cache(4)
def _frequencies(tokenizer: Tokenizer, d_vocab: int) -> Float[np.ndarray, " d_vocab"]:
    """Log-probability of each token by its count in the sample, one added."""
    ids = [i for text in read_documents(SAMPLE) for i in tokenizer.encode(text)]
    counts = 1.0 + np.bincount([i for i in ids if i < d_vocab], minlength=d_vocab)
    logs: Float[np.ndarray, " d_vocab"] = np.log(counts / counts.sum())
    return logs


def _about(model: HookedGPT) -> tuple[tuple[str, str], ...]:
    c = model.config
    size = sum(parameter.numel() for parameter in model.parameters())
    named = [(1e9, "billion"), (1e6, "million")]
    said = next((f"{size / unit:.3g} {name}" for unit, name in named if size >= unit), f"{size:,}")
    shape = f"{c.n_layers} layers of {c.n_heads} heads, width {c.d_model:,}"
    return (("shape", shape), ("parameters", said), ("vocabulary", f"{c.d_vocab:,} tokens"))
