"""Probes against scikit-learn on the full data, in any number of portions and any order."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analyses.probes import LDAProbe, LogisticProbe, MassMeanProbe, MLPProbe, NearestCentroidProbe, RidgeProbe
from analyses.probes.base import Probe
from analyses.probes.logistic import value_and_gradient
from analyses.probes.moments import Moments, Statistics
from interp.errors import InputError

SHARDS = st.sampled_from([1, 2, 7])
PROBES = [LogisticProbe, RidgeProbe, LDAProbe, MassMeanProbe, NearestCentroidProbe, MLPProbe]


def drawn(seed: int, classes: int, n: int = 300, d: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features far from zero, and classes that overlap."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(scale=20.0, size=d)
    scores = (X - X.mean(0)) @ rng.normal(size=(d, classes)) * 0.5 + rng.gumbel(size=(n, classes))
    y = scores.argmax(1)
    y[:classes] = np.arange(classes)
    return X, y


def portions(probe: Probe, X: np.ndarray, y: np.ndarray, shards: int, seed: int) -> Probe:
    """Fitted in portions of uneven size, some by partial_fit, the rest by merge, in a random order."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.choice(np.arange(1, len(X)), size=shards - 1, replace=False))
    parts = [rows for rows in np.split(rng.permutation(len(X)), cuts) if len(rows)]
    fitted = clone(probe)
    for number, rows in enumerate(parts):
        if number % 2:
            fitted.merge(clone(probe).partial_fit(X[rows], y[rows]))
        else:
            fitted.partial_fit(X[rows], y[rows])
    return fitted


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), shards=SHARDS, classes=st.sampled_from([2, 4]), alpha=st.sampled_from([0.1, 10.0]))
def test_ridge(seed: int, shards: int, classes: int, alpha: float) -> None:
    X, y = drawn(seed, classes)
    probe, peer = portions(RidgeProbe(alpha), X, y, shards, seed), RidgeClassifier(alpha=alpha).fit(X, y)
    np.testing.assert_allclose(probe.decision_function(X), peer.decision_function(X), rtol=0, atol=1e-6)
    np.testing.assert_allclose(probe.coef_, peer.coef_, rtol=0, atol=1e-6)
    target = X @ np.ones((X.shape[1], 2)) + np.random.default_rng(seed).normal(size=(len(X), 2))
    probe, peer = portions(RidgeProbe(alpha), X, target, shards, seed), Ridge(alpha=alpha).fit(X, target)
    np.testing.assert_allclose(probe.predict(X), peer.predict(X), rtol=0, atol=1e-6)
    assert probe.score(X, target) == pytest.approx(peer.score(X, target), abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), shards=SHARDS, classes=st.sampled_from([2, 4]))
def test_discriminant_analysis(seed: int, shards: int, classes: int) -> None:
    X, y = drawn(seed, classes)
    probe, peer = portions(LDAProbe(), X, y, shards, seed), LinearDiscriminantAnalysis().fit(X, y)
    np.testing.assert_allclose(probe.predict_proba(X), peer.predict_proba(X), rtol=0, atol=1e-6)
    np.testing.assert_allclose(probe.coef_, peer.coef_, rtol=1e-6, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), shards=SHARDS, classes=st.sampled_from([2, 4]))
def test_mass_mean(seed: int, shards: int, classes: int) -> None:
    """The direction is the difference of means; along it, scikit-learn's discriminant analysis."""
    X, y = drawn(seed, classes)
    probe = portions(MassMeanProbe(), X, y, shards, seed)
    means = np.stack([X[y == one].mean(0) for one in range(classes)])
    expected = means[1] - means[0] if classes == 2 else means - X.mean(0)
    np.testing.assert_allclose(probe.direction_, expected, rtol=0, atol=1e-6)
    projected = X @ (means[1:] - means[0]).T
    peer = LinearDiscriminantAnalysis().fit(projected, y)
    np.testing.assert_allclose(probe.predict_proba(X), peer.predict_proba(projected), rtol=0, atol=1e-6)
    cosine = probe.coef_[0] @ expected.reshape(-1, X.shape[1])[0] / np.linalg.norm(probe.coef_[0])
    if classes == 2:
        assert cosine == pytest.approx(np.linalg.norm(expected), rel=1e-9)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shards=SHARDS,
    classes=st.sampled_from([2, 4]),
    C=st.sampled_from([1e-3, 1.0, 100.0]),
    standardise=st.booleans(),
)
def test_logistic(seed: int, shards: int, classes: int, C: float, standardise: bool) -> None:
    X, y = drawn(seed, classes)
    probe = portions(LogisticProbe(C, standardise=standardise), X, y, shards, seed)
    peer = LogisticRegression(C=C, tol=1e-10, max_iter=10_000, solver="newton-cholesky")
    peer = (make_pipeline(StandardScaler(), peer) if standardise else peer).fit(X, y)
    np.testing.assert_allclose(probe.predict_proba(X), peer.predict_proba(X), rtol=0, atol=1e-4)


def test_logistic_from_a_stream_keeps_no_rows() -> None:
    X, y = drawn(1, 3)
    passes = 0

    def read():
        nonlocal passes
        passes += 1
        yield from ((X[start : start + 50], y[start : start + 50]) for start in range(0, len(X), 50))

    probe = LogisticProbe(0.5).fit_stream(read)
    np.testing.assert_allclose(probe.predict_proba(X), LogisticProbe(0.5).fit(X, y).predict_proba(X), rtol=0, atol=1e-6)
    assert 3 < passes < 100


def test_gradient_is_that_of_autograd() -> None:
    X, y = drawn(2, 4)
    rng = np.random.default_rng(0)
    for classes in (2, 4):
        codes = y % classes
        rows = 1 if classes == 2 else classes
        coef, intercept = rng.normal(size=(rows, X.shape[1])) * 0.01, rng.normal(size=rows)
        loss, by_coef, by_intercept = value_and_gradient(
            [(X[:100], codes[:100]), (X[100:], codes[100:])], coef, intercept
        )
        w, b = (torch.tensor(part, requires_grad=True) for part in (coef, intercept))
        scores = torch.tensor(X) @ w.T + b
        scores = torch.cat([torch.zeros_like(scores), scores], 1) if classes == 2 else scores
        expected = torch.nn.functional.cross_entropy(scores, torch.tensor(codes), reduction="sum")
        expected.backward()
        assert loss == pytest.approx(expected.item(), rel=1e-12)
        np.testing.assert_allclose(by_coef, w.grad.numpy(), rtol=0, atol=1e-8)
        np.testing.assert_allclose(by_intercept, b.grad.numpy(), rtol=0, atol=1e-9)


def test_the_strength_of_the_penalty_is_chosen_on_validation_rows() -> None:
    """With more features than signal the strong penalty wins; on the training rows themselves the weak one does."""
    rng = np.random.default_rng(0)
    X, other = rng.normal(size=(2, 80, 40))
    y, there = ((part[:, 0] + rng.normal(size=80) > 0).astype(int) for part in (X, other))
    path = [1e-3, 1e-2, 1e3]
    probe = LogisticProbe(path).fit(X, y, validation=(other, there))
    assert probe.C_ < 1
    assert min(probe.losses_, key=probe.losses_.get) == probe.C_
    alone = LogisticProbe(probe.C_).fit(X, y)
    np.testing.assert_allclose(probe.predict_proba(other), alone.predict_proba(other), rtol=0, atol=1e-6)
    assert LogisticProbe(path).fit(X, y, validation=(X, y)).C_ == 1e3
    with pytest.raises(InputError, match="nothing to choose by"):
        LogisticProbe(path).fit(X, y)


def test_nearest_centroid() -> None:
    for classes in (2, 4):
        X, y = drawn(3, classes)
        probe = portions(NearestCentroidProbe(), X, y, 7, 0)
        assert (probe.predict(X) == NearestCentroid().fit(X, y).predict(X)).all()
        assert (probe.predict_proba(X).argmax(1) == probe.predict(X)).all()


def test_the_network_finds_what_no_linear_probe_can() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 4))
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    train, test = slice(0, 1500), slice(1500, None)
    state = torch.random.get_rng_state()
    network = MLPProbe(epochs=30).fit(X[train], y[train], validation=(X[1200:1500], y[1200:1500]))
    assert network.score(X[test], y[test]) > 0.9
    assert torch.equal(state, torch.random.get_rng_state())  # nobody else's random numbers change
    assert LogisticProbe().fit(X[train], y[train]).score(X[test], y[test]) < 0.6
    again = MLPProbe(epochs=30).fit(X[train], y[train], validation=(X[1200:1500], y[1200:1500]))
    assert (again.predict(X) == network.predict(X)).all()
    curve = MLPProbe(epochs=30).fit(X[train], 50 + 3 * X[train, 0] ** 2)
    assert curve.score(X[test], 50 + 3 * X[test, 0] ** 2) > 0.8


@pytest.mark.parametrize("kind", PROBES)
def test_the_estimators_shape(kind: type[Probe]) -> None:
    """Labels may be words; probabilities sum to one; a clone has the same options and has learned nothing."""
    X, y = drawn(4, 3)
    words = np.array(["noun", "verb", "other"])[y]
    probe = kind().fit(X, words)
    assert list(probe.classes_) == ["noun", "other", "verb"]
    shares = probe.predict_proba(X)
    assert shares.shape == (len(X), 3)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=0, atol=1e-6)
    assert (shares >= 0).all()
    assert set(probe.predict(X)) <= set(words)
    assert probe.score(X, words) == pytest.approx((probe.predict(X) == words).mean())
    assert probe.n_features_in_ == X.shape[1]
    assert probe.score(X, words) > probe.score(X, np.random.default_rng(0).permutation(words)) + 0.1
    fresh = clone(probe)
    assert fresh.get_params() == probe.get_params()
    with pytest.raises(InputError, match="seen no data"):
        fresh.predict(X)
    tensor = torch.tensor(X, dtype=torch.float32)
    assert (kind().fit(tensor, words).predict(tensor) == probe.predict(X)).mean() > 0.98
    assert probe.fit(X[:150], words[:150]).statistics_.x.n == 150  # fit forgets


@pytest.mark.parametrize("kind", PROBES)
def test_what_cannot_be_learned_is_said(kind: type[Probe]) -> None:
    X, y = drawn(5, 2)
    for wrong, labels, message in (
        (X[0], y, "activations of shape"),
        (X, y[:-1], "labels of shape"),
        (np.full_like(X, np.nan), y, "NaN or infinite"),
        (X, np.zeros(len(X), dtype=int), "single class"),
    ):
        with pytest.raises(InputError, match=message):
            kind().fit(wrong, labels)
    with pytest.raises(InputError, match="features"):
        kind().fit(X, y).predict(X[:, :3])
    with pytest.raises(InputError, match="expected"):
        kind().fit(X, y).merge(RidgeProbe(3.0).fit(X, y))
    with pytest.raises(InputError, match="no option"):
        kind().set_params(strength=3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), shards=SHARDS, offset=st.sampled_from([0.0, 1e4, 1e6]))
def test_moments_are_centred_sums(seed: int, shards: int, offset: float) -> None:
    """Also where the mean is a million times the spread, where sums of raw squares would be noise."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(200, 5)) + offset
    parts = np.array_split(rng.permutation(200), shards)
    found = Moments.of(X[parts[0]])
    for rows in parts[1:]:
        found = Moments.of(X[rows]).merge(found)
    np.testing.assert_allclose(found.mean, X.mean(0), rtol=1e-12)
    centred = X - X.mean(0)
    np.testing.assert_allclose(found.scatter, centred.T @ centred, rtol=0, atol=1e-6)
    if offset == 1e6:  # the control: raw squares in the same precision
        raw = X.T @ X - 200 * np.outer(X.mean(0), X.mean(0))
        assert np.abs(raw - centred.T @ centred).max() > 1e-3


def test_memory_does_not_grow_with_the_rows() -> None:
    """The benchmark tests/benchmarks/probes.py does this with ten million rows."""
    rng = np.random.default_rng(0)
    batch, y = rng.normal(size=(2000, 64)).astype(np.float32), rng.integers(0, 2, 2000)
    peaks = []
    for batches in (3, 60):
        tracemalloc.start()
        probe = LDAProbe()
        for _ in range(batches):
            probe.partial_fit(batch, y)
        assert np.isfinite(probe.coef_).all()
        assert probe.statistics_.x.n == 2000 * batches
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]
    kept = LogisticProbe()  # the control: this one keeps the rows that it cannot read again
    tracemalloc.start()
    for _ in range(20):
        kept.partial_fit(batch, y)
    assert tracemalloc.get_traced_memory()[1] > 20 * batch.nbytes
    tracemalloc.stop()


def test_classes_that_come_later() -> None:
    """A portion without some class, and one that brings a new one."""
    X, y = drawn(6, 4)
    order = np.argsort(y, kind="stable")
    parts = np.array_split(order, 5)
    found = Statistics.of(X[parts[0]], y[parts[0]])
    for rows in parts[1:]:
        found = found.merge(Statistics.of(X[rows], y[rows]))
    whole = Statistics.of(X, y)
    np.testing.assert_array_equal(found.y.classes, whole.y.classes)
    np.testing.assert_array_equal(found.y.counts, whole.y.counts)
    np.testing.assert_allclose(found.y.means, whole.y.means, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.within, whole.within, rtol=0, atol=1e-8)


def test_directions_without_variance() -> None:
    """A feature that never changes, and one that repeats another."""
    X, y = drawn(7, 3)
    X = np.column_stack([X, np.full(len(X), 3.0), X[:, 0]])
    peer = LinearDiscriminantAnalysis().fit(X, y)
    np.testing.assert_allclose(LDAProbe().fit(X, y).predict_proba(X), peer.predict_proba(X), rtol=0, atol=1e-6)
    smooth = LogisticProbe().fit(X, y).predict_proba(X)
    peer = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000, solver="newton-cholesky").fit(X, y)
    np.testing.assert_allclose(smooth, peer.predict_proba(X), rtol=0, atol=1e-4)
