"""The one-file format of llama2.c: a header of seven whole numbers, then all weights in float32 (its first version)."""

import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import LoadError
from interp.loading.families import FAMILIES
from interp.loading.layouts import Readers
from interp.models.config import GPTConfig
from interp.text.tokenizer import Tokenizer
from interp.text.vocabularies import SPACE, from_scores
from interp.untrusted import VOCABULARY_LIMIT, regular

HEADER = struct.Struct("<7i")


def read(file: Path) -> tuple[GPTConfig, Readers]:
    """Config, and the tensors under the names of Llama's files. Raises LoadError for a file of another kind or size."""
    with file.open("rb") as stream:
        head = stream.read(HEADER.size)
    numbers = HEADER.unpack(head) if len(head) == HEADER.size else (0,) * 7
    d_model, d_mlp, layers, heads, kv_heads, vocab, context = numbers
    tied, vocab = vocab > 0, abs(vocab)
    wrong = LoadError(
        f"{file}: not a model of llama2.c, or cut short",
        "expected seven whole numbers, then as many float32 as they say",
    )
    if not (
        0 < d_model < 1 << 16 and 0 < heads <= d_model and 0 < layers < 1 << 12 and min(d_mlp, kv_heads, context) > 0
    ):
        raise wrong
    config = GPTConfig(
        n_layers=layers, n_heads=heads, n_kv_heads=kv_heads, d_model=d_model, d_mlp=d_mlp, n_ctx=context, d_vocab=vocab,
        norm="rms", eps=1e-5, positions="rotary", rotary_interleaved=True, gated=True, act_fn="silu", bias=False,
        tied=tied,
    )  # fmt: skip
    numbers_there = np.memmap(file, "<f4", "r", HEADER.size, ((file.stat().st_size - HEADER.size) // 4,))
    readers, start = Readers(), 0
    for key, shape in _tensors(config):
        size = int(np.prod(shape))
        part = numbers_there[start : start + size]
        if part.size < size:
            raise wrong
        if key:
            readers[key] = shape, partial(_tensor, part, shape)
        start += size
    if start != numbers_there.size or file.stat().st_size % 4:
        raise wrong
    return config, readers


def _tensor(part: Any, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.array(part).reshape(shape))


def _tensors(c: GPTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name (none for tables that we compute) and shape, in the file's order: each kind of matrix for all layers."""
    d, queries, keys = c.d_model, c.n_heads * c.d_head, c.n_kv_heads * c.d_head
    yield "embed_tokens.weight", (c.d_vocab, d)
    for key, shape in {
        "input_layernorm": (d,), "self_attn.q_proj": (queries, d), "self_attn.k_proj": (keys, d),
        "self_attn.v_proj": (keys, d), "self_attn.o_proj": (d, queries), "post_attention_layernorm": (d,),
        "mlp.gate_proj": (c.d_mlp, d), "mlp.down_proj": (d, c.d_mlp), "mlp.up_proj": (c.d_mlp, d),
    }.items():  # fmt: skip
        for layer in range(c.n_layers):
            yield f"layers.{layer}.{key}.weight", shape
    yield "norm.weight", (d,)
    yield "", (2, c.n_ctx, c.d_head // 2)  # cosines and sines of the rotation
    if not c.tied:
        yield "lm_head.weight", (c.d_vocab, d)


FAMILY = FAMILIES["llama"]


def read_tokenizer(model: Path, d_vocab: int) -> Tokenizer | None:
    """The vocabulary in the one `tok*.bin` beside the model that has its size; None where there is no such file.

    Raises LoadError for a damaged file, or several that fit.
    """
    files = [file for file in sorted(model.parent.glob("tok*.bin")) if file != model]
    found = [pieces for file in files if len(pieces := _pieces(file)) == d_vocab]
    if not found:
        return None
    if len(found) > 1:
        raise LoadError(f"{model}: {len(found)} vocabularies of {d_vocab} pieces beside it", "expected one tok*.bin")
    scores, texts = zip(*found[0], strict=True)
    names = [text.replace(" ", SPACE) for text in texts]
    names[:3] = ["<unk>", "<s>", "</s>"]
    backend = from_scores(names, scores, added=(0, 1, 2), unknown=0, prefix=True)
    return Tokenizer(backend, bos=1, ends=(2,))


def _pieces(file: Path) -> list[tuple[float, str]]:
    """Score and text of each piece: after the longest length, for each a float, its length in bytes, the bytes."""
    data, at, found = regular(file, VOCABULARY_LIMIT).read_bytes(), 4, []
    try:
        while at < len(data):
            score, length = struct.unpack_from("<fi", data, at)
            text = data[at + 8 : at + 8 + length].decode("utf-8")
            if len(text.encode()) != length:
                raise ValueError("cut short")
            found.append((score, text))
            at += 8 + length
    except (struct.error, ValueError):
        raise LoadError(
            f"{file} cannot be read", "expected a vocabulary of llama2.c, or no tok*.bin", "fetch it again"
        ) from None
    return found
