"""Activations and a model in which it is known where a concept can be read off."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from handmade import induction_model

from analyses.probes.data import Held, split_texts
from interp.models.config import GPTConfig
from interp.models.gpt import HookedGPT

CLASS = range(20)
"""Tokens that make the concept true of whatever follows them."""


def manifest(texts: int, length: int, token: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """One window a text."""
    text = np.repeat(np.arange(texts), length)
    place = np.tile(np.arange(length), texts)
    split = split_texts(text, seed)
    return pd.DataFrame(
        {"text": text, "position": place, "token": token, "split": split, "sequence": text, "place": place}
    )


def planted(
    where: Sequence[int], *, layers: int = 5, width: int = 12, texts: int = 40, length: int = 50, classes: int = 2
):
    """Noise at every layer, and a concept of its own in every text position at the layers named: (activations, labels).

    The concept lies along random directions, with a strength that lets a perfect reader be right 98 % of the time.
    """
    rng = np.random.default_rng(0)
    codes = rng.integers(0, classes, texts * length)
    directions = np.linalg.qr(rng.normal(size=(width, classes)))[0].T
    values = {}
    for layer in range(layers):
        x = rng.normal(size=(len(codes), width)) @ (np.eye(width) + 0.3 * rng.normal(size=(width, width))) + 5.0
        values[f"blocks.{layer}.hook_resid_post"] = x + (3.5 * directions[codes] if layer in where else 0.0)
    return Held(values, manifest(texts, length, rng.integers(0, 30, len(codes)))), codes


def previous_token_model() -> tuple[HookedGPT, torch.Tensor, np.ndarray]:
    """A model whose layer 0 writes which token came before; random tokens [text pos]; whether it was one of CLASS.

    The tokens are drawn independently, so before attention nothing tells the label; -1 at the first position.
    """
    model, _ = induction_model()
    tokens = torch.randint(0, 40, (60, 40), generator=torch.Generator().manual_seed(0))
    labels = np.full(tokens.shape, -1)
    labels[:, 1:] = np.isin(tokens[:, :-1].numpy(), list(CLASS))
    return model, tokens, labels.ravel()


def model_that_uses_a_class() -> tuple[HookedGPT, torch.Tensor, np.ndarray]:
    """A model whose predictions rest on one coordinate: whether the token is one of CLASS; tokens [text pos]; labels.

    After a token of CLASS the next one is among 0-9 and 30-39, after any other among 10-29, evenly. The model knows it
    (loss about log 20), and without that coordinate it can only guess (log 40).
    """
    config = GPTConfig(n_layers=2, n_heads=1, d_model=16, d_head=8, d_mlp=4, n_ctx=40, d_vocab=40, tied=False)
    model = HookedGPT(config)
    generator = torch.Generator().manual_seed(0)
    told = torch.where(torch.isin(torch.arange(40), torch.tensor(list(CLASS))), 2.0, -2.0)
    group = torch.where((torch.arange(40) < 10) | (torch.arange(40) >= 30), 6.0, -6.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name.endswith(".w") else 0.0)
        model.W_E[:, :15] = torch.randn(40, 15, generator=generator)
        model.W_E[:, 15] = told
        model.unembed[:, 15] = group
    columns = [torch.randint(0, 40, (50,), generator=generator)]
    for _ in range(39):
        after = torch.randint(0, 20, (50,), generator=generator)
        columns.append(torch.where(columns[-1] < 20, (after + 30) % 40, after + 10))
    tokens = torch.stack(columns, 1)
    return model, tokens, np.isin(tokens.numpy(), list(CLASS)).astype(int).ravel()
