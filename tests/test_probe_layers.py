"""The sweep over layers finds a concept where it was put and nowhere else, and its controls are what they say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import manifest, planted, previous_token_model
from scipy import stats
from threadpoolctl import threadpool_info, threadpool_limits

from analyses.probes import LogisticProbe, RidgeProbe, controls, probe_layers
from analyses.probes.data import Held, labels_of, run_like, run_model, split_texts
from analyses.probes.layers import short
from analyses.shared.statistics import FEW, bootstrap
from interp import extract_activations
from interp.errors import InputError

KINDS = ["logistic", "ridge", "lda", "mass-mean", "nearest-centroid", "mlp"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 3])
def test_a_concept_is_found_where_it_is_and_nowhere_else(kind: str, classes: int) -> None:
    where = (0, 2)
    data, labels = planted(where, classes=classes, layers=3)
    result = probe_layers(data, labels, probe=kind, description_length=kind != "mlp")
    gain = result.difference("probe", "majority")
    accuracy = result.interval("probe").value
    for layer in range(3):
        if layer in where:
            assert accuracy[layer] > 0.9
            assert gain.low[layer] > 0.25
        else:
            assert accuracy[layer] == pytest.approx(1 / classes, abs=0.07)
            assert abs(gain.value[layer]) < 0.07
            assert gain.low[layer] < 0.03
    assert result.best in where
    # Where classes lie apart, 1,400 shuffled labels favour the true class by chance: the loss spreads by about .04.
    shuffled = result.interval("shuffled", "loss").value
    assert shuffled == pytest.approx(np.full(3, np.log(classes)), abs=0.12)
    assert (result.interval("probe", "loss").value[list(where)] < 0.4).all()
    assert (result.difference("probe", "control").value[list(where)] > 0.25).all()
    if kind != "mlp":
        assert (result.compression[list(where)] > 2).all()
        others = [layer for layer in range(3) if layer not in where]
        assert (result.compression[others] < 1.05).all()
        assert result.curve.shape == (len(result.curve_rows), 3)
        assert (result.curve[-1][list(where)] > 0.9).all()
    text = result.findings()[0].text
    assert f"L{result.best} out" in text


def test_nothing_anywhere_is_said_so() -> None:
    data, labels = planted(())
    result = probe_layers(data, labels, probe="lda")
    assert result.findings()[0].text.startswith("No layer gives")


def test_memorisable_noise_has_no_selectivity() -> None:
    """A label drawn for each token type, read off one-hot tokens: accuracy high, selectivity about zero."""
    rng = np.random.default_rng(0)
    token = rng.integers(0, 40, 40 * 50)
    data = Held({"hook_embed": np.eye(40)[token] + 0.01 * rng.normal(size=(2000, 40))}, manifest(40, 50, token))
    noise = rng.permutation(np.arange(40) % 2)[token]
    result = probe_layers(data, noise, probe="lda")
    assert result.interval("probe").value[0] > 0.95
    assert abs(result.difference("probe", "control").value[0]) < 0.05
    assert result.interval("token").value > 0.95
    # The control: a label that only the context knows is selective.
    data, labels = planted((0,), layers=1)
    assert probe_layers(data, labels, probe="lda").difference("probe", "control").low[0] > 0.2


def test_the_previous_token_is_known_from_the_first_attention_on(tmp_path: Path) -> None:
    """A constructed model, its activations on disk, and the baselines that need the model."""
    model, tokens, labels = previous_token_model()
    names = ["hook_embed", ("resid_pre", 0), "resid_mid", "resid_post"]
    store = extract_activations(model, tokens, names, tmp_path / "store", dtype="float32", split=(0.6, 0.2, 0.2))
    labels = pd.Series(labels.astype(float)).replace(-1.0, np.nan)
    result = probe_layers(store, labels, probe="ridge", model=model)
    accuracy = dict(zip(result.labels, result.interval("probe").value, strict=True))
    for name, value in accuracy.items():
        if name in ("embed", "L0 in"):
            assert value < 0.6
        else:
            assert value > 0.99, name
    assert np.nanmax(result.interval("random").value) < 0.75  # random attention mixes, but does not copy
    assert float(result.interval("embedding").value) == pytest.approx(accuracy["embed"])
    assert float(result.interval("token").value) < 0.6
    assert result.to_dataframe()["hook_point"].tolist() == list(store.names)
    # Without hook_embed in the store the embedding is the model's own table.
    some = probe_layers(store, labels, probe="ridge", model=model, names="resid_mid", description_length=False)
    assert float(some.interval("embedding").value) == pytest.approx(accuracy["embed"])
    mid = "blocks.0.hook_resid_mid"
    alone = Held({mid: store.load(mid)[0]}, store.manifest)
    assert "embedding" not in probe_layers(alone, labels, probe="ridge", description_length=False).accuracy


def test_shards_and_memory_give_the_same(tmp_path: Path) -> None:
    """A store of many shards, one shard, and arrays in memory."""
    model, tokens, labels = previous_token_model()
    names = model.match("resid_mid")[:1]
    rng = np.random.default_rng(0)
    labels = np.where(labels < 0, -1, (labels + rng.integers(0, 2, len(labels))) % 3)
    results = []
    for shard_tokens in (350, 10_000):
        folder = tmp_path / str(shard_tokens)
        store = extract_activations(model, tokens, names, folder, dtype="float32", shard_tokens=shard_tokens)
        results.append((store, probe_layers(store, labels, description_length=False)))
    assert results[0][0].n_shards > 5
    assert results[1][0].n_shards == 1
    held = run_model(model, list(tokens), list(range(60)), store.names, bos=False)
    held = replace(held, manifest=store.manifest)
    results.append((held, probe_layers(held, labels, description_length=False)))
    for _, other in results[1:]:
        for series, values in results[0][1].accuracy.items():
            np.testing.assert_allclose(other.accuracy[series], values, rtol=0, atol=1e-12)
        np.testing.assert_allclose(other.loss["probe"], results[0][1].loss["probe"], rtol=0, atol=1e-4)


def test_probes_see_the_training_texts_only() -> None:
    """Other test texts: the same probes. Fitted on what the result says, with scikit-learn's standardisation."""
    data, labels = planted((1,), layers=2)
    test = (data.manifest["split"] == "test").to_numpy()
    name = "blocks.1.hook_resid_post"
    changed = {key: np.where(test[:, None], x * 7.0, x) for key, x in data.values.items()}
    one, two = (probe_layers(replace(data, values=x), labels, probe="ridge") for x in (data.values, changed))
    np.testing.assert_array_equal(one.probes[name].coef_, two.probes[name].coef_)
    train = (data.manifest["split"] == "train").to_numpy()
    alone = RidgeProbe(one.options[1]["alpha"], standardise=True).fit(data.values[name][train], labels[train])
    np.testing.assert_allclose(one.probes[name].coef_, alone.coef_, rtol=0, atol=1e-9)
    rows = np.array([(test & (data.manifest["text"] == text)).sum() for text in range(40)])
    np.testing.assert_array_equal(one.rows, rows)
    found = (alone.predict(data.values[name][test]) == labels[test]).mean()
    assert one.interval("probe").value[1] == pytest.approx(found)


def test_online_code_length_is_the_slow_obvious_one() -> None:
    data, labels = planted((0,), layers=1, texts=30)
    result = probe_layers(data, labels, probe="logistic")
    x, text = data.values["blocks.0.hook_resid_post"], data.manifest["text"].to_numpy()
    rows = np.flatnonzero(data.manifest["split"] == "train")
    parts = controls.blocks(text, rows, 0)
    assert sorted(np.concatenate(parts).tolist()) == rows.tolist()
    assert all(not set(text[a]) & set(text[b]) for i, a in enumerate(parts) for b in parts[:i])
    bits, seen = float(len(parts[0])), parts[0]
    for rows in parts[1:]:
        probe = LogisticProbe(result.options[0]["C"], standardise=True).fit(x[seen], labels[seen])
        share = probe.predict_proba(x[rows])[np.arange(len(rows)), labels[rows]]
        bits -= np.log2(0.99 * share + 0.005).sum()
        seen = np.concatenate([seen, rows])
    assert result.code_bits[0] == pytest.approx(bits, rel=1e-4)


def test_calibration_of_a_calibrated_probe_and_of_one_that_is_too_sure() -> None:
    data, labels = planted((0,), layers=1, texts=200)
    assert probe_layers(data, labels, probe="lda", description_length=False).calibration_error[0] < 0.02
    rng = np.random.default_rng(0)
    wide = np.repeat(data.values["blocks.0.hook_resid_post"], 8, axis=1)  # naive counting of the same evidence
    noisy = Held({"x": wide + 0.01 * rng.normal(size=wide.shape)}, data.manifest)
    sure = probe_layers(noisy, labels, probe="nearest-centroid", description_length=False)
    assert (
        sure.calibration_error[0]
        > probe_layers(noisy, labels, probe="lda", description_length=False).calibration_error[0]
    )


def test_control_labels() -> None:
    rng = np.random.default_rng(0)
    codes, token = rng.choice(3, 5000, p=[0.6, 0.3, 0.1]), rng.integers(0, 1000, 5000)
    found = controls.control_labels(codes, token, np.arange(4000), 3, seed=0)
    for one in range(20):
        assert len(set(found[token == one])) == 1
    shares = np.bincount(found, minlength=3) / len(found)
    assert shares == pytest.approx(np.array([0.6, 0.3, 0.1]), abs=0.05)
    codes[::7] = -1
    again = controls.control_labels(codes, token, np.flatnonzero(codes >= 0), 3, seed=0)
    assert ((again >= 0) == (codes >= 0)).all()
    shuffled = controls.shuffled_labels(codes, np.arange(100, 400), seed=0)
    assert (shuffled[:100] == codes[:100]).all()
    assert sorted(shuffled[100:400]) == sorted(codes[100:400])
    assert (shuffled[100:400] != codes[100:400]).any()


def test_the_token_alone_is_counted() -> None:
    token, codes = np.array([0, 0, 0, 1, 1, 2, 0, 1, 3]), np.array([0, 0, 1, 1, 1, 0, 0, 1, 1])
    texts = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1])
    found = controls.token_identity(codes, token, texts, np.arange(6), np.arange(6, 9), 2)
    assert found.right[1] == 2  # tokens 0 and 1 rightly, the unknown 3 by a tie that goes to class 0
    share = np.array([(2 + 0.5) / 4, (2 + 0.5) / 3, 0.5])
    assert found.nats[1] == pytest.approx(-np.log(share).sum())
    most = controls.majority(codes, texts, np.arange(6), np.arange(6, 9), 2)
    assert most.nats[1] == pytest.approx(3 * np.log(2))


def test_texts_are_split_whole_and_labels_are_checked() -> None:
    text = np.repeat(np.arange(50), np.random.default_rng(0).integers(1, 90, 50))
    split = split_texts(text, 0)
    assert all(len(set(split[text == one])) == 1 for one in range(50))
    shares = [(split == part).mean() for part in ("train", "validation", "test")]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.06)
    with pytest.raises(InputError, match="2 texts"):
        split_texts(np.array([0, 1]), 0)
    data, labels = planted((0,), layers=1)
    named = replace(data, manifest=data.manifest.assign(part_of_speech=np.where(labels, "noun", "verb")))
    assert labels_of(named, "part-of-speech").classes == ("noun", "verb")
    assert probe_layers(named, "part-of-speech", probe="lda").interval("probe").value[0] > 0.9
    for wrong, message in (
        (labels[:-1], "labels"),
        (labels * 0, "1 classes"),
        (labels * 0.5, "fractions"),
        ("part-of-speach", "no label"),
        ("capital", "text of tokens"),
    ):
        with pytest.raises(InputError, match=message):
            probe_layers(named, wrong)
    with pytest.raises(InputError, match="expected one of"):
        probe_layers(data, labels, probe="bayes")
    lone = replace(data, manifest=data.manifest.assign(split="train"))
    with pytest.raises(InputError, match="no test text"):
        probe_layers(lone, labels)


def test_a_packed_store_has_the_activations_of_its_rows(tmp_path: Path, toy_gpt) -> None:
    """Rebuilt from the manifest, with the tokens between texts that have no row."""
    texts = ["Mary met John, and John thanked Mary. " * 3, "The river.", "A long way from here. " * 4] * 4
    for packed in (True, False):
        folder = tmp_path / str(packed)
        store = extract_activations(toy_gpt, texts, "resid_post", folder, packed=packed, dtype="float32")
        held, rows = run_like(toy_gpt, store.manifest, store.names)
        for name in store.names:
            expected, order = store.load(name)
            np.testing.assert_array_equal(np.sort(rows), order)
            np.testing.assert_allclose(held.values[name], expected[rows], rtol=0, atol=2e-5)


def test_small_systems_are_solved_on_one_thread_and_wide_ones_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """What every solution sees while probes are fitted; afterwards all is as before."""

    def threads() -> set[int]:
        return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}

    seen, solve = list[set[int]](), np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: (seen.append(threads()), solve(matrix))[1])
    store, labels = planted((1,), layers=2)
    with threadpool_limits(2, "blas"):
        for wide, expected in ((1024, {1}), (1, {2})):
            monkeypatch.setattr("analyses.probes.threads.WIDE", wide)
            seen.clear()
            probe_layers(store, labels, probe="lda", description_length=False)
            assert len(seen) > 0
            assert all(one == expected for one in seen), wide
            assert threads() == {2}


def test_short_names() -> None:
    assert [short(name) for name in ("hook_embed", "blocks.3.hook_resid_mid", "blocks.0.attn.hook_z")] == [
        "embed", "L3 mid", "L0 attn.z",
    ]  # fmt: skip


def test_selectivity_knows_how_far_the_draws_of_the_control_task_lie_apart() -> None:
    data, labels = planted((1,))
    result = probe_layers(data, labels, probe="lda", description_length=False)
    draws = result.control_draws
    assert draws.shape == (controls.DRAWS, 5)
    assert draws.std(0).min() > 0  # each has labels of its own
    assert draws.mean(0) == pytest.approx(result.interval("control").value, abs=1e-12)
    texts = bootstrap((result.accuracy["probe"] - result.accuracy["control"]).T, weights=result.rows)
    found = result.difference("probe", "control")
    half = np.array(stats.t.interval(0.95, controls.DRAWS - 1, scale=draws.std(0, ddof=1) / np.sqrt(controls.DRAWS))[1])
    if controls.DRAWS < FEW:
        assert found.high - found.value == pytest.approx(np.hypot(texts.high - texts.value, half))
    assert (found.high > texts.high).all()
    assert (found.low < texts.low).all()
    alone = replace(result, control_draws=np.repeat(draws[:1], len(draws), 0))  # control: draws that agree add nothing
    assert alone.difference("probe", "control").high == pytest.approx(texts.high)
