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
from torch import Tensor

from analyses.shared.axes import Axes
from analyses.shared.capabilities import analysis
from analyses.shared.claims import signed
from analyses.shared.clean_corrupted import Direction, PatchingMetric, measure, resolve_pairs
from analyses.shared.components import Component, choose, component_panels
from analyses.shared.declared import PYTHON_ONLY
from analyses.shared.gradients import scores
from analyses.shared.inputs import TextOrTokens
from analyses.shared.metrics import CustomReadout, Readout, TokenChoice
from analyses.shared.panels import Finding, Panel, Table
from analyses.shared.patching_result import PatchingResult, depth_of, layered_graph
from analyses.shared.paths import Paths, Receiver, all_receivers
from analyses.shared.prompts import TextsOrPrompts
from analyses.shared.statistics import correlation, independent, q_values, sign_flip_p_value
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
AGREES = 0.7
"""Correlation with true patches from which on estimates are not warned of."""
LEAST = 3
"""Of those drawn at random have to matter, by estimate or in truth, for a warning: noise does not go with noise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AttributionPatchingResult(PatchingResult):
    """Estimated effects of patching every node and edge, and true effects of some."""

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
    steps: int

    def to_dataframe(self) -> pd.DataFrame:
        """One row per method and node or edge, means over texts; `true` is NaN where it was not patched truly."""
        labels = [part.label for part in self.nodes]
        nodes = Axes.of(self.node_scores.mean(1), method=self.methods, sender=labels).frame(
            "score", true=self.true_nodes.mean(0), sampled=self.random_nodes
        )
        nodes = nodes.assign(receiver=None, kind="node")
        receivers = [receiver.label for receiver in self.receivers]
        edges = Axes.of(self.edge_scores.mean(1), method=self.methods, sender=labels, receiver=receivers).frame(
            "score", true=self.true_edges.mean(0), sampled=self.random_edges
        )
        edges = edges.dropna(subset="score").assign(kind="edge")
        whole = pd.concat([frame.astype({"receiver": object}) for frame in (nodes, edges)])
        whole = whole.sort_values("method", key=lambda names: names.map(self.methods.index), kind="stable")
        columns = ["method", "kind", "sender", "receiver", "score", "true", "sampled"]
        return whole[columns].reset_index(drop=True)

    def reliability(self) -> pd.DataFrame:
        """One row per method, kind and sample: correlations of estimate and truth over nodes or edges.

        `slope` is that of the truth on the estimate through zero: 1 where sizes are right; `matter` counts those whose
        estimate or truth is more than `small`. Kinds with fewer than three patched members have no correlation.
        """
        kinds = np.array([node.kind for node in self.nodes])
        parts = {"heads": kinds == "head", "mlps": kinds == "mlp", "nodes": kinds != ""}
        rows = []
        for m, method in enumerate(self.methods):
            node, edge = self.node_scores[m].mean(0), self.edge_scores[m].mean(0)
            for sample in ("random", "largest"):
                drawn = self.random_nodes if sample == "random" else _largest(node, self.true_nodes)
                pairs = {kind: (node, self.true_nodes, drawn & those) for kind, those in parts.items()}
                drawn = self.random_edges if sample == "random" else _largest(edge, self.true_edges)
                for kind, (score, true, chosen) in (pairs | {"edges": (edge, self.true_edges, drawn)}).items():
                    row = {"method": method, "kind": kind, "sample": sample}
                    row |= _agreement(score[chosen], true.mean(0)[chosen])
                    sizes = np.maximum(np.abs(score[chosen]), np.abs(true.mean(0)[chosen]))
                    rows.append(row | {"matter": int((sizes > self.small).sum())})
        return pd.DataFrame(rows)

    def panels(self) -> list[Panel]:
        panels: list[Panel] = []
        for m, method in enumerate(self.methods):
            title = f"Estimated effect of patching {{}}, {METHODS[method]}"
            made = component_panels(
                f"{method}-nodes", title, self.nodes, self.spread(self.node_scores[m]), caption=self._caption(),
                unit=self.measure.unit,
            )  # fmt: skip
            panels += [self.shown(one, "z", estimated=True) for one in made]
        reliability = Table(
            "reliability", "How far the estimates can be trusted",
            "Estimates against true patches of the same nodes or edges. random: drawn regardless of the score, the "
            "fair figure; largest: the top of the list. slope: true over estimated size, 1 where sizes are right. "
            f"matter: how many are beyond {self.small:.2g} by either; among the others nothing goes together."
            + f" EAP-IG averages {self.steps} gradients." * ("eap-ig" in self.methods),
            frame=self.reliability(),
        )  # fmt: skip
        more = "q is that of the estimates, nodes and edges each corrected among themselves."
        return [
            *self.pair, *panels, reliability, *self._graph(), self._node_table(), self._edge_table(),
            *self.said_methods(tests=self._edges, chosen_of=self._edges, more=more),
        ]  # fmt: skip

    @property
    def _edges(self) -> int:
        return int(np.isfinite(self.edge_scores[-1, 0]).sum())

    @property
    def _best(self) -> np.ndarray:
        """[node receiver] mean estimate of the last method; 0 where there is none."""
        return np.asarray(np.nan_to_num(self.edge_scores[-1].mean(0)))

    def _q(self, scores: np.ndarray) -> np.ndarray | None:
        """[...] q-values of estimates [text ...], all corrected together; None where one text or template tells none.

        NaN where there is no estimate.
        """
        if independent(len(scores), self.pairs.clusters)[0] < 2:
            return None
        p = sign_flip_p_value(scores, clusters=self.pairs.clusters, seed=self.seed)
        return q_values(np.where(np.isfinite(scores).all(0), p, np.nan))

    def _caption(self) -> str:
        return self.caption("if this were patched", "Estimated change")

    def _node_table(self) -> Table:
        said = "true: measured by patching the node; empty where it was not."
        nodes = {"node": [part.label for part in self.nodes]}
        return self._estimates("nodes", said, self.node_scores, self.true_nodes, nodes)

    def _edge_table(self) -> Table:
        said = "true: measured by patching this path alone; empty where it was not."
        ends = {"from": [part.label for part in self.nodes], "to": [receiver.label for receiver in self.receivers]}
        return self._estimates("edges", said, self.edge_scores, self.true_edges, ends)

    def _estimates(
        self, key: str, said: str, scores: np.ndarray, true: np.ndarray, labels: dict[str, list[str]]
    ) -> Table:
        """The table of estimates [method text ...], those of the last method deciding the order."""
        *others, last = self.methods
        q, shown = self._q(scores[-1]), [*self.methods, "true"]
        beside = dict(zip(others, scores.mean(1), strict=False)) | {"true": true.mean(0)}
        if q is not None:
            beside |= {"q": q}
            said += f" q: of the {METHODS[last]} estimate, corrected for all of them."
        frame, cut = Axes.of(scores[-1].mean(0), **labels).largest(last, LISTED, **beside)
        columns = [*labels, *shown, *(["q"] if q is not None else [])]
        return Table(
            key, f"{key.capitalize()}, largest estimate first", said + cut, frame=frame[columns],
            units=dict.fromkeys(shown, self.measure.unit), diverging=frozenset(shown),
        )  # fmt: skip

    def _graph(self) -> list[Panel]:
        depth, edges = {part.label: depth_of(part) for part in self.nodes}, []
        for place in np.argsort(-np.abs(self._best), axis=None, kind="stable")[:EDGES]:
            a, b = np.unravel_index(place, self._best.shape)
            receiver, weight = self.receivers[b], float(self._best[a, b])
            name = receiver.label.partition(".")[0]  # q, k and v of a head are drawn as one
            depth[name] = 2 * receiver.layer + 1 + (receiver.head is None and name != "logits")
            edges += [(self.nodes[a].label, name, weight)] if weight else []
        title = f"The {len(edges)} largest edges, {METHODS[self.methods[-1]]}"
        caption = self._caption() + " Edges to a head's queries, keys and values are added up."
        return [layered_graph(title, caption, edges, depth, self.measure.unit)] if edges else []

    def findings(self) -> list[Finding]:
        return [] if self.weak else [*self._disagreement(), *self._edge()]  # activation patching says that it is weak

    def _disagreement(self) -> list[Finding]:
        """A warning where estimates of the fair sample do not go with the true patches, some of which matter."""
        method, table = self.methods[-1], self.reliability()
        rows = table[(table["method"] == method) & (table["sample"] == "random")].dropna(subset="pearson")
        rows = rows[(rows["pearson"] < AGREES) & (rows["matter"] >= LEAST)]
        if rows.empty:
            return []
        known = zip(rows["pearson"], rows["kind"], rows["matter"], strict=True)
        said = ", ".join(f"{signed(pearson, '.2f')} for {kind} ({n} that matter)" for pearson, kind, n in known)
        text = (
            f"{METHODS[method]} estimates do not go with true patches drawn at random: correlation {said}. Believe the "
            "true patches only."
        )
        return [Finding(text, "reliability", 0.5, float(rows["pearson"].min()), "correlation", kind="warning")]

    def _edge(self) -> list[Finding]:
        """The true effect of the edge with the largest estimate; the embedding aside, through which all enters."""
        from_parts = np.array([node.kind != "embed" for node in self.nodes])
        best = self._best * from_parts[:, None]
        a, b = (int(i) for i in np.unravel_index(np.argmax(np.abs(best)), best.shape))
        if np.isnan(self.true_edges[:, a, b]).any():
            return []
        sender, receiver = self.nodes[a].label, self.receivers[b].label
        way = "the logits" if receiver == "logits" else receiver
        said = (
            f"the path from {sender} straight to {way}, the largest by {METHODS[self.methods[-1]]}, truly carries {{}} "
            f"(estimated {signed(self._best[a, b])})"
        )
        about = sender if receiver == "logits" else receiver.partition(".")[0]
        site = receiver.partition(".")[2]
        gets = f"its {site} gets {{}} from {sender}" if site else f"gets {{}} from {sender}"
        short = f"straight to {way} {{}}" if receiver == "logits" else gets
        return self.finding(
            said, "edges", self.true_edges, (a, b), "edges", about, short, estimates=self.edge_scores[-1],
            among=from_parts[:, None],
        )  # fmt: skip


def _largest(score: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Those patched truly [text ...] whose score is at least as large as that of any that was not."""
    size, known = np.abs(np.nan_to_num(score)), np.isfinite(true[0])
    unknown = size[~known & np.isfinite(score)]
    return np.asarray(known & (size > (unknown.max() if unknown.size else -1.0)))


def _agreement(estimate: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Number, correlations, slope through zero and root mean square error of estimates."""
    varied = len(estimate) >= 3 and np.ptp(estimate) > 0 and np.ptp(truth) > 0
    squares = float((estimate**2).sum())
    return {
        "n": len(estimate),
        "pearson": correlation(estimate, truth) if varied else np.nan,
        "spearman": correlation(estimate, truth, ranks=True) if varied else np.nan,
        "slope": float((estimate * truth).sum() / squares) if squares > 0 else np.nan,
        "rmse": float(np.sqrt(((estimate - truth) ** 2).mean())) if len(estimate) else np.nan,
    }


@analysis(place=47, needs=("next token",), in_report={"sample": 12, "top": 5, "direction": "denoise"}, sweeps=True)
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
        PatchingMetric | Callable[[Tensor], Tensor] | None,
        "what is measured (rank has no gradient); by default logit_diff, of several right answers prob_diff",
    ] = None,
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
