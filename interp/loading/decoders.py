"""Decoders from Hugging Face directories, and back: all is checked before any of it is used."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp.errors import InputError, LoadError
from interp.loading.families import Family, family_of, own_config, to_hf
from interp.loading.layouts import Layout, Readers, fill, read_tensors, to_tensors, write_model
from interp.loading.sources import check_dtype, weight_files
from interp.models.config import GPTConfig
from interp.models.gpt import HookedGPT
from interp.text.tokenizer import Tokenizer
from interp.untrusted import read_json, reading


def load_decoder(directory: Path, device: torch.device, dtype: torch.dtype | None) -> HookedGPT:
    path = directory / "config.json"
    data = read_json(path)
    if data.get("model_type") == "gemma3" and isinstance(data.get("text_config"), dict):
        tied = data.get("tie_word_embeddings", True)  # of a model that reads pictures too
        data = {"model_type": "gemma3_text", **data["text_config"], "tie_word_embeddings": tied}
    family = family_of(data, str(path))
    readers = read_tensors(weight_files(directory), family.plain)
    check_layers(data, readers, path)
    with reading(path, f"expected a {family.title} config.json", ""):
        config = family.read(data, str(path))
    tokenizer = Tokenizer.from_directory(directory)
    model = build(family, config, readers, directory, tokenizer=tokenizer, device=device, dtype=dtype)
    if data.get("model_type", "gpt2") != "gpt2":
        model.origin = {key: value for key, value in data.items() if key not in ("dtype", "torch_dtype")}
    return model


def check_layers(config: Mapping[str, Any], readers: Readers, where: Path) -> None:
    """Raises LoadError for more layers than there are tensors, before so many are built."""
    for name in ("n_layer", "n_layers", "num_layers", "num_hidden_layers", "encoder_layers", "decoder_layers"):
        layers = config.get(name)
        if isinstance(layers, int) and layers > len(readers):
            raise LoadError(f"{where}: {name} = {layers}", f"expected layers that {len(readers)} tensors can fill")


def build(
    family: Family,
    config: GPTConfig,
    readers: Readers,
    where: Path | str,
    *,
    layout: Layout | None = None,
    tokenizer: Tokenizer | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> HookedGPT:
    """A model of this config with the weights that `readers` give, by the family's names without prefixes.

    The embedding of a tied model may be there as its unembedding alone. Raises LoadError, naming it, for a tensor that
    is missing, unknown or has another shape.
    """
    embed, unembed = (f"{name}.weight" for name in (family.names.embed, family.names.unembed))
    if config.tied and unembed in readers:
        readers = {embed: readers[unembed], **readers}
    with reading(f"{where}: a model of this config", "expected shapes that fit into memory", ""), torch.device("meta"):
        model = HookedGPT(config, tokenizer=tokenizer)
    if layout is None:
        layout = family.layout(config, parameter_shapes(model))

    def leftover(key: str, readers: Readers) -> str:
        return family.leftover(key, readers, config)

    fill(model, layout, readers, where, leftover=leftover, device=device, dtype=dtype)
    return model


def parameter_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def save(model: HookedGPT, directory: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write config.json, model.safetensors and tokenizer.json.

    A loaded model keeps its family's layout, and one that fits GPT-2's gets that: `transformers` loads both. Whatever
    fits neither (folded norms, a toy's parts) is written in a layout of our own, which only `interp` reads.

    Args:
        dtype: of the weights on disk; by default as they are.
    """
    if not isinstance(directory, (str, Path)) or Path(directory).is_file():
        raise InputError(f"{str(directory)[:60]!r} to save to", "expected the path of a folder")
    check_dtype(dtype)
    config, directory = model.config, Path(directory)
    data = model.origin or to_hf(config) or own_config(config)
    family = family_of(data, "config.json")
    tensors = to_tensors(model, family.layout(config, parameter_shapes(model)), dtype)
    if data["model_type"] == "gpt2" and not config.bias:  # transformers' GPT-2 always has biases
        for name in [name for name in tensors if re.search(r"(c_attn|c_proj|c_fc)\.weight", name)]:
            tensors[name.removesuffix("weight") + "bias"] = tensors[name].new_zeros(tensors[name].shape[1])
    if model.tokenizer is not None:
        model.tokenizer.save(directory)
        if not model.origin:
            ends = sorted(model.tokenizer.ends)
            data |= {"bos_token_id": model.tokenizer.bos, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    write_model(directory, data, {family.written(key): x for key, x in tensors.items()})
