"""The logit lens against the plain unchunked softmax, scipy, the model's own output, and models with a known answer."""

import math

import numpy as np
import pytest
import torch
from conftest import TEXT, make_gpt
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analyses.logit_lens import logit_lens, read_lens
from analyses.shared.panels import Lines, TokenGrid
from interp.errors import InputError
from interp.models.gpt import HookedGPT
from interp.residual import streams

IDS = torch.randint(0, 300, (1, 12), generator=torch.Generator().manual_seed(0))
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}


def plain_lens(model: HookedGPT, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [place pos d_vocab], all at once, through the model's own cache, norm and unembedding."""
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids)
        stream = [cache["resid_pre", 0]]
        for layer in range(model.config.n_layers):
            stream += [cache["resid_mid", layer], cache["resid_post", layer]]
        found = torch.stack([model.unembedded(model.ln_final(x))[0] for x in stream]).log_softmax(-1)
    torch.testing.assert_close(found[-1], logits[0].log_softmax(-1))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [3, 7, 64, 300, 10_000])
def test_every_number_equals_the_unchunked_softmax(dtype, chunk):
    model = make_gpt(dtype=dtype, tied=chunk > 7, unembed_bias=chunk == 64)
    if model.b_U is not None:
        with torch.no_grad():
            model.b_U.normal_()
    found = logit_lens(model, IDS, top_k=4, chunk=chunk)
    expected = plain_lens(model, IDS).numpy()
    for place, pos in np.ndindex(5, 12):
        row, final = expected[place, pos], expected[-1, pos]
        assert found.entropy[0][place, pos] == pytest.approx(stats.entropy(np.exp(row)), abs=TOLERANCE[dtype])
        assert found.kl[0][place, pos] == pytest.approx(np.sum(np.exp(final) * (final - row)), abs=TOLERANCE[dtype])
        best = np.argsort(-row)[:4]
        assert found.top_ids[0][place, pos].tolist() == best.tolist()
        np.testing.assert_allclose(found.top_probability[0][place, pos], np.exp(row[best]), rtol=TOLERANCE[dtype])
        if pos < 11:
            target = IDS[0, pos + 1]
            assert found.log_probability[0][place, pos] == pytest.approx(row[target], abs=TOLERANCE[dtype])
            assert found.rank[0][place, pos] == 1 + (row > row[target]).sum()
    assert np.all(found.kl[0][-1] == 0)
    assert np.isnan(found.rank[0][:, -1]).all()
    followed = [int(token.strip("<>")) for token in found.candidates]
    assert len(set(followed)) == len(followed) == 12
    assert set(followed) <= {*IDS[0].tolist(), *expected[-1].argmax(-1).tolist()}
    np.testing.assert_allclose(
        found.candidate_log_probability, np.moveaxis(expected[:, :, followed], -1, 0), atol=TOLERANCE[dtype]
    )
    ranks = 1 + (expected[:, :, None, :] > expected[:, :, followed, None]).sum(-1)
    assert np.array_equal(found.candidate_rank, np.moveaxis(ranks, -1, 0))
    assert (found.candidate_rank > 1).any()  # control: not all of them are the best everywhere


@given(rows=st.integers(4, 80), chunk=st.integers(1, 60), top_k=st.integers(1, 6))
@settings(max_examples=12, deadline=None)
def test_numbers_do_not_depend_on_how_the_work_is_cut(rows, chunk, top_k):
    model, ids = make_gpt(dtype=torch.float64, d_vocab=50), IDS % 50
    with torch.no_grad():
        stream = streams(model, lambda: model(ids))[:, 0]
        whole = read_lens(model, stream, ids[0], top_k=top_k, chunk=50, rows=10_000)
        cut = read_lens(model, stream, ids[0], top_k=top_k, chunk=chunk, rows=rows)
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_extreme_logits_stay_finite():
    model = make_gpt()
    with torch.no_grad():
        model.ln_final.w *= 3000
    found = logit_lens(model, IDS, chunk=13)
    for values in (found.kl[0], found.entropy[0], found.top_probability[0], found.log_probability[0][:, :-1]):
        assert np.isfinite(values).all()
    np.testing.assert_allclose(found.entropy[0], 0, atol=1e-8)
    assert found.log_probability[0][:, :-1].min() < -200  # control: the logits really are extreme


def test_blocks_that_write_nothing_leave_the_prediction_as_it_is_after_the_embedding():
    model = make_gpt(bias=False)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_O_flat.zero_()
            block.mlp.W_out.zero_()
    found = logit_lens(model, IDS)
    np.testing.assert_array_equal(found.kl[0], 0)
    assert (found.settled() == 0).all()
    with torch.no_grad():
        model.blocks[1].mlp.W_out.normal_()
    moved = logit_lens(model, IDS)  # control: now only the last place differs
    assert (moved.kl[0][:-1] > 0.01).all()
    assert (moved.kl[0][-1] == 0).all()


def test_a_planted_token_becomes_readable_at_its_layer():
    """The first MLP's bias writes the direction of one token: before it the token is nowhere, after it it is first."""
    model = make_gpt(d_model=64, tied=False)
    with torch.no_grad():
        model.blocks[0].mlp.b_out += 400 * model.unembed[123] / model.unembed[123].norm()
    found = logit_lens(model, IDS, target=123)
    assert (found.rank[0][2:] == 1).mean() > 0.9
    assert (found.rank[0][:2] == 1).mean() < 0.1
    assert found.target == "<123>"
    assert not np.isnan(found.rank[0]).any()  # a given target is followed at the last position too


def test_target_given_as_text(toy_gpt):
    found = logit_lens(toy_gpt, TEXT[:60], target=" the")
    token = toy_gpt.to_single_token(" the")
    expected = plain_lens(toy_gpt, toy_gpt.to_tokens(TEXT[:60]))[:, :, token].numpy()
    np.testing.assert_allclose(found.log_probability[0], expected, atol=2e-5)
    assert set(found.targets[0]) == {" the"}
    with pytest.raises(InputError, match="expected exactly one token"):
        logit_lens(toy_gpt, TEXT[:60], target=" the dog and the cat")


def test_settled_is_the_first_place_after_which_nothing_changes():
    found = logit_lens(make_gpt(), IDS)
    first = found.top_ids[0][:, :, 0]
    for pos, place in enumerate(found.settled()):
        assert (first[place:, pos] == first[-1, pos]).all()
        assert place == 0 or first[place - 1, pos] != first[-1, pos]


def test_intervals_need_several_texts(toy_gpt):
    assert logit_lens(toy_gpt, "The cat sat").mean("kl").low is None
    found = logit_lens(toy_gpt, ["The cat sat.", "The dog sat on the log.", "Mary and John went to the store."])
    kl = found.mean("kl")
    assert np.all(kl.low[:-1] < kl.value[:-1])
    assert np.all(kl.high[:-1] > kl.value[:-1])
    assert kl.value[-1] == kl.low[-1] == kl.high[-1] == 0
    np.testing.assert_allclose(kl.value, np.mean([one.mean(1) for one in found.kl], axis=0), rtol=1e-12)
    loss = -np.mean([plain_lens(toy_gpt, toy_gpt.to_tokens(t))[-1][torch.arange(len(ids) - 1), ids[1:]].mean().item()
                     for t in ["The cat sat.", "The dog sat on the log.", "Mary and John went to the store."]
                     for ids in [toy_gpt.to_tokens(t)[0]]])  # fmt: skip
    assert -found.mean("log_probability").value[-1] == pytest.approx(loss, abs=2e-5)


def test_frame_is_tidy(toy_gpt):
    found = logit_lens(toy_gpt, ["The cat sat.", "The dog sat on the log."], top_k=2)
    frame = found.to_dataframe()
    assert len(frame) == sum(5 * len(tokens) for tokens in found.tokens)
    assert frame.groupby("place", sort=False)["layer"].first().tolist() == [-1, 0, 0, 1, 1]
    row = frame[(frame.text == 1) & (frame.place == "L1 attn") & (frame.position == 3)].iloc[0]
    assert row["rank"] == found.rank[1][3, 3]
    assert row.target == found.tokens[1][4]
    assert row.top_2 == found.labels[found.top_ids[1][3, 3, 1]]
    assert row.top_1_probability >= row.top_2_probability


def test_panels_and_findings_hold_together(toy_gpt):
    found = logit_lens(toy_gpt, ["The cat sat on the mat. The dog sat.", "John gave a drink to Mary."])
    panels = found.panels()
    keys = [panel.key for panel in panels]
    assert len(set(keys)) == len(keys)
    grid = panels[0]
    assert isinstance(grid, TokenGrid)
    assert len(grid.cells) == len(grid.rows) == 5
    assert all(len(row) == len(grid.tokens) == len(grid.targets) for row in grid.cells)
    assert all(values.shape == (5, len(grid.tokens)) for values in grid.measures.values())
    assert grid.top[2][1][0] == grid.cells[2][1]
    assert grid.top_values.shape == (5, len(grid.tokens), 5)
    assert all(panel.low for panel in panels if isinstance(panel, Lines))
    assert {finding.key for finding in found.findings()} <= set(keys)
    assert all(math.isfinite(finding.value) for finding in found.findings())


def test_long_texts_are_drawn_in_part_and_say_so():
    found = logit_lens(make_gpt(n_ctx=100), torch.arange(90)[None])
    grid = found.panels()[0]
    assert len(grid.tokens) == 64
    assert "The last 64 of 90 positions" in grid.caption
    assert len(found.to_dataframe()) == 5 * 90


def test_one_token_has_no_target_but_a_prediction():
    found = logit_lens(make_gpt(), torch.tensor([[5]]))
    assert np.isnan(found.rank[0]).all()
    assert np.isfinite(found.kl[0]).all()
    assert [panel.key for panel in found.panels()].count("probability") == 0
    assert found.findings()


@pytest.mark.parametrize("options", [{"top_k": 0}, {"chunk": 0}])
def test_wrong_options(options):
    with pytest.raises(InputError, match="at least 1"):
        logit_lens(make_gpt(), IDS, **options)


def test_more_tokens_asked_for_than_there_are():
    assert logit_lens(make_gpt(d_vocab=20), torch.arange(5)[None], top_k=50, chunk=7).top_ids[0].shape == (5, 5, 20)


def test_the_whole_vocabulary_is_one_frame(toy_gpt) -> None:
    """As many columns as there are tokens, made at once (a frame that grows warns, which here is an error)."""
    found = logit_lens(toy_gpt, "The cat", top_k=10**9)
    frame = found.to_dataframe()
    d_vocab = toy_gpt.config.d_vocab
    assert f"top_{d_vocab}" in frame
    assert f"top_{d_vocab + 1}" not in frame
    chances = frame[[f"top_{k + 1}_probability" for k in range(d_vocab)]].to_numpy()
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-5)
    assert frame[[f"top_{k + 1}" for k in range(d_vocab)]].nunique(axis=1).eq(d_vocab).all()
