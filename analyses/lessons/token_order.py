"""Does the order of the earlier tokens matter? Shuffle them, with and without positions.

Question: what would attention make of a text whose earlier tokens came in another order?

Method: the last token stays, all earlier ones are shuffled, and each block's attention output at the last position is
compared with the one in the right order, as a relative change (length of the difference over length of the output),
averaged over shuffles. Three ways:

- `operation alone`: the vectors that a block reads are shuffled just before it, queries and keys are not turned by
  their positions, and a window is opened. Attention sums over its keys, so its output for the last token cannot change,
  in any block.
- `model without positions`: the tokens are shuffled, position embeddings set to zero and no query or key turned. The
  first block's output cannot change (unless its window is shorter than the text). Later blocks can tell the order all
  the same: an earlier token has seen only what stood before it, because of the causal mask (Haviv et al., "Transformer
  Language Models without Positional Encodings Still Learn Positional Information", 2022).
- `model as it is`: the tokens are shuffled, positions in place, whether they are embeddings, rotations or (in a model
  that has neither) nothing.

What the numbers do not show: how well the model would do had it been trained without positions; here they are taken
from a model that was trained with them.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.shared.axes import Axes, lines
from analyses.shared.capabilities import analysis
from analyses.shared.inputs import TextOrTokens, sequences, token_labels
from analyses.shared.panels import Finding, Note, Panel, Result, Tokens
from interp.errors import InputError, check_seed
from interp.hooks import HookPoint
from interp.models.gpt import HookedGPT
from interp.models.positions import Frame

ALONE, WITHOUT, AS_IS = "operation alone", "model without positions", "model as it is"


@dataclass(frozen=True, kw_only=True)
class TokenOrderResult(Result):
    """Relative changes of each block's attention output at the last position."""

    tokens: Tokens
    """[pos]"""
    change: dict[str, np.ndarray]
    """"operation alone", "model without positions", "model as it is" -> [layer shuffle]."""
    seed: int

    def to_dataframe(self) -> pd.DataFrame:
        """One row per way, layer and shuffle: way layer shuffle change."""
        values = np.stack(list(self.change.values()))
        return Axes.of(values, way=list(self.change), layer=None, shuffle=None).frame("change")

    def panels(self) -> list[Panel]:
        n_layers, shuffles = self.change[AS_IS].shape
        text = (
            "The mask lets a token see only what stands before it. Two earlier tokens that change places see other "
            "things, so what they hand on from the first block is not the same, and later blocks can tell."
        )
        return [
            lines(
                "change", "Attention output when the earlier tokens are shuffled", "Change of a block's attention "
                "output for the last token when the earlier ones are shuffled, over the length of the output; mean of "
                f"{shuffles} shuffles. 0: the order cannot be told.",
                {way: values.mean(1) for way, values in self.change.items()}, x=np.arange(n_layers), x_axis="block",
                y_axis="relative change",
            ),
            Note("mask", "Why later blocks can tell the order without positions", text=text),
        ]  # fmt: skip

    def findings(self) -> list[Finding]:
        value, without = (float(self.change[way][0].mean()) for way in (AS_IS, WITHOUT))
        text = (
            f"Shuffling the earlier tokens changes the first block's attention output by {value:.0%}, without "
            f"positions by {without:.0%}."
        )
        return [Finding(text, "change", 0.2, value, "relative change", kind="size")]


@analysis(place=24, in_report=None, runs=True)
@torch.no_grad()
def token_order(
    model: HookedGPT,
    tokens: TextOrTokens,
    *,
    shuffles: Annotated[int, "how many random orders"] = 20,
    seed: Annotated[int, "of the random orders"] = 0,
) -> TokenOrderResult:
    """The first text with its earlier tokens in other orders.

    Raises InputError for a text of fewer than three tokens, no shuffles, or a seed out of range.
    """
    check_seed(seed)
    if shuffles < 1:
        raise InputError(f"shuffles = {shuffles}", "expected at least 1")
    row = sequences(model, tokens, at_least=3)[0]
    last = row.shape[1] - 1
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.arange(last + 1)]
    for _ in range(shuffles):
        order = torch.randperm(last, generator=generator)
        if bool((order == orders[0][:last]).all()):  # the right order is no shuffle
            order = order.roll(1)
        orders.append(torch.cat([order, torch.tensor([last])]))
    index = torch.stack(orders).to(row.device)  # [order pos], the right order first
    return TokenOrderResult(
        tokens=token_labels(model, row),
        change={
            ALONE: _alone(model, row, index),
            WITHOUT: _whole(model, row[0][index], positions=False),
            AS_IS: _whole(model, row[0][index], positions=True),
        },
        seed=seed,
    )


def _alone(model: HookedGPT, row: Tensor, index: Tensor) -> np.ndarray:
    """[layer shuffle] with the rows that each block reads shuffled."""
    residual, frame = model.embed(row)
    alone = unturned(replace(frame, masks=dict.fromkeys(frame.masks, frame.masks[None])))
    changes = []
    for layer in range(model.config.n_layers):
        block = model.blocks[layer]
        changes.append(_change(block.attn(block.ln1(residual[0][index]), alone)[:, -1]))
        residual = model.run_blocks(residual, frame, first=layer, last=layer)
    return np.stack(changes)


def unturned(frame: Frame) -> Frame:
    """The same pass with no query and no key turned by its position."""
    still = {turn: (torch.ones_like(cos), torch.zeros_like(sin)) for turn, (cos, sin) in frame.rotations.items()}
    return replace(frame, rotations=still)


def _whole(model: HookedGPT, many: Tensor, *, positions: bool) -> np.ndarray:
    """[layer shuffle] with the tokens [order pos] themselves shuffled."""
    found: list[np.ndarray] = []

    def no_positions(x: Tensor, hook: HookPoint) -> Tensor:
        return torch.zeros_like(x)

    def keep(x: Tensor, hook: HookPoint) -> None:
        found.append(_change(x[:, -1]))

    learned = model.config.positions == "learned" and not positions
    place = [("hook_pos_embed", no_positions)] if learned else []
    with model.hooks([*place, ("attn_out", keep)]):
        residual, frame = model.embed(many)
        model.run_blocks(residual, frame if positions else unturned(frame))
    return np.stack(found)


def _change(x: Tensor) -> np.ndarray:
    """[shuffle] of rows 1.. of [order d_model] against row 0."""
    x = x.double().cpu()
    return np.asarray(((x[1:] - x[:1]).norm(dim=1) / x[0].norm().clamp(min=1e-30)).numpy())
