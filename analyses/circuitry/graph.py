"""A decoder as a graph: what adds to the residual stream, what reads it, and every way from one to the other.

Nodes that send are the embedding, each head and each MLP; receivers are each head's queries, keys and values, each MLP
and the logits. Where several query heads share keys and values, these are one receiver, which feeds all of them. A
circuit is a choice of edges, booleans [edge].
"""

import heapq
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from analyses.shared.components import Component, choose
from analyses.shared.paths import Receiver, all_receivers
from interp.models.config import GPTConfig
from interp.models.gpt import HookedGPT

Level = Literal["edge", "node"]
Chosen = Bool[np.ndarray, " edge"]


@dataclass(frozen=True, eq=False)
class Wiring:
    """The whole graph of a model."""

    nodes: tuple[Component, ...]
    """What sends: the embedding, then the heads and the MLP of each layer."""
    receivers: tuple[Receiver, ...]
    """Layer by layer, the logits last."""
    config: GPTConfig
    senders: Int[np.ndarray, " edge"] = field(repr=False)
    """Node of each edge."""
    targets: Int[np.ndarray, " edge"] = field(repr=False)
    """Receiver of each edge."""

    @classmethod
    def of(cls, model: HookedGPT) -> "Wiring":
        config = model.config
        heads = choose(model, "heads", allowed=("heads",))
        mlps = () if config.attn_only else choose(model, "mlps", allowed=("mlps",))
        parts = sorted([*heads, *mlps], key=lambda part: (part.layer or 0, part.kind == "mlp"))
        nodes = (Component("embed", "embed"), *parts)
        receivers = tuple(all_receivers(model))
        hears = np.array([[receiver.hears(node) for receiver in receivers] for node in nodes])
        senders, targets = np.nonzero(hears)
        return cls(nodes, receivers, config, senders, targets)

    def __len__(self) -> int:
        """Number of edges."""
        return len(self.senders)

    @cached_property
    def feeds(self) -> Bool[np.ndarray, "receiver node"]:
        """Which nodes compute their output from what a receiver reads; those of the logits none.

        Where queries, and keys, of a layer are normed all heads together, each of them feeds every head.
        """
        group = self.config.n_heads // self.config.n_kv_heads
        out = np.zeros((len(self.receivers), len(self.nodes)), dtype=bool)
        for r, receiver in enumerate(self.receivers):
            for n, node in enumerate(self.nodes):
                if node.layer != receiver.layer or (node.kind == "head") != (receiver.head is not None):
                    continue
                shared = receiver.input in ("k", "v")
                own = (node.index or 0) // group if shared else node.index
                together = self.config.qk_norm == "flat" and receiver.input in ("q", "k")
                out[r, n] = node.kind == "mlp" or together or own == receiver.head
        return out

    def mask(self, chosen: Chosen) -> Bool[np.ndarray, "receiver node"]:
        """A circuit as the sender's part in what each receiver reads."""
        out = np.zeros((len(self.receivers), len(self.nodes)), dtype=bool)
        out[self.targets[chosen], self.senders[chosen]] = True
        return out

    def pruned(self, chosen: Chosen) -> Chosen:
        """Without the edges on no way from the embedding to the logits: they change nothing of the run."""
        mask = self.mask(chosen)
        reached = np.zeros(len(self.nodes), dtype=bool)
        reached[0] = True
        for n in range(1, len(self.nodes)):  # nodes stand in the order of computation
            reached[n] = (mask[self.feeds[:, n]] & reached).any()
        used = np.zeros(len(self.nodes), dtype=bool)
        for n in reversed(range(len(self.nodes))):
            read = mask[:, n] & ((self.feeds & used).any(1) | self._last)
            used[n] = read.any()
        alive = (self.feeds & used & reached).any(1) | self._last
        found: Chosen = np.asarray(chosen & reached[self.senders] & alive[self.targets])
        return found

    @cached_property
    def _last(self) -> np.ndarray:
        """[receiver] the logits."""
        return np.asarray(np.arange(len(self.receivers)) == len(self.receivers) - 1)

    def greedy(self, scores: Float[np.ndarray, " edge"]) -> Int[np.ndarray, " edge"]:
        """All edges in the order in which a circuit that is always connected to the logits would take them.

        From the logits down: of the edges into what is in the circuit already the one with the highest score comes
        next, and brings its sender in (Hanna et al. 2024, "Have Faith in Faithfulness", section 3).
        """
        into: list[list[int]] = [[] for _ in self.receivers]
        for edge, receiver in enumerate(self.targets):
            into[receiver].append(edge)
        waiting = [(-scores[edge], edge) for edge in into[-1]]
        heapq.heapify(waiting)
        inside, order = np.zeros(len(self.receivers), dtype=bool), list[int]()
        inside[-1] = True
        while waiting:
            _, edge = heapq.heappop(waiting)
            order.append(edge)
            for receiver in np.flatnonzero(self.feeds[:, self.senders[edge]] & ~inside):
                inside[receiver] = True
                for more in into[receiver]:
                    heapq.heappush(waiting, (-scores[more], more))
        return np.array(order, dtype=int)

    def labels(self) -> tuple[list[str], list[str], list[str]]:
        """[edge] the sender, the node (or shared keys and values) that receives, and its input: q, k, v or in."""
        ends = [self.receivers[target] for target in self.targets]
        return (
            [self.nodes[sender].label for sender in self.senders],
            [end.label.partition(".")[0] for end in ends],
            [end.input for end in ends],
        )
