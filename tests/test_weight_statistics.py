"""Weight statistics against scipy, numpy and closed forms, on samples and matrices whose answer is known."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_gpt
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from shapes import SHAPES, toy
from test_encoder import BERT, VIT, make
from test_encoder_decoder import make_pair

from analyses.shared import distributions, spectra
from analyses.shared.distributions import describe, kurtosis_p_value, window_test
from analyses.shared.panels import Histogram, Lines, Matrix, Note, Table
from analyses.shared.spectra import edge_p_value, random_edge, singular_values, spectrum_numbers
from analyses.weight_statistics import readable_p, weight_statistics
from interp.errors import InputError
from interp.models.gpt import HookedGPT

RNG = np.random.default_rng(0)
LAWS = {
    "normal": RNG.normal(0.1, 0.02, 60_000),
    "laplace": RNG.laplace(-0.3, 2.0, 60_000),
    "t": stats.t.rvs(5, size=60_000, random_state=1),
    "skewed": RNG.gamma(3.0, size=30_000),
    "few": RNG.normal(size=50),
    "offset": RNG.normal(40, 0.01, 5_000),
}


@pytest.fixture(scope="module")
def model() -> HookedGPT:
    return make_gpt(n_layers=4, d_model=32, n_heads=4, d_vocab=200, tied=False)


@pytest.fixture(scope="module")
def found(model):
    return weight_statistics(model)


@pytest.mark.parametrize("name", LAWS)
def test_moments_quantiles_and_shares_equal_numpy_and_scipy(name):
    x = LAWS[name].astype(np.float32)
    exact, n = x.astype(float), describe(x).numbers
    assert n["count"] == len(x)
    assert n["mean"] == pytest.approx(exact.mean(), rel=1e-12)
    assert n["std"] == pytest.approx(exact.std(), rel=1e-9)
    assert n["skewness"] == pytest.approx(stats.skew(exact), abs=1e-7)
    assert n["kurtosis"] == pytest.approx(stats.kurtosis(exact), abs=1e-7)
    assert (n["min"], n["max"]) == (exact.min(), exact.max())
    for q in distributions.QUANTILES:
        assert n[f"q{q:g}"] == pytest.approx(np.quantile(exact, q), rel=1e-10, abs=1e-12)
    for k in (3, 6):
        assert n[f"beyond_{k}"] == pytest.approx(np.mean(np.abs(exact - exact.mean()) > k * exact.std()), abs=1e-12)


@pytest.mark.parametrize("name", LAWS)
def test_fits_are_the_maximum_of_the_likelihood(name):
    """AIC equals scipy's density summed over all entries; no nearby parameters are better, nor is scipy's own fit."""
    x = LAWS[name].astype(np.float32)
    found = describe(x)
    exact, n = x.astype(float), found.numbers
    z = (exact - n["mean"]) / n["std"]
    shift = len(z) * np.log(n["std"])
    for law, density in (("normal", stats.norm), ("laplace", stats.laplace), ("t", stats.t)):
        parameters = found.laws[law]
        likelihood = density.logpdf(z, *parameters).sum()
        aic = 2 * len(parameters) - 2 * (likelihood - shift)
        assert n[f"aic_{law}"] == pytest.approx(aic, abs=0.01)
        for i in range(len(parameters)):
            for factor in (0.98, 1.02):
                near = list(parameters)
                near[i] = near[i] * factor if i or law == "t" else near[i] + 0.02 * (factor - 1)
                assert density.logpdf(z, *near).sum() <= likelihood + 1e-3
    if name in ("t", "laplace", "few"):
        assert found.laws["t"][0] <= 10_000
        assert stats.t.logpdf(z, *stats.t.fit(z, 5.0)).sum() <= stats.t.logpdf(z, *found.laws["t"]).sum() + 0.05


def test_the_right_law_wins_and_its_parameters_are_found():
    assert describe(LAWS["normal"]).best == "normal"
    assert describe(LAWS["laplace"]).best == "laplace"
    t = describe(LAWS["t"])
    assert t.best == "t"
    assert 4.7 < t.laws["t"][0] < 5.3
    assert t.numbers["t_gain"] > 0.01
    assert abs(describe(LAWS["normal"]).numbers["t_gain"]) < 1e-4


@pytest.mark.parametrize("name", LAWS)
def test_distance_from_normal_is_kolmogorov_smirnov(name):
    x = LAWS[name]
    expected = stats.kstest((x - x.mean()) / x.std(), "norm").statistic
    assert describe(x).numbers["ks"] == pytest.approx(expected, abs=2e-4)


@given(st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=40))
@settings(max_examples=40, deadline=None)
def test_counts_below_a_limit_are_exact_in_float32(numbers):
    ordered = np.sort(np.array(numbers, dtype=np.float32))
    limits = np.concatenate([ordered.astype(float), ordered + 1e-12, ordered - 1e-12])
    expected = [int((ordered.astype(float) < limit).sum()) for limit in limits]
    assert distributions.count_below(ordered, limits).tolist() == expected


def test_histogram_counts_everything_once_and_the_fit_expects_as_much():
    for x in LAWS.values():
        entries = describe(x)
        assert entries.histogram.sum() == len(x)
        z = np.clip((x - x.mean()) / x.std(), -9.99, 9.99)
        np.testing.assert_array_equal(entries.histogram, np.histogram(z, distributions.HISTOGRAM_EDGES)[0])
        for counts in distributions.expected_counts(entries).values():
            assert counts.sum() == pytest.approx(len(x), rel=1e-9)
    right = distributions.expected_counts(describe(LAWS["t"]))
    observed = describe(LAWS["t"]).histogram
    middle = observed > 20
    misfit = {law: ((observed - e)[middle] ** 2 / (e[middle] + 1e-3)).sum() for law, e in right.items()}
    assert misfit["t"] < 2 * middle.sum()
    assert misfit["normal"] > 10 * misfit["t"]  # control: the wrong law is seen to be wrong


def test_a_constant_matrix_is_called_constant():
    entries = describe(np.full((8, 8), 0.1, dtype=np.float32))
    assert entries.best == "constant"
    assert entries.numbers["std"] == 0
    assert np.isnan(entries.numbers["kurtosis"])


@pytest.mark.parametrize("shape", [(40, 40), (30, 90), (90, 30), (1, 7)])
def test_spectrum_equals_numpy_svd(shape):
    matrix = RNG.normal(size=shape).astype(np.float32)
    values = singular_values(matrix)
    expected = np.linalg.svd(matrix.astype(float), compute_uv=False)
    np.testing.assert_allclose(values, expected, rtol=1e-8, atol=1e-7 * expected[0])
    numbers = spectrum_numbers(values, shape, float(matrix.std()))
    share = expected / expected.sum()
    assert numbers["stable_rank"] == pytest.approx(
        np.linalg.norm(matrix.astype(float)) ** 2 / expected[0] ** 2, rel=1e-8
    )
    assert numbers["effective_rank"] == pytest.approx(np.exp(stats.entropy(share)), rel=1e-8)
    assert numbers["norm"] == pytest.approx(np.linalg.norm(matrix.astype(float), 2), rel=1e-8)


def test_ranks_of_matrices_with_a_known_rank():
    q = np.linalg.qr(RNG.normal(size=(20, 20)))[0]
    for rank in (1, 5, 20):
        numbers = spectrum_numbers(singular_values(q[:, :rank] @ q[:rank]), (20, 20), 1.0)
        assert numbers["stable_rank"] == pytest.approx(rank, rel=1e-6)
        assert numbers["effective_rank"] == pytest.approx(rank, rel=1e-4)
    assert spectrum_numbers(np.zeros(4), (4, 4), 0.0)["stable_rank"] == 0


@pytest.mark.parametrize("shape", [(150, 150), (100, 300)])
def test_random_matrices_follow_marchenko_pastur_and_a_planted_direction_does_not(shape):
    above = []
    for _ in range(20):
        matrix = RNG.normal(0, 0.3, size=shape)
        numbers = spectrum_numbers(singular_values(matrix), shape, float(matrix.std()))
        above.append(numbers["above_random"])
        assert numbers["mp_distance"] < 0.04
    assert np.mean(np.array(above) > 0) < 0.1  # one in a hundred by the definition of the edge
    u, v = RNG.normal(size=shape[0]), RNG.normal(size=shape[1])
    planted = matrix + 2 * spectra.random_edge(shape, 0.3) * np.outer(u, v) / np.linalg.norm(u) / np.linalg.norm(v)
    numbers = spectrum_numbers(singular_values(planted), shape, float(planted.std()))
    assert numbers["above_random"] == 1
    assert numbers["edge_ratio"] > 1.5
    scaled = matrix * np.linspace(0.2, 2, shape[1])  # no single direction, but not one scale either
    assert spectrum_numbers(singular_values(scaled), shape, float(scaled.std()))["mp_distance"] > 0.05


def test_marchenko_pastur_law_has_the_right_mean_and_spread():
    """Against moments in closed form, E[x] = 1 and E[x^2] = 1 + ratio, for a spectrum read off the law."""
    for shape in ((300, 300), (100, 400)):
        ratio = min(shape) / max(shape)
        low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
        x = np.linspace(low, high, 400_001)[1:-1]
        density = np.sqrt((high - x) * (x - low)) / (2 * np.pi * ratio * x)
        cumulative = np.cumsum(density) / density.sum()
        spectrum = np.interp((np.arange(min(shape)) + 0.5) / min(shape), cumulative, x)
        assert spectrum.mean() == pytest.approx(1, abs=0.01)
        assert (spectrum**2).mean() == pytest.approx(1 + ratio, abs=0.03)
        distance = spectra.marchenko_pastur_distance(spectrum * max(shape) * 4, shape, 2.0)
        assert distance < 0.7 / min(shape) + 2e-3
        assert spectra.marchenko_pastur_distance(spectrum * max(shape) * 4, shape, 2.2) > 0.05  # control


def test_window_test_knows_shuffled_matrices_from_smooth_ones():
    p_values, ratios = [], []
    for _ in range(200):
        matrix = RNG.laplace(size=(64, 96))
        ratio, p = window_test(matrix, 8, float(matrix.mean()), float(matrix.std()))
        p_values.append(p)
        ratios.append(ratio)
    assert np.mean(ratios) == pytest.approx(1, abs=0.05)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    smooth = RNG.normal(size=(64, 96)) + np.sin(np.arange(64) / 6)[:, None]
    mixed = RNG.permutation(smooth.ravel()).reshape(smooth.shape)
    ratio, p = window_test(smooth, 8, float(smooth.mean()), float(smooth.std()))
    shuffled_ratio, shuffled_p = window_test(mixed, 8, float(mixed.mean()), float(mixed.std()))
    assert ratio > 10
    assert p < 1e-6
    assert shuffled_ratio < 2
    assert shuffled_p > 0.001


def test_moving_average_equals_slow_means():
    matrix = RNG.normal(size=(20, 31)).astype(np.float32)
    image, step = distributions.moving_average(matrix, 5, most=9)
    assert step == 3
    for i, j in np.ndindex(image.shape):
        window = matrix[i * step : i * step + 5, j * step : j * step + 5].astype(float)
        assert window.shape == (5, 5)
        assert image[i, j] == pytest.approx(window.mean(), abs=1e-12)


def test_every_matrix_and_every_head_is_measured(model, found):
    frame = found.to_dataframe()
    assert len(frame) == 4 * 6 + 3 + 4 * 4 * 4
    assert not frame["matrix"].duplicated().any()
    rows = frame.set_index("matrix")
    expected = {
        "L2 W_in": model.W_in[2],
        "L1H3 W_Q": model.W_Q[1, 3],
        "L1H3 W_K": model.W_K[1, 3],
        "L0H2 W_V": model.W_V[0, 2],
        "L3H1 W_O": model.W_O[3, 1],
        "W_E": model.W_E,
        "W_U": model.W_U.T,
    }
    for name, weights in expected.items():
        values = weights.detach().double().numpy()
        assert (rows.loc[name, "rows"], rows.loc[name, "columns"]) == values.shape
        assert rows.loc[name, "std"] == pytest.approx(values.std(), rel=1e-6)
        assert rows.loc[name, "max"] == pytest.approx(values.max(), rel=1e-6)
        np.testing.assert_allclose(
            found.singular[name], np.linalg.svd(values, compute_uv=False), rtol=1e-5, atol=1e-6 * rows.loc[name, "norm"]
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_every_weight_of_every_kind_of_model_is_counted_once(shape):
    model = toy(shape)
    found = weight_statistics(model)
    weights = [p for p in model.parameters() if p.ndim == 2]
    assert found.whole["count"].sum() == sum(p.numel() for p in weights)
    assert len(found.whole) == len(weights)
    gains = [p.detach() for name, p in model.named_parameters() if name.endswith(".w")]
    assert len(found.gains) == len(gains)
    if gains:
        offset = model.config.gain_offset
        expected = sorted(float(p.double().mean()) + offset for p in gains)
        assert sorted(found.gains["mean"]) == pytest.approx(expected, abs=1e-6)
        assert ("bias_mean" in found.gains) == (model.config.norm == "layer")
    rows = found.matrices.set_index("matrix")
    letter = "H" if model.config.n_kv_heads == 4 else "KV"
    for i in range(model.config.n_kv_heads):
        part = model.blocks[1].attn.W_K[i].detach().double().numpy()
        name = f"L1{letter}{i} W_K"
        assert rows.loc[name, "mean"] == pytest.approx(part.mean(), abs=1e-8)
        np.testing.assert_allclose(found.singular[name], np.linalg.svd(part, compute_uv=False), rtol=1e-5, atol=1e-6)
    assert f"L1{letter}{i + 1} W_K" not in rows.index
    assert "L1H3 W_Q" in rows.index
    assert len(found.first_position) == (32 if model.config.positions == "learned" and model.blocks[0].mlp else 0)
    assert found.panels()


@pytest.mark.parametrize("kind", ["pair", "bert", "vit"])
def test_every_weight_of_encoders_and_translation_models_is_counted_once(kind):
    kinds = {"pair": make_pair, "bert": lambda: make(head="masked-language", **BERT), "vit": lambda: make(**VIT)}
    model = kinds[kind]()
    found = weight_statistics(model)
    weights = [p for p in model.parameters() if p.ndim == 2]
    assert found.whole["count"].sum() == sum(p.numel() for p in weights)
    assert len(found.whole) == len(weights)
    assert not found.matrices["matrix"].duplicated().any()
    assert len(found.gains) == sum(name.endswith(".w") for name, _ in model.named_parameters())
    outside = {"pair": {"W_E"}, "bert": {"W_E", "W_pos", "W_type", "head W"}, "vit": {"W_E", "W_pos"}}
    assert set(found.whole[found.whole["layer"] == -1]["kind"]) == outside[kind]
    rows = found.matrices.set_index("matrix")
    name, part = {"pair": ("L2H3 cross W_K", lambda: model.decoder[2].cross_attn.W_K[3])}.get(
        kind, ("L1H3 W_K", lambda: model.W_K[1, 3])
    )
    values = part().detach().numpy()
    assert rows.loc[name, "mean"] == pytest.approx(values.mean(), abs=1e-8)
    np.testing.assert_allclose(found.singular[name], np.linalg.svd(values, compute_uv=False), rtol=1e-5, atol=1e-6)
    for panel in found.panels():
        if isinstance(panel, Lines):  # stacks need not be equally deep
            assert {len(values) for values in panel.series.values()} == {len(panel.x)}
    assert not len(found.first_position)


@pytest.mark.parametrize("sample", LAWS)
def test_slopes_of_the_t_fit_are_those_of_its_likelihood(sample):
    x = (LAWS[sample] - LAWS[sample].mean())[:500] / LAWS[sample].std()
    weight = np.full(len(x), 1 / len(x))
    for point in ([0.1, 0.2, 0.3], [0.0, -0.3, 0.01], [-0.1, 0.1, 3.0]):
        value, slope, bend = distributions._t_loss(np.array(point), x, weight)
        assert value == pytest.approx(-stats.t.logpdf(x, 1 / point[2], point[0], np.exp(point[1])).mean(), abs=1e-10)
        for i, step in enumerate(1e-5 * np.diag(np.maximum(np.abs(point), 0.01))):
            after, before = (distributions._t_loss(point + sign * step, x, weight) for sign in (1, -1))
            assert slope[i] == pytest.approx((after[0] - before[0]) / 2 / step[i], rel=1e-4, abs=1e-5)
            np.testing.assert_allclose(bend[i], (after[1] - before[1]) / 2 / step[i], rtol=1e-4, atol=1e-4)


def test_threads_change_nothing(model, found):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert weight_statistics(model).matrices.equals(found.matrices)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_tall_matrix_s_shuffled_average_is_of_what_the_windows_see():
    matrix = np.zeros((2000, 8), dtype=np.float32)
    step = -(-(2000 - 2 + 1) // 128)
    for row in range(0, 1999, step):
        matrix[row : row + 2] = 1.0  # all that windows see is one; everything else is zero
    rng = np.random.default_rng(0)
    image, found = distributions.moving_average(matrix, 2, shuffle=rng)
    assert found == step
    assert (image == 1).all()
    assert image.shape == distributions.moving_average(matrix, 2)[0].shape


def test_tied_models_have_no_unembedding_row():
    assert "W_U" not in set(weight_statistics(make_gpt(d_model=16, n_heads=2)).matrices["matrix"])


def test_layer_norm_gains(model, found):
    gains = found.gains.set_index(["norm", "layer"])
    assert len(gains) == 9
    w = model.blocks[2].ln2.w.detach().double().numpy()
    assert gains.loc[("ln2", 2), "mean"] == pytest.approx(w.mean(), rel=1e-6)
    assert gains.loc[("ln2", 2), "max"] == pytest.approx(w.max(), rel=1e-6)
    bias = model.ln_final.b.detach().double().numpy()
    assert gains.loc[("ln_final", -1), "bias_rms"] == pytest.approx(np.sqrt((bias**2).mean()), rel=1e-6)


def test_planted_outlier_coordinates_are_found_and_random_weights_have_none():
    model = make_gpt(d_model=64)
    assert weight_statistics(model).outliers.empty
    with torch.no_grad():
        model.blocks[0].mlp.b_out[[11, 40]] += torch.tensor([30.0, -60.0])
        model.W_E[:, 7] *= 20
    outliers = weight_statistics(model).outliers
    first = outliers[outliers["of"] == "W_pos[0] + mlp_0(ln2(W_pos[0]))"]
    assert first["coordinate"].tolist() == [40, 11]
    assert first["value"].iloc[0] < 0 < first["value"].iloc[1]
    assert outliers[outliers["of"] == "W_E, root mean square"]["coordinate"].tolist() == [7]
    with torch.no_grad():
        x = model.W_pos[:1] + model.blocks[0].mlp(model.blocks[0].ln2(model.W_pos[:1]))
    np.testing.assert_allclose(weight_statistics(model).first_position, x[0].numpy(), rtol=1e-5, atol=1e-6)


def test_trend_is_kendalls_and_needs_six_blocks():
    model = make_gpt(n_layers=6, d_model=16, n_heads=2)
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            block.mlp.W_in *= 1 + layer
    trends = weight_statistics(model).trends.set_index(["kind", "number"])
    row = trends.loc[("W_in", "std")]
    assert row["tau"] == pytest.approx(1, abs=1e-12)
    assert row["p"] == pytest.approx(2 / 720, rel=1e-9)  # one order of six, in both directions
    assert row["q"] >= row["p"]
    assert (trends["q"] > 0.05).sum() >= len(trends) - 2  # control: nothing else has a trend
    few = weight_statistics(make_gpt(n_layers=5, d_model=16, n_heads=2))
    assert few.trends.empty
    assert isinstance(next(panel for panel in few.panels() if panel.key == "trends"), Note)


def test_tails_and_spikes_are_told_and_untrained_weights_are_not():
    """A planted heavy-tailed matrix and a planted direction; without them the one thing said is a warning."""
    model = make_gpt(d_model=32)
    plain = weight_statistics(model).findings()
    assert [(finding.kind, finding.key) for finding in plain] == [("warning", "spectra")]
    assert "look untrained" in plain[0].text
    with torch.no_grad():
        model.blocks[1].mlp.W_in += 0.4 * torch.outer(torch.ones(32), torch.ones(128).cumsum(0).sin())
        heavy = np.random.default_rng(0).standard_t(3, size=tuple(model.blocks[0].mlp.W_out.shape)) * 0.1
        model.blocks[0].mlp.W_out.copy_(torch.from_numpy(heavy))
    told = {finding.key: finding for finding in weight_statistics(model).findings()}
    assert "L1 W_in" in told["spectra"].text
    assert "L0 W_out" in told["entries"].text
    assert all(finding.kind == "effect" and finding.p < 1e-3 for finding in told.values())


def test_ends_of_tables_can_be_read(found):
    """No p-value of 0, and norms outside blocks in no block."""
    panels = {panel.key: panel for panel in found.panels()}
    assert (found.gains["layer"] == -1).any()
    assert not (panels["gains"].frame["layer"] == -1).any()
    frame = pd.DataFrame({"window_p": [0.0, 0.5, np.nan], "window_q": [0.3, 0.2, 0.1]})
    assert readable_p(frame)["window_p"].tolist() == ["< 1e-300", "0.5", ""]
    assert readable_p(frame)["window_q"].equals(frame["window_q"])  # control: nothing to rewrite


def test_tokens_play_no_part(found, model):
    again = weight_statistics(model, torch.arange(5)[None])
    assert again.matrices.equals(found.matrices)


def test_picture_of_a_chosen_matrix(model):
    chosen = weight_statistics(model, matrix="L3 W_out", window=4)
    assert chosen.picture_of == "L3 W_out"
    panel = next(panel for panel in chosen.panels() if panel.key == "moving-average")
    assert isinstance(panel, Matrix)
    assert panel.values.shape == (len(panel.rows), len(panel.columns))
    assert np.isnan(panel.values).any()  # the gap between the matrix and its shuffled self
    assert chosen.picture.mean() == pytest.approx(chosen.shuffled.mean(), abs=0.02)
    with pytest.raises(InputError, match="L3 W_out"):
        weight_statistics(model, matrix="L3 W_ou")
    with pytest.raises(InputError, match="at least 1"):
        weight_statistics(model, window=0)


def test_panels_and_findings_hold_together(found):
    panels = found.panels()
    keys = [panel.key for panel in panels]
    assert len(set(keys)) == len(keys)
    assert {finding.key for finding in found.findings()} <= set(keys)
    assert all(np.isfinite(finding.value) for finding in found.findings())
    for panel in panels:
        if isinstance(panel, Table):
            assert list(panel.units) == [name for name in panel.units if name in panel.frame]
        if isinstance(panel, Lines):
            assert all(len(values) == len(panel.x) for values in panel.series.values())
        if isinstance(panel, Histogram):
            assert all(len(counts) == len(panel.edges) - 1 for counts in panel.counts.values())


def test_the_model_and_torch_are_left_as_they_were(model):
    before, threads = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with spectra.one_thread():
            assert torch.get_num_threads() == 1
        weight_statistics(make_gpt(d_model=16, n_heads=2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    weight_statistics(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    rows = weight_statistics(make_gpt(d_model=16, n_heads=2, dtype=dtype)).matrices
    exact = weight_statistics(make_gpt(d_model=16, n_heads=2)).matrices
    np.testing.assert_allclose(rows["std"], exact["std"], rtol=0.01 if dtype == torch.bfloat16 else 1e-6)


def test_a_model_without_weights_to_speak_of():
    """All weights zero and no biases: nothing to fit, nothing to find, and no error."""
    model = make_gpt(d_model=16, n_heads=2, bias=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found = weight_statistics(model)
    assert set(found.whole["best"]) == {"constant"}
    assert found.findings() == []
    assert found.panels()


def test_a_single_huge_entry_is_held_against_the_same_entries_shuffled():
    """It makes a singular value of its own wherever it stands: that is no structure. A direction of many entries is."""
    matrix = np.random.default_rng(0).normal(size=(96, 64)).astype(np.float32)
    spiked = matrix.copy()
    spiked[3, 5] = 60.0
    top, numbers = float(singular_values(spiked)[0]), describe(spiked).numbers
    assert top > spectra.random_edge(spiked.shape, numbers["std"])  # what light tails would allow
    assert top < spectra.edge_of(spiked, top, numbers)
    planted = matrix + 0.6 * np.outer(np.sign(matrix[:, 0]), np.sign(matrix[0])).astype(np.float32)
    top, numbers = float(singular_values(planted)[0]), describe(planted).numbers
    assert top > 1.5 * spectra.edge_of(planted, top, numbers)
    assert not spectra.tails_matter((768, 768), 1.0, 6.0)
    assert spectra.tails_matter((768, 768), 1.0, 40.0)


def test_points_of_the_distances_are_the_published_ones():
    assert distributions.normal_point(10**6) * 1000 == pytest.approx(0.895, abs=0.001)
    assert distributions.normal_point(30) == pytest.approx(0.161, abs=0.003)  # Lilliefors 1967, table 1
    assert distributions.samples_point(5000, 2) == pytest.approx(1.358 * np.sqrt(2 / 5000), rel=1e-3)
    pairs = 12 * 11 / 2
    twelve, bound = distributions.samples_point(5000, 12), special.kolmogi(0.05 / pairs) * np.sqrt(2 / 5000)
    assert 0.95 * bound < twelve < bound  # Bonferroni's, as if the pairs had nothing in common, is a little above


def test_the_chance_of_a_kurtosis_is_anscombes_and_glynns():
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=300), rng.standard_t(5, size=5000), rng.uniform(size=64)):
        expected = stats.kurtosistest(values, alternative="greater").pvalue
        found = kurtosis_p_value(float(stats.kurtosis(values)), len(values))
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert kurtosis_p_value(50.0, 10) == 1.0  # too few numbers to tell


def test_the_chance_of_an_edge_is_tracys_and_widoms():
    """.01 at the edge itself, and as often exceeded by 4,000 random matrices as it says."""
    rng = np.random.default_rng(0)
    for shape in ((20, 60), (40, 40)):
        tops = np.array([np.linalg.norm(rng.normal(size=shape), 2) for _ in range(4000)])
        p = np.array([edge_p_value(shape, top / random_edge(shape, 1.0)) for top in tops])
        assert edge_p_value(shape, 1.0) == pytest.approx(0.01, rel=0.03)
        for level in (0.01, 0.05, 0.3):
            rate = (p <= level).mean()
            assert rate == pytest.approx(level, abs=0.1 * level + 3.5 * np.sqrt(level / 4000))
        assert edge_p_value(shape, 1.2) < 1e-6  # control
