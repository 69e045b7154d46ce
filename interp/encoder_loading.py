"""Loading and saving encoders and encoder-decoders: Marian, BERT and ViT directories in Hugging Face layout.

As in `interp.loading`, every tensor's presence and shape is checked before any is used. Files keep queries, keys and
values apart; here they are one matrix, taken apart again when the model is saved.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

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
from interp.errors import InputError, LoadError, NotFoundError
from interp.files import atomic_path
from interp.loading import Reader, check_shapes, choose_device, find, open_tensors, read_json, weight_files
from interp.model import HookedGPT
from interp.text_pairs import load_pair_tokenizer
from interp.wordpiece import WordPiece

AnyModel = HookedGPT | HookedEncoder | HookedEncoderDecoder
Kind = TypeVar("Kind", HookedEncoder, HookedEncoderDecoder)


@dataclass(frozen=True)
class Stored:
    """Where a file keeps one of our parameters."""

    keys: tuple[str, ...]
    """Its tensor, or three: queries, keys and values, side by side in ours."""
    linear: bool = False
    """Whether it is the matrix of a linear layer, which files hold as [out in ...] and we as [in out]."""
    shape: tuple[int, ...] | None = None
    """Of each tensor in the file, where it is not the one that follows from ours."""

    def file_shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        if self.shape is not None:
            return self.shape
        part = (*ours[:-1], ours[-1] // len(self.keys))
        return part[::-1] if self.linear else part

    def to_ours(self, tensors: list[Tensor], ours: tuple[int, ...]) -> Tensor:
        parts = [x.flatten(1).T if self.linear else x for x in tensors]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).reshape(ours)

    def to_file(self, ours: Tensor) -> dict[str, Tensor]:
        shape = self.file_shape(tuple(ours.shape))
        parts = ours.chunk(len(self.keys), dim=-1)
        return {
            key: (x.T if self.linear else x).reshape(shape).contiguous()
            for key, x in zip(self.keys, parts, strict=True)
        }


def _norm(name: str) -> dict[str, Stored]:
    return {"w": Stored((f"{name}.weight",)), "b": Stored((f"{name}.bias",))}


def _linear(*names: str) -> tuple[Stored, Stored]:
    return Stored(tuple(f"{n}.weight" for n in names), linear=True), Stored(tuple(f"{n}.bias" for n in names))


def _block(attention: Mapping[str, tuple[list[str], str]], mlp: tuple[str, str], norms: list[str]) -> dict[str, Stored]:
    """The parameters of a block: of each attention its three projections and its output, the MLP's two, the norms."""
    found: dict[str, Stored] = {}
    for name, (projections, out) in attention.items():
        found[f"{name}.W_QKV"], found[f"{name}.b_QKV"] = _linear(*projections)
        found[f"{name}.W_O_flat"], found[f"{name}.b_O"] = _linear(out)
    found["mlp.W_in"], found["mlp.b_in"] = _linear(mlp[0])
    found["mlp.W_out"], found["mlp.b_out"] = _linear(mlp[1])
    for number, norm in enumerate(norms, start=1):
        found |= {f"ln{number}.{part}": stored for part, stored in _norm(norm).items()}
    return found


def _prefixed(block: Mapping[str, Stored], ours: str, theirs: str) -> dict[str, Stored]:
    return {
        f"{ours}.{name}": Stored(tuple(f"{theirs}.{key}" for key in stored.keys), stored.linear, stored.shape)
        for name, stored in block.items()
    }


def marian_layout(config: EncoderDecoderConfig) -> dict[str, Stored]:
    """Our parameter -> where Marian's files keep it."""
    found = {"W_E": Stored(("model.shared.weight",)), "b_U": Stored(("final_logits_bias",), shape=(1, config.d_vocab))}

    def attention(name: str) -> tuple[list[str], str]:
        return [f"{name}.{part}_proj" for part in "qkv"], f"{name}.out_proj"

    own, mlp = {"attn": attention("self_attn")}, ("fc1", "fc2")
    encoder = _block(own, mlp, ["self_attn_layer_norm", "final_layer_norm"])
    norms = ["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"]
    decoder = _block(own | {"cross_attn": attention("encoder_attn")}, mlp, norms)
    for stack, block, layers in (
        ("encoder", encoder, config.n_encoder_layers),
        ("decoder", decoder, config.n_decoder_layers),
    ):
        for layer in range(layers):
            found |= _prefixed(block, f"{stack}.{layer}", f"model.{stack}.layers.{layer}")
    return found


def bert_layout(config: EncoderConfig) -> dict[str, Stored]:
    """Our parameter -> where BERT's files keep it (without `bert.`)."""
    found = {
        f"embed.{ours}": Stored((f"embeddings.{theirs}_embeddings.weight",))
        for ours, theirs in (("W_E", "word"), ("W_pos", "position"), ("W_type", "token_type"))
    }
    found |= {f"embed.ln.{part}": stored for part, stored in _norm("embeddings.LayerNorm").items()}
    projections = [f"attention.self.{part}" for part in ("query", "key", "value")]
    block = _block(
        {"attn": (projections, "attention.output.dense")},
        ("intermediate.dense", "output.dense"),
        ["attention.output.LayerNorm", "output.LayerNorm"],
    )
    for layer in range(config.n_layers):
        found |= _prefixed(block, f"blocks.{layer}", f"encoder.layer.{layer}")
    if config.head:
        found["head.W"], found["head.b"] = _linear("cls.predictions.transform.dense")
        found |= {f"head.ln.{part}": stored for part, stored in _norm("cls.predictions.transform.LayerNorm").items()}
        found["b_U"] = Stored(("cls.predictions.bias",))
    return found


def vit_layout(config: EncoderConfig) -> dict[str, Stored]:
    """Our parameter -> where ViT's files keep it (without `vit.`)."""
    patches = "embeddings.patch_embeddings.projection"
    found = {
        "embed.W_E": Stored(
            (f"{patches}.weight",), linear=True, shape=(config.d_model, config.n_channels, *config.patch_size)
        ),
        "embed.b_E": Stored((f"{patches}.bias",)),
        "embed.class_token": Stored(("embeddings.cls_token",), shape=(1, 1, config.d_model)),
        "embed.W_pos": Stored(("embeddings.position_embeddings",), shape=(1, config.n_ctx, config.d_model)),
    }
    found |= {f"ln_final.{part}": stored for part, stored in _norm("layernorm").items()}
    projections = [f"attention.attention.{part}" for part in ("query", "key", "value")]
    block = _block(
        {"attn": (projections, "attention.output.dense")},
        ("intermediate.dense", "output.dense"),
        ["layernorm_before", "layernorm_after"],
    )
    for layer in range(config.n_layers):
        found |= _prefixed(block, f"blocks.{layer}", f"encoder.layer.{layer}")
    if config.head:
        found |= {"unembed": Stored(("classifier.weight",)), "b_U": Stored(("classifier.bias",))}
    return found


def _layout(config: EncoderConfig | EncoderDecoderConfig) -> dict[str, Stored]:
    if isinstance(config, EncoderDecoderConfig):
        return marian_layout(config)
    return vit_layout(config) if config.over_patches else bert_layout(config)


def model_type(directory: Path) -> str:
    """What the directory's `config.json` says it holds: gpt2, marian, bert, vit; "" where it does not say.

    Raises NotFoundError without a config.json.
    """
    path = directory / "config.json"
    if not path.exists():
        raise NotFoundError(f"{directory} has no config.json", "expected a model directory in Hugging Face layout")
    return str(read_json(path).get("model_type", ""))


def load_any(
    source: str | Path, *, device: str | torch.device = "auto", dtype: torch.dtype = torch.float32
) -> AnyModel:
    """The model at a bundled name, a directory or a hub id, of whichever kind it is. Raises as `loading.load`."""
    from interp.loading import load

    kind = model_type(find(source))
    if kind == "marian":
        return load_encoder_decoder(source, device=device, dtype=dtype)
    if kind in ("bert", "vit"):
        return load_encoder(source, device=device, dtype=dtype)
    return load(source, device=device, dtype=dtype)


def load_encoder_decoder(
    source: str | Path, *, device: str | torch.device = "auto", dtype: torch.dtype = torch.float32
) -> HookedEncoderDecoder:
    """A Marian model. Raises NotFoundError and LoadError as `interp.loading.load`."""
    target, directory = choose_device(device), find(source)
    data = _config(directory, {"marian": "HookedEncoderDecoder"})
    generation_path = directory / "generation_config.json"
    generation = read_json(generation_path) if generation_path.exists() else {}
    config = encoder_decoder_from_hf(data, generation, str(directory / "config.json"))
    with torch.device("meta"):
        model = HookedEncoderDecoder(config, tokenizer=load_pair_tokenizer(directory))
    readers = _readers(directory, lambda key: key)
    _fill(model, readers, directory, source, target, dtype, _marian_leftover)
    model.W_pos = sinusoids(config.n_ctx, config.d_model).to(device=target, dtype=dtype)
    return model


def load_encoder(
    source: str | Path, *, device: str | torch.device = "auto", dtype: torch.dtype = torch.float32
) -> HookedEncoder:
    """A BERT or ViT; the weights say whether there is a masked-language head or a classifier. Raises as above."""
    target, directory = choose_device(device), find(source)
    data = _config(directory, {"bert": "HookedEncoder", "vit": "HookedEncoder"})
    where, named = str(directory / "config.json"), data.get("architectures") or [""]
    readers = _readers(directory, _plain_key)
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
    _fill(model, readers, directory, source, target, dtype, _encoder_leftover)
    return model


def _config(directory: Path, kinds: Mapping[str, str]) -> dict[str, Any]:
    kind = model_type(directory)
    if kind not in kinds:
        right = {"marian": "HookedEncoderDecoder", "bert": "HookedEncoder", "vit": "HookedEncoder", "gpt2": "HookedGPT"}
        raise LoadError(
            f"{directory / 'config.json'}: model_type = {kind!r}",
            f"expected {' or '.join(map(repr, kinds))}",
            f"use {right[kind]}.from_pretrained" if kind in right else "",
        )
    return read_json(directory / "config.json")


def _plain_key(key: str) -> str:
    key = key.removeprefix("bert.").removeprefix("vit.")
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


Readers = dict[str, tuple[tuple[int, ...], Reader]]


def _readers(directory: Path, rename: Callable[[str], str]) -> Readers:
    return {rename(key): reader for file in weight_files(directory) for key, reader in open_tensors(file).items()}


def _fill(
    model: HookedEncoder | HookedEncoderDecoder,
    readers: Readers,
    directory: Path,
    source: str | Path,
    device: torch.device,
    dtype: torch.dtype,
    leftover: Callable[[str, Tensor, Readers], str],
) -> None:
    """Give a model on the meta device its weights, after all names and shapes have been checked."""
    layout = _layout(model.config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    optional = {key for key in _zero_when_absent(model) if key not in readers}
    wanted = {key: layout[name].file_shape(shape) for name, shape in shapes.items() for key in layout[name].keys}
    check_shapes(
        {key: shape for key, (shape, _) in readers.items()},
        {key: shape for key, shape in wanted.items() if key not in optional},
        directory,
    )
    for key in readers.keys() - wanted.keys():
        problem = leftover(key, readers[key][1](), readers)
        if problem:
            raise LoadError(f"{directory}: tensor {key} {problem}", f"shape {list(readers[key][0])}")
    state = {}
    for name, shape in shapes.items():
        parts = [torch.zeros(wanted[k]) if k in optional else readers[k][1]() for k in layout[name].keys]
        ours = layout[name].to_ours([part.to(device=device, dtype=dtype) for part in parts], shape)
        state[name] = ours.contiguous()
    model.load_state_dict(state, assign=True)
    model.source, model.weight_files = str(source), tuple(weight_files(directory))


def _zero_when_absent(model: HookedEncoder | HookedEncoderDecoder) -> list[str]:
    """Tensors that some files leave out because they are zero: the logits' bias, a ViT's biases of q, k and v."""
    layout = _layout(model.config)
    if isinstance(model, HookedEncoderDecoder):
        return list(layout["b_U"].keys)
    patches = model.config.over_patches
    return [key for name, stored in layout.items() if patches and name.endswith("b_QKV") for key in stored.keys]


def _same(key: str, x: Tensor, readers: Readers, other: str) -> str:
    same = other in readers and torch.equal(x.reshape(-1), readers[other][1]().reshape(-1))
    return "" if same else f"differs from {other}, with which it should be tied"


def _marian_leftover(key: str, x: Tensor, readers: Readers) -> str:
    """What is wrong with a tensor that is no parameter of ours; "" when nothing is."""
    if key in ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"):
        return _same(key, x, readers, "model.shared.weight")
    if key.endswith("embed_positions.weight"):
        near = x.ndim == 2 and torch.allclose(x.float(), sinusoids(*x.shape), atol=1e-3)
        return "" if near else "does not hold sinusoids"
    return "is not part of a Marian model"


def _encoder_leftover(key: str, x: Tensor, readers: Readers) -> str:
    if key == "cls.predictions.decoder.weight":
        return _same(key, x, readers, "embeddings.word_embeddings.weight")
    if key == "cls.predictions.decoder.bias":
        return _same(key, x, readers, "cls.predictions.bias")
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
    layout, tensors = _layout(config), {}
    for name, parameter in model.named_parameters():
        for key, x in layout[name].to_file(parameter.detach().to(device="cpu", dtype=dtype)).items():
            tensors[_saved_key(key, config)] = x.clone()
    kind = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    if isinstance(config, EncoderDecoderConfig):
        data, generation = encoder_decoder_to_hf(config)
        _write_json(directory / "generation_config.json", generation)
    else:
        data = encoder_to_hf(config)
    _write_json(directory / "config.json", data | {"dtype": kind})
    if model.tokenizer is not None:
        model.tokenizer.save(directory)
    with atomic_path(directory / "model.safetensors") as path:
        save_file(tensors, str(path), metadata={"format": "pt"})
        path.chmod(0o644)


def _saved_key(key: str, config: EncoderConfig | EncoderDecoderConfig) -> str:
    """With the prefix that models with a head have."""
    if isinstance(config, EncoderDecoderConfig) or not config.head or key.startswith(("cls.", "classifier.")):
        return key
    return f"{'vit' if config.over_patches else 'bert'}.{key}"


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n")
