"""Which heads write what later heads read as their query, key or value, from the weights alone.

Question: attention heads in different layers can work as one: a later head's query, key or value is computed from what
an earlier head wrote. Which pairs of heads are built to do so?

Method: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits". For an earlier head with output circuit
W_OV and a later head, the Frobenius norm of the product over the product of the norms: W_OV W_QK for Q, W_OV W_QK^T for
K, W_OV W_OV' for V (right-multiplied; the norms' gains folded in, the mean direction taken out where layer norm removes
it). The norms are those of d_head x d_head cores, so no d_model x d_model matrix is formed. The baseline is what the
same two matrices give when one of them is turned at random: their singular values stay, their directions mean nothing
to each other. Its mean is near 1 / sqrt(d_model); the spread comes from random rotations. The best
of all pairs is held against the score that the best of as many pairs exceeds in 5 % of cases when their heads know
nothing of each other: the squared score of a pair under random rotation is close to a shifted gamma law, whose mean,
variance and skewness are known exactly, and the chances of all pairs are put together as if they were independent
(Sidak 1967), which they nearly are. Under rotary positions W_QK is that of a key `distance` positions before the query,
0 for the query itself.

What it shows: that the weights of two heads match. Not that any text uses the match: the later head also reads the
embeddings, all other heads and the MLPs, and parts that every head shares (such as a few directions of large norm)
raise all scores alike. Biases, scales of norms and caps are left out. Where norms follow sums (a BERT, a translation
model), what a head wrote goes through the gains of all that lie between the two heads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
import scipy
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.shared.by_stack import by_stack
from analyses.shared.capabilities import analysis
from analyses.shared.claims import SURE
from analyses.shared.inputs import TextOrTokens
from analyses.shared.panels import Finding, Graph, Matrix, Note, Panel, Result, Table
from analyses.shared.spectra import one_thread
from analyses.shared.stacks import Model, Stack, attentions
from analyses.shared.statistics import methods_note
from analyses.shared.weight_circuits import Circuits, arriving, circuits
from interp.errors import InputError
from interp.models.encoder import HookedEncoder
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.gpt import HookedGPT
from interp.residual import writes as writes_of

KINDS = ("Q", "K", "V")
ROTATIONS = 32
"""Random rotations of the baseline."""
NOTABLE = 1.5
"""How many times its baseline a score is that a finding may speak of: less is sure in many models, and says little."""


@dataclass(frozen=True, kw_only=True)
class CompositionResult(Result):
    """Composition of every earlier head with every later one."""

    scores: dict[str, np.ndarray]
    """`Q`, `K`, `V` -> [head head], from (row) and to (column), 0 to 1; heads are counted through all layers. NaN where
    the first is not in an earlier layer, or a head's matrix is zero."""
    baseline: dict[str, np.ndarray]
    """Likewise: mean under random rotation."""
    spread: dict[str, np.ndarray]
    """Likewise: standard deviation under random rotation."""
    limit: dict[str, np.ndarray]
    """Likewise: the score that any pair of the three kinds exceeds by chance in 5 % of models."""
    chance: dict[str, np.ndarray]
    """Likewise: chance that any pair of the three kinds is as far above its own baseline."""
    n_heads: int
    """Heads in a layer."""
    edges: int
    """Pairs shown in each graph."""
    distance: int
    """How many positions before the query the key lies, for Q and K; 0 where positions do not turn anything."""
    seed: int
    """Of the rotations."""

    @property
    def names(self) -> tuple[str, ...]:
        """[head]"""
        return tuple(f"L{i // self.n_heads}H{i % self.n_heads}" for i in range(len(self.scores["Q"])))

    def excess(self, kind: str) -> np.ndarray:
        """[head head], score less baseline."""
        return np.asarray(self.scores[kind] - self.baseline[kind])

    def to_dataframe(self) -> pd.DataFrame:
        """One row per kind and pair of heads: columns kind from_layer from_head to_layer to_head score
        baseline spread limit."""
        frames = []
        for kind, score in self.scores.items():
            early, late = np.nonzero(~np.isnan(score))
            frames.append(pd.DataFrame({
                "kind": kind, "from_layer": early // self.n_heads, "from_head": early % self.n_heads,
                "to_layer": late // self.n_heads, "to_head": late % self.n_heads, "score": score[early, late],
                "baseline": self.baseline[kind][early, late], "spread": self.spread[kind][early, late],
                "limit": self.limit[kind][early, late],
            }))  # fmt: skip
        return pd.concat(frames, ignore_index=True)

    def _strongest(self, kind: str, count: int) -> list[tuple[int, int]]:
        """The pairs with the largest excess, the largest first."""
        excess = np.nan_to_num(self.excess(kind), nan=-np.inf)
        order = np.argsort(-excess, axis=None, kind="stable")[:count]
        pairs = (divmod(int(i), excess.shape[1]) for i in order)
        return [(early, late) for early, late in pairs if excess[early, late] > 0]

    def panels(self) -> list[Panel]:
        if len(self.names) == self.n_heads:
            return [Note(key="none", title="Nothing to compose", text="A model of one layer has no earlier heads.")]
        panels: list[Panel] = [self._table()]
        for kind in KINDS:
            panels += [self._graph(kind), self._matrix(kind)]
        pairs = sum(int((~np.isnan(limit)).sum()) for limit in self.limit.values())
        return [*panels, methods_note(
            f"Scores of {pairs:,} pairs, with mean and spread over {ROTATIONS} random rotations of one of the two "
            f"matrices (seed {self.seed}); limits from a shifted gamma law with the exact mean, variance and skewness "
            f"of the squared score under rotation, at 1 - .95^(1/{pairs:,}) (Sidak)."
        )]  # fmt: skip

    def _table(self) -> Table:
        rows = []
        for kind in KINDS:
            for pair in self._strongest(kind, self.edges):
                score, baseline, spread = (x[kind][pair] for x in (self.scores, self.baseline, self.spread))
                names = (self.names[head] for head in pair)
                above = (score - baseline) / max(spread, 1e-12)
                rows.append((kind, *names, score, baseline, self.limit[kind][pair], above))
        frame = pd.DataFrame(rows, columns=["kind", "from", "to", "score", "baseline", "limit", "spreads above"])
        return Table(
            key="strongest", title="Strongest pairs", frame=frame.sort_values("score", ascending=False, kind="stable"),
            units={"score": "share", "baseline": "share", "limit": "share", "spreads above": "s.d."},
            caption=f"The {self.edges} pairs of each kind that are furthest above their baseline: the same matrices, "
            f"one turned at random ({ROTATIONS} rotations, seed {self.seed}). limit: what chance lets any "
            "of all pairs exceed in 5 % of cases. Weights alone; no text is involved."
            + f" Q and K: of keys {self.distance} positions before the query." * bool(self.distance),
        )  # fmt: skip

    def _graph(self, kind: str) -> Graph:
        pairs, excess = self._strongest(kind, self.edges), self.excess(kind)
        heads = sorted({head for pair in pairs for head in pair})
        place = {head: number for number, head in enumerate(heads)}
        return Graph(
            key=f"graph-{kind.lower()}", title=f"{kind}-composition, strongest pairs", unit="score above baseline",
            nodes=tuple(self.names[head] for head in heads), columns=tuple(head // self.n_heads for head in heads),
            edges=tuple((place[a], place[b], float(excess[a, b])) for a, b in pairs),
            caption=f"The {len(pairs)} pairs with the largest {kind}-composition above baseline; columns are layers.",
        )  # fmt: skip

    def _matrix(self, kind: str) -> Matrix:
        n = self.n_heads
        return Matrix(
            key=f"matrix-{kind.lower()}", title=f"{kind}-composition of all pairs", values=self.excess(kind)[:-n, n:],
            rows=self.names[:-n], columns=self.names[n:], row_axis="from", column_axis="to",
            unit="score above baseline", diverging=True, image=len(self.names) > 40, family="composition",
            floor=(self.limit[kind] - self.baseline[kind])[:-n, n:],
            caption=f"How well what the earlier head writes matches what the later head's {_READS[kind]} reads, less "
            "the baseline of a random rotation. Pairs whose first head is not in an earlier layer are empty.",
        )  # fmt: skip

    def findings(self) -> list[Finding]:
        return [found for kind in KINDS for found in self._finding(kind)]

    def _finding(self, kind: str) -> list[Finding]:
        """The pair of this kind that is furthest above its limit, where it is far above its baseline too."""
        excess = np.nan_to_num(self.scores[kind] - self.limit[kind], nan=-np.inf)
        early, late = np.unravel_index(int(np.argmax(excess)), excess.shape)
        score, base, limit, p = (
            float(x[kind][early, late]) for x in (self.scores, self.baseline, self.limit, self.chance)
        )
        if not (p <= SURE and score >= NOTABLE * base):
            return []
        writer, reader = self.names[early], self.names[late]
        return [Finding(
            f"{reader} is built to read its {_READS[kind]} from {writer}: {kind}-composition {score:.2f} where random "
            f"directions give {base:.2f}, and the best of all pairs of such {limit:.2f}.",
            "strongest", min(0.6, 0.1 + 0.5 * (score / base - 1)), score, "composition", kind="effect", p=p,
            null="random rotations, the best of all pairs", about=reader,
            short=f"reads its {_READS[kind]} from {writer}, composition {score:.2f}",
        )]  # fmt: skip


_READS = {"Q": "query", "K": "key", "V": "value"}


@analysis(place=64, runs=True, weights_only=True)
@torch.no_grad()
def composition(
    model: HookedGPT | HookedEncoderDecoder | HookedEncoder,
    tokens: TextOrTokens | None = None,
    *,
    edges: Annotated[int, "strongest pairs of each kind in the graphs and the table"] = 15,
    distance: Annotated[int, "how far before the query the key lies, where positions are rotary"] = 0,
    seed: Annotated[int, "seed of the random rotations"] = 0,
) -> Result:
    """Q-, K- and V-composition of all pairs of heads. The weights alone decide; `tokens` is not read.

    Of a translation model the heads of its encoder, and those of its decoder's self-attention. Cross-attention is left
    out: its keys and values come from another stream than the one that it writes to.

    Raises InputError for fewer than one edge, or a distance that the model cannot tell from 0.
    """
    if edges < 1:
        raise InputError(f"edges = {edges}", "expected at least 1")
    stacks = [stack for stack in attentions(model) if not stack.crosses]
    return by_stack(stacks, [_measured(model, stack, edges, distance, seed) for stack in stacks])


def _measured(model: Model, stack: Stack, edges: int, distance: int, seed: int) -> CompositionResult:
    writes, reads = cores(circuits(model, distance, stack))
    n_layers, n_heads, d_head, d_model = writes.shape
    width = d_model - stack.blocks[0].ln1.centred  # layer norm takes one direction
    turns = _rotations(width, d_head, seed).to(writes)
    later = np.arange(n_layers)[:, None] < np.arange(n_layers)
    allowed = np.repeat(np.repeat(later, n_heads, 0), n_heads, 1)
    groups = [(tuple(range(n_layers)), writes)]
    if writes_of(stack.blocks[0])[0].after:
        groups = [((layer,), arriving(stack, writes, layer) if layer else writes) for layer in range(n_layers)]
    scores, baseline, spread, limit, chance = {}, {}, {}, {}, {}
    for kind, read in reads.items():
        found = [_pairs(early, read, layers, turns, width, 3 * int(allowed.sum())) for layers, early in groups]
        score, mean, deviation, most, p = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        chance[kind] = np.where(allowed, p, np.nan)
        limit[kind] = np.where(allowed, most, np.nan)
        baseline[kind] = np.where(allowed, mean, np.nan)
        spread[kind] = np.where(allowed, deviation, np.nan)
        scores[kind] = np.where(np.isnan(baseline[kind]), np.nan, score)
    return CompositionResult(
        scores=scores,
        baseline=baseline,
        spread=spread,
        limit=limit,
        chance=chance,
        n_heads=n_heads,
        edges=edges,
        distance=distance,
        seed=seed,
    )


def _pairs(
    writes: Tensor, read: Tensor, layers: Sequence[int], turns: Tensor, width: int, pairs: int
) -> tuple[np.ndarray, ...]:
    """Score, mean and deviation under rotation, limit and chance [head head] of all heads into those of some layers,
    from what is left of their writes there."""
    late = read[list(layers)]
    shares = _shares(writes), _shares(late.mT)
    scores = _norms(writes, late, layers)
    return scores, *_turned(*shares, turns), *_limit(*shares, width, pairs, scores)


@one_thread()
def cores(
    c: Circuits,
) -> tuple[Float[Tensor, "layer head d_head d_model"], dict[str, Float[Tensor, "layer head d_model d_head"]]]:
    """What each head writes, and what its query, key and value read, in place of the whole circuits.

    Multiplying a matrix by an orthonormal one does not change its Frobenius norm, so of each thin QR decomposition only
    the triangle is kept: of v in W_OV = v o where the head writes, of the other factor where it reads.
    """
    triangle = {name: torch.linalg.qr(x, mode="r").R for name, x in (("q", c.q), ("k", c.k), ("v", c.v), ("o", c.o.mT))}
    reads = {"Q": c.q @ triangle["k"].mT, "K": c.k @ triangle["q"].mT, "V": c.v @ triangle["o"].mT}
    return triangle["v"] @ c.o, reads


def _norms(writes: Tensor, read: Tensor, layers: Sequence[int]) -> np.ndarray:
    """[head head] scores of all pairs, the second heads in these layers; 0 where the first is in no earlier one."""
    n_layers, n_heads, d_head, d_model = writes.shape
    out = writes.new_zeros(n_layers, n_heads, len(layers), n_heads)
    for n, late in enumerate(layers):
        columns = read[n].transpose(0, 1).reshape(d_model, -1)
        for early in range(late):
            product = writes[early].reshape(-1, d_model) @ columns
            out[early, :, n] = product.view(n_heads, d_head, n_heads, -1).square().sum((1, 3))
    size = writes.flatten(-2).norm(dim=-1)[:, :, None, None] * read.flatten(-2).norm(dim=-1)
    scores: np.ndarray = (out.sqrt() / size).flatten(2).flatten(0, 1).double().cpu().numpy()
    return scores


def _shares(core: Float[Tensor, "layer head d_head d_model"]) -> Float[Tensor, "head d_head"]:
    """Each squared singular value's share of their sum; NaN for a matrix of zeros."""
    power = torch.linalg.eigvalsh(core @ core.mT).clamp(min=0).flatten(0, 1)
    shares: Tensor = power / power.sum(-1, keepdim=True)
    return shares


def _rotations(d_model: int, d_head: int, seed: int) -> Float[Tensor, "rotation d_head d_head"]:
    """Squared cosines between d_head fixed and d_head randomly turned orthonormal directions of d_model."""
    count = min(d_head, d_model)
    generator = torch.Generator().manual_seed(seed)
    frames = torch.linalg.qr(torch.randn(ROTATIONS, d_model, count, generator=generator)).Q
    squared = torch.zeros(ROTATIONS, d_head, d_head)
    squared[:, :count, :count] = frames[:, :count].square()
    return squared


def _turned(writes: Tensor, reads: Tensor, turns: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [head head] over random rotations of the score of two matrices.

    With shares s of the squared singular values and squared cosines c of a rotation, the score is sqrt(s c s').
    """
    total, squares = 0.0, 0.0
    for turn in turns:  # one at a time: all pairs of heads times all rotations would be much memory in large models
        score = (writes @ turn @ reads.T).sqrt().double().cpu().numpy()
        total, squares = total + score, squares + score**2
    mean = np.asarray(total / len(turns))
    return mean, np.sqrt(np.maximum(squares / len(turns) - mean**2, 0.0))


def _limit(writes: Tensor, reads: Tensor, width: int, pairs: int, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From heads' shares the score that the best of so many pairs exceeds by chance in 5 % of cases, and the chance
    that the best of them is as far above its own law as each score: both [head head].

    The law of the squared score, a mean of three moments: shifted gamma, at most 1.
    """
    powers = [[x.double().pow(power).sum(-1).cpu().numpy() for power in (2, 3)] for x in (writes, reads)]
    mean, variance, skewness = rotated_moments(powers[0], powers[1], width)
    deviation = np.sqrt(np.maximum(variance, 1e-300))
    point = scipy.stats.pearson3.isf(-np.expm1(np.log(0.95) / max(pairs, 1)), skewness)
    alone = scipy.stats.pearson3.sf((scores**2 - mean) / deviation, skewness)
    limit = np.sqrt(np.minimum(mean + deviation * point, 1.0))
    return limit, -np.expm1(pairs * np.log1p(-np.minimum(alone, 1 - 1e-16)))


def rotated_moments(
    writes: Sequence[np.ndarray], reads: Sequence[np.ndarray], width: int
) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean, variance and skewness [head head] of sum s_i s'_j q_ij^2, q a random orthogonal matrix of this width.

    The k-th moment of tr(A q B q^T) is the sum over the partitions of k of C(A) C(B) / C(I), the zonal polynomials C
    (James, "Distributions of Matrix Variates and Latent Roots Derived from Normal Samples", 1964). A head comes as the
    sums of its shares' squares and cubes, [head] each; the shares themselves sum to one.
    """
    (a2, a3), (b2, b3) = ([x[:, None] for x in writes], [x[None, :] for x in reads])
    n = float(width)
    second = sum(_ratio(f(1.0, a2) * f(1.0, b2), f(n, n)) for f in _ZONAL_2)
    third = sum(_ratio(f(1.0, a2, a3) * f(1.0, b2, b3), f(n, n, n)) for f in _ZONAL_3)
    mean = 1 / n
    variance = np.asarray(second - mean**2)
    central = np.asarray(third - 3 * mean * second + 2 * mean**3)
    return mean, variance, np.asarray(central / np.maximum(variance, 1e-300) ** 1.5)


_ZONAL_2: tuple[Callable[..., Any], ...] = (lambda p, q: (p * p + 2 * q) / 3, lambda p, q: 2 * (p * p - q) / 3)
_ZONAL_3: tuple[Callable[..., Any], ...] = (
    lambda p, q, r: (p**3 + 6 * p * q + 8 * r) / 15,
    lambda p, q, r: 3 * (p**3 + p * q - 2 * r) / 5,
    lambda p, q, r: (p**3 - 3 * p * q + 2 * r) / 3,
)
"""Zonal polynomials of the partitions of 2 and 3, of the sums of the first, second and third powers."""


def _ratio(top: np.ndarray, bottom: float) -> np.ndarray:
    """Zero where a matrix is too narrow for the polynomial: then it is zero for both."""
    return top / bottom if abs(bottom) > 1e-9 else np.zeros_like(top)
