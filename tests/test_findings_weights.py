"""Of random weights nothing is found; of the bundled model what is there, by numbers measured again by hand.

Everything that reads weights or attention is asked: on models that learned nothing, none of it may claim an effect more
often than one page in twenty, and what else it says is short.
"""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_gpt
from shapes import LLAMA

import interp
from analyses.architecture import architecture
from analyses.attention_patterns import attention_patterns
from analyses.composition import composition
from analyses.embeddings import embeddings
from analyses.head_circuits import copying_scores, head_circuits, random_spread
from analyses.head_roles import head_roles
from analyses.probing import probing
from analyses.residual_stream import residual_stream
from analyses.shared.findings import Found, cards, established
from analyses.shared.panels import Matrix
from analyses.shared.patterns import chernoff
from analyses.weight_statistics import weight_statistics
from interp.models.gpt import HookedGPT

SHAPES: dict[str, dict[str, Any]] = {
    "2x2x32": {"n_heads": 2},
    "4x4x64": {"n_layers": 4, "d_model": 64},
    "llama": LLAMA,
}
ANALYSES = (
    head_roles, attention_patterns, head_circuits, composition, residual_stream, embeddings, weight_statistics,
    architecture, probing,
)  # fmt: skip
REPEATS = "Mary Brown went to the store. Then Mary Brown gave the bread to John Gray. John Gray thanked Mary Brown."


def page(model: HookedGPT, tokens: Any) -> list[Found]:
    """What a page of these analyses would show."""
    found = [(finding, run.__name__) for run in ANALYSES for finding in run(model, tokens).findings()]
    return established(found)


def shown_of_random(shape: str, seeds: range) -> list[list[Found]]:
    """Pages of models that learned nothing, of this shape, on several texts each and on one."""
    pages = []
    for seed in seeds:
        for more, std in enumerate((0.02, 0.2)):
            model = make_gpt(seed=2 * seed + more, init_std=std, **SHAPES[shape])
            texts = torch.randint(0, 300, (12, 30), generator=torch.Generator().manual_seed(seed))
            pages += [page(model, texts), page(model, texts[:1])]
    return pages


def check_random(pages: list[list[Found]], allowed: int) -> None:
    told = [f"{name}: {finding.text}" for shown in pages for finding, name in shown if finding.kind == "effect"]
    effects = set(told)  # what is said of a model's weights is said on each of its pages
    print(f"{len(effects)} effects on {len(pages)} pages of random weights, {allowed} allowed", *effects, sep="\n")
    assert len(effects) <= allowed
    assert all(len(shown) <= 3 + sum(f.kind == "effect" for f, _ in shown) for shown in pages)
    assert all(any("look untrained" in finding.text for finding, _ in shown) for shown in pages)


@pytest.mark.parametrize("shape", SHAPES)
def test_of_random_weights_nothing_is_found(shape):
    check_random(shown_of_random(shape, range(2)), 0)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_of_many_random_models_no_more_is_found_than_chance_allows(shape):
    check_random(shown_of_random(shape, range(100, 105)), 1)


@pytest.mark.slow
def test_each_analysis_alone_keeps_to_its_level():
    """The share of random models of which an analysis, on its own, claims anything at all."""
    runs, models = (attention_patterns, head_roles, head_circuits, embeddings, weight_statistics), 60
    claims = dict.fromkeys((run.__name__ for run in runs), 0)
    for seed in range(models):
        model = make_gpt(seed=seed, **SHAPES[list(SHAPES)[seed % 2]])
        tokens = torch.randint(0, 40, (1, 30), generator=torch.Generator().manual_seed(seed))
        for run in runs:
            claims[run.__name__] += any(finding.kind == "effect" for finding in run(model, tokens).findings())
    print({name: f"{count / models:.3f}" for name, count in claims.items()})
    assert all(count <= 5 for count in claims.values())  # of 60; an analysis asks one to three times at .05


@pytest.fixture(scope="module")
def tiny() -> HookedGPT:
    return interp.load("tiny")


def test_of_the_bundled_model_its_heads_are_found(tiny):
    shown = page(tiny, REPEATS)
    effects = {finding.key: finding for finding, name in shown if name == "head_roles"}
    assert {"induction", "previous-token"} <= set(effects)
    assert all(finding.null and finding.p <= 1e-3 for finding in effects.values())
    assert all(finding.null for finding, _ in shown if finding.kind == "effect")
    assert not any("untrained" in finding.text for finding, _ in shown)
    merged = next(card for card in cards(shown) if card.first.about == effects["previous-token"].about)
    assert "previous-token head" in merged.text

    looked = {finding.key: finding for finding, name in shown if name == "attention_patterns"}["previous"]
    with torch.inference_mode():
        _, cache = tiny.run_with_cache(tiny.to_tokens(REPEATS))
    layer, head = map(int, looked.about[1:].split("H"))
    pattern = cache["pattern", layer][0, head].double()
    by_hand = np.mean([float(pattern[query, query - 1]) for query in range(1, len(pattern))])
    assert looked.value == pytest.approx(by_hand, abs=1e-6)
    assert looked.about == effects["previous-token"].about


def test_induction_is_as_measured_by_hand(tiny):
    """Random tokens twice, of other seeds than the analysis': attention to the token after the earlier copy."""
    found = next(finding for finding in head_roles(tiny).findings() if finding.key == "induction")
    layer, head = map(int, found.about[1:].split("H"))
    generator = torch.Generator().manual_seed(99)
    half = torch.randint(1000, tiny.config.d_vocab, (12, 16), generator=generator)
    ids = torch.cat([torch.full((12, 1), tiny.tokenizer.bos), half, half], 1)
    with torch.inference_mode():
        _, cache = tiny.run_with_cache(ids)
    pattern = cache["pattern", layer][:, head]
    scores = [float(pattern[:, query, query - 15].mean()) for query in range(17, 33)]
    assert found.value == pytest.approx(np.mean(scores), abs=0.1)
    shifted = [float(pattern[:, query, query - 14].mean()) for query in range(17, 33)]
    assert np.mean(shifted) < 0.3  # control


def test_copying_is_told_where_it_was_planted_and_not_where_spectra_alone_give_it():
    model = make_gpt(d_model=64, d_vocab=64, tied=False)
    assert head_circuits(model).findings() == []
    with torch.no_grad():
        block = model.blocks[1]
        block.attn.W_O[2] = block.attn.W_V[2].T  # what it writes is what it read
        model.W_U.copy_(model.W_E.T)
    told = head_circuits(model).findings()
    assert [finding.about for finding in told] == ["L1H2"]
    lonely = np.outer(np.arange(1.0, 9), np.ones(8))[None]  # one direction: +1 or -1 whatever it does
    assert abs(copying_scores(lonely).item()) == pytest.approx(1)
    assert random_spread(lonely).item() == pytest.approx(1)


def test_attention_of_keys_in_random_order_passes_as_nothing():
    """The bound holds for 4,000 heads whose keys are shuffled, sharp or flat."""
    rng, queries, keys = np.random.default_rng(0), 8, 6
    for sharp in (0.1, 1.0, 10.0):
        weights = rng.dirichlet(np.full(keys, 1 / sharp), size=(4000, queries))
        p = chernoff(weights[..., 0].mean(-1), 1 / keys, queries)
        assert (p <= 0.05).mean() <= 0.05
        assert p.min() > 0
    assert chernoff(np.array([0.9]), 1 / keys, queries)[0] < 1e-4  # control
    assert chernoff(np.array([0.1]), 1 / keys, queries)[0] == 1


def test_one_family_has_one_scale_and_a_floor():
    model = make_gpt(init_std=0.02)
    matrices = [panel for panel in composition(model).panels() if isinstance(panel, Matrix)]
    assert {panel.family for panel in matrices} == {"composition"}
    assert all((panel.grey == np.isfinite(panel.values)).all() for panel in matrices)  # random heads: all of it grey
    assert all((panel.floor[panel.grey] > 0).all() for panel in matrices)
    masses = [panel for panel in attention_patterns(model, torch.arange(9)[None]).panels() if isinstance(panel, Matrix)]
    assert {panel.family for panel in masses if panel.unit == "share of attention"} == {"mass"}
    assert all(panel.family == "" for panel in masses if panel.unit == "nats")
