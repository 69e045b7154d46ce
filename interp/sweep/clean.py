"""The clean run of a sweep: the activations that its variants start from."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from interp.hooks import HookPoint
from interp.interventions import axes
from interp.models.gpt import HookedGPT
from interp.models.parts import Attention, ParallelBlock
from interp.sweep.edits import Edit, Positions, common, places, put, take

Edits: TypeAlias = Mapping[str, Sequence[Edit]]
"""The edits of one variant, by full hook name."""

EMBEDDING = ("hook_embed", "hook_pos_embed")
QKV = ("attn.hook_q", "attn.hook_k", "attn.hook_v")
ROTATED = ("attn.hook_rot_q", "attn.hook_rot_k")
BETWEEN = "between"
"""In a parallel block, the stream with what attention wrote but not yet the MLP: no hook point, kept by this name."""


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
            residual, self.frame = model.embed(tokens, attention_mask)
            self.normalized = model.ln_final(model.run_blocks(residual, self.frame, last=last))
        for layer, block in enumerate(model.blocks[: last + 1]):
            if isinstance(block, ParallelBlock):
                base = f"blocks.{layer}."
                self.kept[base + BETWEEN] = self.kept[base + "hook_resid_pre"] + self.kept[base + "hook_attn_out"]
        self._allowed: dict[int | None, Tensor] = {}
        self._raw: dict[tuple[int, str], Tensor] = {}
        self._rows: dict[Positions, Tensor] = {}

    def allowed(self, attn: Attention, queries: Positions) -> Tensor:
        """Where a layer's attention is allowed for these queries [batch or 1, 1, query, key]."""
        if attn.window not in self._allowed:
            row, mask = torch.arange(self.length, device=self.model.device), self.frame.masks[attn.window]
            plain = (row <= row[:, None]) if attn.causal else torch.ones_like(row <= row[:, None])
            self._allowed[attn.window] = plain[None, None] if mask is None else mask.view(-1, 1, *mask.shape[-2:])
        mask = self._allowed[attn.window]
        mask = mask.expand(-1, -1, self.length, -1)
        return take(mask, places(queries, self.all, mask.device), 2)

    def rows_of(self, positions: Positions) -> Tensor:
        """Where [batch pos] flattened holds these positions of every batch entry."""
        if positions not in self._rows:
            start = torch.arange(self.batch, device=self.model.device)[:, None] * self.length
            index = start + torch.tensor(positions, dtype=torch.long, device=self.model.device)
            self._rows[positions] = index.flatten()
        return self._rows[positions]

    def raw(self, layer: int, part: str) -> Tensor:
        """What a block's "attn" or "mlp" wrote before the norm that follows it [batch pos d_model]."""
        if (layer, part) not in self._raw:
            block, base = self.model.blocks[layer], f"blocks.{layer}."
            z_or_post = self.kept[base + ("attn.hook_z" if part == "attn" else "mlp.hook_post")]
            self._raw[layer, part] = getattr(block, part).write(z_or_post)
        return self._raw[layer, part]

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
        if rows.positions == want:
            return rows.x
        return self.complete(rows.x[None], rows.positions, want, name)[0]


def clean_names(model: HookedGPT, edited: Iterable[str], collected: Iterable[str], last: int) -> list[str]:
    """The hook points whose clean activations the engine needs for variants that edit these."""
    names = {*collected, f"blocks.{last}.hook_resid_post"}
    for layer, block in enumerate(model.blocks[: last + 1]):
        sites = ["hook_resid_pre", "hook_resid_mid", *ready(block.attn)]
        sites += ["hook_attn_out", "hook_mlp_out"] if isinstance(block, ParallelBlock) else []
        names |= {f"blocks.{layer}.{site}" for site in sites}
    for name in edited:
        base = ".".join(name.split(".")[:2])
        if not name.endswith("hook_result"):  # large, and never read
            names.add(name)
        if ".attn." in name or ".ln1_post." in name or name.endswith("hook_attn_out"):
            names |= {f"{base}.attn.hook_z", f"{base}.hook_attn_out"}
        if ".mlp." in name or ".ln2_post." in name or name.endswith("hook_mlp_out"):
            names |= {f"{base}.mlp.hook_{site}" for site in ("pre", "pre_linear", "post")} | {f"{base}.hook_mlp_out"}
        if name in EMBEDDING:
            names |= set(EMBEDDING)
    return [name for name in model.hook_points if name in names]


def ready(attn: Attention) -> tuple[str, str, str]:
    """The hook points of queries, keys and values as they enter the scores."""
    return (*ROTATED, QKV[2]) if attn.prepares else QKV
