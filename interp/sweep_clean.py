"""The clean run of a sweep: the activations that its variants start from."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from interp.hooks import HookPoint
from interp.interventions import axes
from interp.model import HookedGPT, banded
from interp.sweep_edits import Edit, Positions, common, places, put, take

Edits: TypeAlias = Mapping[str, Sequence[Edit]]
"""The edits of one variant, by full hook name."""

EMBEDDING = ("hook_embed", "hook_pos_embed")
QKV = ("attn.hook_q", "attn.hook_k", "attn.hook_v")


class Rows(NamedTuple):
    """Some positions of one variant, and an activation there [batch pos ...]."""

    positions: Positions
    x: Tensor


class CleanRun:
    """The run without interventions, down to the last normalised residual stream, and the activations it kept."""

    def __init__(
        self, model: HookedGPT, tokens: Tensor, attention_mask: Tensor | None, names: Iterable[str], last: int
    ) -> None:
        """`names`: hook points to keep; `last`: the last layer to run."""
        self.model = model
        self.batch, self.length = tokens.shape
        self.all = tuple(range(self.length))
        self.kept: dict[str, Tensor] = {}
        with model.hooks([(list(names), self._keep)], reads_only=True):
            residual, self.mask = model.embed(tokens, attention_mask)
            for block in model.blocks[: last + 1]:
                residual = block(residual, self.mask)
            self.normalized = model.ln_final(residual)
        row = torch.arange(self.length, device=tokens.device)
        dense = (row <= row[:, None])[None, None] if self.mask is None else self.mask
        windows = [block.attn.window for block in model.blocks[: last + 1]]
        bands = {w: dense if w is None else banded(dense, w, self.length, self.length, row.device) for w in windows}
        self.allowed = [bands[window] for window in windows]
        """By layer, where attention is allowed [batch or 1, 1, query, key]."""

    def _keep(self, x: Tensor, hook: HookPoint) -> None:
        self.kept[hook.name] = x

    def at(self, name: str, positions: Positions) -> Tensor:
        """The clean activation at these positions."""
        x = self.kept[name]
        return take(x, places(positions, self.all, x.device), axes(name)[0])

    def complete(self, x: Tensor, have: Positions, want: Positions, name: str) -> Tensor:
        """x [variant batch pos ...] at the positions wanted: its own rows where it has them, clean ones elsewhere."""
        if have == want:
            return x
        both = common(have, want)
        if both == want:
            return take(x, places(want, have, x.device), 2)
        out = self.at(name, want).expand(x.shape[0], *[-1] * (x.ndim - 1)).clone()
        if both:
            put(out, places(both, want, x.device), 2, take(x, places(both, have, x.device), 2))
        return out

    def completed(self, rows: Rows, want: Positions, name: str) -> Tensor:
        """One variant's rows at the positions wanted [batch pos ...]."""
        return self.complete(rows.x[None], rows.positions, want, name)[0]


def clean_names(model: HookedGPT, edited: Iterable[str], collected: Iterable[str], last: int) -> list[str]:
    """The hook points whose clean activations the engine needs for variants that edit these."""
    names = {*collected, f"blocks.{last}.hook_resid_post"}
    for layer in range(last + 1):
        names |= {f"blocks.{layer}.{site}" for site in ("hook_resid_pre", "hook_resid_mid", *QKV)}
    for name in edited:
        base = ".".join(name.split(".")[:2])
        if not name.endswith("hook_result"):  # large, and never read
            names.add(name)
        if ".attn." in name or name.endswith("hook_attn_out"):
            names |= {f"{base}.attn.hook_z", f"{base}.hook_attn_out"}
        if ".mlp." in name or name.endswith("hook_mlp_out"):
            names |= {f"{base}.mlp.hook_pre", f"{base}.mlp.hook_post", f"{base}.hook_mlp_out"}
        if name in EMBEDDING:
            names |= set(EMBEDDING)
    return [name for name in model.hook_points if name in names]
