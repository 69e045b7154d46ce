"""Attention measures against slow loops, scipy, the model's own cache, and models built so that the answer is known."""

import numpy as np
import pytest
import torch
from conftest import TEXT, make_gpt
from handmade import induction_model, repeated
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from shapes import toy
from test_encoder import BERT, VIT, make
from test_encoder_decoder import make_pair

from analyses.attention_patterns import attention_patterns
from analyses.shared.panels import AttentionGrid, Note
from analyses.shared.patterns import cluster_heads, key_masks, mass, overlap, rollout
from interp.errors import InputError

MEASURES = ("entropy", "surprise", "first", "previous", "own", "same", "after_same")


def slow_masses(pattern: np.ndarray, ids: list[int]) -> dict[str, float]:
    """One head's pattern [query key], by loops and plain words."""
    found: dict[str, list[float]] = {name: [] for name in ("first", "previous", "own", "same", "after_same")}
    for i in range(1, len(ids)):
        earlier = [j for j in range(i) if ids[j] == ids[i]]
        found["first"].append(pattern[i][0])
        found["previous"].append(pattern[i][i - 1])
        found["own"].append(pattern[i][i])
        if earlier:
            found["same"].append(sum(pattern[i][j] for j in earlier))
            found["after_same"].append(sum(pattern[i][j + 1] for j in earlier))
    return {name: float(np.mean(values)) if values else np.nan for name, values in found.items()}


def random_pattern(*shape: int, seed: int = 0) -> torch.Tensor:
    """[... query key], lower triangular, rows sum to one."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(*shape, shape[-1], generator=generator) * 2
    return scores.masked_fill(torch.ones(shape[-1], shape[-1]).triu(1).bool(), -torch.inf).softmax(-1)


@pytest.mark.parametrize("shape", ["gpt2", "llama", "gemma3", "neox"])
def test_patterns_are_the_models_own(shape):
    model = toy(shape)
    ids = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(1))
    found = attention_patterns(model, ids)
    with torch.no_grad():
        _, cache = model.run_with_cache(ids, names=["pattern", "v"])
    for text in range(2):
        for layer in range(2):
            np.testing.assert_allclose(found.patterns[text][layer], cache["pattern", layer][text].numpy(), atol=1e-6)
            shared = cache["v", layer][text].repeat_interleave(model.config.n_heads // model.config.n_kv_heads, 1)
            moved = shared.transpose(0, 1) @ model.W_O[layer].detach()  # [head pos d_model]
            if (
                shape == "gemma3"
            ):  # the norm that follows: what a head adds to the stream differs from this by its scale
                assert np.abs(found.value_norms[text][layer] / moved.norm(dim=-1).numpy() - 1).max() > 1e-2
                moved = moved * (1 + model.blocks[layer].ln1_post.w.detach())
            np.testing.assert_allclose(found.value_norms[text][layer], moved.norm(dim=-1).numpy(), rtol=1e-5)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=9), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_masses_equal_slow_loops(ids, seed):
    pattern = random_pattern(3, len(ids), seed=seed)
    masks = key_masks(torch.tensor(ids))
    for head in range(3):
        slow = slow_masses(pattern[head].numpy(), ids)
        for name, mask in masks.items():
            assert mass(pattern[:, 1:], mask[1:])[head].item() == pytest.approx(slow[name], abs=1e-6, nan_ok=True)


def test_measures_of_every_head_equal_slow_loops_and_scipy():
    model = make_gpt()
    ids = torch.randint(0, 6, (2, 10), generator=torch.Generator().manual_seed(2))
    found = attention_patterns(model, ids)
    for text in range(2):
        pattern, norms = found.patterns[text].astype(float), found.value_norms[text].astype(float)
        average = pattern.mean((0, 1))
        for layer, head in np.ndindex(2, 4):
            own, scaled = pattern[layer, head], pattern[layer, head] * norms[layer, head]
            slow = slow_masses(own, ids[text].tolist())
            slow_weighted = slow_masses(scaled / scaled.sum(-1, keepdims=True), ids[text].tolist())
            for name, value in slow.items():
                assert found.plain[name][text, layer, head] == pytest.approx(value, abs=1e-6)
                assert found.weighted[name][text, layer, head] == pytest.approx(slow_weighted[name], abs=1e-6)
            entropy = np.mean([stats.entropy(row) for row in own[1:]])
            surprise = np.mean([stats.entropy(row[: i + 1], average[i][: i + 1]) for i, row in enumerate(own) if i])
            assert found.plain["entropy"][text, layer, head] == pytest.approx(entropy, abs=2e-6)
            assert found.plain["surprise"][text, layer, head] == pytest.approx(surprise, abs=2e-6)


def slow_measures(pattern: np.ndarray, side: str) -> dict[str, float]:
    """One head's pattern [query key] of a stack that counts every query, by loops."""
    queries, keys = pattern.shape
    places = {"first": lambda i: 0}
    if side != "decoder":
        places["last"] = lambda i: keys - 1
    if side != "cross":
        places |= {"previous": lambda i: i - 1, "own": lambda i: i}
    if side == "encoder":
        places["next"] = lambda i: i + 1
    found = {"entropy": float(np.mean([stats.entropy(row) for row in pattern]))}
    for name, place in places.items():
        found[name] = float(np.mean([pattern[i, place(i)] for i in range(queries) if 0 <= place(i) < keys]))
    return found


@pytest.mark.parametrize("kind", ["translation", "bert", "vit"])
def test_every_attention_of_every_kind_of_model_is_measured_over_all_texts(kind):
    """All texts are measured and `keep` of them kept; each against loops over the model's own cache."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 120, (3, 7), generator=generator)
    model = {"translation": make_pair, "bert": lambda: make(**BERT), "vit": lambda: make(**VIT)}[kind]()
    images = torch.randn(3, 3, 24, 16, dtype=torch.float64, generator=generator)
    tokens = {"translation": (ids, ids[:, 2:]), "bert": ids, "vit": images}[kind]
    result = attention_patterns(model, tokens, keep=2, clusters=3)
    frame = result.to_dataframe().set_index(["text", "stack", "layer", "head"])
    names = [kind.name for kind in result.kinds]
    where = {"encoder": "encoder", "decoder": "decoder.attn", "cross": "cross_attn"}
    for text in range(3):
        inputs = [x[text : text + 1] for x in tokens] if kind == "translation" else [tokens[text : text + 1]]
        _, cache = model.run_with_cache(*inputs)
        for name, stack in zip(names, result.stacks, strict=True):
            assert len(stack.patterns) == 2
            assert set(stack.cluster.ravel()) == {1, 2, 3}
            n_layers, n_heads = stack.cluster.shape
            for layer in range(n_layers):
                key = ("pattern", layer, where[name]) if kind == "translation" else ("pattern", layer)
                pattern = cache[key][0].detach().numpy()
                for head in range(n_heads):
                    slow = slow_measures(pattern[head], name)
                    row = frame.loc[text, name, layer, head]
                    for measure, value in slow.items():
                        assert row[measure] == pytest.approx(value, abs=1e-6), (name, measure)
                    assert row["surprise"] >= 0
                first, other = np.sqrt(pattern[0]), np.sqrt(pattern[1])
                if text == 0:
                    hellinger = np.sqrt(np.mean([1 - (a * b).sum() for a, b in zip(first, other, strict=True)]))
                    one = attention_patterns(model, inputs[0] if kind != "translation" else tuple(inputs))
                    at = layer * n_heads
                    assert one[name].distance[at, at + 1] == pytest.approx(hellinger, abs=1e-6)
    for name in names:
        assert result[name].interval("first").low is not None
        assert ("same" in result[name].plain) == (name == "decoder")
        assert bool(result[name].rollout) == (name != "cross")
    keys = [panel.key for panel in result.panels()]
    assert len(keys) == len(set(keys))
    assert {finding.key for finding in result.findings()} <= set(keys)


def test_a_decoder_that_sees_what_comes_later_is_measured_as_such():
    model = toy("bidirectional")
    ids = torch.randint(0, 300, (1, 6), generator=torch.Generator().manual_seed(1))
    found = attention_patterns(model, ids)
    for layer, head in np.ndindex(2, 4):
        for name, value in slow_measures(found.patterns[0][layer, head], "encoder").items():
            assert found.plain[name][0, layer, head] == pytest.approx(value, abs=1e-6)
    assert found.queries
    assert "same" not in found.plain
    assert {panel.key for panel in found.panels()} >= {"patterns", "last", "next", "rollout"}
    assert "next" not in attention_patterns(toy("gpt2"), ids).plain


def test_heads_built_by_hand_do_what_they_were_built_for():
    model, roles = induction_model()
    found = attention_patterns(model, repeated(40, 12, batch=3))
    for measure, role in (("previous", "previous_token"), ("after_same", "induction"), ("first", "first_token")):
        value = found.interval(measure).value
        assert value[roles[role]] > 0.9
        others = np.delete(value.ravel(), np.ravel_multi_index(roles[role], value.shape))
        assert others.max() < value[roles[role]] - 0.3
    # control: without the previous-token head, the induction head is lost
    broken, _ = induction_model(previous_token_head=False)
    assert attention_patterns(broken, repeated(40, 12)).interval("after_same").value[roles["induction"]] < 0.2


def test_previous_token_mass_is_one_for_an_exact_previous_token_pattern_and_not_for_a_shifted_one():
    exact = torch.eye(8).roll(1, dims=0)[None]  # query i looks at key i - 1
    shifted = torch.eye(8).roll(2, dims=0)[None]
    mask = key_masks(torch.arange(8))["previous"]
    assert mass(exact[:, 1:], mask[1:]).item() == 1.0
    assert mass(shifted[:, 2:], mask[2:]).item() == 0.0


def test_even_attention_has_the_entropy_of_a_fair_die_and_no_surprise():
    model = make_gpt()
    with torch.no_grad():
        model.W_Q.zero_()
        model.b_Q.zero_()
    found = attention_patterns(model, torch.arange(16)[None])
    expected = np.mean([np.log(keys) for keys in range(2, 17)])
    np.testing.assert_allclose(found.plain["entropy"], expected, atol=1e-6)
    np.testing.assert_allclose(found.plain["surprise"], 0, atol=1e-6)
    np.testing.assert_allclose(found.distance**2, 0, atol=1e-6)  # a square root of float32 rounding


def test_value_weighting_ignores_keys_that_move_nothing():
    """Value vectors of the first token are zero: the plain mass on it stays, the weighted one is gone."""
    model = make_gpt(n_layers=1, bias=False)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        model.W_E[0] = -model.W_pos[0]  # the first residual is zero, and so is its normalised copy, up to the bias
        model.blocks[0].ln1.b.zero_()
    found = attention_patterns(model, ids)
    assert (found.plain["first"] > 0.001).all()
    np.testing.assert_allclose(found.weighted["first"], 0, atol=1e-6)
    assert (found.weighted["previous"] > 0).all()


def test_rollout_equals_a_product_of_matrices():
    pattern = random_pattern(3, 4, 6)
    product = np.eye(6)
    for layer in range(3):
        product = (0.5 * pattern[layer].mean(0).numpy() + 0.5 * np.eye(6)) @ product
        np.testing.assert_allclose(rollout(pattern)[layer], product, atol=1e-6)
    np.testing.assert_allclose(rollout(pattern).sum(-1), 1, atol=1e-6)
    wrong_order = np.linalg.multi_dot([0.5 * layer.mean(0).numpy() + 0.5 * np.eye(6) for layer in pattern])
    assert np.abs(rollout(pattern)[-1].numpy() - wrong_order).max() > 1e-3  # control: later layers stand on the left


def test_distance_is_hellinger_and_clusters_find_planted_groups():
    pattern = random_pattern(2, 3, 7)
    heads = pattern.flatten(0, 1).double().numpy()
    coefficient = overlap(pattern, chunk=3) / 6
    for a, b in np.ndindex(6, 6):
        squared = np.mean([0.5 * ((np.sqrt(heads[a, i]) - np.sqrt(heads[b, i])) ** 2).sum() for i in range(1, 7)])
        assert 1 - coefficient[a, b] == pytest.approx(squared, abs=1e-6)
    planted = np.array([0, 1, 0, 2, 1, 0])
    distance = (planted[:, None] != planted).astype(float)
    assert cluster_heads(distance, 3).tolist() == [1, 2, 1, 3, 2, 1]
    assert cluster_heads(np.zeros((1, 1)), 3).tolist() == [1]
    distance[np.ix_(planted == 1, planted == 2)] = distance[np.ix_(planted == 2, planted == 1)] = 0.5
    assert cluster_heads(distance, 2).tolist() == [
        1,
        2,
        1,
        2,
        2,
        1,
    ]  # control: fewer groups than planted join the nearest


def test_several_texts_have_intervals_and_one_has_none(toy_gpt):
    one = attention_patterns(toy_gpt, TEXT)
    several = attention_patterns(toy_gpt, ["The cat sat.", "The dog sat on the log.", "John gave a drink to Mary."])
    assert one.interval("first").low is None
    found = several.interval("first")
    assert np.all(found.low <= found.value)
    assert np.all(found.value <= found.high)
    assert np.all(found.low < found.high)
    matrices = {panel.key: panel for panel in several.panels() if hasattr(panel, "low")}
    assert matrices["first"].low is not None
    assert "one text" in next(panel for panel in one.panels() if panel.key == "first").caption


def test_frame_is_tidy_and_complete(toy_gpt):
    found = attention_patterns(toy_gpt, ["The cat sat.", "The dog sat on the log."])
    frame = found.to_dataframe()
    assert len(frame) == 2 * 2 * 4
    row = frame[(frame.text == 1) & (frame.layer == 1) & (frame["head"] == 2)].iloc[0]
    for name in MEASURES:
        assert row[name] == pytest.approx(found.plain[name][1, 1, 2], nan_ok=True)
    assert row.weighted_first == found.weighted["first"][1, 1, 2]
    assert found.heads().surprise.is_monotonic_decreasing


def test_text_without_repeats_says_so():
    found = attention_patterns(make_gpt(), torch.arange(8)[None])
    assert np.isnan(found.plain["same"]).all()
    keys = [panel.key for panel in found.panels()]
    assert "same" not in keys
    assert any(isinstance(panel, Note) and "twice" in panel.text for panel in found.panels())
    assert all(np.isfinite(finding.value) for finding in found.findings())


def test_panels_and_findings_hold_together():
    model, roles = induction_model()
    found = attention_patterns(model, repeated(40, 12, batch=5), keep=2)
    panels = found.panels()
    keys = [panel.key for panel in panels]
    assert len(set(keys)) == len(keys)
    grid = panels[0]
    assert isinstance(grid, AttentionGrid)
    assert len(grid.patterns) == len(grid.tokens) == 2
    np.testing.assert_allclose(grid.patterns[0].sum(-1), 1, atol=1e-5)
    texts = {finding.key: finding for finding in found.findings()}
    assert {finding.key for finding in found.findings()} <= set(keys)
    layer, head = roles["induction"]
    assert texts["after-same"].text.startswith(f"Head L{layer}H{head} gives 100% (")
    assert texts["after-same"].low is not None


def test_the_model_is_left_as_it_was():
    model = make_gpt()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attention_patterns(model, torch.arange(8)[None])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(point.active for point in model.hook_points.values())


@pytest.mark.parametrize("options", [{"keep": 0}, {"clusters": 0}])
def test_wrong_options(options):
    with pytest.raises(InputError, match="at least 1"):
        attention_patterns(make_gpt(), torch.arange(8)[None], **options)


def test_one_token_is_too_short():
    with pytest.raises(InputError, match="at least 2"):
        attention_patterns(make_gpt(), torch.tensor([[3]]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    ids = torch.arange(8)[None]
    found = attention_patterns(make_gpt(dtype=dtype), ids)
    exact = attention_patterns(make_gpt(dtype=torch.float64), ids)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-6
    np.testing.assert_allclose(found.plain["first"], exact.plain["first"], atol=tolerance)
