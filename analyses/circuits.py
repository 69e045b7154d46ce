"""Which edges carry the answer, and how sure is that? A circuit found, measured and doubted.

Question: through which of all ways between the embedding, heads, MLPs and the logits does the model get its answer, and
does the part that was found do it alone?

Method: every edge gets a score, what the metric loses when the edge carries its corrupted value: exactly, by patching
it alone; or to first order, by EAP (Syed et al. 2023) or EAP-IG (Hanna et al. 2024). The best edges make a circuit, and
circuits of growing size are run with all other edges ablated. Faithfulness over sizes is told as CPR and CMD, as in the
MIB benchmark (Mueller et al. 2025), on prompts that the search has not seen, beside random circuits and beside edges
whose sender merely changes most. The search is repeated on other draws of the prompts, and each edge tells how often it
was found.

What the numbers do not show: what an edge says, nor that another circuit would not do as well. Prompts of one template
show what this template asks for. Estimates beside exact effects say where first order fails.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats

from analyses.circuitry.circuit import Circuit, CircuitFile
from analyses.circuitry.faithfulness import SIZES, Curve, Runs, completeness, minimality
from analyses.circuitry.graph import Level, Wiring
from analyses.circuitry.pruning import prune
from analyses.circuitry.result import CircuitsResult
from analyses.circuitry.runs import Ablation
from analyses.circuitry.scores import Group, estimated, exact_edges, exact_nodes, groups_of
from analyses.circuitry.search import Order, Search, Select
from analyses.circuitry.stability import Stability, stability
from analyses.shared.capabilities import analysis
from analyses.shared.clean_corrupted import Measure, Pairs, measure, resolve_pairs
from analyses.shared.gradients import Points
from analyses.shared.inputs import TextOrTokens
from analyses.shared.metrics import TokenChoice
from analyses.shared.prompts import TextsOrPrompts
from analyses.shared.statistics import bootstrap
from interp.errors import InputError, check_seed
from interp.loading.digests import parameters_sha256
from interp.models.gpt import HookedGPT

Method = Literal["exact", "eap", "eap-ig"]
Metric = Literal["logit_diff", "logit", "prob", "log_prob"]
DRAWN = 64
"""Edges drawn at random that are measured exactly too, so that the agreement of estimates is that of all edges."""
WORST = 8
"""Edges named where estimates and exact effects differ most."""
SMALL = 120
"""Largest circuit of which each edge is taken out in turn."""
DRAWS = 10
"""Halves of the circuit taken out to see whether it is complete."""


@analysis(place=49, needs=("next token",), in_report=None, sweeps=True, saves=True)
def circuits(
    model: HookedGPT,
    prompts: TextsOrPrompts = None,
    corrupted: Annotated[TextOrTokens | None, "the prompts, changed; as long in tokens"] = None,
    *,
    method: Annotated[Method, "scores of edges: patched one by one, or estimated from gradients"] = "eap-ig",
    level: Annotated[Level, "a circuit of edges, or of nodes with all that they send"] = "edge",
    metric: Annotated[Metric, "what is measured"] = "logit_diff",
    steps: Annotated[int, "gradients that eap-ig averages"] = 5,
    points: Annotated[Points, "of each step: its end (the paper), beginning (its code), middle"] = "right",
    along: Annotated[Literal["inputs", "activations"], "what eap-ig moves"] = "inputs",
    ablation: Annotated[Ablation, "value of what is outside: corrupted, mean by position, zero"] = "corrupted",
    exact: Annotated[int, "edges with the largest estimates that are measured exactly too"] = 200,
    size: Annotated[float | None, "share of all edges; default: the least that is faithful"] = None,
    faithful: Annotated[float, "faithfulness on the prompts of discovery that the circuit must reach"] = 0.85,
    select: Annotated[Select, "the best edges, or the best that lead to the logits"] = "top",
    threshold: Annotated[
        float | None, "prune instead: drop edges whose loss changes less than this share of the effect"
    ] = None,
    held_out: Annotated[
        float, "share of the prompts (whole templates where there are several) kept for measuring"
    ] = 0.5,
    resamples: Annotated[int, "draws of the prompts on which the search is repeated"] = 100,
    random: Annotated[int, "random circuits as controls"] = 5,
    from_: Annotated[CircuitFile | None, "a circuit's file (MIB layout), to be measured instead"] = None,
    answer: Annotated[TokenChoice | None, "right next token after the prompt"] = None,
    wrong: Annotated[TokenChoice | None, "right next token after the corrupted prompt"] = None,
    memory: Annotated[int | None, "bytes to use beyond the model; by default half of what is free"] = None,
    seed: Annotated[int, "of generated prompts, their split, controls and resamples"] = 0,
) -> CircuitsResult:
    """A circuit for what the prompts ask, with curves, controls, stability, and a file of it (`result.circuit`).

    Args:
        prompts: a prompt set, texts, ids [batch pos], or None for generated prompts of one template.

    Raises InputError for a number out of range, for prompts that do not fit the model, and for a file that is not of
    this model's shape; nothing is measured where the model does not tell clean from corrupted (a finding says so).
    """
    _check(steps, exact, size, held_out, resamples, random, threshold, level)
    check_seed(seed)
    with torch.no_grad():
        pairs = resolve_pairs(model, prompts, corrupted, answer=answer, wrong=wrong, n=32, seed=seed)
        measured = measure(model, pairs, metric)
        groups = groups_of(model, pairs, measured)
    wiring = Wiring.of(model)
    search = Search(wiring, level, select)
    found = Circuit.from_json(from_.said, model) if from_ is not None else None
    discovery, others = (_all(pairs), _all(pairs)) if found is not None else _split(pairs, held_out, seed)
    runs = Runs(model, wiring, groups, ablation)
    none = runs.values([np.zeros(len(wiring), dtype=bool)])[0]
    sign = float(np.sign((measured.clean - none).mean())) or 1.0
    remarks: list[str] = []

    scores: _Scores | None = None
    if found is not None:
        mean, items = np.nan_to_num(found.scores), np.zeros((0, len(wiring)))
        search = Search(wiring, "edge", select)
    else:
        scores = _scores(
            model, wiring, groups, measured, level, partial(_worth, discovery, method, exact, seed), memory,
            steps=1 if method == "eap" else steps, points=points, activations=along == "activations",
        )  # fmt: skip
        items = scores.exact if method == "exact" else scores.estimated
        mean = items[discovery].mean(0)
    order = search.order(sign * mean)
    change = np.stack([_change(group, wiring) for group in groups]).mean(0)
    sizes = np.array([int(share * search.items) for share in SIZES])

    named = {"performance": order, "imitation": search.order(np.abs(mean)), "magnitude": search.of_change(change)}
    curves = _curves(runs, search, named, measured.clean, none, sizes, random, seed) if mean.any() else {}
    chosen, n, stable = np.zeros(len(wiring), dtype=bool), 0, None
    if found is not None:
        chosen = found.chosen
    elif threshold is not None:
        chosen, _ = prune(runs, threshold * abs(float((measured.clean - none)[discovery].mean())), discovery)
        remarks.append(
            f"Pruned: edges whose loss changes the metric by less than {threshold:.2%} of the effect are out."
        )
    elif curves:
        n, said = max(1, round((size or 0) * search.items)), ""
        if size is None:
            n, said = _size(curves["performance"], none, measured.clean, discovery, faithful, search.items)
        remarks.append(said)
        chosen = search.take(order, n)
        stable = stability(
            items, lambda means: search.chosen(search.order(sign * means), n), discovery=discovery,
            held_out=others[~np.isin(others, discovery)], clusters=pairs.clusters, resamples=resamples, seed=seed,
        )  # fmt: skip
    own = runs.values([chosen])[0]
    controls = _controls(runs, search, n or int(chosen.sum()), change, random, seed)
    lost = completeness(runs, chosen, DRAWS, seed) if chosen.any() else (np.zeros((0, len(own))),) * 2
    pruned = wiring.pruned(chosen)
    minimal = minimality(runs, pruned) if 0 < pruned.sum() <= SMALL else None
    facts = {
        "weights": parameters_sha256(model), "method": method, "metric": metric, "ablation": ablation, "seed": seed,
        "prompts": len(pairs.rows), "task": (pairs.notes or ("",))[0],
    }  # fmt: skip
    circuit = found or Circuit(
        wiring, chosen, search.by_edge(mean), level, _measures(search, scores, others, pairs, stable, seed),
        node_scores=np.concatenate([[np.nan], mean]) if level == "node" else None,
    )  # fmt: skip
    circuit = replace(circuit, facts=facts | dict(circuit.facts)).over(model, runs.mean_outputs())
    answers, wrongs = pairs.answers(model)
    return CircuitsResult(
        circuit=circuit, order=order, size=n, method="of the file" if found is not None else method, pairs=pairs,
        measure=measured, discovery=discovery, held_out=others, none=none, own=own, sizes=sizes, curves=curves,
        controls=controls, stability=stable, agreement=_agreement(search, scores, seed), lost=lost,
        minimal=minimal, gap=np.nan if scores is None else scores.gap, answers=answers, wrongs=wrongs,
        remarks=tuple(remarks), seed=seed,
    )  # fmt: skip


def _check(
    steps: int, exact: int, size: float | None, held_out: float, resamples: int, random: int, threshold: float | None,
    level: Level,
) -> None:  # fmt: skip
    """Raises InputError for a number out of range."""
    for name, number, least in (
        ("steps", steps, 1),
        ("exact", exact, 0),
        ("resamples", resamples, 1),
        ("random", random, 1),
    ):
        if number < least:
            raise InputError(f"{name} = {number}", f"expected at least {least}")
    for name, share in (("size", size), ("held_out", held_out), ("threshold", threshold)):
        if share is not None and not 0 <= share <= 1:
            raise InputError(f"{name} = {share:g}", "expected a share, 0 to 1")
    if threshold is not None and level == "node":
        raise InputError("threshold beside level = node", "expected one of them: pruning is of edges")


def _all(pairs: Pairs) -> Int[np.ndarray, " text"]:
    return np.arange(len(pairs.rows))


def _split(pairs: Pairs, share: float, seed: int) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Texts to find the circuit on, and others to measure it on: whole templates where there are several. The same,
    all of them, where there are fewer than four."""
    names = np.array([str(one) for one in pairs.clusters]) if pairs.clusters else _all(pairs).astype(str)
    kinds = np.random.default_rng(seed).permutation(np.unique(names))
    kept = round(share * len(kinds))
    if len(kinds) < 4 and pairs.clusters:
        return _split(replace(pairs, clusters=None), share, seed)
    if len(kinds) < 4 or kept == 0 or kept == len(kinds):
        return _all(pairs), _all(pairs)
    others = np.isin(names, kinds[:kept])
    return np.flatnonzero(~others), np.flatnonzero(others)


@dataclass(frozen=True, eq=False)
class _Scores:
    """Of items (edges, or nodes but the embedding) [text item]; NaN where not measured."""

    estimated: Float[np.ndarray, "text item"]
    exact: Float[np.ndarray, "text item"]
    gap: float
    """The embedding's estimate over the whole effect, less one: what the steps of the integral leave out."""


def _scores(
    model: HookedGPT, wiring: Wiring, groups: list[Group], measured: Measure, level: Level,
    chosen: Callable[[np.ndarray], np.ndarray], memory: int | None, **options: Any,
) -> _Scores:  # fmt: skip
    """`chosen`: which edges are measured exactly, given all estimates; `options` as `estimated` takes them."""
    edges, nodes = estimated(model, wiring, groups, **options)
    effect = float((measured.clean - measured.corrupted).sum())
    gap = float(nodes[:, 0].sum()) / effect - 1 if effect and not options["activations"] else np.nan
    if level == "node":
        return _Scores(nodes[:, 1:], exact_nodes(model, wiring, groups, measured.clean, memory=memory)[:, 1:], gap)
    return _Scores(edges, exact_edges(model, wiring, groups, measured.clean, chosen(edges), memory=memory), gap)


def _worth(
    discovery: np.ndarray, method: Method, exact: int, seed: int, edges: np.ndarray
) -> Bool[np.ndarray, " edge"]:
    """Edges that are measured exactly: all, or the largest estimates and some drawn regardless of them."""
    n = edges.shape[1]
    if method == "exact" or n <= exact + DRAWN:
        return np.ones(n, dtype=bool)
    chosen = _drawn(n, seed)
    chosen[np.argsort(-np.abs(edges[discovery].mean(0)))[:exact]] = True
    return chosen


def _drawn(n: int, seed: int) -> Bool[np.ndarray, " item"]:
    out = np.zeros(n, dtype=bool)
    out[np.random.default_rng(seed).choice(n, size=min(DRAWN, n), replace=False)] = True
    return out


def _curves(
    runs: Runs, search: Search, named: Mapping[str, Order], whole: np.ndarray, none: np.ndarray, sizes: np.ndarray,
    random: int, seed: int,
) -> dict[str, Curve]:  # fmt: skip
    """The metric of circuits of all sizes, by each order and by random ones."""
    rng = np.random.default_rng(seed)
    orders = {name: [order] for name, order in named.items()}
    orders["random"] = [search.random(rng) for _ in range(random)]
    inner = [int(size) for size in sizes if 0 < size < search.items]
    runs.planned(len(set(inner)) * sum(map(len, orders.values())))

    def values(order: Order) -> np.ndarray:
        found = dict(zip(inner, runs.values([search.take(order, size) for size in inner]), strict=True))
        found |= {0: none, search.items: whole}
        return np.stack([found[int(size)] for size in sizes])

    return {name: Curve(sizes, np.stack([values(one) for one in some])) for name, some in orders.items()}


def _size(
    curve: Curve, none: np.ndarray, whole: np.ndarray, discovery: np.ndarray, faithful: float, items: int
) -> tuple[int, str]:
    """The smallest size that is faithful enough on the texts of discovery, and what there is to say of it."""
    reached = curve.measured(none, whole, discovery) >= faithful
    n = int(curve.sizes[int(np.argmax(reached))]) if reached.any() else items
    share = f"{faithful:.0%} on the prompts of discovery"
    return n, f"The circuit is the smallest of the sizes measured that keeps {share}." + (
        " No part of the model does." if n == items else ""
    )


def _change(group: Group, wiring: Wiring) -> Float[np.ndarray, " node"]:
    """How long a vector each node's output changes by between the two runs, mean over texts and positions."""
    lengths = [group.paths.change(node).norm(dim=-1).mean() for node in wiring.nodes]
    return torch.stack(lengths).double().cpu().numpy()


def _measures(
    search: Search, scores: "_Scores | None", texts: np.ndarray, pairs: Pairs, stable: Stability | None, seed: int
) -> dict[str, Float[np.ndarray, " edge"]]:
    """Exact effects with their intervals, on the texts held out so that nothing was chosen by them; and stability."""
    out = {}
    if scores is not None:
        known = np.isfinite(scores.exact).all(0)
        clusters = [pairs.clusters[text] for text in texts] if pairs.clusters else None
        found = bootstrap(scores.exact[np.ix_(texts, known)], clusters=clusters, seed=seed)
        for name, values in (("exact", found.value), ("low", found.low), ("high", found.high)):
            full = np.full(search.items, np.nan)
            if values is not None:
                full[known] = values
            out[name] = search.by_edge(full)
    if stable is not None:
        out["stability"] = search.by_edge(stable.found)
    return out


def _controls(
    runs: Runs, search: Search, n: int, change: np.ndarray, random: int, seed: int
) -> Float[np.ndarray, "control text"]:
    """The metric of random circuits of so many items, and of those whose sender changes most."""
    rng = np.random.default_rng(seed + 1)
    orders = [*(search.random(rng) for _ in range(random)), search.of_change(change)]
    return runs.values([search.take(order, n) for order in orders])


def _agreement(search: Search, scores: "_Scores | None", seed: int) -> pd.DataFrame:
    """How estimates, means over texts, go with exact effects."""
    columns = ["edges", "n", "pearson", "spearman", "slope", "estimate", "exact"]
    if scores is None:
        return pd.DataFrame(columns=columns)
    estimate, exact = scores.estimated.mean(0), scores.exact.mean(0)
    known, drawn = np.isfinite(exact), _drawn(search.items, seed)
    rows: list[dict[str, Any]] = []
    for name, some in (("drawn at random", known & drawn), ("all that were measured", known)):
        x, y = estimate[some], exact[some]
        if len(x) >= 3 and np.ptp(x) > 0 and np.ptp(y) > 0:
            rows.append({
                "edges": name, "n": len(x), "pearson": float(np.corrcoef(x, y)[0, 1]),
                "spearman": float(stats.spearmanr(x, y).statistic), "slope": float((x * y).sum() / (x * x).sum()),
            })  # fmt: skip
    senders, receivers, inputs = search.wiring.labels()
    for item in np.argsort(-np.abs(np.where(known, estimate - exact, 0.0)))[:WORST]:
        label = f"{senders[item]} \N{RIGHTWARDS ARROW} {receivers[item]} {inputs[item]}"
        name = label if search.level == "edge" else search.wiring.nodes[1 + item].label
        rows.append({"edges": name, "n": 1, "estimate": float(estimate[item]), "exact": float(exact[item])})
    return pd.DataFrame(rows, columns=columns)
