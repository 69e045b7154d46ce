"""The weights of a model as named matrices, norms' gains and outlier coordinates, in numpy."""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from analyses.shared.distributions import outlier_coordinates
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.gpt import HookedGPT
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


Model: TypeAlias = HookedGPT | HookedEncoderDecoder


def stacks(model: Model) -> tuple[tuple[str, Sequence[nn.Module]], ...]:
    """Prefix of their names, and blocks, of each stack of a model."""
    if isinstance(model, HookedEncoderDecoder):
        return ("enc ", model.encoder), ("dec ", model.decoder)
    return (("", model.blocks),)


def whole_matrices(model: Model) -> Iterator[tuple[str, int, str, Tensor]]:
    """Name, layer (-1 outside the blocks), kind and values [row column] of every weight matrix, inputs as rows.

    A translation model's kinds say where they lie: `enc W_Q`, `dec W_in`, `cross W_V`.
    """
    for prefix, blocks in stacks(model):
        for layer, block in enumerate(blocks):
            for name, part in block.named_children():
                place = "cross " if name == "cross_attn" else prefix
                if isinstance(part, (Attention, MLP)):
                    for weight, values in part.named_parameters(recurse=False):
                        if values.ndim == 2:
                            kind = weight.removesuffix("_flat")
                            yield f"{place}L{layer} {kind}", layer, place + kind, values
    yield "W_E", -1, "W_E", model.W_E
    if isinstance(model, HookedGPT):
        if model.config.positions == "learned":
            yield "W_pos", -1, "W_pos", model.W_pos
        if model.unembed is not None:
            yield "W_U", -1, "W_U", model.unembed


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
    """One row per norm (layer -1: the last): numbers of its gain, and mean and root mean square of its bias if any."""
    norms = [
        (prefix + name, layer, part)
        for prefix, blocks in stacks(model)
        for layer, block in enumerate(blocks)
        for name, part in block.named_modules()
        if isinstance(part, Norm)
    ]
    if isinstance(model, HookedGPT) and isinstance(model.ln_final, Norm):
        norms.append(("ln_final", -1, model.ln_final))
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

    Of the embeddings alone for a model whose positions are no weights, or without MLPs: then the first is empty.
    """
    embeddings = [("W_E", model.W_E)]
    first, sources = np.zeros(0), dict[str, np.ndarray]()
    if isinstance(model, HookedGPT) and model.config.positions == "learned":
        embeddings.append(("W_pos", model.W_pos))
        block, start = model.blocks[0], model.W_pos[:1][None]
        if block.mlp is not None:
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
