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

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Annotated, Any, Literal

import numpy as np
import torch

from analyses.circuitry.bench import Bench, Scores
from analyses.circuitry.circuit import Circuit, CircuitFile
from analyses.circuitry.faithfulness import completeness, minimality
from analyses.circuitry.graph import Level
from analyses.circuitry.pruning import prune
from analyses.circuitry.result import OF_FILE, CircuitsResult
from analyses.circuitry.runs import Ablation
from analyses.circuitry.search import Select
from analyses.circuitry.stability import Stability, stability
from analyses.shared.capabilities import analysis
from analyses.shared.clean_corrupted import measure, resolve_pairs
from analyses.shared.gradients import Points
from analyses.shared.inputs import TextOrTokens
from analyses.shared.metrics import TokenChoice
from analyses.shared.prompt_tasks import TASKS
from analyses.shared.prompts import TextsOrPrompts
from interp.errors import InputError, check_seed
from interp.loading.digests import parameters_sha256
from interp.models.gpt import HookedGPT

Method = Literal["exact", "eap", "eap-ig"]
Metric = Literal["logit_diff", "prob_diff", "logit", "prob", "log_prob"]
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
    task: Annotated[Literal["ioi", "induction"] | None, "prompts that are made where none are given; ioi"] = None,
    n: Annotated[int | None, "how many are made; 32"] = None,
    method: Annotated[Method, "scores of edges: patched one by one, or estimated from gradients"] = "eap-ig",
    level: Annotated[Level, "a circuit of edges, or of nodes with all that they send"] = "edge",
    metric: Annotated[
        Metric | None, "what is measured; by default logit_diff, of prompts with several right answers prob_diff"
    ] = None,
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
        float | None,
        "share of the prompts (whole templates, if four or more) kept for measuring; half, of four or more",
    ] = None,
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
        prompts: a prompt set, texts, ids [batch pos], or None for generated prompts of several templates: indirect
            objects (Wang et al. 2022), or a repeated pair of words.

    Raises InputError for a number out of range, for prompts that do not fit the model, and for a file that is not of
    this model's shape; nothing is measured where the model does not tell clean from corrupted (a finding says so).
    """
    if prompts is not None and (task, n) != (None, None):
        raise InputError(f"task = {task!r}, n = {n} beside prompts", "expected one of the two")
    _check(steps, exact, size, held_out, resamples, random, threshold, level, faithful)
    if from_ is not None:
        _unread(
            method=method, level=level, size=size, threshold=threshold, held_out=held_out, select=select, exact=exact,
            resamples=resamples, faithful=faithful,
        )  # fmt: skip
    check_seed(seed)
    with torch.no_grad():
        make = partial(TASKS[task or "ioi"], model, 32 if n is None else n)
        pairs = resolve_pairs(
            model, make(seed=seed) if prompts is None else prompts, corrupted, answer=answer, wrong=wrong, seed=seed
        )
        measured = measure(model, pairs, metric)
        given = Circuit.from_json(from_.said, model) if from_ is not None else None
        bench = Bench.of(
            model, pairs, measured, level if given is None else "edge", select, ablation,
            held_out if given is None else 0.0, seed,
        )  # fmt: skip
    facts: dict[str, object] = {
        "weights": parameters_sha256(model), "method": method, "metric": measured.metric, "ablation": ablation,
        "seed": seed, "prompts": len(pairs.rows), "task": (pairs.notes or ("",))[0],
    }  # fmt: skip
    how: dict[str, Any] = {
        "steps": 1 if method == "eap" else steps, "points": points, "activations": along == "activations"
    }  # fmt: skip
    if given is not None:
        mean = np.nan_to_num(given.scores)
        other = given.facts.get("weights", facts["weights"]) != facts["weights"]
        said = "The file's circuit was found on other weights of this shape." if other else ""
        found = _Found(replace(given, facts=facts | dict(given.facts)), 0, None, said, None)
        curves = bench.curves(mean, random) if mean.any() else {}
    else:
        scores = bench.scores(exactly=None if method == "exact" else exact, memory=memory, **how)
        items = scores.exact if method == "exact" else scores.estimated
        mean = items[bench.discovery].mean(0)
        curves = bench.curves(mean, random)
        taken = max(1, round(size * bench.search.items)) if size is not None else 0
        taken = taken or bench.smallest(curves["performance"], faithful)
        others = {"other prompts (held out)": items[np.setdiff1d(bench.held_out, bench.discovery)]}
        if prompts is None and corrupted is None and threshold is None:
            with torch.no_grad():
                fresh = resolve_pairs(model, make(seed=seed + 1), corrupted, answer=answer, wrong=wrong, seed=seed)
                again = measure(model, fresh, metric)
            others["prompts of another seed"] = bench.unseen(
                fresh, again, exact=method == "exact", memory=memory, **how
            )
        found = _find(bench, scores, items, taken, threshold, others, resamples, level, facts)
        if size is None and threshold is None:
            found = replace(found, said=_said_size(faithful, taken, bench.search.items))
    circuit, runs = found.circuit, bench.runs
    pruned, own = bench.wiring.pruned(circuit.chosen), runs.values([circuit.chosen])[0]
    answers, wrongs = pairs.answers(model)
    return CircuitsResult(
        circuit=circuit.over(model, runs.mean_outputs()), order=bench.order(mean), size=found.size,
        method=OF_FILE if given is not None else method, pairs=pairs, measure=measured,
        ablation=ablation, discovery=bench.discovery, held_out=bench.held_out, none=bench.none, own=own,
        sizes=bench.sizes, curves=curves,
        controls=bench.controls(found.size or circuit.size, random), stability=found.stability,
        by_position=bench.by_position(pruned, **how),
        agreement=None if found.scores is None else bench.agreement(found.scores),
        lost=completeness(runs, circuit.chosen, DRAWS, seed),
        minimal=minimality(runs, pruned) if 0 < pruned.sum() <= SMALL else None,
        gap=np.nan if found.scores is None else found.scores.gap, answers=answers, wrongs=wrongs,
        remarks=(found.said,) if found.said else (), seed=seed,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Found:
    """A circuit, and what belongs to how it was found."""

    circuit: Circuit
    size: int
    """Items taken, the best first; 0 where it was pruned or given."""
    stability: Stability | None
    said: str
    scores: Scores | None


def _find(
    bench: Bench, scores: Scores, items: np.ndarray, n: int, threshold: float | None, others: Mapping[str, np.ndarray],
    resamples: int, level: Level, facts: dict[str, object],
) -> _Found:  # fmt: skip
    """The first n items, with how often they are found again; or, given a threshold, what pruning leaves."""
    search, mean = bench.search, items[bench.discovery].mean(0)
    measures = dict(bench.measures(scores))
    stable, said = None, ""
    if threshold is not None:
        chosen, _ = prune(bench.runs, threshold * abs(bench.effect), bench.discovery)
        n, said = 0, f"Pruned: edges whose loss changes the metric by less than {threshold:.2%} of the effect are out."
    else:
        chosen = search.take(bench.order(mean), n)
        stable = stability(
            items, lambda means: search.chosen(bench.order(means), n), discovery=bench.discovery, others=others,
            clusters=bench.pairs.clusters, resamples=resamples, seed=bench.seed,
        )  # fmt: skip
        measures["stability"] = search.by_edge(stable.found)
    nodes = np.concatenate([[np.nan], mean]) if level == "node" else None
    circuit = Circuit(bench.wiring, chosen, search.by_edge(mean), level, measures, nodes, facts)
    return _Found(circuit, n, stable, said, scores)


def _said_size(faithful: float, n: int, items: int) -> str:
    said = f"The circuit is the smallest of the sizes measured that keeps {faithful:.0%} on the prompts of discovery."
    return said + " No part of the model does." if n == items else said


def _check(
    steps: int, exact: int, size: float | None, held_out: float | None, resamples: int, random: int,
    threshold: float | None, level: Level, faithful: float,
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
    for name, share in (("size", size), ("held_out", held_out), ("threshold", threshold), ("faithful", faithful)):
        if share is not None and not 0 <= share <= 1:
            raise InputError(f"{name} = {share:g}", "expected a share, 0 to 1")
    if size == 0:
        raise InputError("size = 0", "expected a share above 0: a circuit of no edges is the ablated model")
    if size is not None and threshold is not None:
        raise InputError("size beside threshold", "expected one of them: pruning finds its own size")
    if threshold is not None and level == "node":
        raise InputError("threshold beside level = node", "expected one of them: pruning is of edges")


def _unread(**given: object) -> None:
    """Raises InputError for an option of the search that is not left as it is, where a circuit is given."""
    usual = signature(circuits).parameters
    for name, value in given.items():
        if value != usual[name].default:
            raise InputError(
                f"{name} beside a circuit's file", "expected one of the two: its circuit is measured as it is"
            )
