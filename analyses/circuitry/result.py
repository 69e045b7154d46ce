"""What the search for a circuit found, and what speaks for and against it: tables, curves, the drawing, findings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from analyses.circuitry.bench import units
from analyses.circuitry.circuit import Circuit
from analyses.circuitry.faithfulness import Curve, area, faithfulness, interval
from analyses.circuitry.search import Order
from analyses.circuitry.stability import Stability
from analyses.shared.claims import FLOORS, SURE
from analyses.shared.clean_corrupted import Measure, Pairs
from analyses.shared.metrics import UNITS
from analyses.shared.panels import CircuitGraph, Finding, Lines, Matrix, Note, Panel, Result, Table, Tokens
from analyses.shared.statistics import independent, sign_flip_p_value

OF_FILE = "of the file"
"""The method of scores that came with a circuit."""
SHOWN = 3000
"""Most edges in the drawing and the table."""
PLACED = 40
"""Most nodes told apart by position."""
ENDS: tuple[Literal["sends", "reads"], ...] = ("sends", "reads")
STABLE = 0.8
"""Share of its edges that must come back for a circuit to be called stable."""
COLUMNS = ["sender", "receiver", "input", "score", "exact", "low", "high", "stability"]
TEST = "held out"
CURVES = {
    "performance": "by score", "imitation": "by size of score", "magnitude": "by change of the sender",
    "random": "random circuits",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class CircuitsResult(Result):
    """A circuit, every edge's numbers, and how far both can be trusted."""

    circuit: Circuit
    order: Order
    """Edges (or nodes), best first; the circuit is the first `size` of them, unless it was pruned or given."""
    size: int
    method: str
    pairs: Pairs
    measure: Measure
    ablation: str
    """What edges outside a circuit carry."""
    discovery: Int[np.ndarray, " chosen"]
    """Texts that the circuit was found on."""
    held_out: Int[np.ndarray, " others"]
    """Texts that it is measured on; the same where there are too few to set any apart."""
    none: Float[np.ndarray, " text"]
    """The metric with every edge ablated."""
    own: Float[np.ndarray, " text"]
    """The metric of the circuit."""
    sizes: Int[np.ndarray, " size"]
    curves: Mapping[str, Curve]
    """By the names of CURVES."""
    controls: Float[np.ndarray, "control text"]
    """The metric of random circuits of the circuit's size, and of the one by change of the sender."""
    stability: Stability | None
    agreement: pd.DataFrame | None
    """How estimates of edges drawn at random, and of the largest, go with exact effects."""
    by_position: Float[np.ndarray, "chosen pos"]
    """Estimated scores of the circuit's edges that lead to the logits, in the graph's order, by position of the first
    prompt."""
    lost: tuple[np.ndarray, np.ndarray]
    """[draw text] the metric of the circuit, and of the model, without the same half of the circuit."""
    minimal: Float[np.ndarray, "edge text"] | None
    """The metric of the circuit without each of its edges; None of a large one."""
    gap: float
    """Completeness gap of the estimates: their sum over the embedding's edges less the whole effect, as a share."""
    answers: Tokens
    wrongs: Tokens
    remarks: tuple[str, ...]
    seed: int

    @property
    def whole(self) -> np.ndarray:
        """[text] the metric of the whole model."""
        return self.measure.clean

    @property
    def effect(self) -> float:
        """What ablating everything takes from the metric, mean over all texts."""
        return self.effect_on(np.arange(len(self.whole)))

    def effect_on(self, texts: np.ndarray) -> float:
        """The same, mean over some texts."""
        return float((self.whole - self.none)[texts].mean())

    @property
    def floor(self) -> float:
        """The least effect that is told."""
        return FLOORS.get(self.measure.unit, 1e-6)

    @property
    def given(self) -> bool:
        """Whether the circuit is a file's, and its edges' numbers those of the file's prompts."""
        return self.method == OF_FILE

    @property
    def unseen(self) -> bool:
        """Whether it is measured on texts that it was not found on."""
        return not np.array_equal(self.discovery, self.held_out)

    def faithful(self, texts: np.ndarray) -> tuple[float, float, float]:
        """The circuit's faithfulness on some texts, and the ends of its interval (NaN of too few)."""
        value = float(faithfulness(self.own[texts], self.none[texts], self.whole[texts]))
        ends = self._interval(lambda weights: faithfulness(self.own, self.none, self.whole, weights), texts)
        return value, float(ends[0]), float(ends[1])

    def _interval(self, statistic: Callable[[np.ndarray], np.ndarray], texts: np.ndarray) -> tuple[Any, Any]:
        """The ends of an interval over texts; NaN of too few."""
        return interval(statistic, texts, len(self.own), units(self.pairs, texts), self.seed) or (np.nan, np.nan)

    def to_dataframe(self) -> pd.DataFrame:
        """One row an edge, the best first: sender, receiver, input, score, exact with its interval, stability."""
        senders, receivers, inputs = self.circuit.wiring.labels()
        nan = np.full(len(senders), np.nan)
        known = {name: self.circuit.measures.get(name, nan) for name in COLUMNS[4:]}
        frame = pd.DataFrame(
            {"sender": senders, "receiver": receivers, "input": inputs, "score": self.circuit.scores} | known
        )
        return frame.iloc[self._edges()].reset_index(drop=True)[COLUMNS]

    def _edges(self) -> Order:
        """Edges in the order in which they are told: the circuit's first."""
        if self.circuit.level == "edge" and self.size:
            return self.order
        rank = np.argsort(-np.abs(np.nan_to_num(self.circuit.scores)), kind="stable")
        return rank[np.argsort(~self.circuit.chosen[rank], kind="stable")]

    def facts(self) -> dict[str, Any]:
        """Sizes, faithfulness and its controls, areas, stability."""
        value, low, high = self.faithful(self.held_out)
        found = {
            "edges": self.circuit.size, "of": len(self.circuit.wiring),
            "after_pruning": int(self.circuit.wiring.pruned(self.circuit.chosen).sum()),
            "faithfulness": value, "faithfulness_low": low, "faithfulness_high": high,
            "random": _mean(self._of_controls()[:-1]),
            "stability": np.nan if self.stability is None else self.stability.kept,
            "total_effect": self.effect, "texts": len(self.whole), "held_out": len(self.held_out),
            "completeness_gap": self.gap,
        }  # fmt: skip
        return {name: number if np.isfinite(number) else None for name, number in found.items()}

    def saved(self) -> str:
        """The circuit in the layout of the MIB benchmark."""
        return self.circuit.to_json()

    def _of_controls(self) -> np.ndarray:
        texts = self.held_out
        return np.asarray(faithfulness(self.controls[:, texts], self.none[texts], self.whole[texts]))

    def areas(self) -> pd.DataFrame:
        """CPR (under the curve) and CMD (between the curve and 1) of each order, on the texts held out."""
        rows = []
        shares = self.sizes / self.items
        for name, curve in self.curves.items():
            point = curve.measured(self.none, self.whole, self.held_out)
            row: dict[str, object] = {"edges taken": CURVES[name]}
            for what, of in (("CPR", np.asarray), ("CMD", _apart)):
                row[what] = float(area(shares, of(point)))
                low, high = self._interval(
                    lambda weights, curve=curve, of=of: area(  # type: ignore[misc]
                        shares, of(faithfulness(curve.values, self.none, self.whole, weights).mean(0))
                    ),
                    self.held_out,
                )  # fmt: skip
                least = 0.0 if what == "CMD" else -np.inf  # an area between curves is not negative
                row |= {f"{what} low": float(np.maximum(low, least)), f"{what} high": float(high)}
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def items(self) -> int:
        """Edges, or nodes, of the whole graph."""
        return len(self.circuit.wiring) if self.circuit.level == "edge" else len(self.circuit.wiring.nodes) - 1

    def panels(self) -> list[Panel]:
        first: Panel = self._graph() if self.circuit.level == "edge" else self._table()
        lines = [self._lines(), self._areas()] if self.curves else []
        stable = [self._stability()] if self.stability is not None else []
        agree = [] if self.agreement is None else [self._agreement(self.agreement)]
        places = [self._places(ends) for ends in ENDS if len(self.by_position)]
        return [first, *places, *lines, *stable, self._doubts(), *agree, *self._notes()]

    def _graph(self) -> CircuitGraph:
        wiring, order = self.circuit.wiring, self._edges()[:SHOWN]
        senders, receivers, inputs = wiring.labels()
        heights = {node.label: _height(node.kind, node.layer) for node in wiring.nodes}
        for receiver in wiring.receivers:
            heights.setdefault(receiver.label.partition(".")[0], 2 * receiver.layer + 1)
        names = sorted(heights, key=lambda name: heights[name])
        number = {name: place for place, name in enumerate(names)}
        group = wiring.config.n_heads // wiring.config.n_kv_heads
        serves = [
            (number[f"L{node.layer}KV{(node.index or 0) // group}"], number[node.label])
            for node in wiring.nodes if node.kind == "head" and group > 1
        ]  # fmt: skip
        measures = {name: self._measure(name)[order] for name in COLUMNS[4:]}
        measured, low, high = {}, {}, {}
        _, taken = np.unique(np.where(self.sizes > 0, self.sizes, -1), return_index=True)
        taken = taken[self.sizes[taken] > 0]
        for name, curve, texts in self._shown_curves():
            measured[name] = curve.measured(self.none, self.whole, texts)[taken]
            ends = curve.ends(self.none, self.whole, texts, units(self.pairs, texts), self.seed)
            if ends is not None:
                low[name], high[name] = ends[0][taken], ends[1][taken]
        return CircuitGraph(
            "circuit", "The circuit", self._caption(), nodes=tuple(names), rows=tuple(heights[name] for name in names),
            serves=tuple(serves), senders=np.array([number[senders[e]] for e in order]),
            receivers=np.array([number[receivers[e]] for e in order]), inputs=tuple(inputs[e] for e in order),
            scores=np.nan_to_num(self.circuit.scores[order]), **measures, chosen=self.circuit.size, total=len(wiring),
            unit=self._unit, sizes=self.sizes[taken], measured=measured, measured_low=low, measured_high=high,
        )  # fmt: skip

    def _places(self, ends: Literal["sends", "reads"]) -> Matrix:
        """Layers upwards, tokens across: what the circuit's nodes send, or what each of their inputs reads."""
        wiring, chosen = self.circuit.wiring, self.circuit.wiring.pruned(self.circuit.chosen)
        if ends == "sends":
            heights = {node.label: _height(node.kind, node.layer) for node in wiring.nodes}
            names, what = [wiring.nodes[i].label for i in wiring.senders[chosen]], "each node of it"
        else:
            heights = {one.label: 2 * one.layer + (one.input == "in") for one in wiring.receivers}
            names, what = [wiring.receivers[i].label for i in wiring.targets[chosen]], "each input in it"
        summed = pd.DataFrame(self.by_position).groupby(names).sum()
        kept = sorted(summed.abs().max(axis=1).nlargest(PLACED).index, key=lambda name: (-heights[name], name))
        few = f"; the {PLACED} largest of {len(summed)} are shown" if len(summed) > PLACED else ""
        return Matrix(
            ends, f"The circuit over the text: what {what} {ends}", "Of the first prompt, layers upwards: those of its "
            f"edges that lead to the logits summed, estimated by gradients at each position{few}. Only heads carry "
            "anything from one position to another: what a head sends stands where its query is, what its k and v read "
            "where it looks.",
            values=summed.loc[kept].to_numpy(), rows=tuple(kept), columns=self.pairs.first[0], row_axis="from" if
            ends == "sends" else "to", column_axis="token", unit=self.measure.unit, diverging=True, family="places",
        )  # fmt: skip

    def _measure(self, name: str) -> np.ndarray:
        return np.asarray(self.circuit.measures.get(name, np.full(len(self.circuit.wiring), np.nan)))

    def _caption(self) -> str:
        if self.given:
            return (
                "A circuit's file: scores, exact effects, intervals and stability of edges are the file's, of its own "
                f"prompts and metric. The circuit as a whole is measured on these {len(self.whole)} prompts."
            )
        return (
            f"Each edge: what the {self.measure.title} loses when it alone carries the "
            f"corrupted value, of {self.effect_on(self.discovery):+.3g} {self.measure.unit} in all; "
            f"{self._said_method()}. Scores are means of {self._said_found()}; exact effects and 95 % intervals "
            f"{self._said_measured()}."
        )

    @property
    def _unit(self) -> str:
        """Of the edges' numbers."""
        told = str(self.circuit.facts.get("metric", ""))
        return UNITS.get(told, "as in the file") if self.given else self.measure.unit

    def _said_measured(self) -> str:
        return f"of the {len(self.held_out)} prompts held out" if self.unseen else f"of all {len(self.whole)} prompts"

    def _said_found(self) -> str:
        """What scores are means of."""
        n = len(self.discovery)
        return f"the {n} prompts that it was found on" if self.unseen else f"all {n} prompts"

    def _said_method(self) -> str:
        return {"exact": "measured exactly", "eap": "estimated by EAP", "eap-ig": "estimated by EAP-IG"}.get(
            self.method, f"scores {self.method}"
        )

    def _shown_curves(self) -> list[tuple[str, Curve, np.ndarray]]:
        shown = [(TEST if self.unseen else "all texts", self.curves.get("performance"), self.held_out)]
        shown += [("discovery", self.curves.get("performance"), self.discovery)] if self.unseen else []
        shown += [(name, self.curves.get(name), self.held_out) for name in ("magnitude", "random")]
        return [(name, curve, texts) for name, curve, texts in shown if curve is not None]

    def _lines(self) -> Lines:
        series, low, high = {}, {}, {}
        for name, curve, texts in self._shown_curves():
            said = CURVES.get(name, f"by score, {name}")
            series[said] = curve.measured(self.none, self.whole, texts)
            ends = curve.ends(self.none, self.whole, texts, units(self.pairs, texts), self.seed)
            if ends is not None:
                low[said], high[said] = ends
        return Lines(
            "faithfulness", "How much of the effect circuits of each size keep", f"1: as the whole model; 0: as with "
            f"every edge ablated. Random circuits: the mean of {len(self.curves['random'].values)} that grow from the "
            "logits down.", x=100 * self.sizes / self.items, series=series, low=low, high=high, log_x=True,
            x_axis=f"share of all {self.circuit.level}s (%)", y_axis="faithfulness",
        )  # fmt: skip

    def _areas(self) -> Table:
        return Table(
            "areas", "Areas: performance and imitation", f"Means {self._said_measured()}. CPR: area under faithfulness "
            "over the share of edges, higher is better; CMD: area between faithfulness and 1, lower is better; both in "
            f"the manner of MIB, by the trapezoid rule at ten sizes. 95 % intervals over {self._units()}.",
            frame=self.areas(),
        )  # fmt: skip

    def _stability(self) -> Table:
        assert self.stability is not None
        return Table(
            "stability", "Is the same circuit found again?", "kept: share of the circuit's edges that the search finds "
            "again, mean of the circuits compared; least: of the one that shares fewest; overlap: edges in both over "
            "edges in either; by chance: kept by a circuit of the same size drawn at random.",
            frame=self.stability.table,
        )  # fmt: skip

    def _doubts(self) -> Table:
        texts, rows = self.held_out, list[dict[str, object]]()
        value, low, high = self.faithful(texts)

        def of(values: np.ndarray) -> np.ndarray:
            return np.atleast_1d(faithfulness(values[..., texts], self.none[texts], self.whole[texts]))

        def row(what: str, number: float, low: float = np.nan, high: float = np.nan) -> None:
            rows.append({"what": what, "value": number, "low": low, "high": high})

        row(f"faithfulness, {TEST if self.unseen else 'all texts'}", value, low, high)
        if self.unseen:
            row("faithfulness, discovery", *self.faithful(self.discovery))
        if len(self.controls):
            controls = of(self.controls)
            row(f"random circuits of this size, {len(controls) - 1}", float(controls[:-1].mean()), controls[:-1].min(),
                controls[:-1].max())  # fmt: skip
            row("as many edges by change of the sender", float(controls[-1]))
        if len(self.lost[0]):
            inside, outside = of(self.lost[0]), of(self.lost[1])
            row("without half of its edges: the circuit", float(inside.mean()), inside.min(), inside.max())
            row("without half of its edges: the model", float(outside.mean()), outside.min(), outside.max())
        if self.minimal is not None and len(self.minimal):
            change = value - of(self.minimal)
            row("edges without which it loses less than 1 %", float((change < 0.01).sum()))
        return Table(
            "doubts", "What speaks for and against it", f"Faithfulness, its 95 % interval over {self._units()}; of "
            "several circuits the mean, the least and the largest. A complete circuit and the model lose alike without "
            "the same half of its edges (Wang et al. 2022); a minimal one has no edge that it does as well without.",
            frame=pd.DataFrame(rows),
        )  # fmt: skip

    def _agreement(self, frame: pd.DataFrame) -> Table:
        gap = (
            f" Completeness gap of the estimates: {self.gap:+.1%} of the whole effect." if np.isfinite(self.gap) else ""
        )
        return Table(
            "agreement", "Estimates beside exact effects", "Of edges drawn at random and of those with the largest "
            f"estimates: correlation, and the edges where they differ most. Means of all {len(self.whole)} prompts."
            f"{gap}", frame=frame,
        )  # fmt: skip

    def _table(self) -> Table:
        """Of nodes: what each sends."""
        frame = self.to_dataframe().drop_duplicates("sender")[["sender", "score", "exact", "low", "high", "stability"]]
        return Table(
            "nodes", "Every node, the circuit's first", f"What the {self.measure.title} loses when a node's output is "
            f"corrupted, {self._said_method()}; exact: as measured, with its 95 % interval, {self._said_measured()}.",
            frame=frame.reset_index(drop=True), units=dict.fromkeys(("score", "exact"), self.measure.unit),
            diverging=frozenset({"score", "exact"}),
        )  # fmt: skip

    def _units(self) -> str:
        """What intervals are over."""
        return "prompts" if units(self.pairs, self.held_out) is None else "templates"

    def _drawn(self) -> list[str]:
        """What intervals are over, where there are templates but few."""
        names = {str(one) for one in self.pairs.clusters or ()}
        if not names or units(self.pairs, self.held_out) is not None:
            return []
        return [f"Intervals are over prompts of these {len(names)} templates; other templates may give other numbers."]

    def _notes(self) -> list[Panel]:
        found = f", {len(self.held_out)} others to measure it." if self.unseen else ", the same to measure it."
        said = [
            f"{len(self.discovery)} prompts to measure a file's circuit, which may have been found on them."
            if self.given
            else f"{len(self.discovery)} prompts to find the circuit{found}",
            *self._drawn(),
            f"Everything outside a circuit is held at its {self.ablation} value.",
            *self.remarks,
        ]
        return [
            *self.pairs.panels(self.measure, self.answers, self.wrongs, self.floor),
            Note("methods", "How it was done", text=" ".join(said)),
        ]

    # What is said first.

    def findings(self) -> list[Finding]:
        if not abs(self.effect) >= self.floor:
            text = f"Ablating everything changes the {self.measure.title} by {self.effect:+.2g} {self.measure.unit}, " \
                f"below the floor of {self.floor:g}: there is no circuit to find here."  # fmt: skip
            return [Finding(text, "doubts", 0.5, abs(self.effect), self.measure.unit, kind="negative")]
        return [*self._unstable(), *self._faithful()]

    def _unstable(self) -> list[Finding]:
        if self.stability is None or not self.circuit.size:
            return []
        kept, chance = self.stability.kept, float(self.stability.table["by chance"].iloc[0])
        if kept >= STABLE:
            return []
        text = (
            f"Not stable: of the circuit's {self._what()} {kept:.0%} are found again when the prompts are drawn again "
            f"(by chance {chance:.1%}). Read single edges with their own share."
        )
        return [Finding(text, "stability", 0.9, kept, "share of edges", kind="warning")]

    def _what(self) -> str:
        return f"{self.circuit.size:,} of {len(self.circuit.wiring):,} edges"

    def _faithful(self) -> list[Finding]:
        value, low, high = self.faithful(self.held_out)
        if not len(self.controls) or not self.circuit.size:
            return []
        controls, texts = self._of_controls(), self.held_out
        best = int(np.nanargmax(controls))
        within = "" if np.isnan(low) else f" ({low:.0%} to {high:.0%})"
        on = f"{len(texts)} prompts held out" if self.unseen else f"the {len(texts)} prompts that it was found on"
        on = (
            f"these {len(texts)} prompts (the circuit is a file's, which may have been found on them)"
            if self.given
            else on
        )
        text = (
            f"{self._what()} ({self.circuit.size / len(self.circuit.wiring):.1%}) keep {value:.0%}{within} of the "
            f"{self.effect_on(texts):+.2f} {self.measure.unit} on {on}; the best of {len(controls)} controls of the "
            f"same size keeps {controls[best]:.0%}"
        )
        clusters = units(self.pairs, texts)
        n, unit = independent(len(texts), clusters, "prompts")
        better = np.sign(self.effect) * (self.own[texts] - self.controls[best][texts])
        p = float(sign_flip_p_value(better, clusters=clusters, seed=self.seed))
        beats = better.mean() > 0 and p <= SURE and self.unseen
        kind: Literal["effect", "size"] = "effect" if beats else "size"
        null = f"flipped signs of {n} {unit}, compared with the best of {len(controls)} circuits of the same size"
        tested = f"; p = {p:.2g}" if beats else ""
        return [
            Finding(
                f"{text}{tested}.", "faithfulness" if self.curves else "doubts", 0.8, value, "faithfulness",
                None if np.isnan(low) else low, None if np.isnan(high) else high, kind=kind,
                null=null if beats else "", p=p if beats else None,
            )
        ]  # fmt: skip


def _mean(values: np.ndarray) -> float:
    """Of those that are known; NaN of none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else np.nan


def _apart(curve: np.ndarray) -> np.ndarray:
    """How far from 1."""
    return np.asarray(np.abs(1 - curve))


def _height(kind: str, layer: int | None) -> int:
    return 0 if layer is None else 2 * layer + 1 + (kind == "mlp")
