"""Do the heads' outputs simply add up? Concatenated and projected, against each head's own contribution.

Question: attention lays the outputs of its heads side by side and multiplies them by one matrix, W_O. Is that the same
as giving each head its own rows of W_O and adding up?

Method: for every block and position the concatenated outputs times W_O are compared with the sum over heads of
z_h W_O[h] (both in double precision), and with what the model itself computed. `contribution` is what one head writes
into the residual stream at the chosen position; `share` is its projection on the sum of all heads, over that sum's
length, so that shares sum to one. The bias b_O belongs to no head and is left out of the sum. Where a norm stands
between W_O and the stream (Gemma 2 and 3, OLMo 2), each part is its share of that norm, whose scale is held.

What the numbers do not show: which heads matter for the prediction; a long contribution may point where nothing reads.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
import torch

from analyses.shared.axes import Axes
from analyses.shared.capabilities import analysis
from analyses.shared.inputs import TextOrTokens, sequences, token_labels
from analyses.shared.panels import Finding, Panel, Result, Table, Tokens
from interp.errors import InputError
from interp.models.gpt import HookedGPT
from interp.residual import decompose_names


@dataclass(frozen=True, kw_only=True)
class HeadSumResult(Result):
    """Every head's contribution at one position."""

    tokens: Tokens
    """[pos]"""
    position: int
    contribution: np.ndarray
    """[layer head d_model] what each head writes at the position."""
    error: np.ndarray
    """[layer] largest difference, over positions and coordinates, between concatenated and summed, over the largest
    output."""
    model_error: np.ndarray
    """[layer] the same between the sum, with b_O, and what the model computed."""

    @property
    def total(self) -> np.ndarray:
        """[layer d_model] the sum over heads."""
        return np.asarray(self.contribution.sum(1))

    @property
    def share(self) -> np.ndarray:
        """[layer head] projection of each head's contribution on the sum; each layer's shares sum to one."""
        squared = (self.total**2).sum(-1)[:, None]
        return np.asarray(np.einsum("lhm,lm->lh", self.contribution, self.total) / np.where(squared > 0, squared, 1))

    def to_dataframe(self) -> pd.DataFrame:
        """One row per head: layer head length share, and its layer's error and model_error."""
        lengths, errors = self._by_head(np.linalg.norm(self.contribution, axis=-1)), (self.error, self.model_error)
        error, model_error = (each[:, None] for each in errors)
        return lengths.frame("length", share=self.share, error=error, model_error=model_error)

    @staticmethod
    def _by_head(values: np.ndarray) -> Axes:
        return Axes.of(values, layer=None, head=None)

    def facts(self) -> dict[str, object]:
        return {
            "position": self.position,
            "error": float(self.error.max()),
            "model_error": float(self.model_error.max()),
        }

    def panels(self) -> list[Panel]:
        n_layers, n_heads, width = self.contribution.shape
        parts = np.concatenate([self.contribution[0], np.full((1, width), np.nan), self.total[:1]])
        heads, coordinate = [*(f"head {i}" for i in range(n_heads)), "", "sum"], "coordinate of the residual stream"
        errors = pd.DataFrame({"layer": range(n_layers), "two ways": self.error, "sum and model": self.model_error})
        return [
            Axes.of(parts, head=heads, **{coordinate: None}).matrix(
                "heads", "What the heads of the first block write, and their sum",
                f"At position {self.position}. One row a head, one column a coordinate of the residual stream; the "
                "last row is the sum, which equals the concatenated outputs times W_O.", unit="activation",
                diverging=True, image=True,
            ),
            self._by_head(np.linalg.norm(self.contribution, axis=-1)).matrix(
                "length", "Length of each head's contribution", f"At position {self.position}.", unit="length"
            ),
            self._by_head(self.share).matrix(
                "share", "Share of the sum",
                "Projection on the sum of all heads of the block; a row sums to one. Negative: against it.",
                unit="share", diverging=True,
            ),
            Table(
                "errors", "Concatenated against summed", "Largest difference over the largest output: between the two "
                "ways, and between the sum and what the model itself computed (which rounds to its own precision).",
                frame=errors,
            ),
        ]  # fmt: skip

    def findings(self) -> list[Finding]:
        value = float(self.error.max())
        text = f"Heads add up: concatenated times W_O differs from their sum by at most {value:.0e} of the output."
        return [Finding(text, "errors", 0.1, value, "relative difference", kind="size")]


@analysis(place=22, in_report=None, runs=True)
@torch.no_grad()
def head_sum(
    model: HookedGPT,
    tokens: TextOrTokens,
    *,
    position: Annotated[int | None, "where contributions are shown, negative from the end; default: the last"] = None,
) -> HeadSumResult:
    """Contributions of all heads on the first text.

    Raises InputError for a position that is not there.
    """
    row = sequences(model, tokens)[0]
    length = row.shape[1]
    at = -1 if position is None else position
    if not -length <= at < length:
        raise InputError(f"position {position}", f"expected 0 to {length - 1}, or -1 to -{length}")
    names = [*decompose_names(model), *model.match("attn_out")]
    _, cache = model.run_with_cache(row, names=names, dtype=torch.float64, device="cpu")
    contribution, error, model_error = [], [], []
    for layer in range(model.config.n_layers):
        block = model.blocks[layer]
        attn = deepcopy(block.attn).to("cpu", torch.float64)
        post = deepcopy(block.ln1_post).to("cpu", torch.float64)
        z, out = cache["z", layer][0], cache["attn_out", layer][0]  # [pos head d_head], [pos d_model]
        scale = cache["scale", layer, "ln1_post"][0] if post.hooked else torch.ones(length, 1)
        each = post.share(attn.results(z), scale[:, None])  # [pos head d_model]
        together = post.share(z.flatten(1) @ attn.W_O.flatten(0, 1), scale)
        bias = sum(x for x in (None if attn.b_O is None else post.share(attn.b_O, scale), post.b) if x is not None)
        size = float(out.abs().max().clamp(min=1e-30))
        contribution.append(each[at].numpy())
        error.append(float((together - each.sum(1)).abs().max()) / size)
        model_error.append(float((each.sum(1) + bias - out).abs().max()) / size)
    return HeadSumResult(
        tokens=token_labels(model, row),
        position=at % length,
        contribution=np.stack(contribution),
        error=np.array(error),
        model_error=np.array(model_error),
    )
