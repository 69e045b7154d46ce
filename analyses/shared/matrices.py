"""The weights of a model as named matrices, norms' gains and outlier coordinates, in numpy."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from analyses.shared.distributions import outlier_coordinates
from analyses.shared.stacks import Model, attentions
from interp.models.kernels import wide
from interp.models.parts import MLP, Attention, Norm

KINDS = ("W_Q", "W_K", "W_V", "W_O", "W_gate", "W_in", "W_out")
FIRST_POSITION = "W_pos[0] + mlp_0(ln2(W_pos[0]))"
ROWS = 1 << 15
"""Rows of an embedding that are looked at together: some have a quarter of a million."""


def numpy_of(values: Tensor) -> np.ndarray:
    """A weight as numpy, in float32 unless it is float64."""
    array: np.ndarray = wide(values.detach().cpu()).numpy()
    return array


def _blocks(model: Model) -> Iterator[tuple[dict[str, str], int, nn.Module]]:
    """Layer and block of every block of every stack, with the word for each of its parts before names of matrices; that
    of "" is for the others."""
    stacks = attentions(model)
    for path in dict.fromkeys(stack.path for stack in stacks):
        own = [stack for stack in stacks if stack.path == path]
        words = {stack.part: f"{stack.short} ".lstrip() for stack in own}
        for layer, block in enumerate(own[0].blocks):
            yield words | {"": words["attn"]}, layer, block


def _inside(model: Model) -> tuple[str, ...]:
    """What names of a model's modules and parameters that lie in blocks begin with."""
    return tuple(f"{stack.path}." for stack in attentions(model))


def whole_matrices(model: Model) -> Iterator[tuple[str, int, str, Tensor]]:
    """Name, layer (-1 outside the blocks), kind and values [row column] of every weight matrix, inputs as rows.

    A translation model's kinds say where they lie: `enc W_Q`, `dec W_in`, `cross W_V`. Outside the blocks are `W_E`,
    `W_pos` where it is learned, `W_U` where it is not tied, and of a BERT `W_type` and the head's `head W`.
    """
    for words, layer, block in _blocks(model):
        for name, part in block.named_children():
            word = words.get(name, words[""])
            for weight, values in part.named_parameters(recurse=False) if isinstance(part, (Attention, MLP)) else ():
                if values.ndim == 2:
                    kind = weight.removesuffix("_flat")
                    yield f"{word}L{layer} {kind}", layer, word + kind, values
    for name, values in model.named_parameters():
        if values.ndim == 2 and not name.startswith(_inside(model)):
            kind = "W_U" if name == "unembed" else name.removeprefix("embed.").replace(".", " ")
            yield kind, -1, kind, values


def head_parts(model: Model, kind: str, values: np.ndarray) -> Iterator[tuple[int, str, np.ndarray]]:
    """Number, label and values of each head's part of W_Q, W_K, W_V [d_model d_head] or W_O [d_head d_model]; nothing
    for other kinds. Where queries share keys and values, the parts of W_K and W_V are kv heads: `KV1`, not `H1`."""
    kind, c = kind.split()[-1], model.config
    if kind in KINDS[:4]:
        count = c.n_kv_heads if kind in ("W_K", "W_V") else c.n_heads
        letter = "H" if count == c.n_heads else "KV"
        for head, part in enumerate(np.split(values, count, axis=0 if kind == "W_O" else 1)):
            yield head, f"{letter}{head}", part


def norm_gains(model: Model) -> pd.DataFrame:
    """One row per norm (layer -1: outside the blocks): numbers of its gain, mean and root mean square of its bias."""
    norms = [
        (words[""] + name, layer, part)
        for words, layer, block in _blocks(model)
        for name, part in block.named_modules()
        if isinstance(part, Norm)
    ]
    others = [(name, part) for name, part in model.named_modules() if not name.startswith(_inside(model))]
    norms += [(name, -1, part) for name, part in others if isinstance(part, Norm)]
    rows = []
    for name, layer, norm in norms:
        gain = numpy_of(norm.gain).astype(float)
        numbers = {"mean": gain.mean(), "std": gain.std(), "min": gain.min(), "max": gain.max()}
        numbers |= {f"q{q}": np.quantile(gain, q) for q in (0.05, 0.95)}
        if norm.b is not None:
            bias = numpy_of(norm.b).astype(float)
            numbers |= {"bias_mean": bias.mean(), "bias_rms": np.sqrt(np.mean(bias**2))}
        rows.append({"norm": name, "layer": layer} | numbers)
    return pd.DataFrame(rows)


def find_outliers(model: Model) -> tuple[np.ndarray, pd.DataFrame]:
    """`W_pos[0] + mlp_0(ln2(W_pos[0]))` [d_model], and the outlier coordinates of it and of the embeddings.

    Of the embeddings alone for what is no decoder with learned positions and MLPs: then the first is empty.
    """
    embeddings = [(name, values) for name, _, _, values in whole_matrices(model) if name in ("W_E", "W_pos")]
    first, sources = np.zeros(0), dict[str, np.ndarray]()
    block: Any = attentions(model)[0].blocks[0]
    if getattr(model.config, "positions", None) == "learned" and block.mlp is not None:
        start = dict(embeddings)["W_pos"][:1][None]
        with torch.inference_mode():
            ends = [start + block.ln2_post(block.mlp(x)) for x in (block.ln2(start), start)]
        first, literal = (numpy_of(end[0, 0]).astype(float) for end in ends)
        sources = {FIRST_POSITION: first, "W_pos[0] + mlp_0(W_pos[0])": literal}
    for name, weights in embeddings:
        squares = torch.stack([wide(part.detach()).square().sum(0) for part in weights.split(ROWS)])
        sources[f"{name}, root mean square"] = numpy_of((squares.sum(0) / len(weights)).sqrt())
    rows = []
    for name, values in sources.items():
        outlying, deviation = outlier_coordinates(values)
        rows += [{"of": name, "coordinate": int(i), "value": values[i], "deviation": deviation[i]} for i in outlying]
    return first, pd.DataFrame(rows, columns=["of", "coordinate", "value", "deviation"])
