"""Compare: a planted change in one head is the one that is named; a model compared with itself shows nothing."""

import copy

import numpy as np
import pytest
import torch
from conftest import TEXT, make_gpt
from shapes import toy

from analyses.compare import compare, pattern_changes, weight_changes
from interp.errors import InputError, NotApplicable
from interp.models.gpt import HookedGPT

IDS = torch.randint(300, (3, 24), generator=torch.Generator().manual_seed(0))


def with_another_head(model: HookedGPT, layer: int, head: int) -> HookedGPT:
    """The same model, one head of which attends by position alone: its queries and keys read planted waves."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        d = model.config.d_head
        angle = 2 * torch.pi * torch.arange(model.config.n_ctx) / model.config.n_ctx
        wave = torch.stack([angle.cos(), angle.sin()], 1) * 30
        made.W_pos[:, :2] += wave  # read by nobody else's planted weights; other heads see it too, equally in both
        model.W_pos[:, :2] += wave
        q, k = made.blocks[layer].attn.W_Q[head], made.blocks[layer].attn.W_K[head]
        q.zero_()
        k.zero_()
        turn = torch.tensor(2 * torch.pi / model.config.n_ctx)
        q[:2, :2] = 40 * torch.tensor([[turn.cos(), -turn.sin()], [turn.sin(), turn.cos()]]) * d**0.5
        k[:2, :2] = torch.eye(2) * 40
        made.blocks[layer].attn.b_Q[head] = made.blocks[layer].attn.b_K[head] = 0
    return made


def test_a_model_compared_with_itself_shows_nothing() -> None:
    model = make_gpt()
    result = compare(model, IDS, other=copy.deepcopy(model), samples=6)
    assert result.identical
    assert result.weights["change"].max() == 0
    assert result.head_weights is not None
    assert result.patterns is not None
    assert result.between is not None
    assert result.head_weights.max() == 0
    assert result.patterns.max() == 0
    assert np.abs(result.between).max() < 1e-6
    assert result.changed.empty
    assert result.config.empty
    assert result.remarks == ()
    assert all((a == b).all() for a, b in result.losses)
    assert "same model" in result.findings()[0].text
    assert next(panel for panel in result.panels() if panel.key == "changed").text.startswith("No head")


def test_the_changed_head_is_the_one_named() -> None:
    model = make_gpt(n_layers=2, init_std=0.1)
    other = with_another_head(model, 1, 2)
    result = compare(model, IDS, other=other, samples=8)
    assert result.head_weights is not None
    assert result.patterns is not None
    changed = np.zeros((2, 4), dtype=bool)
    changed[1, 2] = True
    assert ((result.head_weights > 0) == changed).all()
    assert ((result.patterns.mean(0) > 1e-6) == changed).all()
    assert set(result.changed["head"]) == {"L1H2"}
    assert set(result.changed["role"]) <= {"previous token", "positional", "first token"}
    assert abs(result.changed.iloc[0]["change"]) > 0.1
    assert "L1H2" in next(f for f in result.findings() if f.key == "changed").text
    assert set(result.weights[result.weights["change"] > 0]["part"]) == {
        f"attn.{kind}_{letter}_flat" for kind in "Wb" for letter in "QK"
    }


@pytest.mark.parametrize("shape", ["llama", "gemma3", "neox"])
def test_a_kv_head_changes_the_heads_that_read_it_and_no_others(shape: str) -> None:
    model = toy(shape)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.blocks[1].attn.W_V[model.config.n_kv_heads - 1] *= 2
    result = compare(model, IDS, other=other, samples=4)
    assert result.head_weights is not None
    readers = [h for h in range(4) if h // (4 // model.config.n_kv_heads) == model.config.n_kv_heads - 1]  # not 1 and 3
    assert np.flatnonzero(result.head_weights[1]).tolist() == readers
    assert not result.head_weights[0].any()
    attn = model.blocks[1].attn
    own = [w.detach().double() for w in (attn.W_Q[3], attn.W_K[-1], attn.W_V[-1], attn.W_O[3])]
    expected = own[2].norm() / torch.cat([w.flatten() for w in own]).norm()
    assert result.head_weights[1, 3] == pytest.approx(float(expected), rel=1e-6)
    assert set(result.weights[result.weights["change"] > 0]["part"]) == {"attn.W_V_flat"}


def test_a_model_that_predicts_no_next_token_is_refused() -> None:
    for model, other in ((make_gpt(), toy("bidirectional")), (toy("bidirectional"), make_gpt())):
        with pytest.raises(NotApplicable):
            compare(model, IDS, other=other)


def test_models_of_different_families_are_compared_where_they_can_be() -> None:
    result = compare(toy("llama"), IDS, other=toy("gpt2"), samples=4)
    assert result.head_weights is None
    assert result.patterns is not None
    assert {"norm", "positions", "gated"} <= set(result.config["field"])


def test_weight_changes_are_numpys() -> None:
    a, b = make_gpt(seed=0), make_gpt(seed=1)
    frame, heads = weight_changes(a, b)
    x, y = a.blocks[1].mlp.W_in.detach().numpy().astype(float), b.blocks[1].mlp.W_in.detach().numpy().astype(float)
    row = frame[(frame["part"] == "mlp.W_in") & (frame["layer"] == 1)].iloc[0]
    assert row["change"] == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-9)
    assert row["cosine"] == pytest.approx((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-9)
    assert len(frame) == len(list(a.parameters()))

    def own(model: HookedGPT) -> np.ndarray:
        parts = (model.W_Q[0, 3], model.W_K[0, 3], model.W_V[0, 3], model.W_O[0, 3])
        return np.concatenate([part.detach().numpy().astype(float).ravel() for part in parts])

    assert heads[0, 3] == pytest.approx(np.linalg.norm(own(b) - own(a)) / np.linalg.norm(own(a)), rel=1e-9)


def test_pattern_changes_are_total_variation() -> None:
    a, b = make_gpt(seed=0), make_gpt(seed=1)
    moved = pattern_changes(a, b, [IDS[:1]])
    _, first = a.run_with_cache(IDS[:1])
    _, second = b.run_with_cache(IDS[:1])
    p, q = (cache["pattern", 1][0, 2].detach().numpy().astype(float) for cache in (first, second))
    slow = np.mean([0.5 * np.abs(p[i] - q[i]).sum() for i in range(1, 24)])
    assert moved[0, 1, 2] == pytest.approx(slow, abs=1e-6)
    assert (moved >= 0).all()
    assert (moved <= 1).all()


def test_losses_and_divergence_are_torchs() -> None:
    a, b = make_gpt(seed=0), make_gpt(seed=1)
    result = compare(a, IDS, other=b, samples=4)
    p, q = (model(IDS).detach().log_softmax(-1) for model in (a, b))
    for i in range(3):
        for log_p, loss in zip((p, q), result.losses[i], strict=True):
            cross = torch.nn.functional.cross_entropy(log_p[i, :-1], IDS[i, 1:], reduction="none")
            np.testing.assert_allclose(loss, cross.numpy(), rtol=0, atol=1e-4)
        kl = torch.nn.functional.kl_div(q[i], p[i], log_target=True, reduction="none").sum(-1).mean()
        assert result.between is not None
        assert result.between[i] == pytest.approx(float(kl), abs=1e-4)
    frame = result.to_dataframe()
    means = [np.mean([pair[i].mean() for pair in result.losses]) for i in range(2)]
    row = frame[frame["measure"] == "loss"].iloc[0]
    assert (row["first"], row["other"]) == (pytest.approx(means[0]), pytest.approx(means[1]))


def test_random_models_changed_everywhere_and_swapping_changes_the_sign() -> None:
    a, b = make_gpt(seed=0), make_gpt(seed=1)
    one, two = compare(a, IDS, other=b, samples=6), compare(b, IDS, other=a, samples=6)
    np.testing.assert_allclose(one.role_changes["change"], -two.role_changes["change"], rtol=0, atol=1e-9)
    assert one.names != two.names or one.names[0] != one.names[1]
    assert one.weights[one.weights["part"] == "mlp.W_in"]["change"].min() > 1  # independent: near sqrt(2)


def test_models_of_other_shapes() -> None:
    result = compare(make_gpt(), IDS, other=make_gpt(n_layers=3, d_vocab=310), samples=4)
    assert result.head_weights is None
    assert result.patterns is None
    assert result.losses == ()
    assert set(result.config["field"]) == {"n_layers", "d_vocab", "d_vocab_out"}
    keys = [panel.key for panel in result.panels()]
    assert {"roles-first", "roles-other", "lens-first", "lens-other", "config", "remarks"} <= set(keys)
    assert len(set(keys)) == len(keys)
    assert len(result.remarks) == 3
    assert not result.identical
    frame = result.to_dataframe()  # heads that cannot be paired stand for themselves
    first = frame[(frame.measure == "role") & frame["first"].notna()]
    assert len(first) == result.roles[0].scores[0].size
    np.testing.assert_array_equal(first["first"], result.roles[0].scores.mean(0).ravel())
    assert frame.loc[first.index, "other"].isna().all()


def test_a_weight_that_is_no_number_makes_another_model() -> None:
    model = make_gpt()
    other = copy.deepcopy(model)
    assert compare(model, IDS, other=other, samples=4).identical  # control
    with torch.no_grad():
        other.blocks[1].attn.b_O[0] = torch.nan
    result = compare(model, IDS, other=other, samples=4)
    assert not result.identical
    assert any("not finite: blocks.1.attn.b_O" in remark for remark in result.remarks)


def test_text_and_wrong_input(toy_gpt: HookedGPT) -> None:
    other = copy.deepcopy(toy_gpt)
    other.source = "a checkpoint"
    with torch.no_grad():
        other.W_E += 0.01
    result = compare(toy_gpt, TEXT[:60], other=other, samples=4)
    assert result.names == ("random weights", "a checkpoint")
    keys = [panel.key for panel in result.panels()]
    assert len(set(keys)) == len(keys)
    assert all(finding.key in keys for finding in result.findings())
    with pytest.raises(InputError, match="expected a model"):
        compare(toy_gpt, "The cat", other="gpt2")
