"""Direct paths through the residual stream: from a sender's output to a receiver's input, all between held still.

With everything between frozen, a sender that changes by d changes the stream at the receiver by exactly d, for the
stream is a sum. So one run of each text suffices to say what the receiver would read, and no path needs a run of its
own until the receiver's new value is let loose on what follows.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.shared.components import Component
from interp.errors import InputError, nearest
from interp.interventions import Add, Replace
from interp.models.gpt import HookedGPT

START = "blocks.0.hook_resid_pre"
Input = Literal["q", "k", "v", "in"]
TOGETHER = 16
"""Edges into one receiver whose values are computed at once."""
_RECEIVER = re.compile(r"(?:(L\d+)(H|KV)(\d+))(?:\.([qkv]))?|(mlp \d+)|(logits)")


@dataclass(frozen=True, order=True)
class Receiver:
    """Something that reads the residual stream: a head's queries, keys or values, an MLP, or the logits.

    Where several query heads share keys and values, these belong to the key-value head alone: `L3KV1.k`.
    """

    label: str
    """`L3H1.q`, `L3KV1.k`, `mlp 2`, `logits`."""
    layer: int
    """Of the logits: the number of layers."""
    site: str
    """Hook point where it reads the stream."""
    head: int | None = None
    """Of queries the query head, of keys and values the key-value head."""
    input: Input = "in"

    def hears(self, sender: Component) -> bool:
        """Whether the sender writes before this reads."""
        if sender.layer is None or self.label == "logits":
            return True
        beside = sender.layer == self.layer and sender.kind == "head" and self.site.endswith("hook_resid_mid")
        return sender.layer < self.layer or beside


def parse_receivers(model: HookedGPT, text: str) -> tuple[Receiver, ...]:
    """The receivers that `text` names, joined by plus signs; a head without a letter means its q, k and v.

    Raises InputError for a name that means nothing, a part that the model does not have, or keys and values asked of
    one query head where several share them.
    """
    known = {one.label: one for one in all_receivers(model)}
    shared = model.config.n_kv_heads != model.config.n_heads
    found: list[Receiver] = []
    for part in map(str.strip, text.split("+")):
        match = _RECEIVER.fullmatch(part)
        if match is None:
            raise InputError(
                f"unknown receiver {part!r}",
                f"expected logits, L1H0.q, {'L1KV0.k or .v' if shared else 'L1H0.k or .v'}, mlp 1",
                "several at once: L1H0.q+L1H1.q; one after the other: L1H0.q,logits",
            )
        layer, kind, head, letter = match[1], match[2], match[3], match[4]
        if shared and kind == "H" and letter != "q":
            group = model.config.n_heads // model.config.n_kv_heads
            raise InputError(
                f"receiver {part!r}: {group} heads of this model share keys and values",
                f"expected {layer}{kind}{head}.q, or {layer}KV{int(head) // group}.k or .v, which all of them read",
            )
        letters = [letter] if letter else ["k", "v"] if kind == "KV" else ["q", "k", "v"]
        names = [f"{layer}{kind}{head}.{one}" for one in letters] if kind else [part]
        for name in names:
            if name not in known:
                alike = [one for one in known if one[-2:] == name[-2:]] if letter or kind else [*known]
                close = nearest(name, alike, 1)
                expected = f"expected {alike[0]} to {alike[-1]}" if kind else "expected an MLP that is there"
                raise InputError(f"unknown receiver {name!r}", expected, f"nearest: {close[0]}" if close else "")
            found.append(known[name])
    return tuple(dict.fromkeys(found))


def inputs_of(model: HookedGPT, head: Component) -> list[str]:
    """Labels of what a head reads: its queries, and the keys and values that it attends with."""
    kv = f"L{head.layer}KV{model.blocks[head.layer or 0].attn.kv_head(head.index or 0)}"
    shared = model.config.n_kv_heads != model.config.n_heads
    return [f"{head.label}.q", *(f"{kv if shared else head.label}.{letter}" for letter in "kv")]


def receivers_of(model: HookedGPT, layer: int) -> list[Receiver]:
    """All receivers of a layer: queries, keys and values, then the MLP; for the layer after the last, the logits."""
    config = model.config
    if layer == config.n_layers:
        return [Receiver("logits", layer, f"blocks.{layer - 1}.hook_resid_post")]
    pre = f"blocks.{layer}.hook_resid_pre"
    if config.n_kv_heads == config.n_heads:
        found = [
            Receiver(f"L{layer}H{head}.{letter}", layer, pre, head, letter)
            for head in range(config.n_heads)
            for letter in INPUTS
        ]
    else:
        found = [Receiver(f"L{layer}H{head}.q", layer, pre, head, "q") for head in range(config.n_heads)]
        found += [
            Receiver(f"L{layer}KV{head}.{letter}", layer, pre, head, letter)
            for head in range(config.n_kv_heads)
            for letter in INPUTS[1:]
        ]
    if model.blocks[layer].mlp is not None:
        found.append(Receiver(f"mlp {layer}", layer, mlp_reads(model, layer)))
    return found


INPUTS: tuple[Input, ...] = ("q", "k", "v")


def all_receivers(model: HookedGPT) -> list[Receiver]:
    """All receivers of the model, layer by layer, the logits last."""
    return [one for layer in range(model.config.n_layers + 1) for one in receivers_of(model, layer)]


def mlp_reads(model: HookedGPT, layer: int) -> str:
    """The hook point of the stream that a block's MLP reads."""
    return f"blocks.{layer}.hook_resid_{'pre' if model.config.parallel else 'mid'}"


def mlp_of(model: HookedGPT, layer: int, stream: Tensor) -> Tensor:
    """What a block's MLP adds to the stream that it reads."""
    block = model.blocks[layer]
    assert block.mlp is not None
    written: Tensor = block.ln2_post(block.mlp(block.ln2(stream)))
    return written


class Paths:
    """One batch in two versions: `base`, that is run, and `source`, that senders are taken from."""

    def __init__(
        self,
        model: HookedGPT,
        base: Int[Tensor, "batch pos"],
        source: Int[Tensor, "batch pos"],
        *,
        recompute_mlps: bool = False,
    ) -> None:
        self.model, self.recompute_mlps = model, recompute_mlps
        ends = ("attn.hook_z", "hook_mlp_out")
        written = [name for name in model.hook_points if name.endswith(ends) or name == START]
        read = [name for name in model.hook_points if name.endswith(("hook_resid_pre", "hook_resid_mid"))]
        read.append(f"blocks.{model.config.n_layers - 1}.hook_resid_post")
        same = (base == source).all(0).cumprod(0) if model.config.causal else base.new_zeros(0)
        self.first = int(same.sum())
        """The first position at which anything differs."""
        self.base = model.run_with_cache(base, names=[*written, *read])[1]
        self.source = model.run_with_cache(source, names=written)[1]
        self._written: dict[int, Tensor] = {}

    @torch.no_grad()
    def change(self, sender: Component, positions: Sequence[int] | None = None) -> Float[Tensor, "batch pos d_model"]:
        """By how much what the sender adds to the stream in `source` differs from `base`; zero at other positions."""
        (name,) = sender.names
        if sender.kind == "head":
            difference = self._head_change(sender.layer or 0, sender.index or 0)
        else:
            difference = self.source[name] - self.base[name]
        if positions is None:
            return difference
        kept = torch.zeros_like(difference)
        kept[:, list(positions)] = difference[:, list(positions)]
        return kept

    def _head_change(self, layer: int, head: int) -> Tensor:
        """What one head with its other z changes; through the norm that follows attention, if one does."""
        block, name = self.model.blocks[layer], f"blocks.{layer}.attn.hook_z"
        z = self.source[name][:, :, head] - self.base[name][:, :, head]
        difference = z @ block.attn.W_O[head]
        if not block.ln1_post.hooked:
            return difference
        if layer not in self._written:
            self._written[layer] = block.attn.write(self.base[name])
        raw = self._written[layer]
        changed: Tensor = block.ln1_post(raw + difference) - block.ln1_post(raw)
        return changed

    @torch.no_grad()
    def edits(self, change: Tensor, sender: Component, targets: Sequence[Receiver]) -> list[Replace | Add]:
        """Interventions that give receivers what they would read with the sender changed and all else as in `base`."""
        return [self._edit(self._arriving(change, sender, target), target) for target in targets]

    @torch.no_grad()
    def along(self, edges: Sequence[tuple[Component, Receiver]]) -> list[Replace | Add]:
        """For each edge what gives its receiver the stream with the sender changed; edges of a receiver run together.

        With `recompute_mlps` only what is between them frozen is meant: use `edits`.
        """
        changes = {sender: self.change(sender) for sender in dict.fromkeys(sender for sender, _ in edges)}
        found: list[Replace | Add | None] = [None] * len(edges)
        places: dict[str, list[int]] = {}
        for i, (_, target) in enumerate(edges):
            places.setdefault(target.label, []).append(i)
        for into in places.values():
            target = edges[into[0]][1]
            for start in range(0, len(into), TOGETHER):
                some = into[start : start + TOGETHER]
                together = torch.stack([changes[edges[i][0]] for i in some])
                for i, edit in zip(some, self._edits(together, target), strict=True):
                    found[i] = edit
        return [edit for edit in found if edit is not None]

    def _edit(self, change: Tensor, target: Receiver) -> Replace | Add:
        return self._edits(change[None], target)[0]

    def _edits(self, changes: Float[Tensor, "sender batch pos d_model"], target: Receiver) -> list[Replace | Add]:
        """One intervention a sender, at the positions that can differ."""
        length = changes.shape[2]
        pos = tuple(range(self.first, length)) if self.first else None
        if target.label == "logits":
            return [Add(name=target.site, value=change, pos=pos) for change in changes]
        stream = self.base[target.site][:, self.first :] + changes[:, :, self.first :]
        if target.head is None:
            values = mlp_of(self.model, target.layer, stream)
            name = f"blocks.{target.layer}.hook_mlp_out"
            return [Replace(name=name, value=self._padded(value), pos=pos) for value in values]
        block, letter = self.model.blocks[target.layer], target.input.upper()
        weight, bias = getattr(block.attn, f"W_{letter}"), getattr(block.attn, f"b_{letter}")
        values = block.ln1(stream) @ weight[target.head] + bias[target.head]
        name = f"blocks.{target.layer}.attn.hook_{target.input}"
        return [
            Replace(name=name, head=target.head, value=self._padded(value)[:, :, None], pos=pos) for value in values
        ]

    def _padded(self, value: Float[Tensor, "batch some width"]) -> Float[Tensor, "batch pos width"]:
        """Rows put before the first position that differs, where nobody reads them."""
        return torch.nn.functional.pad(value, (0, 0, self.first, 0))

    def _arriving(self, change: Tensor, sender: Component, target: Receiver) -> Tensor:
        """The change of the stream where the target reads; larger than the sender's where MLPs between may answer."""
        if not self.recompute_mlps or self.model.config.attn_only:
            return change
        passed = sender.kind == "mlp" or self.model.config.parallel
        first = 0 if sender.layer is None else sender.layer + passed
        for layer in range(first, target.layer):
            stream = self.base[mlp_reads(self.model, layer)] + change
            change = change + mlp_of(self.model, layer, stream) - self.base[f"blocks.{layer}.hook_mlp_out"]
        return change
