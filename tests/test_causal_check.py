"""Erasing a concept: the library's own fitter, the theorem, and models in which it is known what the concept is for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_gpt
from planted import model_that_uses_a_class, planted, previous_token_model
from shapes import SHAPES, toy

from analyses.probes import causal, causal_check, probe_layers
from analyses.probes.causal import favours
from analyses.probes.data import run_model, split_texts
from analyses.probes.erasure import Erased, leace, leace_fitter, random_eraser
from analyses.probes.moments import Statistics
from interp import extract_activations
from interp.errors import InputError, InterpError, NotApplicable
from interp.sweep import slow_sweep

LINEAR = ["logistic", "ridge", "lda", "mass-mean", "nearest-centroid"]


def sample(classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    data, codes = planted((0,), layers=1, classes=classes)
    return data.values["blocks.0.hook_resid_post"], codes


def test_the_statistics_are_the_librarys_own() -> None:
    """The same eraser as the library's fitter that was shown the rows, in batches."""
    x, codes = sample()
    ours = leace_fitter(Statistics.of(x, codes))
    fitter = type(ours)(12, 3, dtype=torch.float64, shrinkage=False, constrain_cov_trace=False, svd_tol=1e-7)
    for rows in np.array_split(np.arange(len(x)), 5):
        fitter.update(torch.tensor(x[rows]), torch.nn.functional.one_hot(torch.tensor(codes[rows]), 3))
    torch.testing.assert_close(ours.sigma_xx, fitter.sigma_xx, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.sigma_xz, fitter.sigma_xz, rtol=0, atol=1e-9)
    points = torch.tensor(x[:50])
    torch.testing.assert_close(leace(Statistics.of(x, codes))(points), fitter.eraser(points), rtol=0, atol=1e-8)


def test_the_theorem() -> None:
    """Equal class means, rank classes - 1, and no smaller change does it; random directions leave the means apart."""
    x, codes = sample()
    statistics = Statistics.of(x, codes)
    eraser = leace(statistics)
    assert eraser.rank == 2
    erased = eraser(torch.tensor(x)).numpy()
    means = np.stack([erased[codes == one].mean(0) for one in range(3)])
    np.testing.assert_allclose(means, np.tile(x.mean(0), (3, 1)), rtol=0, atol=1e-9)
    moved = eraser.of(statistics)
    np.testing.assert_allclose(moved.x.scatter, Statistics.of(erased, codes).x.scatter, rtol=0, atol=1e-6)
    np.testing.assert_allclose(moved.y.means, means, rtol=0, atol=1e-9)
    basis = np.linalg.qr((statistics.y.means - x.mean(0)).T)[0][:, :2]  # the orthogonal projection is a larger change
    assert ((erased - x) ** 2).sum() < (((x - x.mean(0)) @ basis) ** 2).sum()
    for as_loud in (False, True):
        other = random_eraser(statistics, eraser, 0, as_loud=as_loud)
        assert other.rank == 2
        np.testing.assert_allclose(other.of(statistics).y.means, statistics.y.means, rtol=0, atol=1e-8)  # untouched
        loudness = other.removed(statistics) / eraser.removed(statistics)
        assert 0.8 < loudness < 1.02 if as_loud else loudness < 0.8  # in so few dimensions no more is left
        twice = other(other(torch.tensor(x[:9])))
        torch.testing.assert_close(twice, other(torch.tensor(x[:9])), rtol=0, atol=1e-8)  # a projection


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", LINEAR)
def test_after_erasing_no_linear_probe_beats_the_majority(kind: str, classes: int) -> None:
    data, codes = planted((0,), layers=1, classes=classes, texts=60)
    name = "blocks.0.hook_resid_post"
    train = (data.manifest["split"] == "train").to_numpy()
    statistics = Statistics.of(data.values[name][train], codes[train])
    erased = probe_layers(Erased(data, name, leace(statistics)), codes, probe=kind, description_length=False)
    gain = erased.difference("probe", "majority")
    assert gain.value[0] <= max(0.0, gain.high[0] - gain.value[0]) + 0.02
    assert gain.low[0] <= 0.01
    control = random_eraser(statistics, leace(statistics), 0)
    other = probe_layers(Erased(data, name, control), codes, probe=kind, description_length=False)
    assert other.difference("probe", "majority").low[0] > 0.2


def test_a_hook_erases_as_the_eraser_does() -> None:
    model, ids = make_gpt(), torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(0))
    name = "blocks.1.hook_resid_pre"
    rng = np.random.default_rng(0)
    x, codes = rng.normal(size=(200, model.config.d_model)), rng.integers(0, 2, 200)
    eraser = leace(Statistics.of(x, codes))
    _, clean = model.run_with_cache(ids, names=name)
    with model.hooks([eraser.at(name, pos=range(1, 9))]):
        _, changed = model.run_with_cache(ids, names=name)
    torch.testing.assert_close(changed[name][:, 0], clean[name][:, 0], rtol=0, atol=0)
    expected = eraser(clean[name][:, 1:].double()).to(changed[name])
    torch.testing.assert_close(changed[name][:, 1:], expected, rtol=0, atol=1e-5)
    assert (changed[name][:, 1:] - clean[name][:, 1:]).abs().max() > 1e-2


def test_a_model_that_uses_the_concept_loses_it(tmp_path: Path) -> None:
    """Erased, the loss rises from log 20 beyond log 40; random directions cost little, an unused label nothing."""
    model, tokens, labels = model_that_uses_a_class()
    names = [("resid_mid", 0), "resid_post"]
    store = extract_activations(model, tokens, names, tmp_path / "store", dtype="float32", split=(0.6, 0.1, 0.3))
    result = causal_check(model, store, labels, "blocks.0.hook_resid_mid", draws=4)
    assert result.later == ("blocks.0.hook_resid_mid", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    before, after, most = (result.mean(x.T, by_rows=True) for x in (result.before, result.after, result.majority))
    assert (before.value > 0.999).all()
    assert after.value == pytest.approx(np.full(3, float(most.value)), abs=0.02)  # no block writes it again
    assert float(result.mean(result.loss).value) == pytest.approx(np.log(20), abs=0.02)
    assert float(result.mean(result.loss_erased).value) > np.log(40) - 0.02  # who cannot know cannot do better
    assert (result.cost_random.value < 0.35).all()
    assert (result.cost_beyond.low > 0.2).all()
    ids = tokens[np.flatnonzero(store.texts["split"] == "test")]
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert float(result.mean(result.loss).value) == pytest.approx(float(loss), abs=1e-5)
    assert np.isnan(result.loss[store.texts["split"] != "test"]).all()
    text = result.findings()[0].text
    assert "more than for random directions" in text
    assert "more than for random ones with as much variance" in text
    # The control: whether the token is even lies in the stream too, and the predictions do not rest on it.
    parity = (tokens.numpy().ravel() % 2).astype(int)
    unused = causal_check(model, store, parity, "blocks.0.hook_resid_mid", draws=4)
    assert (unused.mean(unused.before.T, by_rows=True).value > 0.7).all()
    assert abs(float(unused.cost.value)) < 0.1
    assert "no more than for random" in unused.findings()[0].text


def test_steering_adds_the_difference_of_means(tmp_path: Path) -> None:
    """KL and loss of the steered run, by hand; no concept direction is longer or shorter than the random ones."""
    model, tokens, labels = previous_token_model()
    store = extract_activations(model, tokens, "resid_post", tmp_path / "store", dtype="float32", split=(0.6, 0.1, 0.3))
    name = "blocks.0.hook_resid_post"
    result = causal_check(model, store, labels, name, draws=2, scales=(1.5,), towards="0")
    train = (store.manifest["split"] == "train").to_numpy() & (labels >= 0)
    x = store.load(name)[0].astype(np.float64)
    vector = x[train & (labels == 0)].mean(0) - x[train & (labels == 1)].mean(0)
    assert result.towards == "0"
    assert result.length == pytest.approx(np.linalg.norm(vector))
    ids = tokens[np.flatnonzero(store.texts["split"] == "test")]
    change = torch.tensor(1.5 * vector, dtype=torch.float32)
    with torch.no_grad():
        clean = model(ids)[:, :-1].log_softmax(-1)
        with model.hooks([(name, lambda x, hook: x + change)]):
            steered = model(ids)[:, :-1].log_softmax(-1)
    kl = (clean.exp() * (clean - steered)).sum(-1).mean()
    assert float(result.mean(result.kl_steered[0]).value) == pytest.approx(float(kl), rel=1e-4, abs=1e-6)


MEASURED = ("loss_erased", "loss_random", "share", "share_steered", "kl_steered", "kl_random", "loss_steered_random")


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_sweeps_are_the_loop_over_hooked_runs(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variant in a run of its own, placed by hooks; and, by hand, the erased loss, erased in double precision."""
    model = toy(shape)
    generator = torch.Generator().manual_seed(0)
    windows = [torch.randint(0, 300, (length,), generator=generator) for length in (9, 5, 12, 9, 7, 11, 10, 8, 6, 13)]
    name = "blocks.0.hook_resid_post"
    data = run_model(model, windows, range(10), [name], bos=False)
    data.manifest["split"] = split_texts(data.manifest["text"].to_numpy(), 0, (0.5, 0.2, 0.3))
    labels = (data.manifest["token"] % 2).to_numpy()
    options = {"draws": 1, "scales": (-1.0, 2.0)}
    if not model.config.causal:
        with pytest.raises(NotApplicable, match="next token"):
            causal_check(model, data, labels, name, **options)
        return
    found = causal_check(model, data, labels, name, **options)
    with monkeypatch.context() as patched:
        patched.setattr(causal, "sweep", slow_sweep)
        slow = causal_check(model, data, labels, name, **options)
    for measure in MEASURED:
        np.testing.assert_allclose(getattr(found, measure), getattr(slow, measure), rtol=0, atol=2e-5)
    assert np.nanmax(np.abs(found.loss_steered[0] - slow.loss_steered[1])) > 1e-2  # another scale is another number
    train = (data.manifest["split"] == "train").to_numpy()
    eraser = leace(Statistics.of(data.values[name][train], labels[train]))
    text = int(data.manifest["text"][data.manifest["split"] == "test"].iloc[0])
    with torch.no_grad(), model.hooks([(name, lambda x, hook: eraser(x))]):
        logits = model(windows[text][None])[0, :-1]
    loss = float(torch.nn.functional.cross_entropy(logits, windows[text][1:]))
    assert found.loss_erased[text] == pytest.approx(loss, abs=2e-5)


def test_what_cannot_be_checked_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens, labels = previous_token_model()
    store = extract_activations(model, tokens, ["resid_post", "z"], tmp_path / "store", dtype="float32")
    for name, options, message in (
        ("resid_post", {}, "2 hook points"),
        ("blocks.0.attn.hook_z", {}, "residual stream"),
        ("blocks.0.hook_resid_post", {"towards": "verb"}, "expected one of 0, 1"),
        ("blocks.0.hook_resid_post", {"draws": 0}, "at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            causal_check(model, store, labels, name, **options)
    monkeypatch.setitem(__import__("sys").modules, "concept_erasure", None)
    with pytest.raises(InterpError, match="pip install concept-erasure"):
        causal_check(model, store, labels, "blocks.0.hook_resid_post")


def test_tokens_that_a_concept_speaks_for(toy_gpt) -> None:
    ids = torch.tensor([5, 9, 5, 7])
    seen = favours("seen-before", toy_gpt).mask(ids)
    assert [set(torch.nonzero(row)[:, 0].tolist()) for row in seen] == [{5}, {5, 9}, {5, 9}, {5, 7, 9}]
    comma = toy_gpt.to_single_token(",")
    punctuation = favours("next-punctuation", toy_gpt).mask(ids)
    assert punctuation.shape == (4, toy_gpt.config.d_vocab)
    assert punctuation[:, comma].all()
    assert favours("position", toy_gpt) is None
    assert favours("part-of-speech", toy_gpt) is None
