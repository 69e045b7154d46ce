"""Processed weights give the same log-probabilities, and have the properties they promise."""

import pytest
import torch
from conftest import make_gpt
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import SHAPES, toy

from interp.processing import process_weights
from interp.residual import decompose, decompose_names

TOKENS = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(0))
STEPS = ["fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"]


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries({name: st.booleans() for name in STEPS}),
    st.booleans(),
    st.booleans(),
    st.sampled_from(list(SHAPES)),
)
def test_log_probabilities_stay(steps, tied, bias, shape) -> None:
    model = toy(shape, dtype=torch.float64, tied=tied, bias=bias)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    new = process_weights(model, **steps)
    torch.testing.assert_close(new(TOKENS).log_softmax(-1), model(TOKENS).log_softmax(-1), atol=1e-10, rtol=0)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


@torch.no_grad()
def test_properties_of_processed_weights() -> None:
    new = process_weights(make_gpt(dtype=torch.float64))
    for matrix in (new.W_E, new.W_pos, new.W_O, new.W_out, new.b_O, new.b_out):
        assert matrix.mean(-1).abs().max() < 1e-12
    for reading in (new.W_Q, new.W_K, new.W_V, new.W_in):
        assert reading.mean(-2).abs().max() < 1e-12
    assert new.W_U.mean(-1).abs().max() < 1e-12
    assert new.W_U.mean(0).abs().max() < 1e-12
    assert new.b_V.abs().max() == 0
    assert (new.blocks[0].ln1.w == 1).all()
    assert (new.ln_final.b == 0).all()


@torch.no_grad()
def test_an_rms_gain_is_folded_and_nothing_is_centred() -> None:
    model = toy("llama", dtype=torch.float64)
    new = process_weights(model)
    block, old = new.blocks[1], model.blocks[1]
    assert (block.ln1.gain == 1).all()
    torch.testing.assert_close(block.mlp.W_gate, old.ln2.gain[:, None] * old.mlp.W_gate, atol=1e-14, rtol=0)
    assert torch.equal(new.W_O, model.W_O)
    assert (process_weights(toy("gemma3")).blocks[0].ln2.gain == 1).all()


def test_a_wrong_fold_would_be_seen() -> None:
    model = make_gpt(dtype=torch.float64)
    new = process_weights(model)
    with torch.no_grad():
        new.blocks[0].ln1.w.copy_(model.blocks[0].ln1.w)  # the gain applied twice
    assert (new(TOKENS).log_softmax(-1) - model(TOKENS).log_softmax(-1)).abs().max() > 1e-4


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("layer", [0, 1, None])
@pytest.mark.parametrize("shape", SHAPES)
def test_components_sum_to_the_stream_and_their_shares_to_the_norm(shape, heads, layer) -> None:
    model = toy(shape, dtype=torch.float64)
    _, cache = model.run_with_cache(TOKENS)
    parts, labels = decompose(model, cache, layer, heads=heads)
    stream = cache["resid_post", -1] if layer is None else cache["resid_pre", layer]
    assert len(parts) == len(labels) == len(set(labels))
    torch.testing.assert_close(parts.sum(0), stream, atol=1e-12, rtol=0)
    norm = model.ln_final
    if layer is None and norm.hooked:
        shares = norm.share(parts, cache["ln_final.hook_scale"]).sum(0)
        torch.testing.assert_close(shares if norm.b is None else shares + norm.b, norm(stream), atol=1e-12, rtol=0)
    assert set(decompose_names(model)) <= set(cache)
