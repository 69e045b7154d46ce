"""Models whose circuits are known: each does what it was written for, and through the edges named alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from wired_models import LOUD, PROGRAMS, Wired, backup, induction, shuffled

from analyses import path_patching
from analyses.shared.components import choose
from analyses.shared.paths import Paths, all_receivers, parse_receivers
from interp.sweep import sweep

NORMS = [None, "rms"]
LEAST = 1e-3
"""Of the whole effect; a true edge has more, any other less."""


def effects_of(wired: Wired) -> dict[tuple[str, str], float]:
    """Mean size of the change of the logit difference when one edge alone is corrupted; 1 is from right to wrong."""
    receivers = [receiver.label for receiver in all_receivers(wired.model)]
    found = path_patching(
        wired.model, wired.clean, wired.corrupted, answer=wired.answer, wrong=wired.wrong,
        senders="embed,heads" + ",mlps" * (not wired.model.config.attn_only), receivers=",".join(receivers),
    )  # fmt: skip
    shares = np.abs(found.effects).mean(0) / (2 * LOUD)
    return {
        (sender, receiver): float(shares[r, s])
        for r, receiver in enumerate(found.receivers)
        for s, sender in enumerate(found.labels)
        if np.isfinite(shares[r, s])
    }


def auroc(effects: dict[tuple[str, str], float], true: frozenset[tuple[str, str]]) -> float:
    """The chance that a true edge has a larger effect than another; ties count half."""
    ranks, is_true = rankdata(list(effects.values())), np.array([edge in true for edge in effects])
    n, others = int(is_true.sum()), int((~is_true).sum())
    return float((ranks[is_true].sum() - n * (n + 1) / 2) / (n * others))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("program", [*PROGRAMS.values(), backup])
def test_each_program_is_right(program, norm):
    wired = program(64, norm=norm)
    with torch.no_grad():
        assert torch.equal(wired.model(wired.clean)[:, -1].argmax(-1), wired.answer)
        assert torch.equal(wired.model(wired.corrupted)[:, -1].argmax(-1), wired.wrong)
        mixed = shuffled(wired.model)(wired.clean)[:, -1].argmax(-1)
    assert (wired.answer != wired.wrong).all()
    assert (mixed == wired.answer).float().mean() < 0.6  # the control


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("program", PROGRAMS.values())
def test_the_true_edges_and_only_those_have_an_effect(program, norm):
    wired = program(norm=norm)
    effects = effects_of(wired)
    assert wired.edges <= effects.keys()
    assert {edge for edge, effect in effects.items() if effect > LEAST} == wired.edges
    assert min(effects[edge] for edge in wired.edges) > 0.1
    assert auroc(effects, wired.edges) == 1.0
    assert len(effects) > 3 * len(wired.edges)


@pytest.mark.parametrize("program", PROGRAMS.values())
def test_shuffled_weights_keep_nothing_of_it(program):
    wired = program()
    scores = [auroc(effects_of(replace(wired, model=shuffled(wired.model, seed))), wired.edges) for seed in range(4)]
    assert np.mean(scores) < 0.8
    assert auroc(effects_of(wired), wired.edges) == 1.0


@pytest.mark.parametrize("program", PROGRAMS.values())
def test_what_is_not_in_the_circuit_is_not_idle(program):
    """Every other head and MLP writes something else in the corrupted run: edges are not told by what changes."""
    wired = program()
    paths = Paths(wired.model, wired.clean, wired.corrupted)
    busy = {sender for sender, _ in wired.edges}
    idle = [part for part in choose(wired.model, "heads", allowed=("heads",)) if part.label not in busy]
    assert idle
    assert all(float(paths.change(part).abs().max()) > 0.1 for part in idle)


@torch.no_grad()
def test_parts_that_back_each_other_up_are_not_missed_alone():
    """Either edge alone changes nothing, both together all: one at a time, patching does not find them."""
    wired = backup()
    effects = effects_of(wired)
    alike = {edge: effects[edge] for edge in wired.edges if edge != ("mlp 0", "logits")}
    assert max(alike.values()) < LEAST
    assert effects["mlp 0", "logits"] == pytest.approx(1.0, abs=1e-3)
    paths = Paths(wired.model, wired.clean, wired.corrupted)
    heads = choose(wired.model, "L0H0,L0H1", allowed=("heads",))
    together = paths.edits(sum(paths.change(head) for head in heads), heads[0], parse_receivers(wired.model, "mlp 0"))
    (logits,) = sweep(wired.model, wired.clean, [together], lambda logits: {"last": logits[:, -1]}, read=[-1]).values()
    assert torch.equal(logits[0].argmax(-1), wired.wrong)


def test_mlps_of_induction_are_no_part_of_it():
    wired = induction(8, d_mlp=8)
    effects = effects_of(wired)
    assert {edge for edge, effect in effects.items() if effect > LEAST} == wired.edges
    assert ("mlp 0", "L1H0.k") in effects
