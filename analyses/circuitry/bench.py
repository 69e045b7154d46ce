"""What one search for a circuit works with: model, graph, prompts and their split, and the runs that measure."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from analyses.circuitry.faithfulness import SIZES, Curve, Runs
from analyses.circuitry.graph import Level, Wiring
from analyses.circuitry.runs import Ablation
from analyses.circuitry.scores import Group, estimated, estimated_of, exact_edges, exact_nodes, groups_of
from analyses.circuitry.search import Order, Search, Select
from analyses.shared.clean_corrupted import Measure, Pairs, measure
from analyses.shared.statistics import FEW, bootstrap, correlation
from interp.errors import InputError
from interp.models.gpt import HookedGPT
from interp.progress import say

DRAWN = 64
"""Edges drawn at random that are measured exactly too, so that the agreement of estimates is that of all edges."""
WORST = 8
"""Edges named where estimates and exact effects differ most."""
Texts = Int[np.ndarray, " chosen"]


@dataclass(frozen=True, eq=False)
class Scores:
    """Of items (edges, or nodes but the embedding), by text; NaN where not measured."""

    estimated: Float[np.ndarray, "text item"]
    exact: Float[np.ndarray, "text item"]
    gap: float
    """The embedding's estimate over the whole effect, less one: what the steps of the integral leave out."""


@dataclass(frozen=True, eq=False)
class Bench:
    """Of one model and its prompts."""

    model: HookedGPT
    wiring: Wiring
    search: Search
    pairs: Pairs
    measured: Measure
    groups: Sequence[Group]
    runs: Runs
    discovery: Texts
    """Texts to find the circuit on."""
    held_out: Texts
    """Texts to measure it on."""
    none: Float[np.ndarray, " text"]
    """The metric with every edge ablated."""
    pace: float
    """Seconds that a run of a circuit on all texts took."""
    seed: int

    @classmethod
    def of(
        cls, model: HookedGPT, pairs: Pairs, measured: Measure, level: Level, select: Select, ablation: Ablation,
        share: float | None, seed: int,
    ) -> "Bench":  # fmt: skip
        """`share`: of the prompts that are kept for measuring; None: half, where there are enough."""
        wiring, groups = Wiring.of(model), groups_of(model, pairs, measured)
        runs, start = Runs(model, wiring, groups, ablation), time.perf_counter()
        none = runs.values([np.zeros(len(wiring), dtype=bool)])[0]
        pace = time.perf_counter() - start
        discovery, held_out = split(pairs, share, seed)
        search = Search(wiring, level, select)
        return cls(
            model, wiring, search, pairs, measured, groups, runs, discovery, held_out, none, pace, seed
        )  # fmt: skip

    @property
    def whole(self) -> Float[np.ndarray, " text"]:
        """The metric of the whole model."""
        return self.measured.clean

    @property
    def effect(self) -> float:
        """What ablating everything takes from the metric, mean over the texts of discovery."""
        return float((self.whole - self.none)[self.discovery].mean())

    def order(self, scores: Float[np.ndarray, " item"]) -> Order:
        """Items by how much they move the metric the way the model does."""
        return self.search.order((np.sign(self.effect) or 1.0) * scores)

    @cached_property
    def change(self) -> Float[np.ndarray, " node"]:
        """How long a vector each node's output changes by between the two runs, mean over texts and positions."""
        lengths = [
            torch.stack([group.paths.change(node).norm(dim=-1).mean() for node in self.wiring.nodes])
            for group in self.groups
        ]
        return torch.stack(lengths).mean(0).double().cpu().numpy()

    def scores(self, *, exactly: int | None, memory: int | None, **how: object) -> Scores:
        """Estimates, as `scores.estimated_of` takes their options, and exact effects: of all edges (None), or of the
        `exactly` largest estimates and DRAWN others; of all nodes."""
        edges, nodes = estimated(self.model, self.wiring, self.groups, **how)
        effect = float((self.whole - self.measured.corrupted).sum())
        gap = float(nodes[:, 0].sum()) / effect - 1 if effect and not how["activations"] else np.nan
        chosen = None
        if exactly is not None and self.search.level == "edge" and len(self.wiring) > exactly + DRAWN:
            chosen = self._drawn()
            chosen[np.argsort(-np.abs(edges[self.discovery].mean(0)))[:exactly]] = True
        return Scores(self._items(edges, nodes), self._exact(self.groups, self.whole, chosen, memory), gap)

    def unseen(
        self, pairs: Pairs, measured: Measure, *, exact: bool, memory: int | None, **how: object
    ) -> Float[np.ndarray, "text item"]:
        """Of the same items on other prompts: exact effects, or estimates."""
        groups = groups_of(self.model, pairs, measured)
        if exact:
            return self._exact(groups, measured.clean, None, memory)
        return self._items(*estimated(self.model, self.wiring, groups, **how))

    def by_position(self, chosen: Bool[np.ndarray, " edge"], **how: Any) -> Float[np.ndarray, "chosen pos"]:
        """Estimates of the chosen edges at each position of the first prompt."""
        pair = self.pairs.alone()
        (group,) = groups_of(self.model, pair, measure(self.model, pair, self.measured.metric))
        found, _ = estimated_of(self.model, self.wiring, group, apart=True, **how)
        return np.asarray(found[0, chosen])

    def _items(self, edges: np.ndarray, nodes: np.ndarray) -> Float[np.ndarray, "text item"]:
        return nodes[:, 1:] if self.search.level == "node" else edges

    def _exact(
        self, groups: Sequence[Group], clean: np.ndarray, chosen: np.ndarray | None, memory: int | None
    ) -> Float[np.ndarray, "text item"]:
        """Of the chosen edges, None: all; or of all nodes."""
        if self.search.level == "node":
            return exact_nodes(self.model, self.wiring, groups, clean, memory=memory)[:, 1:]
        everything = np.ones(len(self.wiring), dtype=bool)
        chosen = everything if chosen is None else chosen
        return exact_edges(self.model, self.wiring, groups, clean, chosen, memory=memory)

    def _drawn(self) -> Bool[np.ndarray, " item"]:
        """Items drawn regardless of their scores."""
        n, out = self.search.items, np.zeros(self.search.items, dtype=bool)
        out[np.random.default_rng(self.seed).choice(n, size=min(DRAWN, n), replace=False)] = True
        return out

    @property
    def sizes(self) -> Int[np.ndarray, " size"]:
        """Numbers of items at which circuits are measured."""
        return np.array([int(share * self.search.items) for share in SIZES])

    def curves(self, scores: Float[np.ndarray, " item"], random: int) -> dict[str, Curve]:
        """The metric of circuits of all sizes: by score, by its size, by the sender's change, and at random."""
        rng = np.random.default_rng(self.seed)
        orders = {
            "performance": [self.order(scores)], "imitation": [self.search.order(np.abs(scores))],
            "magnitude": [self.search.of_change(self.change)],
            "random": [self.search.random(rng) for _ in range(random)],
        }  # fmt: skip
        inner = [int(size) for size in dict.fromkeys(self.sizes.tolist()) if 0 < size < self.search.items]
        passes = len(inner) * sum(map(len, orders.values()))
        self.runs.planned(passes)
        say(
            lambda: (
                f"{passes} circuits of {len(self.wiring):,} edges to run on {len(self.whole)} prompts: about "
                f"{passes * self.pace:,.0f} s"
            )
        )
        return {name: Curve(self.sizes, np.stack([self._along(one, inner) for one in some])) for name, some in
                orders.items()}  # fmt: skip

    def _along(self, order: Order, inner: list[int]) -> Float[np.ndarray, "size text"]:
        found = {0: self.none, self.search.items: self.whole}
        if inner:
            values = self.runs.values([self.search.take(order, size) for size in inner])
            found |= dict(zip(inner, values, strict=True))
        return np.stack([found[int(size)] for size in self.sizes])

    def smallest(self, curve: Curve, faithful: float) -> int:
        """The smallest size that is faithful enough on the texts of discovery; all items where none is."""
        reached = curve.measured(self.none, self.whole, self.discovery) >= faithful
        return int(curve.sizes[int(np.argmax(reached))]) if reached.any() else self.search.items

    def controls(self, size: int, random: int) -> Float[np.ndarray, "control text"]:
        """The metric of random circuits of so many items, and of those whose sender changes most."""
        rng = np.random.default_rng(self.seed + 1)
        orders = [*(self.search.random(rng) for _ in range(random)), self.search.of_change(self.change)]
        return self.runs.values([self.search.take(order, size) for order in orders])

    def measures(self, scores: Scores) -> Mapping[str, Float[np.ndarray, " edge"]]:
        """Exact effects and their intervals, on the texts held out so that nothing was chosen by them."""
        known, texts = np.isfinite(scores.exact).all(0), self.held_out
        clusters = units(self.pairs, texts)
        found, out = bootstrap(scores.exact[np.ix_(texts, known)], clusters=clusters, seed=self.seed), {}
        for name, values in (("exact", found.value), ("low", found.low), ("high", found.high)):
            full = np.full(self.search.items, np.nan)
            if values is not None:
                full[known] = values
            out[name] = self.search.by_edge(full)
        return out

    def agreement(self, scores: Scores) -> pd.DataFrame:
        """How estimates, means over texts, go with exact effects; and where they do not."""
        estimate, exact = scores.estimated.mean(0), scores.exact.mean(0)
        known, rows = np.isfinite(exact), list[dict[str, object]]()
        for name, some in (("drawn at random", known & self._drawn()), ("all that were measured", known)):
            x, y = estimate[some], exact[some]
            if len(x) >= 3 and np.ptp(x) > 0 and np.ptp(y) > 0:
                rows.append({
                    "edges": name, "n": len(x), "pearson": correlation(x, y),
                    "spearman": correlation(x, y, ranks=True),
                    "slope": float((x * y).sum() / (x * x).sum()),
                })  # fmt: skip
        for item in np.argsort(-np.abs(np.where(known, estimate - exact, 0.0)))[:WORST]:
            rows.append({
                "edges": self.search.name(item), "n": 1, "estimate": float(estimate[item]), "exact": float(exact[item]),
            })  # fmt: skip
        return pd.DataFrame(rows, columns=["edges", "n", "pearson", "spearman", "slope", "estimate", "exact"])


def units(pairs: Pairs, texts: Texts) -> list[str] | None:
    """What intervals and tests draw from, of some texts: their templates, [text], where there are FEW or more; else
    None, the texts themselves: then what is found holds for texts of these templates."""
    own = [str(pairs.clusters[text]) for text in texts] if pairs.clusters else []
    return own if len(set(own)) >= FEW else None


def split(pairs: Pairs, share: float | None, seed: int) -> tuple[Texts, Texts]:
    """Texts to find a circuit on, and others to measure it on: whole templates where there are at least four. The same,
    all of them, where none is to be held out (0), or nothing is said (None, which else is half) of fewer than four.

    Raises InputError for a share that cannot be held out."""
    everything = np.arange(len(pairs.rows))
    names = np.array([str(one) for one in pairs.clusters or ()])
    if len(set(names)) < 4:
        names = everything.astype(str)
    kinds = np.random.default_rng(seed).permutation(np.unique(names))
    kept = round((0.5 if share is None else share) * len(kinds))
    if share and (len(kinds) < 4 or kept in (0, len(kinds))):
        raise InputError(f"held_out = {share:g} of {len(kinds)} prompts", "expected a share of four or more, not all")
    if len(kinds) < 4 or kept == 0:
        return everything, everything
    others = np.isin(names, kinds[:kept])
    return np.flatnonzero(~others), np.flatnonzero(others)
