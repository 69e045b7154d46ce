"""Embeddings: planted periods, planted neighbours, numpy's own answers; nothing is found in random positions."""

import numpy as np
import pytest
import torch
from conftest import TEXT, make_gpt
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import SHAPES, toy

from analyses.embeddings import cosines, embeddings, position_spectrum, power_spectrum, principal_variance
from interp.errors import InputError
from interp.models.gpt import HookedGPT
from interp.text.tokenizer import Tokenizer

IDS = torch.tensor([[5, 9, 5, 200, 17, 17, 3, 42]])


def with_positions(table: np.ndarray) -> HookedGPT:
    model = make_gpt(n_ctx=len(table), d_model=table.shape[1])
    with torch.no_grad():
        model.W_pos.copy_(torch.from_numpy(table))
    return model


def sinusoids(n: int, d: int) -> np.ndarray:
    """Vaswani et al. 2017, section 3.5."""
    angle = np.arange(n)[:, None] / 10000 ** (2 * np.arange(d // 2)[None] / d)
    table = np.empty((n, d))
    table[:, 0::2], table[:, 1::2] = np.sin(angle), np.cos(angle)
    return table


def test_the_three_pictures_are_the_embeddings_of_the_text() -> None:
    model = make_gpt()
    _, cache = model.run_with_cache(IDS)
    result = embeddings(model, IDS)
    images = {panel.key: panel for panel in result.panels()}
    for key, expected in (
        ("token-embedding", cache["embed"]),
        ("position-embedding", cache["pos_embed"]),
        ("sum-embedding", cache["resid_pre", 0]),
    ):
        np.testing.assert_allclose(images[key].values, expected[0].T.numpy(), rtol=0, atol=1e-6)
    assert images["token-embedding"].image
    assert images["token-embedding"].values.shape == (32, 8)  # one column a token
    np.testing.assert_array_equal(images["token-embedding"].values[:, 0], images["token-embedding"].values[:, 2])


@pytest.mark.parametrize("shape", SHAPES)
def test_what_enters_the_stream_is_shown_and_positions_where_they_are_learned(shape: str) -> None:
    model = toy(shape)
    result = embeddings(model, IDS)
    np.testing.assert_allclose(result.token_embedding, model.run_with_cache(IDS)[1]["embed"][0].numpy(), atol=1e-6)
    keys = {panel.key for panel in result.panels()}
    learned = model.config.positions == "learned"
    assert (result.positions is not None) == learned
    for key in ("position-embedding", "sum-similarity", "spectrum", "position-similarity-all"):
        assert (key in keys) == learned
    assert {"token-embedding", "token-similarity", "nearest", "norms"} <= keys
    assert bool(result.findings()) == learned


def test_similarities_are_cosines() -> None:
    model = make_gpt()
    result = embeddings(model, IDS)
    for kind, x in (
        ("token", model.W_E[IDS[0]]),
        ("position", model.W_pos[:8]),
        ("sum", model.W_E[IDS[0]] + model.W_pos[:8]),
    ):
        x = x.detach().double()
        slow = [[float(a @ b / (a.norm() * b.norm())) for b in x] for a in x]
        np.testing.assert_allclose(result.similarity[kind], slow, rtol=0, atol=1e-6)
    assert result.similarity["token"][4, 5] == pytest.approx(1, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(4, 40), d=st.integers(1, 8), seed=st.integers(0, 1000))
def test_spectrum_is_the_slow_fourier_transform(n: int, d: int, seed: int) -> None:
    table = np.random.default_rng(seed).normal(size=(n, d))
    centred = table - table.mean(0)
    slow = []
    for k in range(1, n // 2 + 1):
        wave = np.exp(-2j * np.pi * k * np.arange(n) / n)
        power = sum(abs((column * wave).sum()) ** 2 for column in centred.T)
        slow.append(power * (1 if 2 * k == n else 2) / n / (centred**2).sum())
    power = power_spectrum(table)
    np.testing.assert_allclose(power, slow, rtol=0, atol=1e-10)
    assert power.sum() == pytest.approx(1, abs=1e-10)  # Parseval


def test_planted_periods_are_found() -> None:
    rng = np.random.default_rng(0)
    at = np.arange(128)
    table = rng.normal(size=(128, 32))
    table[:, 3] += 4 * np.sin(2 * np.pi * at / 16)
    table[:, 8] += 3 * np.cos(2 * np.pi * at / 4 + 1)
    result = embeddings(with_positions(table), IDS)
    found = result.spectrum.periods[result.spectrum.found]
    assert sorted(found) == [4, 16]
    assert result.spectrum.p_value == pytest.approx(1 / 101)
    assert "have an order" in result.findings()[0].text
    rows = result._period_table()
    assert rows["above the null"].tolist()[:3] == [True, True, False]


def test_sinusoidal_positions_are_full_of_order() -> None:
    result = embeddings(with_positions(sinusoids(256, 32)), IDS).spectrum
    assert len(result.found) > 3
    assert result.power[result.found].sum() > 0.5
    assert result.neighbour_cosine > 0.8
    assert abs(result.neighbour_cosine_null) < 0.05


def test_nothing_is_found_in_random_positions() -> None:
    """Control: over 40 random tables about one in twenty may cross the 95 % line, not many more."""
    crossed = 0
    for seed in range(40):
        table = np.random.default_rng(seed).normal(size=(64, 16))
        result = position_spectrum(table, 100, np.random.default_rng(seed + 1000))
        crossed += bool(len(result.found))
        assert abs(result.neighbour_cosine) < 0.1
    assert crossed <= 6  # P(more than 6 of 40 at 5 %) < .4 %


def test_shuffling_sinusoids_destroys_the_finding() -> None:
    table = np.random.default_rng(1).permutation(sinusoids(256, 32))
    assert not len(embeddings(with_positions(table), IDS).spectrum.found)


def test_variance_by_direction_is_numpys() -> None:
    for shape in ((30, 8), (8, 30)):
        table = np.random.default_rng(2).normal(size=shape)
        values = np.linalg.svd(table - table.mean(0), compute_uv=False) ** 2
        np.testing.assert_allclose(principal_variance(table)[:8], (values / values.sum())[:8], rtol=0, atol=1e-12)
    curve = embeddings(with_positions(np.outer(np.linspace(-1, 1, 64), np.ones(16))), IDS)
    assert curve.positions.variance[0] == pytest.approx(1, abs=1e-6)  # a line uses one direction
    assert curve.positions.variance_null[0] < 0.5


def test_nearest_tokens_are_those_planted_next_to_them() -> None:
    model = make_gpt()
    with torch.no_grad():
        model.W_E[77] = 3 * model.W_E[9] + 0.01
        model.W_E[78] = -model.W_E[9]
    nearest = embeddings(model, IDS, neighbours=3).nearest
    of_nine = nearest[nearest["token"] == "<9>"]
    assert of_nine["neighbour"].iloc[0] == "<77>"
    assert of_nine["cosine"].iloc[0] > 0.99
    assert "<78>" not in set(of_nine["neighbour"])
    assert "<9>" not in set(of_nine["neighbour"])
    slow = cosines(model.W_E.detach())[9]
    slow[9] = -2
    np.testing.assert_allclose(of_nine["cosine"], np.sort(slow)[::-1][:3], rtol=0, atol=1e-6)
    assert len(nearest) == 3 * IDS[0].unique().numel()  # every token once


def test_random_pairs_give_the_ordinary_cosine() -> None:
    model = make_gpt(d_model=64)
    with torch.no_grad():
        model.W_E += 0.2  # a common part, as trained models have
    mean, spread = embeddings(model, IDS).random_cosine
    every = cosines(model.W_E.detach()).astype(float)
    off = every[~np.eye(len(every), dtype=bool)]
    assert mean == pytest.approx(off.mean(), abs=4 * off.std() / 64)  # standard error of 4,096 pairs is std / 64
    assert spread == pytest.approx(off.std(), rel=0.1)


def test_text_several_texts_and_bad_options(toy_gpt: HookedGPT, toy_tokenizer: Tokenizer) -> None:
    result = embeddings(toy_gpt, [TEXT[:40], "Mary and the dog"])
    assert result.n_texts == 2
    assert set(result.to_dataframe()["text"]) == {0, 1}
    keys = [panel.key for panel in result.panels()]
    assert len(set(keys)) == len(keys)
    assert result.findings()[0].key in keys
    before = toy_gpt.W_E.clone()
    assert embeddings(toy_gpt, TEXT[:40], seed=3).spectrum.null_max == embeddings(
        toy_gpt, TEXT[:40], seed=3
    ).spectrum.null_max  # fmt: skip
    torch.testing.assert_close(toy_gpt.W_E, before, rtol=0, atol=0)
    with pytest.raises(InputError, match="neighbours = 0"):
        embeddings(toy_gpt, TEXT[:40], neighbours=0)
