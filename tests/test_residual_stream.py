"""Residual stream: equal to slow loops over positions; planted growth, rank and massive activations are found."""

import numpy as np
import pytest
import torch
from conftest import make_gpt
from handmade import Space, empty
from test_encoder import BERT, VIT, make
from test_encoder_decoder import make_pair

from analyses.residual_stream import residual_stream
from analyses.shared.panels import Note


@pytest.fixture(scope="module")
def model():
    return make_gpt(dtype=torch.float64)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 300, (3, 9), generator=torch.Generator().manual_seed(6))


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_measures_are_those_of_slow_loops(model, tokens):
    result = residual_stream(model, tokens)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    for text in range(3):
        x = {name: cache[name, 1][text].numpy() for name in ("resid_pre", "resid_mid", "resid_post", "mlp_out")}
        before, after, places = x["resid_pre"], x["resid_post"], range(1, 9)
        m = {name: values[text] for name, values in result.measures.items()}
        assert m["norm"][2] == pytest.approx(np.mean([np.linalg.norm(after[p]) for p in places]))
        assert m["first_norm"][1] == pytest.approx(np.linalg.norm(before[0]))
        assert m["turn"][2] == pytest.approx(np.mean([cosine(before[p], after[p]) for p in places]))
        assert result.cosine[text, 1, 2] == pytest.approx(m["turn"][2])
        pairs = [cosine(after[p], after[q]) for p in places for q in places if p != q]
        assert m["similarity"][2] == pytest.approx(np.mean(pairs))
        values = np.linalg.svd(after[1:] - after[1:].mean(0), compute_uv=False) ** 2
        assert m["rank"][2] == pytest.approx(values.sum() ** 2 / (values**2).sum())
        write = [np.linalg.norm(x["mlp_out"][p]) / np.linalg.norm(x["resid_mid"][p]) for p in places]
        assert result.write[text, result.components.index("mlp 1")] == pytest.approx(np.mean(write))
        turn = [cosine(x["mlp_out"][p], x["resid_mid"][p]) for p in places]
        assert result.write_cosine[text, result.components.index("mlp 1")] == pytest.approx(np.mean(turn))
    assert np.isnan(result.measures["turn"][:, 0]).all()


@pytest.mark.parametrize("kind", ["encoder", "decoder", "bert", "vit"])
def test_streams_of_other_models_are_what_their_parts_read(kind):
    """A stage is the sum behind its norm; a write is held against the stream that it is added to."""
    ids = torch.randint(0, 120, (2, 8), generator=torch.Generator().manual_seed(0))
    pair = kind in ("encoder", "decoder")
    model = make_pair() if pair else make(**(BERT if kind == "bert" else VIT))
    model.requires_grad_(False)
    inputs = (
        (ids, ids[:, 1:]) if pair else (torch.randn(2, 3, 24, 16, dtype=torch.float64),) if kind == "vit" else (ids,)
    )
    result = residual_stream(model, inputs if pair else inputs[0])
    assert (set(result.to_dataframe().columns) == {"stack", "text", "place", "measure", "value"}) == pair
    result, path = (result[kind], kind) if pair else (result, "blocks")
    _, cache = model.run_with_cache(*inputs)
    block, at = getattr(model, path)[1], f"{path}.1."
    before = {"attn": cache[at + "hook_resid_pre"]}
    if kind == "vit":
        before["mlp"], after = cache[at + "hook_resid_mid"], cache[at + "hook_resid_post"]
    else:
        before["cross" if kind == "decoder" else "mlp"] = block.ln1(cache[at + "hook_resid_mid"])
        if kind == "decoder":
            before["mlp"] = block.ln2(cache[at + "hook_resid_mid_cross"])
        after = cache[at + "hook_normalized_resid_post"]
    norms = [[float(x.norm()) for x in text[1:]] for text in after]
    np.testing.assert_allclose(result.measures["norm"][:, 2], np.mean(norms, 1), rtol=1e-9)
    for part, stream in before.items():
        wrote = cache[at + ("hook_cross_attn_out" if part == "cross" else f"hook_{part}_out")]
        share = [np.mean([float(w.norm() / x.norm()) for w, x in zip(*both, strict=True)][1:])
                 for both in zip(wrote, stream, strict=True)]  # fmt: skip
        place = result.components.index(f"{part} 1")
        np.testing.assert_allclose(result.write[:, place], share, rtol=1e-9)
        assert np.abs(result.write[:, place - 1] - share).max() > 1e-3  # control: another part's
    keys = [panel.key for panel in residual_stream(model, inputs if pair else inputs[0]).panels()]
    assert len(keys) == len(set(keys))


def test_a_model_that_writes_nothing_neither_grows_nor_turns():
    model = empty(Space(20, 16))
    result = residual_stream(model, torch.arange(10)[None])
    np.testing.assert_allclose(result.measures["norm"], np.sqrt(2))
    np.testing.assert_allclose(result.cosine, 1, atol=1e-12)
    np.testing.assert_allclose(result.write, 0)
    assert result.measures["rank"][0, 0] == pytest.approx(8)  # nine different positions, their mean taken out
    same = residual_stream(model, torch.full((1, 10), 3))  # one token all along: only positions differ
    assert same.measures["similarity"][0, 0] == pytest.approx(0.5)
    assert result.measures["similarity"][0, 0] == pytest.approx(0.0)


def test_planted_massive_activation_is_found_and_none_without_it(tokens):
    model = make_gpt()
    control = residual_stream(model, tokens)
    assert not control.largest.massive.any()
    assert not any(finding.key == "massive" for finding in control.findings())
    with torch.no_grad():
        model.W_pos[4, 17] = 4000.0
    result = residual_stream(model, tokens)
    massive = result.largest[result.largest.massive]
    assert len(massive) == 3  # once in each text
    assert set(massive.coordinate) == {17}
    assert set(massive.position) == {4}
    assert "coordinate 17" in next(finding.text for finding in result.findings() if finding.key == "massive")


def test_frame_panels_and_short_texts(toy_gpt):
    result = residual_stream(toy_gpt, ["The cat sat", "The dog"])
    frame = result.to_dataframe()
    assert set(frame.measure) == {"norm", "first_norm", "turn", "similarity", "rank", "write", "write_cosine"}
    assert len(frame) == 2 * (5 * 3 + 2 * 4)
    keys = [panel.key for panel in result.panels()]
    assert len(set(keys)) == len(keys)
    one = residual_stream(toy_gpt, torch.tensor([[5]]))
    assert one.measures["norm"][0, 0] == one.measures["first_norm"][0, 0]
    assert np.isnan(one.measures["similarity"]).all()
    assert one.panels()
    silent = empty(Space(20, 16))
    with torch.no_grad():
        silent.W_E.zero_()
        silent.W_pos.zero_()
    quiet = residual_stream(silent, torch.tensor([[1, 2, 3]]))
    assert isinstance(quiet.panels()[-1], Note)
