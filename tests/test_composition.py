"""Composition: equal to numpy on whole matrices and to transformer-lens; finds the planted pair, none in noise."""

import warnings

import numpy as np
import pytest
import torch
from conftest import make_gpt
from handmade import induction_model
from scipy import stats
from shapes import toy
from test_encoder import BERT, VIT, make
from test_encoder_decoder import make_pair

from analyses.composition import _limit, composition, rotated_moments
from analyses.shared.panels import Graph, Matrix, Note
from analyses.shared.weight_circuits import circuits
from interp.errors import InputError
from interp.processing import process_weights


def whole(model):
    """W_QK and W_OV of every head, [layer head d_model d_model], layer norms folded in, in numpy."""
    folded = process_weights(model)
    q, k, v, o = (x.detach().numpy() for x in (folded.W_Q, folded.W_K, folded.W_V, folded.W_O))
    centre = np.eye(q.shape[2]) - 1 / q.shape[2]
    return centre @ q @ k.swapaxes(-1, -2) @ centre, centre @ v @ o


def test_scores_equal_numpy_on_whole_matrices():
    model = make_gpt(dtype=torch.float64, n_layers=3)
    result = composition(model)
    qk, ov = whole(model)
    transposed = qk.swapaxes(-1, -2)
    for kind, reads in (("Q", qk), ("K", transposed), ("V", ov)):
        for early in range(12):
            for late in range(12):
                first, second = ov[divmod(early, 4)], reads[divmod(late, 4)]
                score = result.scores[kind][early, late]
                if early // 4 >= late // 4:
                    assert np.isnan(score)
                    continue
                expected = np.linalg.norm(first @ second) / np.linalg.norm(first) / np.linalg.norm(second)
                assert score == pytest.approx(expected, abs=1e-10)
    assert np.nanmax(np.abs(result.scores["Q"] - result.scores["K"])) > 0.01  # the control: kinds differ


@pytest.mark.parametrize("shape", ["llama", "gemma3", "neox"])
def test_other_families_equal_numpy_on_whole_matrices(shape):
    """Given the factors, which `test_head_circuits` compares with runs; query heads are paired with their kv heads."""
    model = toy(shape, dtype=torch.float64)
    at, there = composition(model, distance=2), circuits(model, 2)
    qk, ov = (there.q @ there.k.mT).numpy(), (there.v @ there.o).numpy()
    for kind, reads in (("Q", qk), ("K", qk.swapaxes(-1, -2)), ("V", ov)):
        for early, late in np.ndindex(4, 4):
            first, second = ov[0, early], reads[1, late]
            expected = np.linalg.norm(first @ second) / np.linalg.norm(first) / np.linalg.norm(second)
            assert at.scores[kind][early, 4 + late] == pytest.approx(expected, abs=1e-10)
    assert np.isnan(at.scores["V"][:4, :4]).all()  # a layer does not read its own heads
    here = composition(model)
    assert np.nanmax(np.abs(here.scores["Q"] - at.scores["Q"])) > 1e-3
    np.testing.assert_array_equal(here.scores["V"], at.scores["V"])  # values are not turned
    mean_square = here.baseline["V"] ** 2 + here.spread["V"] ** 2
    np.testing.assert_allclose(np.nanmean(mean_square), 1 / (32 - (model.config.norm == "layer")), rtol=0.1)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "bert", "vit"])
def test_norms_that_follow_sums_lie_between_the_heads(kind):
    """Against numpy on whole matrices, with every norm between two heads written out."""
    pair = kind in ("encoder", "decoder")
    model = make_pair(n_encoder_layers=3) if pair else make(**(VIT | {"n_layers": 3} if kind == "vit" else BERT))
    model.requires_grad_(False)
    result = composition(model)
    result, blocks = (result[kind], getattr(model, kind)) if pair else (result, model.blocks)
    centre, step = np.eye(32) - 1 / 32, 3 if kind == "decoder" else 2
    norms = [centre * getattr(block, f"ln{n + 1}").w.numpy() for block in blocks for n in range(step)]
    start = centre * model.embed.ln.w.numpy() if kind == "bert" else np.eye(32)
    for early, late in ((0, 1), (0, 2), (1, 2)):
        if kind == "vit":  # norms stand in front of what reads
            behind, between, reads = norms[step * early], centre, norms[step * late]
        else:
            behind = norms[step * early - 1] if early else start
            *passed, reads = norms[step * early : step * late]
            between = np.linalg.multi_dot([np.eye(32), *passed, centre])
        one, other = blocks[early].attn, blocks[late].attn
        ov, qk = (one.W_V @ one.W_O).numpy(), (other.W_Q @ other.W_K.mT).numpy()
        for first, second in ((0, 1), (2, 3)):
            place = 4 * early + first, 4 * late + second
            for name, matrix in (("Q", qk[second]), ("K", qk[second].T)):
                wrote, read = behind @ ov[first] @ between, reads @ matrix @ reads.T
                expected = np.linalg.norm(wrote @ read) / np.linalg.norm(wrote) / np.linalg.norm(read)
                assert result.scores[name][place] == pytest.approx(expected, abs=1e-9)
                plain = np.linalg.norm(ov[first] @ matrix) / np.linalg.norm(ov[first]) / np.linalg.norm(matrix)
                assert abs(plain - expected) > 1e-6  # control: the norms left out
            assert np.isnan(result.scores["V"][place[::-1]])
            assert result.limit["V"][place] > result.baseline["V"][place]
    assert result.panels()


def test_baseline_is_that_of_turned_matrices():
    model = make_gpt(dtype=torch.float64)
    result = composition(model)
    qk, ov = whole(model)
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(400):
        turn = np.linalg.qr(rng.normal(size=(31, 31)))[0]
        basis = np.linalg.svd(np.ones((1, 32)))[2][1:]  # orthonormal, without the mean direction
        turned = ov[0, 1] @ basis.T @ turn @ basis @ qk[1, 2]
        samples.append(np.linalg.norm(turned) / np.linalg.norm(ov[0, 1]) / np.linalg.norm(qk[1, 2]))
    error = 4 * np.std(samples) * np.sqrt(1 / 32 + 1 / 400)
    assert result.baseline["Q"][1, 6] == pytest.approx(np.mean(samples), abs=error)
    assert result.spread["Q"][1, 6] == pytest.approx(np.std(samples), rel=0.5)
    assert result.baseline["Q"][1, 6] ** 2 + result.spread["Q"][1, 6] ** 2 == pytest.approx(1 / 31, rel=0.1)


def test_random_heads_are_at_the_baseline():
    result = composition(make_gpt(n_layers=3, n_heads=4, d_model=64, d_mlp=8))
    for kind in "QKV":
        pairs = ~np.isnan(result.scores[kind])
        z = (result.excess(kind) / result.spread[kind])[pairs]
        assert abs(z.mean()) < 0.5
        assert np.abs(z).max() < 5


def test_planted_composition_is_the_strongest():
    model, roles = induction_model()
    result = composition(model)
    early, late = (4 * layer + head for layer, head in (roles["previous_token"], roles["induction"]))
    assert result._strongest("K", 1) == [(early, late)]
    assert result.scores["K"][early, late] > 1.7 * result.baseline["K"][early, late]
    assert result.scores["Q"][early, late] < result.scores["K"][early, late] / 2
    assert np.isnan(result.scores["K"][roles["nothing"][1], late])  # a head that writes nothing
    finding = next(finding for finding in result.findings() if "K-composition" in finding.text)
    assert finding.text.startswith("L1H0 is built to read its key from L0H0: K-composition 0.")
    assert finding.about == "L1H0"
    assert finding.p == result.chance["K"][early, late] < 0.05
    assert not composition(make_gpt()).findings()  # control: random heads
    control = composition(induction_model(previous_token_head=False)[0])
    assert np.isnan(control.scores["K"][early, late])


def test_folding_changes_nothing():
    model = make_gpt(dtype=torch.float64)
    raw, folded = composition(model), composition(process_weights(model))
    for kind in "QKV":
        np.testing.assert_allclose(raw.scores[kind], folded.scores[kind], atol=1e-10)


def test_frame_and_panels():
    result = composition(make_gpt(n_layers=3), edges=5)
    frame = result.to_dataframe()
    assert len(frame) == 3 * 3 * 16
    assert (frame.from_layer < frame.to_layer).all()
    panels = result.panels()
    graphs = [panel for panel in panels if isinstance(panel, Graph)]
    assert [len(graph.edges) <= 5 for graph in graphs] == [True] * 3
    assert all(graph.columns[a] < graph.columns[b] for graph in graphs for a, b, _ in graph.edges)
    assert sum(isinstance(panel, Matrix) for panel in panels) == 3
    one = composition(make_gpt(n_layers=1))
    assert isinstance(one.panels()[0], Note)
    assert one.to_dataframe().empty
    assert not one.findings()
    with pytest.raises(InputError):
        composition(make_gpt(), edges=0)


@pytest.mark.slow
def test_agrees_with_transformer_lens(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = make_gpt(n_layers=3, d_model=64)
    model.save_pretrained(tmp_path)
    hf = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    result = composition(model)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        from transformer_lens.model_bridge import TransformerBridge

        bridge = TransformerBridge.boot_transformers(str(tmp_path), hf_model=hf, device="cpu")
        bridge.enable_compatibility_mode(disable_warnings=True)
        for kind in "QKV":
            theirs = bridge.all_composition_scores(kind)
            theirs = np.asarray(getattr(theirs, "scores", theirs)).reshape(12, 12)
            known = ~np.isnan(result.scores[kind])
            np.testing.assert_allclose(result.scores[kind][known], theirs[known], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("width", "used"), [(5, 3), (12, 4), (2, 2)])
def test_moments_of_rotated_shares(width, used):
    """Exact mean, variance and skewness against 40,000 rotations."""
    rng = np.random.default_rng(width)
    one, other = rng.dirichlet(np.ones(used)), rng.dirichlet(np.ones(used))
    turns = stats.ortho_group.rvs(width, size=40_000, random_state=0)[:, :used, :used] ** 2
    squared = np.einsum("i,rij,j->r", one, turns, other)
    powers = [[np.array([(x**2).sum()]), np.array([(x**3).sum()])] for x in (one, other)]
    mean, variance, skewness = rotated_moments(*powers, width)
    assert squared.mean() == pytest.approx(mean, abs=5 * squared.std() / 200)
    assert squared.var() == pytest.approx(variance.item(), rel=0.05)
    assert stats.skew(squared) == pytest.approx(skewness.item(), abs=0.08)
    assert abs(stats.skew(squared) - 2 * skewness.item()) > 0.08 or width == 2  # control


@pytest.mark.slow
def test_random_models_are_found_in_one_of_twenty():
    """The chance of the best of all pairs is right over 400 models: not above .05, and not far below it."""
    for shape in ({"n_heads": 4, "d_model": 32}, {"n_layers": 4, "n_heads": 4, "d_model": 64}):
        found = [composition(make_gpt(seed=seed, **shape)).chance for seed in range(400)]
        best = np.array([min(np.nanmin(x) for x in chance.values()) for chance in found])
        rates = {level: (best <= level).mean() for level in (0.05, 0.2, 0.5)}
        print(shape, rates)
        for level, rate in rates.items():
            assert rate == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / 400))


def test_the_limit_has_the_spread_of_real_rotations():
    """Exact mean and variance of the squared score, whose 5 % point for one pair 20,000 rotations exceed in 5 %."""
    rng = np.random.default_rng(0)
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    turned = np.linalg.qr(rng.normal(size=(20_000, 24, 4)))[0][:, :4] ** 2
    scores = np.sqrt(np.einsum("i,rij,j->r", shares, turned, shares))
    part = torch.from_numpy(shares)[None]
    limit = _limit(part, part, 24, 1, np.zeros((1, 1)))[0].item()
    assert (scores > limit).mean() == pytest.approx(0.05, abs=0.006)
    assert 0 < (scores > _limit(part, part, 24, 20, np.zeros((1, 1)))[0].item()).mean() < 0.05 / 20 + 0.001
    assert _limit(part, part, 24, 20, np.array([[0.2, 0.9]]))[1][0].tolist() == pytest.approx([1.0, 0.0], abs=1e-3)
    assert (scores > limit * 0.9).mean() > 0.08  # control
