"""Encoders are the same function as transformers' BERT and ViT, and their files are theirs."""

import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from interp import HookedEncoder
from interp.errors import InputError, LoadError
from interp.models.encoder_config import EncoderConfig
from interp.text.wordpiece import WordPiece

TOLERANCE = {torch.float32: 5e-5, torch.float64: 1e-10}
EXACT = {"atol": 1e-12, "rtol": 0}
BERT = {"n_layers": 3, "n_heads": 4, "d_model": 32, "n_ctx": 40, "d_vocab": 120}
VIT = {
    "n_layers": 2,
    "n_heads": 4,
    "d_model": 32,
    "post_norm": False,
    "n_types": 0,
    "image_size": (24, 16),
    "patch_size": (8, 4),
}


def make(*, dtype: torch.dtype = torch.float64, **config: object) -> HookedEncoder:
    """A small model with weights large enough that every part matters."""
    torch.manual_seed(0)
    model = HookedEncoder(EncoderConfig(init_std=0.2, **config))  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if name.endswith(".w") else 0.0, std=0.1)
    return model.to(dtype)


def twin_of(model: HookedEncoder, kind: type, directory):
    model.save_pretrained(directory)
    return kind.from_pretrained(directory, attn_implementation="eager", dtype=model.dtype).eval()


def tokens_and_mask() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens, types = torch.randint(0, 120, (3, 11)), torch.randint(0, 2, (3, 11))
    mask = torch.ones_like(tokens)
    mask[0, 5:] = mask[2, 10:] = 0
    return tokens, types, mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("act_fn", ["gelu", "gelu_new", "relu"])
def test_bert_equals_transformers(tmp_path, dtype, act_fn) -> None:
    model = make(dtype=dtype, head="masked-language", act_fn=act_fn, **BERT)
    twin = twin_of(model, transformers.BertForMaskedLM, tmp_path)
    tokens, types, mask = tokens_and_mask()
    with torch.no_grad():
        ours = model(tokens, attention_mask=mask, token_types=types)
        theirs = twin(tokens, attention_mask=mask, token_type_ids=types).logits
        plain = (model(tokens) - twin(tokens).logits).abs().max()
    assert (ours - theirs)[mask.bool()].abs().max() < TOLERANCE[dtype]
    assert plain < TOLERANCE[dtype]


def test_the_size_of_bert_base_equals_transformers(tmp_path) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(n_layers=12, n_heads=12, d_model=768, n_ctx=512, d_vocab=4000, head="masked-language")
    model = HookedEncoder(config)
    twin = twin_of(model, transformers.BertForMaskedLM, tmp_path)
    tokens = torch.randint(0, 4000, (1, 40))
    with torch.no_grad():
        assert (model(tokens) - twin(tokens).logits).abs().max() < 5e-5


def test_bert_without_a_head_gives_the_last_residual_stream(tmp_path) -> None:
    model = make(**BERT)
    twin = twin_of(model, transformers.BertModel, tmp_path)
    tokens, types, mask = tokens_and_mask()
    with torch.no_grad():
        ours = model(tokens, attention_mask=mask, token_types=types)
        theirs = twin(tokens, attention_mask=mask, token_type_ids=types).last_hidden_state
    assert (ours - theirs)[mask.bool()].abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [0, 5])
def test_vit_equals_transformers(tmp_path, dtype, classes) -> None:
    head = {"head": "classifier", "n_classes": classes} if classes else {}
    model = make(dtype=dtype, **VIT, **head)
    kind = transformers.ViTForImageClassification if classes else transformers.ViTModel
    model.save_pretrained(tmp_path)
    options = {} if classes else {"add_pooling_layer": False}
    exact = "eager" if dtype is torch.float32 else "sdpa"  # its eager ViT rounds every softmax to float32
    twin = kind.from_pretrained(tmp_path, attn_implementation=exact, dtype=dtype, **options).eval()
    images = torch.randn(2, 3, 24, 16, dtype=dtype)
    with torch.no_grad():
        theirs = twin(images).logits if classes else twin(images).last_hidden_state
        assert (model(images) - theirs).abs().max() < TOLERANCE[dtype]
    assert model.config.grid == (3, 4)
    assert model.config.n_ctx == 13


def test_the_size_of_vit_base_equals_transformers(tmp_path) -> None:
    torch.manual_seed(0)
    shape = {"n_layers": 12, "n_heads": 12, "d_model": 768, "image_size": (224, 224), "patch_size": (16, 16)}
    model = HookedEncoder(EncoderConfig(post_norm=False, n_types=0, head="classifier", n_classes=10, **shape))
    twin = twin_of(model, transformers.ViTForImageClassification, tmp_path)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert (model(images) - twin(images).logits).abs().max() < 5e-5


@pytest.mark.parametrize("shape", [BERT | {"head": "masked-language"}, VIT])
def test_patterns_are_not_causal_and_every_hook_has_its_shape(shape) -> None:
    model = make(**shape)
    inputs = torch.randn(2, 3, 24, 16, dtype=torch.float64) if "image_size" in shape else torch.randint(0, 120, (2, 13))
    out, cache = model.run_with_cache(inputs, names=lambda name: True)
    assert list(cache) == list(model.hook_points)
    for name, activation in cache.items():
        assert tuple(activation.shape) == model.hook_shape(name, 2, 13), name
    assert (cache["pattern", 0] > 0).all()
    torch.testing.assert_close(out, model(inputs), **EXACT)


def test_the_mask_hides_padding() -> None:
    model = make(head="masked-language", **BERT)
    tokens, _, mask = tokens_and_mask()
    _, cache = model.run_with_cache(tokens, attention_mask=mask)
    assert (cache["pattern", 1][0, :, :, 5:] == 0).all()
    alone = model(tokens[:1, :5])
    torch.testing.assert_close(model(tokens, attention_mask=mask)[:1, :5], alone, **EXACT)
    assert (model(tokens)[:1, :5] - alone).abs().max() > 1e-6


def test_a_post_norm_block_obeys_its_equations() -> None:
    model = make(head="masked-language", **BERT)
    logits, cache = model.run_with_cache(torch.randint(0, 120, (2, 7)))

    def norm(module, x):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], module.w, module.b, module.eps)

    x = norm(model.embed.ln, cache["embed"] + cache["pos_embed"] + cache["token_type_embed"])
    for layer, block in enumerate(model.blocks):
        torch.testing.assert_close(cache["resid_pre", layer], x, **EXACT)
        torch.testing.assert_close(cache["resid_mid", layer], x + cache["attn_out", layer], **EXACT)
        x = norm(block.ln1, cache["resid_mid", layer])
        x = norm(block.ln2, x + cache["mlp_out", layer])
    head = model.head
    x = norm(head.ln, torch.nn.functional.gelu(x @ head.W + head.b))
    torch.testing.assert_close(logits, x @ model.W_U + model.b_U, **EXACT)


def test_bert_agrees_with_transformer_lens_on_hook_names() -> None:
    """The names that TransformerLens gives a BERT's activations, as far as both have them."""
    theirs = "hook_resid_pre attn.hook_q attn.hook_pattern attn.hook_z hook_attn_out hook_resid_mid mlp.hook_pre"
    theirs += " mlp.hook_post hook_mlp_out hook_resid_post hook_normalized_resid_post"
    points = make(**BERT).hook_points
    assert all(f"blocks.2.{name}" in points for name in theirs.split())


def test_old_names_buffers_and_other_heads_are_accepted(tmp_path) -> None:
    model = make(dtype=torch.float32, head="masked-language", **BERT)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
        for key, x in load_file(path).items()
    }
    tensors["bert.embeddings.position_ids"] = torch.arange(40)[None]
    tensors["bert.pooler.dense.weight"] = torch.zeros(32, 32)
    tensors["cls.seq_relationship.weight"] = torch.zeros(2, 32)
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    loaded = HookedEncoder.from_pretrained(tmp_path, device="cpu")
    tokens = torch.randint(0, 120, (1, 6))
    assert torch.equal(loaded(tokens), model(tokens))
    assert loaded.config == model.config
    tensors["cls.predictions.decoder.weight"] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(LoadError, match="should be tied"):
        HookedEncoder.from_pretrained(tmp_path)


def test_wrong_tensors_are_named(tmp_path) -> None:
    make(dtype=torch.float32, **VIT).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["embeddings.cls_token"] = torch.zeros(1, 1, 31)
    save_file(tensors, path)
    with pytest.raises(LoadError, match=r"embeddings.cls_token has shape \[1, 1, 31\]"):
        HookedEncoder.from_pretrained(tmp_path)
    del tensors["embeddings.cls_token"]
    save_file(tensors, path)
    with pytest.raises(LoadError, match=r"embeddings\.cls_token is missing"):
        HookedEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(("kind", "entry"), [(VIT, {"qkv_bias": False}), (BERT, {"is_decoder": True})])
def test_options_that_change_the_function_are_refused(tmp_path, kind, entry) -> None:
    make(dtype=torch.float32, **kind).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entry))
    with pytest.raises(LoadError, match=next(iter(entry))):
        HookedEncoder.from_pretrained(tmp_path)


def test_unusable_inputs_are_refused() -> None:
    bert, vit = make(**BERT), make(**VIT)
    for inputs in (torch.zeros(1, 41, dtype=torch.long), torch.full((1, 3), 120), torch.zeros(1, 3), "text"):
        with pytest.raises(InputError):
            bert(inputs)
    with pytest.raises(InputError, match="mask of shape"):
        bert(torch.zeros(1, 4, dtype=torch.long), attention_mask=torch.ones(1, 3))
    with pytest.raises(InputError, match="images"):
        vit(torch.zeros(1, 3, 16, 16))
    with pytest.raises(InputError, match="head"):
        EncoderConfig(head="classifier", n_classes=2, **BERT)


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "##ting", "on", ",", "!", "mat"]


@pytest.fixture
def vocabulary(tmp_path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return tmp_path


def test_word_pieces_are_transformers_word_pieces(vocabulary) -> None:
    ours = WordPiece.from_directory(vocabulary)
    theirs = transformers.BertTokenizer.from_pretrained(vocabulary)
    for text in ("The cats, sat!", "dog [MASK] the mats", "SATTING on"):
        ids = ours.to_tokens(text)[0].tolist()
        assert ids == theirs(text).input_ids
        assert ours.to_str_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    pair, types = ours.to_pair("the cat", "sat on")
    assert pair[0].tolist() == theirs("the cat", "sat on").input_ids
    assert types[0].tolist() == theirs("the cat", "sat on", return_token_type_ids=True).token_type_ids
    tokens, mask = ours.to_batch(["the cat sat", "mat"])
    assert tokens.shape == (2, 5)
    assert mask[1].tolist() == [1, 1, 1, 0, 0]


def test_text_goes_in_and_the_tokenizer_is_saved(vocabulary, tmp_path) -> None:
    model = make(dtype=torch.float32, head="masked-language", **BERT | {"d_vocab": len(WORDS)})
    model.tokenizer = WordPiece.from_directory(vocabulary)
    assert model.to_str_tokens("the cats") == ["[CLS]", "the", "cat", "##s", "[SEP]"]
    assert model.to_str_tokens("the cats", prepend_bos=False) == ["the", "cat", "##s"]
    assert model.to_string(model.to_tokens("the cats")) == "the cats"
    assert model.to_single_token("cat") == WORDS.index("cat")
    with pytest.raises(InputError, match=r"2 tokens: 'cat' \+ '##s'"):
        model.to_single_token("cats")
    assert model("the [MASK]").shape == (1, 4, len(WORDS))
    model.save_pretrained(tmp_path / "saved")
    again = HookedEncoder.from_pretrained(tmp_path / "saved", device="cpu")
    assert all(torch.equal(x, dict(again.named_parameters())[name]) for name, x in model.named_parameters())
    torch.testing.assert_close(again("the cats"), model("the cats"), atol=1e-5, rtol=0)  # read where the file has them


@pytest.mark.skipif("INTERP_MODELS" not in os.environ, reason="INTERP_MODELS names no directory of real models")
def test_a_real_sentence_encoder_equals_transformers() -> None:
    directory = Path(os.environ["INTERP_MODELS"]) / "minilm"
    model = HookedEncoder.from_pretrained(directory, device="cpu")
    twin = transformers.BertModel.from_pretrained(directory, attn_implementation="eager").eval()
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    texts = ["The animal didn't cross the street because it was too tired.", "A cat."]
    tokens, mask = model.to_batch(texts)
    given = theirs(texts, padding=True, return_tensors="pt")
    assert torch.equal(tokens, given.input_ids)
    with torch.no_grad():
        apart = (model(tokens, attention_mask=mask) - twin(**given).last_hidden_state)[mask.bool()]
    assert apart.abs().max() < 5e-5
