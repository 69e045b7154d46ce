"""Circuits of models whose wiring is known, because their weights were written: what is found is what was written."""

import numpy as np
import pytest
import torch
from wired import PROGRAMS, Program, shuffled

from analyses import circuits
from analyses.circuitry.bench import Bench
from analyses.circuitry.pruning import prune
from analyses.shared.clean_corrupted import measure, resolve_pairs
from interp.models.gpt import HookedGPT


def bench_of(program: Program, model: HookedGPT | None = None) -> Bench:
    model = program.model if model is None else model
    with torch.no_grad():
        pairs = resolve_pairs(
            model, program.clean, program.corrupted, answer=program.answer, wrong=program.wrong
        )  # fmt: skip
        return Bench.of(model, pairs, measure(model, pairs, "logit_diff"), "edge", "top", "corrupted", 0.0, 0)


def written(bench: Bench, program: Program) -> np.ndarray:
    """[edge] whether the program has it."""
    wiring = bench.wiring
    return np.array([
        (wiring.nodes[s].label, wiring.receivers[t].label) in program.edges
        for s, t in zip(wiring.senders, wiring.targets, strict=True)
    ])  # fmt: skip


def auroc(scores: np.ndarray, true: np.ndarray) -> float:
    """The chance that a true edge has the larger score of the two, one true and one not."""
    pairs = scores[true][:, None] - scores[~true][None]
    return float((pairs > 0).mean() + 0.5 * (pairs == 0).mean())


OPTIONS = {"steps": 5, "points": "middle", "activations": False, "memory": None}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_program_answers_and_its_edges_and_no_others_carry_it(name):
    program = PROGRAMS[name]()
    with torch.no_grad():
        assert torch.equal(program.model(program.clean)[:, -1].argmax(-1), program.answer)
    bench = bench_of(program)
    true = written(bench, program)
    assert true.sum() == len(program.edges)
    effects = np.abs(bench.scores(exactly=None, **OPTIONS).exact.mean(0))
    assert auroc(effects, true) == 1
    assert effects[true].min() > 3 * effects[~true].max() > 0  # the noise makes every edge matter a little


@pytest.mark.parametrize("name", PROGRAMS)
def test_pruning_leaves_the_program_and_the_program_alone_answers(name):
    program = PROGRAMS[name]()
    bench = bench_of(program)
    circuit, _ = prune(bench.runs, 0.1 * abs(bench.effect), bench.discovery)
    true = written(bench, program)
    assert {bench.search.name(edge) for edge in np.flatnonzero(circuit)} == {
        bench.search.name(edge) for edge in np.flatnonzero(true)
    }
    (own,) = bench.runs.values([circuit])
    kept = (own - bench.none).mean() / (bench.whole - bench.none).mean()
    assert 0.9 < kept < 1.1


@pytest.mark.parametrize("name", PROGRAMS)
def test_with_shuffled_weights_nothing_of_it_is_found(name):
    program = PROGRAMS[name]()
    found = []
    for seed in range(4):
        bench = bench_of(program, shuffled(program.model, seed))
        true = written(bench, program)
        found.append(auroc(np.abs(bench.scores(exactly=None, **OPTIONS).exact.mean(0)), true))
        circuit, _ = prune(bench.runs, 0.1 * abs(bench.effect), bench.discovery)
        assert not np.array_equal(circuit, true)
    assert max(found) < 0.99  # edges of the embedding and to the logits are often the largest of any model


def test_the_analysis_tells_it_with_controls_and_stability():
    program = PROGRAMS["induction"]()
    result = circuits(
        program.model, program.clean, program.corrupted, answer=program.answer, wrong=program.wrong, method="exact",
        size=len(program.edges) / len(bench_of(program).wiring), resamples=40, random=4,
    )  # fmt: skip
    frame = result.to_dataframe().head(len(program.edges))
    ends = frame["receiver"].where(frame["input"] == "in", frame["receiver"] + "." + frame["input"])
    assert set(zip(frame["sender"], ends, strict=True)) == program.edges
    assert frame["stability"].min() > 0.95
    value, low, high = result.faithful(result.held_out)
    assert 0.9 < value < 1.1
    assert low <= value <= high
    (finding,) = result.findings()
    assert finding.kind == "effect"
    assert finding.p is not None and finding.p < 0.01  # noqa: PT018
    without = circuits(
        shuffled(program.model, 0), program.clean, program.corrupted, answer=program.answer, wrong=program.wrong,
        size=0.05, resamples=20, random=4,
    )  # fmt: skip
    assert all(one.kind != "effect" for one in without.findings()) or without.stability.kept < 1
