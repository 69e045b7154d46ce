"""How much of the answer each edge carries: exactly, by patching it alone, or to first order, by gradients.

A score is what the metric loses when the edge is corrupted and all else stays clean: positive where the edge helps the
answer. So are the scores of files in the MIB layout.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.circuitry.graph import Wiring
from analyses.shared.clean_corrupted import Measure, Pairs
from analyses.shared.gradients import Points, scores
from analyses.shared.metrics import CustomReadout, Readout
from analyses.shared.paths import Paths
from interp.models.gpt import HookedGPT
from interp.progress import say, tell
from interp.sweep import Variant, sweep

HELD = 256_000_000
"""Bytes of receivers' values kept at once."""
TRIED = 8
"""Runs that are timed before the rest."""


def value_of(readout: Readout | CustomReadout, logits: Tensor) -> Tensor:
    """The metric [batch] of the logits that it reads [batch read vocab]."""
    (found,) = readout(logits).values()
    return found


@dataclass(frozen=True, eq=False)
class Group:
    """Pairs of texts of one length, which run together."""

    texts: list[int]
    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    readout: Readout | CustomReadout
    paths: Paths


def groups_of(model: HookedGPT, pairs: Pairs, measured: Measure) -> list[Group]:
    return [
        Group(texts, clean, corrupted, readout, Paths(model, clean, corrupted))
        for (texts, clean, corrupted), readout in zip(pairs.paired(), measured.readouts, strict=True)
    ]


def estimated(
    model: HookedGPT, wiring: Wiring, groups: Sequence[Group], **how: Any
) -> tuple[Float[np.ndarray, "text edge"], Float[np.ndarray, "text node"]]:
    """First-order scores of edges and of nodes, of all groups; options as `estimated_of`."""
    n_texts = sum(len(group.texts) for group in groups)
    edges, nodes = np.zeros((n_texts, len(wiring))), np.zeros((n_texts, len(wiring.nodes)))
    for group in groups:
        edges[group.texts], nodes[group.texts] = estimated_of(model, wiring, group, **how)
    return edges, nodes


def estimated_of(
    model: HookedGPT, wiring: Wiring, group: Group, *, steps: int, points: Points, activations: bool,
    apart: bool = False,
) -> tuple[Float[np.ndarray, "text edge"], Float[np.ndarray, "text node"]]:  # fmt: skip
    """EAP with one step, EAP-IG with more (see `gradients.scores`); `apart`: edges by position, [text edge pos]."""
    node, edge = scores(
        model, group.paths, group.clean, partial(value_of, group.readout), wiring.nodes, steps=steps, points=points,
        along="activations" if activations else "inputs", read=group.readout.read, vocab=group.readout.vocab,
        apart=apart,
    )  # fmt: skip
    return -edge[:, wiring.senders, wiring.targets], -node


@torch.no_grad()
def exact_edges(
    model: HookedGPT,
    wiring: Wiring,
    groups: Sequence[Group],
    clean: Float[np.ndarray, " text"],
    chosen: Bool[np.ndarray, " edge"],
    *,
    memory: int | None = None,
) -> Float[np.ndarray, "text edge"]:
    """True scores of the chosen edges, each corrupted alone; NaN for the others. `clean`: the metric of each text."""
    order = sorted(np.flatnonzero(chosen).tolist(), key=lambda edge: (wiring.targets[edge], wiring.senders[edge]))

    def variants(group: Group, edges: Sequence[int]) -> list[Variant]:
        ends = [(wiring.nodes[wiring.senders[e]], wiring.receivers[wiring.targets[e]]) for e in edges]
        return list(group.paths.along(ends))

    return _swept(model, groups, clean, order, len(wiring), variants, memory)


@torch.no_grad()
def exact_nodes(
    model: HookedGPT,
    wiring: Wiring,
    groups: Sequence[Group],
    clean: Float[np.ndarray, " text"],
    *,
    memory: int | None = None,
) -> Float[np.ndarray, "text node"]:
    """True scores of all nodes: what the metric loses when a node's output is corrupted, all that follows computed."""

    def variants(group: Group, nodes: Sequence[int]) -> list[Variant]:
        length = group.clean.shape[1]
        later = range(group.paths.first, length) if group.paths.first else None
        return [wiring.nodes[n].replace(group.paths.source.__getitem__, later) for n in nodes]

    return _swept(model, groups, clean, range(len(wiring.nodes)), len(wiring.nodes), variants, memory)


def _swept(
    model: HookedGPT,
    groups: Sequence[Group],
    clean: np.ndarray,
    order: Sequence[int],
    size: int,
    variants: Callable[[Group, Sequence[int]], list[Variant]],
    memory: int | None,
) -> np.ndarray:
    """[text size] what the metric loses under each variant, made a chunk at a time; NaN where there is none."""
    config, out = model.config, np.full((len(clean), size), np.nan)
    total, done = len(order) * len(groups), 0
    if len(order) > 4 * TRIED:
        say(lambda: _plan(model, groups, len(order), list(order[:: len(order) // TRIED]), variants))
    for group in groups:
        each = group.clean.numel() * max(config.d_model, config.d_head) * model.dtype.itemsize
        step = max(1, HELD // each)
        for start in range(0, len(order), step):
            some = list(order[start : start + step])
            (found,) = sweep(
                model, group.clean, variants(group, some), group.readout, read=group.readout.read,
                vocab=group.readout.vocab, memory=memory,
                progress=lambda n, of, before=done: tell(before + n, total),  # type: ignore[misc]
            ).values()  # fmt: skip
            out[np.ix_(group.texts, some)] = clean[group.texts][:, None] - found.double().cpu().numpy().T
            done += len(some)
    return out


def _plan(
    model: HookedGPT,
    groups: Sequence[Group],
    n: int,
    tried: list[int],
    variants: Callable[[Group, Sequence[int]], list[Variant]],
) -> str:
    """How many runs there will be, and how long they may take, by a few of them."""
    group, start = groups[0], time.perf_counter()
    some = variants(group, tried)
    sweep(model, group.clean, some, group.readout, read=group.readout.read, vocab=group.readout.vocab)
    texts = sum(len(one.texts) for one in groups)
    seconds = (time.perf_counter() - start) / len(tried) * n * texts / len(group.texts)
    kept = min(HELD, n * group.clean.numel() * model.config.d_model * model.dtype.itemsize)
    return f"{n:,} exact effects on {texts} prompts: {n * texts:,} runs, {kept / 1e6:,.0f} MB, about {seconds:,.0f} s"
