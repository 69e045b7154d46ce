"""Streams whose norms follow each sum (translation models, BERT): their parts sum to what the model reads."""

import pytest
import torch
from test_encoder import BERT, VIT, make
from test_encoder_decoder import EXACT, batch, make_pair

from interp.residual import accumulated, decompose, decompose_names, leaving, logit_attrs, streams

IDS = torch.randint(0, 120, (2, 9), generator=torch.Generator().manual_seed(0))


def test_the_sum_of_the_decoder_s_parts_is_its_logits() -> None:
    model = make_pair()
    source, target, source_mask, _ = batch()
    logits, cache = model.run_with_cache(source, target, source_mask=source_mask, names=decompose_names(model))
    parts, labels = decompose(model, cache)
    assert len(labels) == len(parts) == 2 + 3 * (4 + 1 + 4 + 1 + 1) + 1
    assert labels[2:8] == ["dec L0H0", "dec L0H1", "dec L0H2", "dec L0H3", "dec bias 0", "cross L0H0"]
    torch.testing.assert_close(parts.sum(0) @ model.W_U + model.b_U, logits, atol=1e-10, rtol=0)
    towards = logit_attrs(model, cache, parts, 3, 7)
    torch.testing.assert_close(
        towards.sum(0) + model.b_U[3] - model.b_U[7], logits[..., 3] - logits[..., 7], atol=1e-10, rtol=0
    )


@pytest.mark.parametrize("shape", [BERT | {"head": "masked-language"}, VIT])
@pytest.mark.parametrize("layer", [0, 1, None])
@pytest.mark.parametrize("heads", [True, False])
def test_the_sum_of_an_encoder_s_parts_is_its_stream(shape, layer, heads) -> None:
    model = make(**shape)
    inputs = IDS if shape is not VIT else torch.randn(2, 3, 24, 16, dtype=torch.float64)
    _, cache = model.run_with_cache(inputs)
    parts, labels = decompose(model, cache, layer, heads=heads)
    name = leaving(model) if layer is None else f"blocks.{layer}.hook_resid_pre"
    torch.testing.assert_close(parts.sum(0), cache[name], atol=1e-10, rtol=0)
    assert len(labels) == len(parts) == len(set(labels))
    assert ("norm bias" in labels) == (shape is not VIT)
    without = parts.sum(0) - parts[labels.index("pos_embed")]
    assert (without - cache[name]).abs().max() > 1e-3  # control
    grown, places = accumulated(model, cache, layer, mid=True)
    torch.testing.assert_close(grown[-1], cache[name], **EXACT)
    assert any(place.endswith("mid") for place in places) == (shape is VIT and layer != 0)


def test_a_part_left_out_breaks_the_sum() -> None:
    model = make_pair()
    source, target, *_ = batch()
    logits, cache = model.run_with_cache(source, target, names=decompose_names(model))
    parts, labels = decompose(model, cache)
    for label in ("cross L1H2", "dec L0H1", "mlp 2", "norm bias", "dec bias 1"):
        rest = parts.sum(0) - parts[labels.index(label)]
        assert (rest @ model.W_U + model.b_U - logits).abs().max() > 1e-6, label


def test_a_part_is_linear_in_what_its_head_wrote() -> None:
    """With all scales held, a head's part is its output put through the later norms, one after the other."""
    model = make_pair()
    source, target, *_ = batch()
    _, cache = model.run_with_cache(source, target, names=lambda name: True)
    parts, labels = decompose(model, cache)
    x = cache["decoder.1.cross_attn.hook_result"][:, :, 2]
    block = model.decoder[1]
    norms = [(1, 2, block.ln2), (1, 3, block.ln3)]
    norms += [(2, i, getattr(model.decoder[2], f"ln{i}")) for i in (1, 2, 3)]
    for layer, number, norm in norms:
        x = (x - x.mean(-1, keepdim=True)) / cache[f"decoder.{layer}.ln{number}.hook_scale"] * norm.w
    torch.testing.assert_close(parts[labels.index("cross L1H2")], x, **EXACT)


def test_streams_are_what_the_next_part_reads() -> None:
    model = make_pair()
    source, target, *_ = batch()
    found = streams(model, lambda: model(source, target))
    logits, cache = model.run_with_cache(source, target)
    assert found.shape == (10, 3, 9, 32)
    torch.testing.assert_close(found[0], cache["embed"] + cache["pos_embed"], **EXACT)
    for layer in (1, 2):
        torch.testing.assert_close(found[3 * layer], cache["resid_pre", layer, "decoder"], **EXACT)
    torch.testing.assert_close(model.unembedded(found[-1]), logits, **EXACT)
