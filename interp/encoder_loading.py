"""Encoders and encoder-decoders: where Marian's, BERT's and ViT's files keep what, and building a model from them.

Called by `interp.loading.load`, which finds the directory and reads what kind it is.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from interp.encoder import HookedEncoder
from interp.encoder_config import (
    EncoderConfig,
    EncoderDecoderConfig,
    bert_from_hf,
    encoder_decoder_from_hf,
    encoder_decoder_to_hf,
    encoder_to_hf,
    vit_from_hf,
)
from interp.encoder_decoder import HookedEncoderDecoder, sinusoids
from interp.errors import InputError
from interp.layouts import (
    Layout,
    Readers,
    Stored,
    fill,
    linear,
    norm,
    prefixed,
    read_json,
    read_tensors,
    to_tensors,
    write_json,
    write_model,
)
from interp.text_pairs import load_pair_tokenizer
from interp.wordpiece import WordPiece


def _block(
    c: EncoderConfig | EncoderDecoderConfig,
    attention: Mapping[str, tuple[list[str], str]],
    mlp: tuple[str, str],
    norms: list[str],
    *,
    optional: bool = False,
) -> Layout:
    """The parameters of a block: of each attention its three projections and its output, the MLP's two, the norms."""
    found: dict[str, Stored | None] = {}
    for name, (projections, out) in attention.items():
        for letter, key in zip("QKV", projections, strict=True):
            found[f"{name}.W_{letter}_flat"], bias = linear(key, c.d_model, c.d_model, optional=optional)
            found[f"{name}.b_{letter}_flat"] = bias
        found[f"{name}.W_O_flat"], found[f"{name}.b_O"] = linear(out, c.d_model, c.d_model)
    found["mlp.W_in"], found["mlp.b_in"] = linear(mlp[0], c.d_model, c.d_mlp)
    found["mlp.W_out"], found["mlp.b_out"] = linear(mlp[1], c.d_mlp, c.d_model)
    made = {name: stored for name, stored in found.items() if stored is not None}
    for number, key in enumerate(norms, start=1):
        made |= prefixed(norm(key, c.d_model), f"ln{number}.", "")
    return made


def marian_layout(config: EncoderDecoderConfig) -> Layout:
    """Our parameter -> where Marian's files keep it."""
    found = {
        "W_E": Stored("model.shared.weight", (config.d_vocab, config.d_model)),
        "b_U": Stored("final_logits_bias", (1, config.d_vocab), optional=True),
    }

    def attention(name: str) -> tuple[list[str], str]:
        return [f"{name}.{part}_proj" for part in "qkv"], f"{name}.out_proj"

    own, mlp = {"attn": attention("self_attn")}, ("fc1", "fc2")
    encoder = _block(config, own, mlp, ["self_attn_layer_norm", "final_layer_norm"])
    norms = ["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"]
    decoder = _block(config, own | {"cross_attn": attention("encoder_attn")}, mlp, norms)
    for stack, block, layers in (
        ("encoder", encoder, config.n_encoder_layers),
        ("decoder", decoder, config.n_decoder_layers),
    ):
        for layer in range(layers):
            found |= prefixed(block, f"{stack}.{layer}.", f"model.{stack}.layers.{layer}.")
    return found


def bert_layout(config: EncoderConfig) -> Layout:
    """Our parameter -> where BERT's files keep it (without `bert.`)."""
    c = config
    tables = (("W_E", "word", c.d_vocab), ("W_pos", "position", c.n_ctx), ("W_type", "token_type", c.n_types))
    found = {
        f"embed.{ours}": Stored(f"embeddings.{theirs}_embeddings.weight", (size, c.d_model))
        for ours, theirs, size in tables
    }
    found |= prefixed(norm("embeddings.LayerNorm", c.d_model), "embed.ln.", "")
    projections = [f"attention.self.{part}" for part in ("query", "key", "value")]
    attention = {"attn": (projections, "attention.output.dense")}
    norms = ["attention.output.LayerNorm", "output.LayerNorm"]
    block = _block(c, attention, ("intermediate.dense", "output.dense"), norms)
    for layer in range(c.n_layers):
        found |= prefixed(block, f"blocks.{layer}.", f"encoder.layer.{layer}.")
    if c.head:
        key = "cls.predictions.transform"
        found["head.W"] = Stored(f"{key}.dense.weight", (c.d_model, c.d_model), lambda x: x.T)
        found["head.b"] = Stored(f"{key}.dense.bias", (c.d_model,))
        found |= prefixed(norm(f"{key}.LayerNorm", c.d_model), "head.ln.", "")
        found["b_U"] = Stored("cls.predictions.bias", (c.d_vocab,))
    return found


def vit_layout(config: EncoderConfig) -> Layout:
    """Our parameter -> where ViT's files keep it (without `vit.`)."""
    c, patches = config, "embeddings.patch_embeddings.projection"
    found = {
        "embed.W_E": Stored(f"{patches}.weight", (c.d_model, c.n_channels, *c.patch_size), lambda x: x.flatten(1).T),
        "embed.b_E": Stored(f"{patches}.bias", (c.d_model,)),
        "embed.class_token": Stored("embeddings.cls_token", (1, 1, c.d_model)),
        "embed.W_pos": Stored("embeddings.position_embeddings", (1, c.n_ctx, c.d_model)),
    }
    found |= prefixed(norm("layernorm", c.d_model), "ln_final.", "")
    projections = [f"attention.attention.{part}" for part in ("query", "key", "value")]
    attention = {"attn": (projections, "attention.output.dense")}
    norms = ["layernorm_before", "layernorm_after"]
    block = _block(c, attention, ("intermediate.dense", "output.dense"), norms, optional=True)
    for layer in range(c.n_layers):
        found |= prefixed(block, f"blocks.{layer}.", f"encoder.layer.{layer}.")
    if c.head:
        found["unembed"] = Stored("classifier.weight", (c.n_classes, c.d_model))
        found["b_U"] = Stored("classifier.bias", (c.n_classes,))
    return found


def _layout(config: EncoderConfig | EncoderDecoderConfig) -> Layout:
    if isinstance(config, EncoderDecoderConfig):
        return marian_layout(config)
    return vit_layout(config) if config.over_patches else bert_layout(config)


def load_encoder_decoder(
    directory: Path, files: list[Path], device: torch.device, dtype: torch.dtype | None
) -> HookedEncoderDecoder:
    """A Marian model. `dtype` None keeps the files' own. Raises as `interp.loading.load`."""
    generation_path = directory / "generation_config.json"
    generation = read_json(generation_path) if generation_path.exists() else {}
    path = directory / "config.json"
    config = encoder_decoder_from_hf(read_json(path), generation, str(path))
    with torch.device("meta"):
        model = HookedEncoderDecoder(config, tokenizer=load_pair_tokenizer(directory))
    readers = read_tensors(files, lambda key: key)
    fill(model, _layout(config), readers, directory, leftover=_marian_leftover, device=device, dtype=dtype)
    model.W_pos = sinusoids(config.n_ctx, config.d_model).to(device=device, dtype=model.dtype)
    return model


def load_encoder(directory: Path, files: list[Path], device: torch.device, dtype: torch.dtype | None) -> HookedEncoder:
    """A BERT or ViT; the weights say whether there is a masked-language head or a classifier. Raises as above."""
    path = directory / "config.json"
    data, where = read_json(path), str(path)
    named = data.get("architectures") or [""]
    readers = read_tensors(files, _plain_key)
    if data["model_type"] == "bert":
        has_head = "cls.predictions.transform.dense.weight" in readers or named[0] == "BertForMaskedLM"
        config = bert_from_hf(data, where, head="masked-language" if has_head else None)
    else:
        classes = readers["classifier.weight"][0][0] if "classifier.weight" in readers else 0
        if named[0] == "ViTForImageClassification" and not classes:
            classes = len(data.get("id2label", [0, 0]))
        config = vit_from_hf(data, where, n_classes=classes)
    with torch.device("meta"):
        tokenizer = None if config.over_patches else WordPiece.from_directory(directory)
        model = HookedEncoder(config, tokenizer=tokenizer)
    fill(model, _layout(config), readers, directory, leftover=_encoder_leftover, device=device, dtype=dtype)
    return model


def _plain_key(key: str) -> str:
    key = key.removeprefix("bert.").removeprefix("vit.")
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _same(key: str, readers: Readers, other: str) -> str:
    same = other in readers and torch.equal(readers[key][1]().reshape(-1), readers[other][1]().reshape(-1))
    return "" if same else f"differs from {other}, with which it should be tied"


def _marian_leftover(key: str, readers: Readers) -> str:
    """What is wrong with a tensor that is no parameter of ours; "" when nothing is."""
    if key in ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"):
        return _same(key, readers, "model.shared.weight")
    if key.endswith("embed_positions.weight"):
        x = readers[key][1]()
        near = x.ndim == 2 and torch.allclose(x.float(), sinusoids(*x.shape), atol=1e-3)
        return "" if near else "does not hold sinusoids"
    return "is not part of a Marian model"


def _encoder_leftover(key: str, readers: Readers) -> str:
    if key == "cls.predictions.decoder.weight":
        return _same(key, readers, "embeddings.word_embeddings.weight")
    if key == "cls.predictions.decoder.bias":
        return _same(key, readers, "cls.predictions.bias")
    if re.fullmatch(r"pooler\..*|cls\.seq_relationship\..*|embeddings\.(position_ids|token_type_ids|mask_token)", key):
        return ""  # other tasks' heads, and buffers
    return "is not part of this encoder"


def save(
    model: HookedEncoder | HookedEncoderDecoder, directory: str | Path, *, dtype: torch.dtype | None = None
) -> None:
    """Write config, weights and tokenizer as `transformers` loads them (MarianMTModel, BertForMaskedLM or BertModel,
    ViTForImageClassification or ViTModel).

    Raises InputError for heads of another width than d_model / n_heads, which those layouts cannot hold.
    """
    config, directory = model.config, Path(directory)
    if config.n_heads * config.d_head != config.d_model:
        raise InputError(f"n_heads x d_head = {config.n_heads * config.d_head}", f"expected d_model = {config.d_model}")
    tensors = to_tensors(model, _layout(config), dtype)
    if isinstance(config, EncoderDecoderConfig):
        data, generation = encoder_decoder_to_hf(config)
        write_json(directory / "generation_config.json", generation)
    else:
        data = encoder_to_hf(config)
    if model.tokenizer is not None:
        model.tokenizer.save(directory)
    write_model(directory, data, {_saved_key(key, config): x for key, x in tensors.items()})


def _saved_key(key: str, config: EncoderConfig | EncoderDecoderConfig) -> str:
    """With the prefix that models with a head have."""
    if isinstance(config, EncoderDecoderConfig) or not config.head or key.startswith(("cls.", "classifier.")):
        return key
    return f"{'vit' if config.over_patches else 'bert'}.{key}"
