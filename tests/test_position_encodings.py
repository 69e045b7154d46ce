"""Sinusoids against the formula written out, their two properties, and vectors that have neither."""

import math

import numpy as np
import pytest
import torch
from conftest import make_gpt
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import toy

from analyses.lessons.position_encodings import cosines, position_encodings, shift_error, sinusoids
from interp.errors import InputError, NotApplicable


@given(st.integers(2, 20), st.integers(2, 17), st.floats(2, 1e5))
@settings(max_examples=40, deadline=None)
def test_the_formula_written_out(positions: int, width: int, base: float) -> None:
    found = sinusoids(positions, width, base)
    for p in range(positions):
        for i in range(width):
            angle = p / base ** ((i - i % 2) / width)
            assert found[p, i] == pytest.approx(math.cos(angle) if i % 2 else math.sin(angle), abs=1e-12)


def test_a_step_is_a_rotation_for_sinusoids_only() -> None:
    waves = sinusoids(50, 32)
    for shift in (1, 7):
        assert shift_error(waves, 10000.0, shift) < 1e-12
    assert shift_error(np.random.default_rng(0).normal(size=(50, 32)), 10000.0) > 0.1
    assert shift_error(waves, 9000.0) > 1e-4


def test_distance_explains_sinusoids_and_nothing_of_noise() -> None:
    model = make_gpt(n_ctx=60, d_model=32)
    noise = position_encodings(model)
    assert noise.distance_share["sinusoidal"] == pytest.approx(1, abs=1e-12)
    assert noise.distance_share["learned"] < 0.1
    with torch.no_grad():
        model.W_pos.copy_(torch.as_tensor(sinusoids(60, 32)))
    waves = position_encodings(model)
    assert waves.distance_share["learned"] == pytest.approx(1, abs=1e-6)
    assert waves.distance_share["learned, shuffled"] < 0.1
    np.testing.assert_allclose(waves.by_distance["learned"], waves.by_distance["sinusoidal"], atol=1e-6)


def test_models_without_learned_positions_are_refused() -> None:
    for shape in ("llama", "no norm"):
        with pytest.raises(NotApplicable, match="learned position embeddings"):
            position_encodings(toy(shape))
    assert len(position_encodings(toy("attention only")).learned) == 64


def test_share_against_regression_on_the_distance() -> None:
    """The share that distance explains is the R squared of a regression with one indicator a distance."""
    model = make_gpt(n_ctx=12, d_model=32)
    similarity = cosines(model.W_pos.detach().double().numpy())
    rows, columns = np.triu_indices(12, 1)
    values = similarity[rows, columns]
    indicators = (columns - rows)[:, None] == np.arange(1, 12)
    fitted = indicators @ np.linalg.lstsq(indicators.astype(float), values, rcond=None)[0]
    expected = 1 - ((values - fitted) ** 2).sum() / ((values - values.mean()) ** 2).sum()
    assert position_encodings(model).distance_share["learned"] == pytest.approx(expected, abs=1e-12)


def test_similarity_by_distance_is_a_mean_of_cosines() -> None:
    model = make_gpt(n_ctx=9)
    found = position_encodings(model).by_distance["learned"]
    vectors = model.W_pos.detach().double()
    for distance in range(9):
        pairs = [torch.cosine_similarity(vectors[i], vectors[i + distance], dim=0).item() for i in range(9 - distance)]
        assert found[distance] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


@pytest.mark.parametrize("options", [{"positions": 1}, {"base": 1.0}, {"seed": -1}])
def test_what_cannot_be_used_is_said(options: dict[str, float]) -> None:
    with pytest.raises(InputError):
        position_encodings(make_gpt(), **options)
