"""How much of what the model does a circuit does by itself: faithfulness over sizes, its areas, and what it rests on.

Faithfulness is (m(C) - m(none)) / (m(all) - m(none)) of a metric m, means over texts: 1 where the circuit does what the
model does, 0 where it does no better than with everything ablated (Hanna et al. 2024; Mueller et al. 2025, "MIB").
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import special

from analyses.circuitry.graph import Wiring
from analyses.circuitry.runs import Ablation, CircuitRuns, Outputs
from analyses.circuitry.scores import Group, value_of
from analyses.shared.statistics import FEW, RESAMPLES
from interp.models.gpt import HookedGPT
from interp.progress import tell

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all edges at which the benchmark measures."""
AT_ONCE = 16
"""Circuits between two words on progress."""


class Runs:
    """Circuits run on all texts."""

    def __init__(self, model: HookedGPT, wiring: Wiring, groups: Sequence[Group], ablation: Ablation) -> None:
        self.wiring, self.groups = wiring, groups
        self.n_texts = sum(len(group.texts) for group in groups)
        self.done = self.total = 0
        self.runs = []
        for group in groups:
            tokens = group.corrupted if ablation == "corrupted" else group.clean
            outputs = Outputs.of(model, tokens)
            held = {"corrupted": lambda x: x, "mean": lambda x: x.mean(-3), "zero": Outputs.zeroed}[ablation](outputs)
            readout = group.readout
            first = group.paths.first if ablation == "corrupted" else 0
            self.runs.append(
                CircuitRuns(model, wiring, group.clean, held, read=readout.read, vocab=readout.vocab, first=first)
            )

    def mean_outputs(self) -> Outputs:
        """What each node adds in the clean runs, mean over all texts and positions."""
        total, counted = self.runs[0].outputs.mean(-3, -2), self.groups[0].clean.numel()
        for group, run in zip(self.groups[1:], self.runs[1:], strict=True):
            counted += group.clean.numel()
            total = total.plus(run.outputs.mean(-3, -2), group.clean.numel() / counted)
        return total

    def planned(self, passes: int) -> "Runs":
        """For progress: so many circuits more are to come."""
        self.total += passes * len(self.runs)
        return self

    def values(
        self, circuits: Iterable[Bool[np.ndarray, " edge"]], *, first: int = 0
    ) -> Float[np.ndarray, "circuit text"]:
        """The metric of each text under each circuit; `first` as in `CircuitRuns.logits`."""
        masks = torch.tensor(np.stack([self.wiring.mask(one) for one in circuits]))
        out = np.zeros((len(masks), self.n_texts))
        for group, run in zip(self.groups, self.runs, strict=True):
            for start in range(0, len(masks), AT_ONCE):
                for n, one in enumerate(run.logits(masks[start : start + AT_ONCE], first=first), start=start):
                    out[n, group.texts] = value_of(group.readout, one).double().cpu().numpy()
                self.done += min(AT_ONCE, len(masks) - start)
                tell(self.done, max(self.total, self.done))
        return out


def faithfulness(
    values: Float[np.ndarray, "*circuit text"],
    none: Float[np.ndarray, " text"],
    whole: Float[np.ndarray, " text"],
    weights: Float[np.ndarray, "*resample text"] | None = None,
) -> Float[np.ndarray, "..."]:
    """Of circuits, from the metric of each text; with weights [resample text] of texts: [*circuit resample]."""
    counted = np.ones((1, values.shape[-1])) if weights is None else np.atleast_2d(weights)
    top, bottom = (values - none) @ counted.T, (whole - none) @ counted.T
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(np.abs(bottom) > 0, top / bottom, np.nan)
    return found[..., 0] if weights is None else found


@dataclass(frozen=True, eq=False)
class Curve:
    """Faithfulness of circuits of growing size, those of one order of edges (or the mean of several, drawn)."""

    sizes: Int[np.ndarray, " size"]
    """Edges taken; the circuit may hold fewer that matter (`Wiring.pruned`)."""
    values: Float[np.ndarray, "draw size text"]
    """The metric; one draw but for random orders."""

    def measured(self, none: np.ndarray, whole: np.ndarray, texts: np.ndarray) -> Float[np.ndarray, " size"]:
        """Faithfulness on some of the texts."""
        return np.asarray(faithfulness(self.values[..., texts], none[texts], whole[texts]).mean(0))

    def ends(
        self, none: np.ndarray, whole: np.ndarray, texts: np.ndarray, clusters: Sequence[object] | None, seed: int
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The 95 % interval of `measured`; None of one text or template."""
        return interval(lambda w: faithfulness(self.values, none, whole, w).mean(0), texts, len(none), clusters, seed)


def interval(
    statistic: Callable[[Float[np.ndarray, "resample text"]], Float[np.ndarray, "*shape resample"]],
    texts: Int[np.ndarray, " chosen"],
    n_texts: int,
    clusters: Sequence[object] | None,
    seed: int,
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]] | None:
    """The ends of a 95 % interval of what is a function of weights of texts; None of fewer than two to draw from.

    `clusters`: [chosen] the template of each. From FEW texts (or templates) on, expanded percentiles of the bootstrap
    (Hesterberg 2015); of fewer, Student's, with the jackknife's standard error, as everywhere (`statistics.bootstrap`).
    """
    names = np.arange(len(texts))
    if clusters is not None:
        _, names = np.unique(list(map(str, clusters)), return_inverse=True)
    n = int(names.max()) + 1
    if n < 2:
        return None
    few = n < FEW
    draws = 1 - np.eye(n) if few else np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    weights = np.zeros((len(draws) + few, n_texts))
    weights[: len(draws), texts] = draws[:, names]
    if not few:
        tail = float(special.ndtr(np.sqrt(n / (n - 1)) * special.stdtrit(n - 1, 0.025)))
        low, high = np.nanquantile(statistic(weights), [tail, 1 - tail], axis=-1)
        return low, high
    weights[-1, texts] = 1.0
    found = statistic(weights)
    width = special.stdtrit(n - 1, 0.975) * np.sqrt((n - 1) * found[..., :-1].var(-1))
    return found[..., -1] - width, found[..., -1] + width


def area(shares: Sequence[float] | np.ndarray, curve: Float[np.ndarray, "size *more"]) -> Float[np.ndarray, "*more"]:
    """Under a curve over shares of edges, by the trapezoid rule, as the MIB benchmark has it."""
    return np.asarray(np.trapezoid(curve, np.asarray(shares), axis=0))


def completeness(
    runs: Runs, circuit: Bool[np.ndarray, " edge"], draws: int, seed: int
) -> tuple[Float[np.ndarray, "draw text"], Float[np.ndarray, "draw text"]]:
    """The metric of the circuit, and of the whole model, without the same half of the circuit's edges, drawn.

    Where the circuit holds all that matters, both lose alike (Wang et al. 2022, section 4).
    """
    rng, held = np.random.default_rng(seed), np.flatnonzero(circuit)
    if not len(held):
        return np.zeros((0, runs.n_texts)), np.zeros((0, runs.n_texts))
    lost = np.zeros((draws, len(circuit)), dtype=bool)
    for row in lost:
        row[rng.choice(held, size=max(1, len(held) // 2), replace=False)] = True
    return runs.values(circuit & ~lost), runs.values(~lost)


def minimality(runs: Runs, circuit: Bool[np.ndarray, " edge"]) -> Float[np.ndarray, "held text"]:
    """The metric of the circuit without each of its edges in turn."""
    found = []
    for edge in np.flatnonzero(circuit):
        without = circuit.copy()
        without[edge] = False
        found.append(without)
    return runs.values(found)
