"""Circuits of a model laid out: which of the best edges lie on a way from source to sink, and where nodes stand.

`static/circuit.js` does the same in the browser for any number of edges; a test compares the two.
"""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analyses.shared.panels import CircuitGraph
from reports.tokens import printable

KINDS = ("end", "head", "shared", "mlp")
"""What a node is: the embedding or the logits, a head, keys and values that heads share, an MLP."""
COLOURS = {"held out": "#8672c4", "discovery": "#c2571a", "random": "#8c8c8c", "magnitude": "#159a9c"}
OTHER = COLOURS["held out"]
HEADS_ZONE = 0.86
"""Share of the width that heads have where MLPs stand to their right."""
NAME = 24
"""Characters of a node's name that are shown at most."""
NEVER = 65_535
"""More edges than any panel holds."""
HALF = 9.0
"""Half the height of a node."""


@dataclass(frozen=True)
class Wires:
    """The edges of a panel, best first, and after them the links from shared keys and values to their heads."""

    panel: CircuitGraph

    @cached_property
    def ends(self) -> np.ndarray:
        """[link end] nodes: sender, receiver."""
        edges = np.stack([self.panel.senders, self.panel.receivers], 1).astype(int)
        return np.concatenate([edges, np.array(self.panel.serves, dtype=int).reshape(-1, 2)])

    @cached_property
    def names(self) -> list[str]:
        """[node] its name as it is shown."""
        known = map(printable, self.panel.nodes)
        return [name if len(name) <= NAME else name[: NAME - 1] + "…" for name in known]

    @cached_property
    def bounds(self) -> tuple[list[int], list[int]]:
        """The nodes of the lowest row, where all ways start, and of the highest, where they end."""
        rows = np.asarray(self.panel.rows)
        return np.flatnonzero(rows == rows.min()).tolist(), np.flatnonzero(rows == rows.max()).tolist()

    @cached_property
    def kinds(self) -> list[str]:
        """[node] one of `KINDS`."""
        shared = {node for node, _ in self.panel.serves}
        ends = {*self.bounds[0], *self.bounds[1]}
        return [
            "end" if i in ends else "shared" if i in shared
            else "head" if re.fullmatch(r"L\d+H\d+", name) else "mlp"
            for i, name in enumerate(self.panel.nodes)
        ]  # fmt: skip

    @cached_property
    def levels(self) -> np.ndarray:
        """[node] its row; shared keys and values stand half a row lower than their heads."""
        return np.array([row - 0.5 * (kind == "shared") for row, kind in zip(self.panel.rows, self.kinds, strict=True)])

    @cached_property
    def across(self) -> np.ndarray:
        """[node] its place from left to right, 0 to 1: heads by their number, MLPs to the right of all heads."""
        zone = HEADS_ZONE if "mlp" in self.kinds else 1.0
        out = np.ones(len(self.kinds))
        for level in np.unique(self.levels):
            members = [i for i in np.flatnonzero(self.levels == level) if self.kinds[i] != "mlp"]
            out[members] = (np.arange(len(members)) + 0.5) / max(len(members), 1) * zone
        return out

    @cached_property
    def since(self) -> np.ndarray:
        """[link] the smallest number of edges with which it lies on a way from a source to a sink; `NEVER` for none.

        A way is complete once its last edge by rank is taken, so the best way to a node is the one whose last edge
        comes first.
        """
        ends, ranks = self.ends.tolist(), [*range(1, len(self.panel.senders) + 1), *[0] * len(self.panel.serves)]
        reached, useful = ([0 if i in set(at) else NEVER for i in range(len(self.names))] for at in self.bounds)
        upwards = np.argsort(self.levels[self.ends[:, 1]], kind="stable").tolist()
        for sender, receiver, rank in ((*ends[i], ranks[i]) for i in upwards):
            reached[receiver] = min(reached[receiver], max(reached[sender], rank))
        for sender, receiver, rank in ((*ends[i], ranks[i]) for i in reversed(upwards)):
            useful[sender] = min(useful[sender], max(useful[receiver], rank))
        return np.array([max(rank, reached[a], useful[b]) for rank, (a, b) in zip(ranks, ends, strict=True)])

    def alive(self, size: int) -> np.ndarray:
        """The links [drawn], rising, of the best `size` edges that lie on a way from a source to a sink."""
        return np.flatnonzero(self.since <= size)

    def places(self, links: np.ndarray, width: float) -> tuple[dict[int, tuple[float, float]], float, float]:
        """Where the ends of links stand: node -> middle (x to the right, y downwards); width and height of it all."""
        drawn = np.unique(self.ends[links])
        levels = np.unique(self.levels[drawn])[::-1]
        drawn = drawn[np.argsort(self.across[drawn], kind="stable")]
        rows = [drawn[self.levels[drawn] == level].tolist() for level in levels]
        width = max([width, *(sum(map(self.wide, row)) + 90 for row in rows)])
        gap = min(max(640 / max(len(rows), 1), 26), 64)
        where = {}
        for k, row in enumerate(rows):
            for i, x in zip(row, self._spread(row, width), strict=True):
                where[i] = (x, 16 + k * gap)
        return where, width, 32 + max(len(rows) - 1, 0) * gap

    def wide(self, node: int) -> float:
        """The room a node takes from left to right, with the gap to the next."""
        return 6.4 * len(self.names[node]) + 20

    def _spread(self, row: list[int], width: float) -> list[float]:
        """Middles of the nodes of a row, near their own places, without overlap."""
        out = [34 + float(self.across[i]) * (width - 90) for i in row]
        half = [self.wide(i) / 2 for i in row]
        for i in range(1, len(row)):
            out[i] = max(out[i], out[i - 1] + half[i - 1] + half[i])
        most = width - 20.0
        for i in reversed(range(len(row))):
            out[i] = min(out[i], most - half[i])
            most = out[i] - half[i]
        return out


def curve(start: tuple[float, float], stop: tuple[float, float], port: float) -> list[tuple[float, float]]:
    """Four points of a Bezier curve from the top of one node to below another, bent aside where they stand in line."""
    (x0, y0), (x1, y1) = (start[0], start[1] - HALF), (stop[0] + port, stop[1] + HALF)
    rise = y0 - y1
    aside = min(60.0, 0.16 * rise) * max(0.0, 1 - abs(x1 - x0) / 120) * (rise > 70)
    return [(x0, y0), (x0 + aside, y0 - 0.4 * rise), (x1 + aside, y1 + 0.4 * rise), (x1, y1)]


def nearest(sizes: np.ndarray, size: int) -> int:
    """Which of the measured numbers of edges [size] is nearest to one, by their ratio; 0 where there is none."""
    ratios = np.abs(np.log(np.maximum(sizes, 1) / max(size, 1)))
    return int(ratios.argmin()) if len(ratios) else 0


def largest(panel: CircuitGraph) -> float:
    """The largest size of a score; 1 where all are zero."""
    return float(np.abs(panel.scores).max(initial=0)) or 1.0


def shares(panel: CircuitGraph) -> np.ndarray:
    """[edge] how wide and dark its line is, 0 to 1: the square root of its size; 0 of what is no number."""
    return np.asarray(np.nan_to_num(np.sqrt(np.abs(panel.scores) / largest(panel)), posinf=0.0))
