"""Encoders and encoder-decoders of Marian's, BERT's and ViT's files (`interp.models.encoder_config`), loaded and saved.

Called by `interp.load`, which finds the directory and reads what kind it is.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from interp.errors import InputError
from interp.loading.decoders import check_layers, parameter_shapes
from interp.loading.layouts import Layout, Readers, fill, read_tensors, to_tensors, write_model
from interp.models.encoder import HookedEncoder
from interp.models.encoder_config import (
    EncoderConfig,
    EncoderDecoderConfig,
    encoder_decoder_from_hf,
    encoder_decoder_to_hf,
    encoder_from_hf,
    encoder_to_hf,
    layout_of,
)
from interp.models.encoder_decoder import HookedEncoderDecoder, sinusoids
from interp.text.source_target import load_pair_tokenizer
from interp.text.wordpiece import WordPiece
from interp.untrusted import read_json, reading, write_json


def _layout(model: HookedEncoder | HookedEncoderDecoder) -> Layout:
    return layout_of(model.config, parameter_shapes(model))


def load_encoder_decoder(
    directory: Path, files: list[Path], device: torch.device, dtype: torch.dtype | None
) -> HookedEncoderDecoder:
    """A Marian model. `dtype` None keeps the files' own. Raises as `interp.load`."""
    generation_path = directory / "generation_config.json"
    generation = read_json(generation_path) if generation_path.exists() else {}
    path = directory / "config.json"
    data, readers = read_json(path), read_tensors(files, lambda key: key)
    check_layers(data, readers, path)
    with reading(path, "expected a marian config.json", ""):
        config = encoder_decoder_from_hf(data, generation, str(path))
    with torch.device("meta"):
        model = HookedEncoderDecoder(config, tokenizer=load_pair_tokenizer(directory))
    fill(model, _layout(model), readers, directory, leftover=_marian_leftover, device=device, dtype=dtype)
    model.W_pos = sinusoids(config.n_ctx, config.d_model).to(device=device, dtype=model.dtype)
    return model


def load_encoder(directory: Path, files: list[Path], device: torch.device, dtype: torch.dtype | None) -> HookedEncoder:
    """A BERT or ViT; the weights say whether there is a masked-language head or a classifier. Raises as above."""
    path = directory / "config.json"
    data, readers = read_json(path), read_tensors(files, _plain_key)
    check_layers(data, readers, path)
    with reading(path, "expected the config.json of a BERT or ViT", ""):
        config = _config(data, readers, str(path))
    with torch.device("meta"):
        tokenizer = None if config.over_patches else WordPiece.from_directory(directory)
        model = HookedEncoder(config, tokenizer=tokenizer)
    fill(model, _layout(model), readers, directory, leftover=_encoder_leftover, device=device, dtype=dtype)
    return model


def _config(data: Mapping[str, Any], readers: Readers, where: str) -> EncoderConfig:
    named = data.get("architectures") or [""]
    if data["model_type"] == "bert":
        has_head = "cls.predictions.transform.dense.weight" in readers or named[0] == "BertForMaskedLM"
        return encoder_from_hf(data, where, head="masked-language" if has_head else None)
    classes = readers["classifier.weight"][0][0] if "classifier.weight" in readers else 0
    if named[0] == "ViTForImageClassification" and not classes:
        classes = len(data.get("id2label", [0, 0]))
    return encoder_from_hf(data, where, head="classifier" if classes else None, n_classes=classes)


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
    prefix, tensors = "", to_tensors(model, _layout(model), dtype)
    if isinstance(config, EncoderDecoderConfig):
        data, generation = encoder_decoder_to_hf(config)
        write_json(directory / "generation_config.json", generation)
    else:
        data = encoder_to_hf(config)
        prefix = f"{data['model_type']}." if config.head else ""  # models with a head have one
    if model.tokenizer is not None:
        model.tokenizer.save(directory)
    heads = ("cls.", "classifier.")
    write_model(directory, data, {key if key.startswith(heads) else prefix + key: x for key, x in tensors.items()})
