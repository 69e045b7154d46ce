"""Estimate every patch at once from gradients, and check how far the estimate can be trusted.

Question: which parts, and which paths between them, decide the answer, when there are too many to patch one by one?

Method: to first order, replacing an activation by its value in the other run changes the metric by (change of the
activation) x (gradient of the metric). Nodes (heads, MLPs, the embedding) take the gradient at what they write; edges
take it at what one receiver alone reads (q, k or v of a head, an MLP, the logits). `eap` takes the gradient in the run
that is patched into (Nanda 2023; Syed et al. 2023, "Attribution Patching Outperforms Automated Circuit Discovery");
`eap-ig` averages it over runs whose embeddings lie between the two texts' (Hanna et al. 2024, "Have Faith in
Faithfulness"). `noise` (the default) estimates patching from the corrupted into the clean run, `denoise` the other way.

Reliability: a random sample of nodes and of edges, and those with the largest scores, are patched truly. The
correlation with the random sample is the fair figure; the other says whether the top of the list is right. Gradients
miss what is saturated: scores of heads tend to be good, those of MLPs, early layers, queries and keys less so. Where
the correlation is low, believe the true patches only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from analyses.shared.capabilities import analysis
from analyses.shared.clean_corrupted import Direction, Measure, Pairs, PatchingMetric, measure, notable, resolve_pairs
from analyses.shared.components import Component, choose, component_panels
from analyses.shared.declared import PYTHON_ONLY
from analyses.shared.gradients import scores
from analyses.shared.inputs import TextOrTokens
from analyses.shared.metrics import CustomReadout, Readout, TokenChoice
from analyses.shared.panels import Finding, Graph, Note, Panel, Result, Table, Tokens
from analyses.shared.paths import Paths, Receiver, all_receivers
from analyses.shared.prompts import TextsOrPrompts
from analyses.shared.statistics import bootstrap, independent, q_values, sign_flip_p_value
from analyses.shared.statistics import methods as methods_note
from interp.errors import InputError, nearest
from interp.models.gpt import HookedGPT
from interp.progress import tell
from interp.sweep import Variant, sweep

MethodName = Literal["eap", "eap-ig"]
METHODS: dict[str, str] = {"eap": "EAP", "eap-ig": "EAP-IG"}
EDGES = 20
"""Most edges drawn."""
LISTED = 200
"""Most edges in the table."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AttributionPatchingResult(Result):
    """Estimated effects of patching every node and edge, and true effects of some."""

    pairs: Pairs
    methods: tuple[MethodName, ...]
    nodes: tuple[Component, ...]
    receivers: tuple[Receiver, ...]
    node_scores: np.ndarray
    """[method text node] estimated change of the metric."""
    edge_scores: np.ndarray
    """[method text node receiver] likewise; NaN where the node writes after the receiver reads."""
    true_nodes: np.ndarray
    """[text node] measured change of the metric; NaN where it was not patched."""
    true_edges: np.ndarray
    """[text node receiver] likewise."""
    random_nodes: np.ndarray
    """[node] booleans: drawn at random for the check."""
    random_edges: np.ndarray
    """[node receiver] likewise."""
    direction: Direction
    measure: Measure
    answers: Tokens
    wrongs: Tokens
    steps: int
    seed: int

    @property
    def gap(self) -> float:
        """What patching everything would change, mean over texts."""
        change = float((self.measure.corrupted - self.measure.clean).mean())
        return change if self.direction == "noise" else -change

    def to_dataframe(self) -> pd.DataFrame:
        """One row per method and node or edge, means over texts; `true` is NaN where it was not patched truly."""
        edge_from, edge_to = np.nonzero(np.isfinite(self.edge_scores[0, 0]))
        frames = []
        for m, method in enumerate(self.methods):
            nodes = pd.DataFrame({"sender": [node.label for node in self.nodes], "receiver": None})
            nodes["score"], nodes["true"] = self.node_scores[m].mean(0), self.true_nodes.mean(0)
            nodes["sampled"] = self.random_nodes
            edges = pd.DataFrame({"sender": [self.nodes[i].label for i in edge_from]})
            edges["receiver"] = [self.receivers[i].label for i in edge_to]
            edges["score"] = self.edge_scores[m].mean(0)[edge_from, edge_to]
            edges["true"] = self.true_edges.mean(0)[edge_from, edge_to]
            edges["sampled"] = self.random_edges[edge_from, edge_to]
            for kind, frame in (("node", nodes), ("edge", edges)):
                frames.append(frame.assign(method=method, kind=kind))
        whole = pd.concat([frame.astype({"receiver": object}) for frame in frames], ignore_index=True)
        return whole[["method", "kind", "sender", "receiver", "score", "true", "sampled"]]

    def reliability(self) -> pd.DataFrame:
        """One row per method, kind and sample: correlations of estimate and truth over nodes or edges.

        `slope` is that of the truth on the estimate through zero: 1 where sizes are right. Kinds with fewer than three
        patched members have no correlation.
        """
        kinds = np.array([node.kind for node in self.nodes])
        rows = []
        for m, method in enumerate(self.methods):
            node, edge = self.node_scores[m].mean(0), self.edge_scores[m].mean(0)
            known_node, known_edge = np.isfinite(self.true_nodes[0]), np.isfinite(self.true_edges[0])
            truth_node, truth_edge = self.true_nodes.mean(0), self.true_edges.mean(0)
            for sample in ("random", "largest"):
                drawn_node = self.random_nodes if sample == "random" else self._largest(node, known_node)
                drawn_edge = self.random_edges if sample == "random" else self._largest(edge, known_edge)
                for name, chosen in (
                    ("heads", drawn_node & (kinds == "head")),
                    ("mlps", drawn_node & (kinds == "mlp")),
                    ("nodes", drawn_node),
                ):
                    rows.append(
                        {
                            "method": method,
                            "kind": name,
                            "sample": sample,
                            **_agreement(node[chosen], truth_node[chosen]),
                        }
                    )
                chosen = drawn_edge
                rows.append(
                    {
                        "method": method,
                        "kind": "edges",
                        "sample": sample,
                        **_agreement(edge[chosen], truth_edge[chosen]),
                    }
                )
        return pd.DataFrame(rows)

    def _largest(self, score: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Those patched truly that are at least as large as any that was not."""
        size = np.abs(np.nan_to_num(score))
        unknown = size[~known & np.isfinite(score)]
        largest: np.ndarray = known & (size > (unknown.max() if unknown.size else -1.0))
        return largest

    def panels(self) -> list[Panel]:
        panels: list[Panel] = []
        for m, method in enumerate(self.methods):
            spread = bootstrap(self.node_scores[m], clusters=self.pairs.clusters, seed=self.seed)
            title = f"Estimated effect of patching {{}}, {METHODS[method]}"
            panels += component_panels(
                f"{method}-nodes", title, self.nodes, spread, caption=self._caption(), unit=self.measure.unit
            )
        return [
            *panels,
            self._reliability_table(),
            *self._graph(),
            self._node_table(),
            self._edge_table(),
            self._note(),
            *methods_note(
                len(self.pairs.rows), clusters=self.pairs.clusters, seed=self.seed, test="sign flips",
                tests=self._edges, chosen_of=self._edges,
                more="q is that of the estimates, nodes and edges each corrected among themselves.",
            ),
        ]  # fmt: skip

    @property
    def _edges(self) -> int:
        return int(np.isfinite(self.edge_scores[-1, 0]).sum())

    def _q(self, scores: np.ndarray) -> np.ndarray | None:
        """[...] q-values of estimates [text ...], all corrected together; None where one text or template tells none.

        NaN where there is no estimate.
        """
        if independent(len(scores), self.pairs.clusters)[0] < 2:
            return None
        p = sign_flip_p_value(scores, clusters=self.pairs.clusters, seed=self.seed)
        return q_values(np.where(np.isfinite(scores).all(0), p, np.nan))

    def _caption(self) -> str:
        runs = "corrupted run into the clean" if self.direction == "noise" else "clean run into the corrupted"
        texts = self.pairs.said()
        return (
            f"Estimated change of the {self.measure.title} if this were patched from the {runs}; patching everything "
            f"changes it by {self.gap:+.3g}. {texts}"
        )

    def _reliability_table(self) -> Table:
        return Table(
            key="reliability", title="How far the estimates can be trusted", frame=self.reliability(),
            caption="Estimates against true patches of the same nodes or edges. random: drawn regardless of the score, "
            "the fair figure; largest: the top of the list. slope: true over estimated size, 1 where sizes are right.",
        )  # fmt: skip

    def _node_table(self) -> Table:
        frame = self.to_dataframe().query("kind == 'node'").drop(columns=["kind", "receiver"])
        wide = frame.pivot(index=["sender", "true"], columns="method", values="score").reset_index()
        wide = wide.rename(columns={"sender": "node"})[["node", *self.methods, "true"]]
        wide.columns.name, shown = None, [*self.methods, "true"]
        q = self._q(self.node_scores[-1])
        if q is not None:
            wide["q"] = wide["node"].map(dict(zip((node.label for node in self.nodes), q, strict=True)))
        order = np.argsort(-wide[self.methods[-1]].abs().to_numpy(), kind="stable")
        return Table(
            key="nodes", title="Nodes, largest estimate first", frame=wide.iloc[order].reset_index(drop=True),
            caption="true: measured by patching the node; empty where it was not." + self._said_q(q),
            units=dict.fromkeys(shown, self.measure.unit), diverging=frozenset(shown),
        )  # fmt: skip

    def _edge_table(self) -> Table:
        best = np.nan_to_num(self.edge_scores[-1].mean(0))
        order = np.argsort(-np.abs(best), axis=None, kind="stable")[:LISTED]
        rows, q = [], self._q(self.edge_scores[-1])
        for node, receiver in zip(*np.unravel_index(order, best.shape), strict=True):
            means = {str(name): self.edge_scores[m, :, node, receiver].mean() for m, name in enumerate(self.methods)}
            true = self.true_edges[:, node, receiver].mean()
            names = {"from": self.nodes[node].label, "to": self.receivers[receiver].label}
            rows.append(names | means | {"true": true} | ({} if q is None else {"q": q[node, receiver]}))
        total, shown = int(np.isfinite(self.edge_scores[0, 0]).sum()), [*map(str, self.methods), "true"]
        cut = f" The {LISTED} largest of {total:,}." if total > LISTED else ""
        return Table(
            key="edges", title="Edges, largest estimate first", frame=pd.DataFrame(rows[:total]),
            caption=f"true: measured by patching this path alone; empty where it was not.{self._said_q(q)}{cut}",
            units=dict.fromkeys(shown, self.measure.unit), diverging=frozenset(shown),
        )  # fmt: skip

    def _said_q(self, q: np.ndarray | None) -> str:
        return "" if q is None else f" q: of the {METHODS[self.methods[-1]]} estimate, corrected for all of them."

    def _graph(self) -> list[Panel]:
        best = np.nan_to_num(self.edge_scores[-1].mean(0))
        order = np.argsort(-np.abs(best), axis=None, kind="stable")[:EDGES]
        chosen = [
            (int(a), int(b)) for a, b in zip(*np.unravel_index(order, best.shape), strict=True) if best[a, b] != 0
        ]
        if not chosen:
            return []
        columns = {self.nodes[a].label: _column(self.nodes[a]) for a, _ in chosen}
        for _, b in chosen:
            receiver = self.receivers[b]
            name = receiver.label.partition(".")[0]
            columns[name] = 2 * receiver.layer + 1 + (receiver.head is None and name != "logits")
        names = sorted(columns, key=lambda name: columns[name])
        known = sorted(set(columns.values()))
        weights: dict[tuple[int, int], float] = {}
        for a, b in chosen:  # q, k and v of a head are drawn as one
            ends = names.index(self.nodes[a].label), names.index(self.receivers[b].label.partition(".")[0])
            weights[ends] = weights.get(ends, 0.0) + float(best[a, b])
        return [
            Graph(
                key="graph", title=f"The {len(chosen)} largest edges, {METHODS[self.methods[-1]]}", nodes=tuple(names),
                columns=tuple(known.index(columns[name]) for name in names), unit=self.measure.unit,
                edges=tuple((a, b, weight) for (a, b), weight in weights.items()),
                caption=self._caption() + " Edges to a head's queries, keys and values are added up.",
            )
        ]  # fmt: skip

    def _note(self) -> Note:
        steps = [f"EAP-IG averages {self.steps} gradients."] if "eap-ig" in self.methods else []
        return self.pairs.choices(self.measure, self.answers, self.wrongs, steps)

    def findings(self) -> list[Finding]:
        if not self.gap:
            return []
        method, table = self.methods[-1], self.reliability()
        rows = table[(table["method"] == method) & (table["sample"] == "random")]
        known = [row for row in zip(rows["kind"], rows["pearson"], rows["n"], strict=True) if np.isfinite(row[1])]
        said = [f"{pearson:.2f} for {kind} ({n} patched)" for kind, pearson, n in known]
        found = []
        if said:
            value = float(known[-1][1])
            found.append(
                Finding(
                    text=f"{METHODS[method]} estimates correlate with true patches drawn at random: {', '.join(said)}.",
                    key="reliability", weight=0.5, value=value, unit="correlation",
                )
            )  # fmt: skip
        best = np.nan_to_num(self.edge_scores[-1].mean(0))
        a, b = np.unravel_index(np.argmax(np.abs(best)), best.shape)
        spread = bootstrap(self.true_edges[:, a, b], clusters=self.pairs.clusters, chosen_of=self._edges)
        true, (low, high), q = float(spread.value), spread.ends(), self._q(self.edge_scores[-1])
        found.append(
            Finding(
                text=f"The largest edge by {METHODS[method]} leads from {self.nodes[a].label} to "
                f"{self.receivers[b].label}: estimated {best[a, b]:+.3g}, truly {true:+.3g} {self.measure.unit}"
                f"{'' if q is None else f' (q = {q[a, b]:.2g} of {self._edges:,} edges)'}.",
                key="edges", weight=notable(true / self.gap, low, high, None if q is None else q[a, b]), value=true,
                unit=self.measure.unit, low=low, high=high,
            )
        )  # fmt: skip
        return found


def _column(node: Component) -> int:
    return 0 if node.layer is None else 2 * node.layer + 1 + (node.kind == "mlp")


def _agreement(estimate: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Number, correlations, slope through zero and root mean square error of estimates."""
    varied = len(estimate) >= 3 and np.ptp(estimate) > 0 and np.ptp(truth) > 0
    squares = float((estimate**2).sum())
    return {
        "n": len(estimate),
        "pearson": float(stats.pearsonr(estimate, truth).statistic) if varied else np.nan,
        "spearman": float(stats.spearmanr(estimate, truth).statistic) if varied else np.nan,
        "slope": float((estimate * truth).sum() / squares) if squares > 0 else np.nan,
        "rmse": float(np.sqrt(((estimate - truth) ** 2).mean())) if len(estimate) else np.nan,
    }


@analysis(place=47, needs=("next token",), in_report={"sample": 12, "top": 5}, sweeps=True)
def attribution_patching(
    model: HookedGPT,
    clean: TextsOrPrompts = None,
    corrupted: Annotated[TextOrTokens | None, "the clean text, changed; as long in tokens"] = None,
    *,
    methods: Annotated[tuple[MethodName, ...], "eap: one gradient; eap-ig: gradients averaged between the texts"] = (
        "eap",
        "eap-ig",
    ),
    steps: Annotated[int, "gradients that eap-ig averages"] = 5,
    metric: Annotated[
        PatchingMetric | Callable[[Tensor], Tensor], "what is measured; rank has no gradient"
    ] = "logit_diff",
    answer: Annotated[TokenChoice | None, "right next token after the clean text"] = None,
    wrong: Annotated[TokenChoice | None, "right next token after the corrupted text"] = None,
    direction: Annotated[Direction, "noise patches corrupted into clean, denoise clean into corrupted"] = "noise",
    sample: Annotated[int, "nodes, and edges, drawn at random to be patched truly"] = 30,
    top: Annotated[int, "nodes, and edges, with the largest scores to be patched truly"] = 10,
    read: Annotated[tuple[int, ...], "positions whose logits a metric function gets", PYTHON_ONLY] = (-1,),
    memory: Annotated[int | None, "bytes to use beyond the model; by default half of what is free"] = None,
    seed: Annotated[int, "of generated texts, samples and intervals"] = 0,
) -> AttributionPatchingResult:
    """Estimated effects of patching all nodes and edges, with true effects of a random sample and of the largest.

    Args:
        clean: a text, several, ids [batch pos], a prompt set, or None for 12 generated prompts of one template.
        corrupted: as many; None takes the prompt set's, or changes one token of each clean text.
        metric: also a differentiable function of logits [batch read d_vocab] that returns [batch].
        answer, wrong: a token as text or id, for all texts or one for each; by default the model's own top tokens.

    Raises InputError for an unknown method, a metric without gradient, or numbers below their least.
    """
    _check(methods, metric, {"steps": (steps, 1), "sample": (sample, 3), "top": (top, 1)})
    nodes = choose(model, "embed,heads,mlps", allowed=("heads", "mlps", "embed"))
    receivers = tuple(all_receivers(model))
    with torch.no_grad():
        pairs = resolve_pairs(model, clean, corrupted, answer=answer, wrong=wrong, seed=seed)
        measured = measure(model, pairs, metric, read)
    n_texts = len(pairs.rows)
    node_scores = np.zeros((len(methods), n_texts, len(nodes)))
    edge_scores = np.full((len(methods), n_texts, len(nodes), len(receivers)), np.nan)
    groups: list[Group] = []
    for (indices, one, other), readout in zip(pairs.paired(), measured.readouts, strict=True):
        base, source = (one, other) if direction == "noise" else (other, one)
        with torch.no_grad():
            paths = Paths(model, base, source)
        groups.append((indices, base, paths, readout))
        for m, method in enumerate(methods):
            count = 1 if method == "eap" else steps
            node_scores[m, indices], edge_scores[m, indices] = scores(
                model, paths, base, partial(_value, readout), nodes, steps=count, read=readout.read, vocab=readout.vocab
            )
    random_nodes, random_edges = _draw(edge_scores, sample, seed)
    checked_nodes = random_nodes | _top(node_scores, top)
    checked_edges = random_edges | _top(edge_scores, top)
    true_nodes, true_edges = _patch(model, groups, nodes, receivers, checked_nodes, checked_edges, n_texts, memory)
    start = measured.clean if direction == "noise" else measured.corrupted
    answers, wrongs = pairs.answers(model)
    return AttributionPatchingResult(
        pairs=pairs,
        methods=tuple(methods),
        nodes=nodes,
        receivers=receivers,
        node_scores=node_scores,
        edge_scores=edge_scores,
        true_nodes=true_nodes - start[:, None],
        true_edges=true_edges - start[:, None, None],
        random_nodes=random_nodes,
        random_edges=random_edges,
        direction=direction,
        measure=measured,
        answers=answers,
        wrongs=wrongs,
        steps=steps,
        seed=seed,
    )


Group: TypeAlias = tuple[list[int], Tensor, Paths, Readout | CustomReadout]
"""Texts of one length: their numbers, the ids that are run, both runs' activations, the metric."""


def _value(readout: Readout | CustomReadout, logits: Tensor) -> Tensor:
    """The metric [batch] of the logits that it reads [batch read vocab]."""
    (found,) = readout(logits).values()
    return found


def _check(methods: Sequence[str], metric: object, numbers: dict[str, tuple[int, int]]) -> None:
    if not methods:
        raise InputError("no methods given", f"expected some of {', '.join(METHODS)}")
    for method in methods:
        if method not in METHODS:
            close = nearest(str(method), list(METHODS), 1)
            raise InputError(
                f"unknown method {method!r}",
                f"expected {', '.join(METHODS)}",
                f"did you mean {close[0]!r}?" if close else "",
            )
    if metric == "rank":
        raise InputError("the metric rank has no gradient", "expected logit_diff, logit, prob or kl")
    for name, (number, least) in numbers.items():
        if number < least:
            raise InputError(f"{name} = {number}", f"expected at least {least}")


def _draw(edge_scores: np.ndarray, sample: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Booleans [node] and [node receiver] with `sample` of each drawn, regardless of scores; or all there are."""
    rng = np.random.default_rng(seed)
    possible = np.isfinite(edge_scores[0, 0])
    drawn = []
    for allowed in (np.ones(len(possible), dtype=bool), possible):
        places = np.flatnonzero(allowed)
        chosen = np.zeros(allowed.size, dtype=bool)
        chosen[rng.choice(places, size=min(sample, len(places)), replace=False)] = True
        drawn.append(chosen.reshape(allowed.shape))
    return drawn[0], drawn[1]


def _top(values: np.ndarray, top: int) -> np.ndarray:
    """Booleans: the `top` largest mean scores of any method; values [method text ...]."""
    found = np.zeros(values.shape[2:], dtype=bool)
    for means in values.mean(1):
        size = np.abs(np.where(np.isfinite(means), means, -np.inf))
        size[~np.isfinite(means)] = -1.0
        order = np.argsort(-size, axis=None, kind="stable")[:top]
        found.flat[[i for i in order if size.flat[i] >= 0]] = True
    return found


@torch.no_grad()
def _patch(
    model: HookedGPT,
    groups: Sequence[Group],
    nodes: Sequence[Component],
    receivers: Sequence[Receiver],
    checked_nodes: np.ndarray,
    checked_edges: np.ndarray,
    n_texts: int,
    memory: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The metric with the chosen nodes [text node] and edges [text node receiver] patched truly; NaN elsewhere."""
    true_nodes = np.full((n_texts, len(nodes)), np.nan)
    true_edges = np.full((n_texts, len(nodes), len(receivers)), np.nan)
    for indices, base, paths, readout in groups:
        chosen = [int(i) for i in np.flatnonzero(checked_nodes)]
        variants: list[Variant] = [nodes[i].replace(paths.source.__getitem__) for i in chosen]
        ends = np.argwhere(checked_edges)
        variants += [paths.edits(paths.change(nodes[a]), nodes[a], [receivers[b]]) for a, b in ends]
        (found,) = sweep(
            model,
            base,
            variants,
            readout,
            read=readout.read,
            vocab=readout.vocab,
            memory=memory,
            progress=tell,
        ).values()
        values = found.double().cpu().numpy().T
        true_nodes[np.array(indices)[:, None], np.array(chosen)] = values[:, : len(chosen)]
        for column, (a, b) in enumerate(ends):
            true_edges[indices, a, b] = values[:, len(chosen) + column]
    return true_nodes, true_edges
