"""Next token: scipy's entropies, transformers' own sampling filters, the loop against plain repeated passes."""

import numpy as np
import pytest
import torch
from conftest import TEXT, make_gpt
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy

from analyses.next_token import entropy, next_token
from interp.errors import InputError
from interp.models.gpt import HookedGPT

IDS = torch.tensor([[5, 9, 5, 200, 17, 17, 3, 42]])


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 50), scale=st.floats(0, 20), seed=st.integers(0, 100))
def test_entropy_is_scipys(n: int, scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    p = (torch.randn(3, n, dtype=torch.float64) * scale).softmax(-1)
    np.testing.assert_allclose(entropy(p).numpy(), scipy_entropy(p.numpy(), axis=-1), rtol=0, atol=1e-12)


def test_entropy_of_known_distributions() -> None:
    assert float(entropy(torch.tensor([1.0, 0.0, 0.0]))) == 0
    assert float(entropy(torch.full((8,), 0.125))) == pytest.approx(np.log(8))


def test_the_distribution_is_the_softmax_of_the_last_position() -> None:
    model = make_gpt()
    result = next_token(model, IDS, show=7)
    p = torch.softmax(model(IDS)[0, -1], -1).detach().numpy().astype(float)
    order = np.argsort(-p)[:7]
    first = result.after[0]
    assert first.ids.tolist() == order.tolist()
    np.testing.assert_allclose(first.probabilities, p[order], rtol=0, atol=1e-7)
    assert first.entropy == pytest.approx(scipy_entropy(p), abs=1e-5)
    every = torch.softmax(model(IDS)[0], -1).detach().numpy()
    np.testing.assert_allclose(result.entropies, scipy_entropy(every, axis=-1), rtol=0, atol=1e-5)
    bars = next(panel for panel in result.panels() if panel.key == "distribution")
    assert bars.labels == tuple(f"<{token}>" for token in order)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.7, None, None), (1.3, 5, None), (1.0, None, 0.6), (0.9, 20, 0.5)]
)
def test_settings_filter_as_transformers_does(temperature: float, top_k: int | None, top_p: float | None) -> None:
    from transformers.generation.logits_process import (
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    model = make_gpt()
    logits = model(IDS)[:, -1].detach()
    warped = TemperatureLogitsWarper(temperature)(IDS, logits)
    if top_k is not None:
        warped = TopKLogitsWarper(top_k)(IDS, warped)
    if top_p is not None:
        warped = TopPLogitsWarper(top_p)(IDS, warped)
    p = warped.softmax(-1)[0].numpy().astype(float)
    result = next_token(model, IDS, temperature=temperature, top_k=top_k, top_p=top_p)
    row = result.settings.iloc[0]
    assert row["tokens kept"] == (p > 0).sum()
    assert row["entropy"] == pytest.approx(scipy_entropy(p), abs=1e-5)
    assert row["top probability"] == pytest.approx(p.max(), abs=1e-6)
    np.testing.assert_allclose(
        result.after[0].sampling_probabilities, p[result.after[0].ids], rtol=0, atol=1e-6
    )  # fmt: skip
    assert row["equally likely"] == pytest.approx(np.exp(row["entropy"]))
    colder = next_token(model, IDS, temperature=temperature / 2, top_k=top_k, top_p=top_p).settings.iloc[0]
    assert colder["entropy"] < row["entropy"]  # control: another setting gives another answer


def test_cumulative_curves_are_sorted_sums() -> None:
    model = make_gpt()
    result = next_token(model, IDS)
    logits = model(IDS)[0, -1].detach().double()
    for t, values in result.cumulative.items():
        sums = np.cumsum(np.sort(torch.softmax(logits / t, -1).numpy())[::-1])
        np.testing.assert_allclose(values, sums[result.ranks - 1], rtol=0, atol=1e-5)
    assert result.ranks[-1] == 300


def test_greedy_loop_is_argmax_again_and_again() -> None:
    model = make_gpt()
    result = next_token(model, IDS, steps=6, temperature=0)
    text = IDS
    for step in result.loop:
        logits = model(text)[0, -1].detach()
        p = logits.softmax(-1).numpy().astype(float)
        assert step.chosen == int(logits.argmax()) == step.ids[0]
        assert step.rank == 1
        assert step.kept == 1
        assert step.sampling_probability == 1
        assert step.probability == pytest.approx(p.max(), abs=1e-6)
        assert step.entropy == pytest.approx(scipy_entropy(p), abs=1e-5)
        text = torch.cat([text, torch.tensor([[step.chosen]])], dim=1)
    assert len(result.loop) == 6


def test_drawn_loop_gives_ranks_and_alternatives_of_each_step() -> None:
    model = make_gpt()
    result = next_token(model, IDS, steps=12, temperature=2.0, show=3, seed=1)
    text, outside = IDS, 0
    for step in result.loop:
        logits = model(text)[0, -1].detach()
        order = logits.argsort(descending=True)
        assert int(order[step.rank - 1]) == step.chosen
        assert step.ids.tolist() == order[:3].tolist()
        drawn = (logits / 2).softmax(-1)
        assert step.sampling_probability == pytest.approx(float(drawn[step.chosen]), abs=1e-6)
        outside += step.rank > 3
        text = torch.cat([text, torch.tensor([[step.chosen]])], dim=1)
    assert outside > 0  # so the table below has rows for chosen tokens that are not among those shown
    frame = result.to_dataframe()
    assert (frame[frame["step"] > 0].groupby("step")["chosen"].sum() == 1).all()
    assert not frame[frame["step"] == 0]["chosen"].any()
    grid = next(panel for panel in result.panels() if panel.key == "loop")
    assert len(grid.cells) == 3
    assert all(len(row) == 12 for row in grid.cells)
    assert grid.measures["probability"].shape == (3, 12)


def test_seeds_and_restrictions_steer_the_loop() -> None:
    model = make_gpt()
    one, same, other = (next_token(model, IDS, temperature=3.0, steps=10, seed=s).continuation for s in (0, 0, 1))
    assert one == same
    assert one != other
    narrow = next_token(model, IDS, temperature=3.0, top_k=2, steps=20)
    assert all(step.rank <= 2 and step.kept == 2 for step in narrow.loop)


def test_the_context_is_not_overrun() -> None:
    model = make_gpt(n_ctx=10)
    result = next_token(model, IDS, steps=5)
    assert len(result.loop) == 2
    assert result.left_out == 3
    assert "3 more would not fit" in next(panel for panel in result.panels() if panel.key == "loop").caption
    full = next_token(model, torch.cat([IDS, IDS[:, :2]], dim=1))
    assert full.loop == ()
    assert "no room" in next(panel for panel in full.panels() if panel.key == "loop").text


def test_texts_and_bad_settings(toy_gpt: HookedGPT) -> None:
    result = next_token(toy_gpt, [TEXT[:40], "Mary and the dog", "The cat"])
    assert len(result.after) == 3
    keys = [panel.key for panel in result.panels()]
    assert len(set(keys)) == len(keys)
    assert "texts" in keys
    assert result.findings()[0].key in keys
    for wrong in ({"steps": -1}, {"show": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": 0}):
        with pytest.raises(InputError):
            next_token(toy_gpt, "The cat", **wrong)
