"""Structure in averages against planted and shuffled matrices; sizes of weights against scipy's two-sample test."""

import numpy as np
import pytest
import torch
from conftest import make_gpt
from scipy import stats
from shapes import toy

from analyses.lessons.block_weights import block_weights, smoothness
from interp.errors import InputError, NotApplicable


def test_random_weights_have_no_structure_and_a_hill_has() -> None:
    model = make_gpt(d_model=128, n_layers=4)
    plain = block_weights(model, window=16)
    assert (plain.table["q"] > 0.05).all()
    np.testing.assert_allclose(plain.table["ratio"], 1, atol=0.6)
    with torch.no_grad():
        model.blocks[2].mlp.W_in[20:80, 20:80] += 0.1
    hill = block_weights(model, window=16)
    assert (hill.table["q"] <= 0.05).tolist() == [False, False, True, False]
    assert hill.table["ratio"][2] > 3
    assert np.abs(hill.averages[2]).max() > 2 * np.abs(hill.shuffled[2]).max()


def test_a_moving_average_of_noise_is_smooth_all_the_same() -> None:
    """Neighbouring windows of width w that move by s share (w - s)/w of their entries: that is their correlation."""
    result = block_weights(make_gpt(d_model=256, n_layers=1, n_ctx=8), window=64)
    for image in (result.averages[0], result.shuffled[0]):
        step = -(-(256 - 64 + 1) // 80)
        assert smoothness(image) == pytest.approx(1 - step / 64, abs=0.05)
    rough = np.random.default_rng(0).normal(size=(80, 80))
    assert smoothness(rough) == pytest.approx(0, abs=0.05)


def test_averages_are_means_of_windows() -> None:
    model = make_gpt(d_model=64)
    result = block_weights(model, kind="W_out", window=16, side=40)
    piece = model.blocks[1].mlp.W_out.detach().numpy()[:40, :40]
    side = result.table["window"][0]
    assert side == 10  # a quarter of the piece at most
    for i, j in ((0, 0), (3, 17), (30, 30)):
        assert result.averages[1][i, j] == pytest.approx(piece[i : i + side, j : j + side].mean(), abs=1e-7)
    assert result.averages[1].shape == (31, 31)


def test_distance_between_blocks_is_kolmogorovs() -> None:
    model = make_gpt(n_layers=3, d_model=64)
    with torch.no_grad():
        model.blocks[1].mlp.W_in *= 1.3
    result = block_weights(model)
    sizes = [block.mlp.W_in.detach().abs().numpy().ravel() for block in model.blocks]
    exact = max(stats.ks_2samp(sizes[i], sizes[j]).statistic for i in range(3) for j in range(i))
    assert result.apart == pytest.approx(exact, abs=2e-3)
    assert result.apart > result.apart_5_percent
    same = block_weights(make_gpt(n_layers=3, d_model=64))
    assert same.apart < 1.5 * same.apart_5_percent  # the largest of three pairs


def test_shape_numbers_against_known_laws() -> None:
    model = make_gpt(d_model=128)
    with torch.no_grad():
        model.blocks[1].mlp.W_in.copy_(torch.distributions.Laplace(0.0, 0.1).sample(model.blocks[1].mlp.W_in.shape))
    table = block_weights(model).table
    assert table["kurtosis"].tolist() == pytest.approx([0, 3], abs=0.3)
    assert table["ks"][0] < 2 * table["ks_5_percent"][0]
    assert table["ks"][1] > 5 * table["ks_5_percent"][1]
    assert table["std"].tolist() == pytest.approx([0.2, 0.1 * 2**0.5], rel=0.02)


@pytest.mark.parametrize("options", [{"window": 0}, {"side": 0}, {"kind": "W_X"}, {"seed": -1}])
def test_what_cannot_be_used_is_said(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        block_weights(make_gpt(), **options)  # type: ignore[arg-type]


def test_kinds_are_those_of_the_model() -> None:
    model = toy("llama")
    result = block_weights(model, kind="W_gate")
    np.testing.assert_array_equal(result.piece, model.blocks[0].mlp.W_gate.detach().numpy()[:32, :32])
    assert block_weights(model, kind="W_K").piece.shape == (12, 12)  # two kv heads, six wide
    for shape, kind in (("gpt2", "W_gate"), ("attention only", "W_in")):
        with pytest.raises(NotApplicable, match=kind):
            block_weights(toy(shape), kind=kind)
