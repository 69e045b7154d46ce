"""The search for a circuit, given scores: an order of edges (or of nodes, each with all that it sends), and a size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from analyses.circuitry.graph import Level, Wiring

Select = Literal["top", "greedy"]
Order = Int[np.ndarray, " item"]


@dataclass(frozen=True)
class Search:
    """Takes items (edges; or nodes but the embedding, which is always in) by their scores, the best first."""

    wiring: Wiring
    level: Level
    select: Select
    """Edges alone: the best of all, or, greedily, the best that lead to what is in already."""

    @property
    def items(self) -> int:
        return len(self.wiring) if self.level == "edge" else len(self.wiring.nodes) - 1

    def order(self, scores: Float[np.ndarray, " item"]) -> Order:
        """All items, the best first."""
        if self.level == "edge" and self.select == "greedy":
            return self.wiring.greedy(scores)
        return np.argsort(-scores, kind="stable")

    def chosen(self, order: Sequence[int] | Order, size: int) -> Bool[np.ndarray, " item"]:
        """The first items of an order."""
        inside = np.zeros(self.items, dtype=bool)
        inside[np.asarray(order)[:size]] = True
        return inside

    def take(self, order: Sequence[int] | Order, size: int) -> Bool[np.ndarray, " edge"]:
        """The circuit of the first items of an order."""
        inside = self.chosen(order, size)
        return inside if self.level == "edge" else np.concatenate([[size > 0], inside])[self.wiring.senders]

    def by_edge(self, values: Float[np.ndarray, " item"]) -> Float[np.ndarray, " edge"]:
        """Values of items as those of edges: of a node's, what is its own; NaN for the embedding's."""
        return values if self.level == "edge" else np.concatenate([[np.nan], values])[self.wiring.senders]

    def name(self, item: int) -> str:
        """An edge as `L0H1 \N{RIGHTWARDS ARROW} L2H3 q`, a node by its label."""
        if self.level == "node":
            return self.wiring.nodes[1 + item].label
        senders, receivers, inputs = (labels[item] for labels in self.wiring.labels())
        return f"{senders} \N{RIGHTWARDS ARROW} {receivers} {inputs}"

    def random(self, rng: np.random.Generator) -> Order:
        """An order that knows nothing. Of edges it grows from the logits down, so that none is a loose end."""
        if self.level == "edge":
            return self.wiring.greedy(rng.random(len(self.wiring)))
        return rng.permutation(self.items)

    def of_change(self, change: Float[np.ndarray, " node"]) -> Order:
        """By how much the sender's output changes between the runs, whatever the metric."""
        key = change[self.wiring.senders] if self.level == "edge" else change[1:]
        return np.argsort(-key, kind="stable")
