"""Where in a sample of text single neurons are most active: top contexts, as in Bills et al. 2023, "Language models can
explain neurons in language models", by the activations alone.

The sample is cut into windows; of each document the first ones. The first token of a window is left out: there,
activations dwarf all others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.shared.inputs import token_labels
from analyses.shared.panels import Tokens
from interp.hooks import HookPoint
from interp.models.gpt import HookedGPT

WINDOW = 128
"""Tokens of a window, the beginning-of-text token not counted."""
FEWEST, MOST = 2048, 16_384
"""Tokens that are read."""
WORK = 2e11
"""Weights times tokens, between these two: a few seconds."""
AT_ONCE = 1 << 24
"""Activations of one layer that are held at a time."""
ACTIVE = 0.1
"""A neuron counts as active from this share of its largest activation on."""
BEFORE, AFTER = 8, 4
"""Tokens shown on either side."""


@dataclass(frozen=True)
class Context:
    """The largest activation of a neuron in one window of the sample."""

    tokens: Tokens
    """Up to BEFORE tokens, the one with the largest activation, up to AFTER."""
    peak: int
    """Which of them it is."""
    activation: float
    """There; the largest in size, of gated neurons also below zero."""


@dataclass(frozen=True)
class Contexts:
    """Of several neurons."""

    top: tuple[tuple[Context, ...], ...]
    """[neuron] of different windows, the largest first."""
    active: np.ndarray
    """[neuron] share of the tokens at which the activation is at least ACTIVE of its largest, in size."""
    n_tokens: int
    n_texts: int

    def to_dataframe(self, names: Sequence[str]) -> pd.DataFrame:
        """One row a context: neuron, activation, before, token, after."""
        rows = [(name, one) for name, those in zip(names, self.top, strict=True) for one in those]
        return pd.DataFrame({
            "neuron": [name for name, _ in rows], "activation": [one.activation for _, one in rows],
            "before": [_line(one.tokens[: one.peak]) for _, one in rows],
            "token": [one.tokens[one.peak] for _, one in rows],
            "after": [_line(one.tokens[one.peak + 1 :]) for _, one in rows],
        })  # fmt: skip


@torch.no_grad()
def top_contexts(
    model: HookedGPT, places: Sequence[tuple[int, int]], documents: Sequence[str], count: int
) -> Contexts | None:
    """The `count` windows of some documents in which each neuron (layer, number) is most active.

    No layer after the last of these neurons runs. None for a model without a tokenizer, or documents that have no
    token it knows.
    """
    windows = [] if model.tokenizer is None else _windows(model, documents, 1 + max(layer for layer, _ in places))
    if not windows:
        return None
    found: list[np.ndarray] = [np.zeros(0)] * len(windows)  # [window] of [neuron pos - 1]
    for batch in _batches([len(ids) for _, ids in windows], AT_ONCE // model.config.d_mlp):
        values = _activations(model, torch.tensor([windows[i][1] for i in batch], device=model.device), places)
        for i, own in zip(batch, values[:, :, 1:], strict=True):
            found[i] = own
    sizes = np.stack([np.abs(own).max(1) for own in found])
    order = np.argsort(-sizes, axis=0, kind="stable")[:count]
    total, limit = sum(own.shape[1] for own in found), ACTIVE * sizes.max(0)[:, None]
    return Contexts(
        top=tuple(
            tuple(_context(model, windows[i][1], found[i][neuron]) for i in order[:, neuron])
            for neuron in range(len(places))
        ),
        active=np.sum([((np.abs(own) >= limit) & (own != 0)).sum(1) for own in found], axis=0) / total,
        n_tokens=total, n_texts=len({text for text, _ in windows}),
    )  # fmt: skip


def _windows(model: HookedGPT, documents: Sequence[str], layers: int) -> list[tuple[int, list[int]]]:
    """The number of the document, and token ids: as many from each, until so many layers have enough to do."""
    tokenizer = model._tokenizer()
    bos = [] if tokenizer.bos is None else [tokenizer.bos]
    size = min(WINDOW, model.config.n_ctx - len(bos))
    weights = sum(weight.numel() for block in model.blocks[:layers] for weight in block.parameters())
    most = int(np.clip(WORK / weights, FEWEST, MOST)) // size
    chosen = range(0, len(documents), max(1, -(-len(documents) // most)))
    own = size * max(1, most // max(1, len(chosen)))
    found = []
    for text in chosen:
        ids = tokenizer.encode(documents[text][: 16 * own])[:own]
        found += [(text, [*bos, *ids[start : start + size]]) for start in range(0, len(ids), size)]
    return [(text, ids) for text, ids in found if len(ids) > 1 and max(ids) < model.config.d_vocab]


def _batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers of windows that are equally long, about `most` tokens at a time."""
    for length in dict.fromkeys(lengths):
        alike = [i for i, one in enumerate(lengths) if one == length]
        step = max(1, most // length)
        yield from (alike[start : start + step] for start in range(0, len(alike), step))


def _activations(
    model: HookedGPT, ids: Int[Tensor, "batch pos"], places: Sequence[tuple[int, int]]
) -> Float[np.ndarray, "batch neuron pos"]:
    held: dict[tuple[int, int], np.ndarray] = {}

    def read(x: Tensor, hook: HookPoint) -> None:
        held.update({(layer, n): x[..., n].float().cpu().numpy() for layer, n in places if layer == hook.layer})

    layers = {layer for layer, _ in places}
    with model.hooks([([f"blocks.{layer}.mlp.hook_post" for layer in sorted(layers)], read)], reads_only=True):
        model.run_to(ids, max(layers))
    return np.stack([held[place] for place in places], axis=1)


def _context(model: HookedGPT, ids: Sequence[int], activations: Float[np.ndarray, " pos"]) -> Context:
    """Around the largest of the activations, which are those of all ids but the first."""
    at = 1 + int(np.abs(activations).argmax())
    start = max(int(model._tokenizer().bos == ids[0]), at - BEFORE)
    return Context(token_labels(model, ids[start : at + AFTER + 1]), at - start, float(activations[at - 1]))


def _line(tokens: Sequence[str]) -> str:
    return "".join(tokens).replace("\n", "↵").replace("\t", "⇥")
