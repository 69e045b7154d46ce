"""Head circuits: equal to numpy on whole matrices, the same for folded weights, right on heads built by hand."""

import numpy as np
import pytest
import torch
from conftest import make_gpt
from handmade import induction_model
from shapes import SHAPES, tokens_for, toy
from test_encoder import BERT, VIT, make
from test_encoder_decoder import make_pair

from analyses.head_circuits import effective_rank, head_circuits
from analyses.shared.panels import Note
from analyses.shared.weight_circuits import circuits
from interp.errors import InputError, NotApplicable
from interp.processing import process_weights
from interp.residual import head_results


def materialised(model):
    """QK and OV [layer head d_model d_model] and the whole OV circuit [layer head d_vocab d_vocab], in numpy."""
    folded = process_weights(model)
    q, k, v, o, e, u = (
        x.detach().numpy() for x in (folded.W_Q, folded.W_K, folded.W_V, folded.W_O, folded.W_E, folded.W_U)
    )
    centre = np.eye(e.shape[1]) - 1 / e.shape[1]  # layer norm hands on nothing along the mean
    qk = centre @ q @ k.swapaxes(-1, -2) @ centre / q.shape[-1] ** 0.5
    ov = centre @ v @ o
    return qk, ov, e @ ov @ u


@pytest.fixture(scope="module")
def model():
    return make_gpt(dtype=torch.float64, d_vocab=60, tied=False)


def test_singular_values_and_copying_equal_numpy_on_whole_matrices(model):
    result = head_circuits(model)
    qk, ov, whole = materialised(model)
    for name, matrix in (("QK", qk), ("OV", ov)):
        expected = np.linalg.svd(matrix, compute_uv=False)[..., : model.config.d_head]
        np.testing.assert_allclose(result.singular_values[name], expected, rtol=0, atol=1e-10)
    eigenvalues = np.linalg.eigvals(whole)
    np.testing.assert_allclose(
        result.copying, eigenvalues.sum(-1).real / np.abs(eigenvalues).sum(-1), rtol=0, atol=1e-8
    )
    other = make_gpt(dtype=torch.float64, d_vocab=60, tied=False, seed=1)  # the control
    assert np.abs(head_circuits(other).copying - result.copying).max() > 0.01


def test_top_tokens_align_with_both_sides_of_a_direction(model):
    """A direction's sign is free, but the same on both sides: u W v must be its positive singular value."""
    result = head_circuits(model, directions=2, top=60)
    qk, ov, _ = materialised(model)
    folded = process_weights(model)
    embed, unembed = folded.W_E.detach().numpy(), folded.W_U.detach().numpy()
    for name, matrix, out in (("QK", qk, embed), ("OV", ov, unembed.T)):
        for head in range(4):
            u, s, vh = np.linalg.svd(matrix[1, head])
            for direction in range(2):
                row = (1 * 4 + head) * 2 + direction
                first = embed @ u[:, direction]
                sign = 1 if first.max() >= -first.min() else -1
                order = [f"<{i}>" for i in np.argsort(-sign * first)]
                assert list(result.read[name][row]) == order
                assert list(result.written[name][row]) == [f"<{i}>" for i in np.argsort(-sign * out @ vh[direction])]
                assert u[:, direction] @ matrix[1, head] @ vh[direction] == pytest.approx(s[direction])


def test_folding_changes_nothing(model):
    raw, folded = head_circuits(model), head_circuits(process_weights(model))
    np.testing.assert_allclose(raw.copying, folded.copying, atol=1e-8)
    for name in ("QK", "OV"):
        np.testing.assert_allclose(raw.singular_values[name], folded.singular_values[name], atol=1e-10)
    assert raw.read == folded.read
    assert raw.written == folded.written


def test_heads_built_by_hand():
    model, roles = induction_model()
    result = head_circuits(model)
    assert result.copying[roles["copying"]] == pytest.approx(1.0, abs=1e-3)
    assert result.copying[roles["copy_suppression"]] == pytest.approx(-1.0, abs=1e-3)
    assert result.copying[roles["nothing"]] == 0.0
    assert effective_rank(result.singular_values["QK"])[roles["first_token"]] == 0.0  # its query is a bias alone
    assert effective_rank(result.singular_values["OV"])[roles["copying"]] == pytest.approx(39, abs=1.0)


def test_tables_carry_every_singular_value_and_the_caution_is_shown(model):
    result = head_circuits(model, directions=2, top=3)
    frame = result.to_dataframe()
    assert len(frame) == 2 * 2 * 4 * model.config.d_head
    assert (frame[frame.direction < 2].read_tokens.str.count(r" \| ") == 2).all()
    assert (frame[frame.direction >= 2].read_tokens == "").all()
    assert frame.groupby(["layer", "head", "circuit"]).share.sum().between(1 - 1e-9, 1 + 1e-9).all()
    cautions = [panel for panel in result.panels() if isinstance(panel, Note)]
    assert "not that it copies" in cautions[0].text


def test_model_is_left_as_it_was_and_text_is_not_read(toy_gpt):
    before = {name: p.clone() for name, p in toy_gpt.state_dict().items()}
    with_text, without = head_circuits(toy_gpt, "The cat"), head_circuits(toy_gpt)
    np.testing.assert_array_equal(with_text.copying, without.copying)
    assert all(torch.equal(before[name], p) for name, p in toy_gpt.state_dict().items())


@pytest.mark.parametrize("options", [{"directions": 0}, {"directions": 9}, {"top": 0}, {"top": 61}])
def test_what_cannot_be_used_is_refused(model, options):
    with pytest.raises(InputError):
        head_circuits(model, **options)


def without_biases(shape):
    """A model of this shape in float64, and what its attention did: circuits leave biases out."""
    model = toy(shape, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2].startswith("b"):
                parameter.zero_()
        return model, model.run_with_cache(tokens_for(model))[1]


def scores_of(model, cache, layer, q, k):
    """[batch head query key] by the factors [head d_model d_head], norms' scales frozen, capped as the model does."""
    attn, x = model.blocks[layer].attn, cache["resid_pre", layer]
    x = x / model.blocks[layer].ln1.scale_of(x)
    rows = [torch.einsum("bpm,hmd->bphd", x, factor) for factor in (q, k)]
    for i, (name, norm) in enumerate((("q", attn.q_norm), ("k", attn.k_norm))):
        if norm is not None:
            seen = cache[name, layer]
            scale = norm.scale_of(seen.flatten(2))[..., None] if attn.flat_norm else norm.scale_of(seen)
            rows[i] = rows[i] / (scale if attn.flat_norm or name == "q" else scale.repeat_interleave(attn.group, 2))
    scores = torch.einsum("bqhd,bkhd->bhqk", *rows)
    return scores if attn.softcap is None else attn.softcap * torch.tanh(scores / attn.softcap)


@pytest.mark.parametrize("shape", SHAPES)
def test_qk_circuits_give_the_scores_of_a_run_at_their_distance(shape):
    model, cache = without_biases(shape)
    turning = model.config.positions == "rotary"
    for distance in (0, 1, 2) if turning else (0,):
        c = circuits(model, distance)
        for layer in range(2):
            found, seen = scores_of(model, cache, layer, c.q[layer], c.k[layer]), cache["attn_scores", layer]
            offsets = (-distance,) if turning else (0, -1, -4)
            for offset in offsets:
                ours, theirs = (x.diagonal(offset, -2, -1).numpy() for x in (found, seen))
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
            if turning:  # the control: at another distance they are other scores
                assert (found.diagonal(-distance - 1, -2, -1) - seen.diagonal(-distance - 1, -2, -1)).abs().max() > 0.01
        if 1 < model.config.n_kv_heads < 4:  # the control: tiled rather than repeated
            wrong = scores_of(model, cache, 1, c.q[1], c.k[1][[0, 2, 1, 3]])
            assert (wrong - cache["attn_scores", 1]).diagonal(-distance, -2, -1).abs().max() > 0.01


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_ov_circuits_give_what_heads_add_in_a_run(shape):
    model, cache = without_biases(shape)
    c = circuits(model)
    for layer, block in enumerate(model.blocks):
        x = cache["resid_pre", layer]
        x = x / block.ln1.scale_of(x)
        added = block.ln1.centre(head_results(model, cache, layer))
        for order in ([0, 1, 2, 3], [0, 2, 1, 3]):
            value = torch.einsum("bkm,hmd,hdn->hbkn", x, c.v[layer][order], c.o[layer])
            found = torch.einsum("bhqk,hbkn->hbqn", cache["pattern", layer], value)
            if block.ln1_post.hooked:
                found = found / cache["scale", layer, "ln1_post"]
            if order[1] == 1:
                np.testing.assert_allclose(found.numpy(), added.numpy(), rtol=0, atol=1e-6)
            elif model.config.n_kv_heads > 1:  # the control: another head's values
                assert (found - added).abs().max() > 0.01


@pytest.mark.parametrize("shape", ["llama", "gemma3", "neox"])
def test_copying_and_top_tokens_of_other_families_equal_numpy_on_whole_matrices(shape):
    model = toy(shape, dtype=torch.float64, d_vocab=60)
    result, c = head_circuits(model, distance=3, top=1), circuits(model, 3)
    with torch.no_grad():
        out = model.ln_final.share(c.v @ c.o, torch.ones(1)) @ model.W_U
        whole = model.W_E @ out
        logits = (whole - whole.mean(-1, keepdim=True)).numpy()
        values = np.linalg.eigvals(logits)
        np.testing.assert_allclose(result.copying, values.sum(-1).real / np.abs(values).sum(-1), rtol=0, atol=1e-8)
        u, s, _ = np.linalg.svd((c.q @ c.k.mT).numpy())
    np.testing.assert_allclose(result.singular_values["QK"], s[..., : model.config.d_head], rtol=0, atol=1e-10)
    first = np.abs(model.W_E.detach().numpy() @ u[1, 2, :, 0])
    assert result.read["QK"][1 * 4 + 2][0] == f"<{first.argmax()}>"
    assert np.abs(head_circuits(model).singular_values["QK"] - result.singular_values["QK"]).max() > 1e-3


def test_circuits_of_a_translation_model_go_through_the_norms_that_follow():
    """Against numpy on whole matrices; the last norms of the decoder lie between a head and the logits."""
    model = make_pair(n_encoder_layers=3, n_decoder_layers=2).requires_grad_(False)
    result = head_circuits(model, directions=2, top=3)
    assert [kind.name for kind in result.kinds] == ["encoder", "decoder", "cross"]
    norms = [norm for block in model.decoder for norm in (block.ln1, block.ln2, block.ln3)]
    centre = np.eye(32) - 1 / 32
    embed = model.W_E.numpy()
    for name, part, first in (("decoder", "attn", 0), ("cross", "cross_attn", 1)):
        for layer, block in enumerate(model.decoder):
            attention, at = getattr(block, part), 3 * layer + first
            reads = centre * norms[at - 1].w.numpy() if at else np.eye(32)
            keys = reads if name == "decoder" else centre * model.encoder[-1].ln2.w.numpy()
            qk = reads @ (attention.W_Q @ attention.W_K.mT).numpy() @ keys.T * attention.scale
            ov = keys @ (attention.W_V @ attention.W_O).numpy() @ centre
            for circuit, matrix in (("QK", qk), ("OV", ov)):
                expected = np.linalg.svd(matrix, compute_uv=False)[:, :8]
                np.testing.assert_allclose(result[name].singular_values[circuit][layer], expected, rtol=0, atol=1e-10)
            for norm in norms[at:]:
                ov = ov @ centre * norm.w.numpy()
            logits = embed @ ov @ embed.T
            logits = logits - logits.mean(-1, keepdims=True)
            values = np.linalg.eigvals(logits)
            copying = values.sum(-1).real / np.abs(values).sum(-1)
            np.testing.assert_allclose(result[name].copying[layer], copying, rtol=0, atol=1e-7)
        values = np.linalg.eigvals(embed @ (attention.W_V @ attention.W_O).numpy() @ embed.T)  # control: no norms
        assert np.abs(values.sum(-1).real / np.abs(values).sum(-1) - copying).max() > 1e-3
    assert np.isnan(result["encoder"].copying).all()
    keys = [panel.key for panel in result.panels()]
    assert len(keys) == len(set(keys))
    assert "encoder-copying" not in keys
    assert {finding.key for finding in result.findings()} <= set(keys)
    assert set(result.to_dataframe()["stack"]) == {"encoder", "decoder", "cross"}


def test_an_encoder_of_text_has_circuits_and_one_of_images_no_tokens_for_them():
    model = make(**BERT).requires_grad_(False)
    result = head_circuits(model, top=2)
    gains = [model.embed.ln.w, *(block.ln2.w for block in model.blocks[:-1])]
    reads = (np.eye(32) - 1 / 32) * np.stack([gain.numpy() for gain in gains])[:, None]  # [layer d_model d_model]
    qk = reads[:, None] @ (model.W_Q @ model.W_K.mT).numpy() @ reads[:, None].swapaxes(-1, -2)
    expected = np.linalg.svd(qk * model.blocks[0].attn.scale, compute_uv=False)[..., :8]
    np.testing.assert_allclose(result.singular_values["QK"], expected, rtol=0, atol=1e-10)
    assert np.isnan(result.copying).all()
    assert "copying" not in {panel.key for panel in result.panels()}
    with pytest.raises(NotApplicable, match="tokens"):
        head_circuits(make(**VIT))


def test_a_distance_that_turns_nothing_is_refused():
    for distance, model in ((1, make_gpt()), (64, toy("llama")), (-1, toy("llama"))):
        with pytest.raises(InputError, match="distance"):
            head_circuits(model, distance=distance)


def test_logits_of_another_vocabulary_have_no_copying_score():
    result = head_circuits(make_gpt(tied=False, d_vocab_out=10))
    assert np.isnan(result.copying).all()
    assert "copying" not in {panel.key for panel in result.panels()}
