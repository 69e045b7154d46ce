"""Circuits of models whose wiring is known, because their weights were written: what is found is what was written."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from wired_models import PROGRAMS, Wired, backup, shuffled

from analyses import circuits
from analyses.circuitry.bench import Bench
from analyses.circuitry.pruning import prune
from analyses.shared.clean_corrupted import measure, resolve_pairs

NORMS = [None, "rms"]
OPTIONS = {"steps": 5, "points": "middle", "activations": False, "memory": None}


def bench_of(wired: Wired) -> Bench:
    with torch.no_grad():
        pairs = resolve_pairs(wired.model, wired.clean, wired.corrupted, answer=wired.answer, wrong=wired.wrong)
        measured = measure(wired.model, pairs, "logit_diff")
        return Bench.of(wired.model, pairs, measured, "edge", "top", "corrupted", 0.0, 0)


def ends(bench: Bench, chosen: np.ndarray) -> set[tuple[str, str]]:
    """Sender and receiver of each edge of a circuit."""
    wiring = bench.wiring
    return {
        (wiring.nodes[wiring.senders[e]].label, wiring.receivers[wiring.targets[e]].label)
        for e in np.flatnonzero(chosen)
    }  # fmt: skip


def pruned(wired: Wired) -> tuple[set[tuple[str, str]], float]:
    """The edges that pruning leaves, and what these alone keep of the whole effect; 0 where there is none."""
    bench = bench_of(wired)
    circuit, _ = prune(bench.runs, 0.05 * abs(bench.effect), bench.discovery)
    (own,) = bench.runs.values([circuit])
    return ends(bench, circuit), float((own - bench.none).mean() / bench.effect) if bench.effect else 0.0


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("program", PROGRAMS.values())
def test_exact_effects_find_the_program_and_no_other_edge(program, norm):
    wired = program(norm=norm)
    bench = bench_of(wired)
    effects = np.abs(bench.scores(exactly=None, **OPTIONS).exact.mean(0))
    largest = bench.search.chosen(np.argsort(-effects), len(wired.edges))
    assert ends(bench, largest) == wired.edges  # AUROC 1: every true edge before every other
    assert effects[largest].min() > 100 * effects[~largest].max()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("program", PROGRAMS.values())
def test_pruning_leaves_the_program_and_that_alone_answers(program, norm):
    found, kept = pruned(program(norm=norm))
    assert found == program(norm=norm).edges
    assert kept == pytest.approx(1, abs=1e-3)


def test_pruning_keeps_a_way_where_each_of_two_would_do_and_single_effects_see_neither():
    wired = backup()
    bench = bench_of(wired)
    effects = np.abs(bench.scores(exactly=None, **OPTIONS).exact.mean(0))
    assert (effects > 0.05 * abs(bench.effect)).sum() < len(wired.edges)
    found, kept = pruned(wired)
    assert found < wired.edges
    assert kept == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("program", PROGRAMS.values())
def test_with_shuffled_weights_it_is_not_found(program):
    wired = program()
    for seed in range(4):
        assert pruned(replace(wired, model=shuffled(wired.model, seed)))[0] != wired.edges


def test_the_analysis_tells_it_with_controls_and_stability():
    wired = PROGRAMS["induction"](24)
    share = len(wired.edges) / len(bench_of(wired).wiring)
    options = {"answer": wired.answer, "wrong": wired.wrong, "resamples": 40, "random": 4}
    result = circuits(wired.model, wired.clean, wired.corrupted, method="exact", size=share, **options)
    frame = result.to_dataframe().head(len(wired.edges))
    receivers = frame["receiver"].where(frame["input"] == "in", frame["receiver"] + "." + frame["input"])
    assert set(zip(frame["sender"], receivers, strict=True)) == wired.edges
    assert frame["stability"].min() == 1
    value, low, high = result.faithful(result.held_out)
    assert value == pytest.approx(1, abs=1e-3)
    assert low <= value <= high
    (finding,) = result.findings()
    assert finding.kind == "effect"
    assert finding.p is not None
    assert finding.p < 0.01
