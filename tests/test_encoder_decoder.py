"""The encoder-decoder is the same function as transformers' Marian; its hooks obey its equations."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from interp import HookedEncoderDecoder
from interp.errors import HookNameError, InputError, LoadError
from interp.models.encoder_config import EncoderDecoderConfig
from interp.models.encoder_decoder import PairCache, sinusoids

TOLERANCE = {torch.float32: 5e-5, torch.float64: 1e-10}
EXACT = {"atol": 1e-12, "rtol": 0}


def make_pair(*, seed: int = 0, dtype: torch.dtype = torch.float64, **config: object) -> HookedEncoderDecoder:
    """A small model with weights large enough that every part matters."""
    shape = {"n_encoder_layers": 2, "n_decoder_layers": 3, "n_heads": 4, "d_model": 32, "n_ctx": 40, "d_vocab": 120}
    torch.manual_seed(seed)
    model = HookedEncoderDecoder(EncoderDecoderConfig(**shape | config))  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if name.endswith(".w") else 0.0, std=0.1)
    return model.to(dtype)


def as_transformers(model: HookedEncoderDecoder, directory) -> transformers.MarianMTModel:
    model.save_pretrained(directory)
    twin = transformers.MarianMTModel.from_pretrained(directory, attn_implementation="eager", dtype=model.dtype)
    return twin.eval()


def batch(d_vocab: int = 120) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    source, target = torch.randint(0, d_vocab, (3, 11)), torch.randint(0, d_vocab, (3, 9))
    source_mask, target_mask = torch.ones_like(source), torch.ones_like(target)
    source_mask[0, 6:] = source_mask[2, 9:] = target_mask[1, 4:] = 0
    return source, target, source_mask, target_mask


def difference(model: HookedEncoderDecoder, twin, source, target, source_mask=None, target_mask=None) -> float:
    """Largest difference of logits at real tokens."""
    with torch.no_grad():
        ours = model(source, target, source_mask=source_mask, target_mask=target_mask)
        theirs = twin(
            input_ids=source,
            attention_mask=source_mask,
            decoder_input_ids=target,
            decoder_attention_mask=target_mask,
        ).logits
    apart = (ours - theirs).abs()
    return float(apart.max() if target_mask is None else apart[target_mask.bool()].max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("act_fn", "scale"), [("silu", True), ("relu", True), ("gelu", False), ("gelu_new", False)])
def test_logits_equal_transformers(tmp_path, dtype, act_fn, scale) -> None:
    model = make_pair(dtype=dtype, act_fn=act_fn, scale_embedding=scale)
    twin = as_transformers(model, tmp_path)
    source, target, source_mask, target_mask = batch()
    assert difference(model, twin, source, target) < TOLERANCE[dtype]
    assert difference(model, twin, source, target, source_mask, target_mask) < TOLERANCE[dtype]


def test_a_changed_weight_breaks_parity(tmp_path) -> None:
    model = make_pair()
    twin = as_transformers(model, tmp_path)
    with torch.no_grad():
        model.decoder[1].cross_attn.W_Q_flat[3, 5] += 1e-3
    assert difference(model, twin, *batch()[:2]) > 1e-7


def test_the_real_size_equals_transformers(tmp_path) -> None:
    shape = {"n_encoder_layers": 6, "n_decoder_layers": 6, "n_heads": 8, "d_model": 512, "n_ctx": 512, "d_vocab": 8000}
    model = make_pair(dtype=torch.float32, act_fn="silu", **shape)
    source, target, source_mask, target_mask = batch(8000)
    assert difference(model, as_transformers(model, tmp_path), source, target, source_mask, target_mask) < 5e-5


def test_attention_is_transformers_attention(tmp_path) -> None:
    model = make_pair()
    twin = as_transformers(model, tmp_path)
    source, target, source_mask, _ = batch()
    _, cache = model.run_with_cache(source, target, source_mask=source_mask)
    with torch.no_grad():
        out = twin(input_ids=source, attention_mask=source_mask, decoder_input_ids=target, output_attentions=True)
    for place, theirs in (
        ("encoder", out.encoder_attentions),
        ("decoder.attn", out.decoder_attentions),
        ("decoder.cross_attn", out.cross_attentions),
    ):
        for layer, pattern in enumerate(theirs):
            torch.testing.assert_close(cache["pattern", layer, place], pattern, **EXACT)
    assert cache["pattern", 1, "cross_attn"].shape == (3, 4, 9, 11)


def test_every_hook_point_has_the_stated_shape_and_the_field_s_name() -> None:
    model = make_pair()
    source, target, *_ = batch()
    _, cache = model.run_with_cache(source, target, names=lambda name: True)
    assert list(cache) == list(model.hook_points)
    for name, activation in cache.items():
        assert tuple(activation.shape) == model.hook_shape(name, 3, 11, 9), name
    for name in ("encoder.1.attn.hook_pattern", "decoder.2.cross_attn.hook_pattern", "decoder.0.hook_cross_attn_out"):
        assert name in cache
    assert model.stack_sizes == {"encoder": 2, "decoder": 3}
    assert torch.equal(cache["mlp_out", -1, "decoder"], cache["decoder.2.hook_mlp_out"])
    assert torch.equal(cache["mlp_out", -1, "encoder"], cache["encoder.1.hook_mlp_out"])
    assert cache.stack("cross_attn.hook_pattern", "decoder").shape == (3, 3, 4, 9, 11)
    with pytest.raises(HookNameError, match="means 3 activations"):
        cache["pattern", 1]
    with pytest.raises(HookNameError, match="nearest"):
        model.match("decoder.0.cross_attn.hook_patern")


def test_cached_activations_obey_the_model_equations() -> None:
    model = make_pair()
    source, target, *_ = batch()
    logits, cache = model.run_with_cache(source, target, names=lambda name: True)

    def norm(module, x):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], module.w, module.b, module.eps)

    x = cache["source_embed"] + cache["source_pos_embed"]
    for layer, block in enumerate(model.encoder):
        at = f"encoder.{layer}."
        torch.testing.assert_close(cache[at + "hook_resid_pre"], x, **EXACT)
        x = norm(block.ln1, x + cache[at + "hook_attn_out"])
        x = norm(block.ln2, x + cache[at + "hook_mlp_out"])
    torch.testing.assert_close(cache["memory"], x, **EXACT)
    memory, x = x, cache["embed"] + cache["pos_embed"]
    for layer, block in enumerate(model.decoder):
        at = f"decoder.{layer}."
        x = norm(block.ln1, x + cache[at + "hook_attn_out"])
        attention = block.cross_attn
        q = torch.einsum("bpm,hmd->bphd", x, attention.W_Q) + attention.b_Q
        k = torch.einsum("bpm,hmd->bphd", memory, attention.W_K) + attention.b_K
        v = torch.einsum("bpm,hmd->bphd", memory, attention.W_V) + attention.b_V
        pattern = (torch.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5).softmax(-1)
        torch.testing.assert_close(cache[at + "cross_attn.hook_pattern"], pattern, **EXACT)
        out = torch.einsum("bhqk,bkhd,hdm->bqm", pattern, v, attention.W_O) + attention.b_O
        torch.testing.assert_close(cache[at + "hook_cross_attn_out"], out, **EXACT)
        x = norm(block.ln2, x + out)
        x = norm(block.ln3, x + cache[at + "hook_mlp_out"])
    torch.testing.assert_close(cache[at + "hook_normalized_resid_post"], x, **EXACT)
    torch.testing.assert_close(logits, x @ model.W_U + model.b_U, **EXACT)


def test_listening_changes_nothing() -> None:
    model = make_pair()
    source, target, source_mask, target_mask = batch()
    masks = {"source_mask": source_mask, "target_mask": target_mask}
    seen, _ = model.run_with_cache(source, target, names=lambda name: True, **masks)
    real = target_mask.bool()
    torch.testing.assert_close(seen[real], model(source, target, **masks)[real], **EXACT)


def test_padding_changes_nothing_at_real_tokens() -> None:
    model = make_pair()
    source, target, source_mask, target_mask = batch()
    padded = model(source, target, source_mask=source_mask, target_mask=target_mask)
    for row in range(3):
        alone = model(source[row : row + 1, : source_mask[row].sum()], target[row : row + 1, : target_mask[row].sum()])
        torch.testing.assert_close(padded[row, : alone.shape[1]], alone[0], **EXACT)


@pytest.mark.parametrize("step", [1, 4])
def test_the_cache_gives_the_same_logits(step) -> None:
    model = make_pair()
    source, target, source_mask, _ = batch()
    memory, past, parts = model.encode(source, source_mask), PairCache(), []
    for start in range(0, 9, step):
        piece = target[:, start : start + step]
        parts.append(model.decode(piece, memory, source_mask=source_mask, past=past))
    torch.testing.assert_close(torch.cat(parts, 1), model(source, target, source_mask=source_mask), **EXACT)


def test_gradients_reach_every_parameter() -> None:
    model = make_pair()
    source, target, *_ = batch()
    model(source, target).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_positions_are_the_paper_s_sines_and_cosines() -> None:
    table = sinusoids(30, 6)
    for pos in (0, 7, 29):
        for i in range(3):
            angle = torch.tensor(pos / 10000 ** (2 * i / 6))
            assert abs(table[pos, i] - angle.sin()) < 1e-6
            assert abs(table[pos, 3 + i] - angle.cos()) < 1e-6


def test_interventions_work_in_encoder_decoder_and_cross_attention() -> None:
    from interp.interventions import Replace

    model = make_pair()
    source, target, *_ = batch()
    clean, cache = model.run_with_cache(source, target)
    for name in ("encoder.1.attn.hook_z", "decoder.0.attn.hook_z", "decoder.2.cross_attn.hook_z"):
        with model.hooks([Replace(name=name, head=2)]):
            changed, other = model.run_with_cache(source, target)
        assert (other[name][:, :, 2] == 0).all()
        assert (changed - clean).abs().max() > 1e-6
        with model.hooks([Replace(name=name, head=2, value=cache[name])]):
            torch.testing.assert_close(model(source, target), clean, **EXACT)
    torch.testing.assert_close(model(source, target), clean, **EXACT)


def test_the_short_forms_reach_every_stack() -> None:
    from interp.interventions import ablate_attention, ablate_head, ablate_mlp, ablate_neurons, steer

    model = make_pair()
    named = {
        ablate_head(1, 2, stack="encoder"): "encoder.1.attn.hook_z",
        ablate_head(2, 0, stack="decoder", attention="cross_attn"): "decoder.2.cross_attn.hook_z",
        ablate_attention(0, stack="decoder", attention="cross_attn"): "decoder.0.hook_cross_attn_out",
        ablate_mlp(1, stack="decoder"): "decoder.1.hook_mlp_out",
        ablate_neurons(0, 3, stack="encoder"): "encoder.0.mlp.hook_post",
        steer(1, torch.ones(32), stack="encoder"): "encoder.1.hook_resid_pre",
    }
    assert [edit.name for edit in named] == list(named.values())
    source, target, *_ = batch()
    clean = model(source, target)
    for edit in named:
        assert (model.run_with_hooks(source, target, fwd_hooks=[edit]) - clean).abs().max() > 1e-6, edit.name


def test_a_model_says_what_it_is() -> None:
    assert repr(make_pair(n_encoder_layers=2)).startswith(
        "HookedEncoderDecoder('random weights': 2 + 3 layers, 4 heads"
    )
    assert "\n" not in repr(make_pair())


def test_saved_and_loaded(tmp_path) -> None:
    options = {"forbidden_tokens": (7,), "num_beams": 4, "length_penalty": 0.7, "forced_end_token": 1}
    model = make_pair(dtype=torch.float32, pad_token=7, start_token=7, renormalize=True, **options)
    model.save_pretrained(tmp_path)
    loaded = HookedEncoderDecoder.from_pretrained(tmp_path, device="cpu")
    assert loaded.config == model.config
    source, target, *_ = batch()
    assert torch.equal(loaded(source, target), model(source, target))
    twin = transformers.MarianMTModel.from_pretrained(tmp_path)
    assert twin.generation_config.length_penalty == 0.7
    assert twin.generation_config.bad_words_ids == [[7]]


def broken(directory, change) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.decoder.layers.1.encoder_attn.k_proj.weight"), "encoder_attn.k_proj.weight is missing"),
        (lambda t: t.update({"model.encoder.layers.0.fc1.bias": torch.zeros(3)}), r"fc1.bias has shape \[3\]"),
        (lambda t: t.update({"model.decoder.layer_norm.weight": torch.ones(32)}), "is not part of a Marian model"),
        (lambda t: t.update({"lm_head.weight": torch.ones(120, 32)}), "differs from model.shared.weight"),
        (lambda t: t.update({"model.encoder.embed_positions.weight": torch.ones(40, 32)}), "does not hold sinusoids"),
    ],
)
def test_wrong_tensors_are_named(tmp_path, change, message) -> None:
    make_pair(dtype=torch.float32).save_pretrained(tmp_path)
    broken(tmp_path, change)
    with pytest.raises(LoadError, match=message):
        HookedEncoderDecoder.from_pretrained(tmp_path)


def test_tied_copies_and_sinusoids_in_the_file_are_accepted_and_a_missing_bias_is_zero(tmp_path) -> None:
    make_pair(dtype=torch.float32).save_pretrained(tmp_path)

    def change(tensors) -> None:
        for name in ("lm_head", "model.encoder.embed_tokens", "model.decoder.embed_tokens"):
            tensors[f"{name}.weight"] = tensors["model.shared.weight"].clone()
        tensors["model.decoder.embed_positions.weight"] = sinusoids(40, 32)
        del tensors["final_logits_bias"]

    broken(tmp_path, change)
    assert (HookedEncoderDecoder.from_pretrained(tmp_path, device="cpu").b_U == 0).all()


@pytest.mark.parametrize("entry", [{"normalize_before": True}, {"decoder_ffn_dim": 5}, {"activation_function": "tanh"}])
def test_options_that_change_the_function_are_refused(tmp_path, entry) -> None:
    make_pair(dtype=torch.float32).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entry))
    with pytest.raises(LoadError, match=next(iter(entry))):
        HookedEncoderDecoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("entry", ["decoder_attention_heads", "decoder_ffn_dim"])
def test_what_a_file_leaves_unsaid_is_what_transformers_takes(tmp_path, entry) -> None:
    """Its defaults, not the encoder's; the vocabulary of the target is that of the source (control)."""
    from transformers import MarianConfig

    make_pair(dtype=torch.float32).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in good.items() if key != "decoder_vocab_size"}))
    HookedEncoderDecoder.from_pretrained(tmp_path, device="cpu")
    path.write_text(json.dumps({key: value for key, value in good.items() if key != entry}))
    with pytest.raises(LoadError, match=f"{entry} = {getattr(MarianConfig(), entry)}"):
        HookedEncoderDecoder.from_pretrained(tmp_path)


def test_another_kind_of_model_is_named(tmp_path) -> None:
    from interp import HookedEncoder

    make_pair(dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="holds a HookedEncoderDecoder"):
        HookedEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (torch.zeros(1, 41, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long)),
        (torch.zeros(1, 4, dtype=torch.long), torch.full((1, 3), 120)),
        (torch.zeros(1, 4), torch.zeros(1, 3, dtype=torch.long)),
        ("Je suis", torch.zeros(1, 3, dtype=torch.long)),
        (torch.zeros(2, 4, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long)),
    ],
)
def test_unusable_inputs_are_refused(source, target) -> None:
    with pytest.raises(InputError):
        make_pair()(source, target)
