"""The weights of a model as named matrices, layer-norm gains and outlier coordinates, in numpy."""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from analyses._distributions import outlier_coordinates
from interp.encoder_decoder import HookedEncoderDecoder
from interp.model import MLP, Attention, HookedGPT, LayerNorm

KINDS = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out")
FIRST_POSITION = "W_pos[0] + mlp_0(ln2(W_pos[0]))"


def numpy_of(values: Tensor) -> np.ndarray:
    """A weight as numpy, in float32 unless it is float64."""
    array: np.ndarray = values.detach().cpu().to(torch.promote_types(values.dtype, torch.float32)).numpy()
    return array


Model: TypeAlias = HookedGPT | HookedEncoderDecoder


def whole_matrices(model: Model) -> Iterator[tuple[str, int, str, np.ndarray]]:
    """Name, layer (-1 outside the blocks), kind and values [row column] of every weight matrix, inputs as rows.

    A translation model's kinds say where they lie: `enc W_Q`, `dec W_in`, `cross W_V`.
    """
    if isinstance(model, HookedEncoderDecoder):
        yield from _pair_matrices(model)
        return
    width = model.config.n_heads * model.config.d_head
    for layer, block in enumerate(model.blocks):
        parts = block.attn.W_QKV.split(width, dim=1)
        weights = (*parts, block.attn.W_O_flat, block.mlp.W_in, block.mlp.W_out)
        for kind, values in zip(KINDS, weights, strict=True):
            yield f"L{layer} {kind}", layer, kind, numpy_of(values)
    yield "W_E", -1, "W_E", numpy_of(model.W_E)
    yield "W_pos", -1, "W_pos", numpy_of(model.W_pos)
    if model.unembed is not None:
        yield "W_U", -1, "W_U", numpy_of(model.unembed)


def _pair_matrices(model: HookedEncoderDecoder) -> Iterator[tuple[str, int, str, np.ndarray]]:
    stacks: tuple[tuple[str, Sequence[nn.Module]], ...] = (("enc", model.encoder), ("dec", model.decoder))
    for prefix, blocks in stacks:
        for layer, block in enumerate(blocks):
            for name, part in block.named_children():
                place = "cross" if name == "cross_attn" else prefix
                if isinstance(part, Attention):
                    width = part.n_heads * part.d_head
                    found = zip(KINDS[:4], (*part.W_QKV.split(width, dim=1), part.W_O_flat), strict=True)
                elif isinstance(part, MLP):
                    found = zip(KINDS[4:], (part.W_in, part.W_out), strict=True)
                else:
                    continue
                for kind, values in found:
                    yield f"{place} L{layer} {kind}", layer, f"{place} {kind}", numpy_of(values)
    yield "W_E", -1, "W_E", numpy_of(model.W_E)


def head_parts(model: Model, kind: str, values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each head's part of W_Q, W_K, W_V [d_model d_head] or W_O [d_head d_model]; nothing for other kinds."""
    kind = kind.split()[-1]
    if kind in KINDS[:4]:
        yield from enumerate(np.split(values, model.config.n_heads, axis=0 if kind == "W_O" else 1))


def layer_norms(model: Model) -> pd.DataFrame:
    """One row per layer norm (layer -1: the last): numbers of its gain, and mean and root mean square of its bias."""
    norms: list[tuple[str, int, LayerNorm]]
    if isinstance(model, HookedEncoderDecoder):
        norms = [(f"enc {n}", i, getattr(b, n)) for i, b in enumerate(model.encoder) for n in ("ln1", "ln2")]
        norms += [(f"dec {n}", i, getattr(b, n)) for i, b in enumerate(model.decoder) for n in ("ln1", "ln2", "ln3")]
    else:
        norms = [(n, i, getattr(block, n)) for i, block in enumerate(model.blocks) for n in ("ln1", "ln2")]
        norms.append(("ln_final", -1, model.ln_final))
    rows = []
    for name, layer, norm in norms:
        gain, bias = numpy_of(norm.w).astype(float), numpy_of(norm.b).astype(float)
        numbers = {"mean": gain.mean(), "std": gain.std(), "min": gain.min(), "max": gain.max()}
        numbers |= {f"q{q}": np.quantile(gain, q) for q in (0.05, 0.95)}
        numbers |= {"bias_mean": bias.mean(), "bias_rms": np.sqrt(np.mean(bias**2))}
        rows.append({"norm": name, "layer": layer} | numbers)
    return pd.DataFrame(rows)


def find_outliers(model: Model) -> tuple[np.ndarray, pd.DataFrame]:
    """`W_pos[0] + mlp_0(ln2(W_pos[0]))` [d_model], and the outlier coordinates of it and of the embeddings.

    For a translation model of the embedding alone: its positions are no weights.
    """
    embeddings = [("W_E", model.W_E)]
    first, sources = np.zeros(0), dict[str, np.ndarray]()
    with torch.inference_mode():
        if isinstance(model, HookedGPT):
            block, start = model.blocks[0], model.W_pos[:1][None]
            first = numpy_of((start + block.mlp(block.ln2(start)))[0, 0]).astype(float)
            literal = numpy_of((start + block.mlp(start))[0, 0]).astype(float)
            sources = {FIRST_POSITION: first, "W_pos[0] + mlp_0(W_pos[0])": literal}
            embeddings.append(("W_pos", model.W_pos))
        for name, weights in embeddings:
            wide = weights.to(torch.promote_types(weights.dtype, torch.float32))
            sources[f"{name}, root mean square"] = numpy_of(wide.square().mean(0).sqrt())
    rows = []
    for name, values in sources.items():
        outlying, deviation = outlier_coordinates(values)
        rows += [{"of": name, "coordinate": int(i), "value": values[i], "deviation": deviation[i]} for i in outlying]
    return first, pd.DataFrame(rows, columns=["of", "coordinate", "value", "deviation"])
