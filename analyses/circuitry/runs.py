"""Runs of a circuit: every receiver reads the circuit's senders as the circuit computes them, all others as ablated.

What a receiver reads is a sum over all nodes before it, so each may be given a sum of its own: the ablated stream, plus
the change of every sender of which an edge leads to it. All edges give the clean run, none gives the ablated one.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.circuitry.graph import Wiring
from analyses.shared.paths import INPUTS, START, mlp_of
from interp.errors import InputError
from interp.models.gpt import HookedGPT
from interp.models.kernels import wide
from interp.models.positions import Frame
from interp.sweep.clean import ready

Ablation = Literal["corrupted", "mean", "zero"]
AT_ONCE = 32_000_000
"""Bytes of the nodes' outputs in one pass."""


class Outputs:
    """What each node adds to the stream in a run; heads before any norm that follows.

    `embed` and `mlps` [batch pos d_model], `heads` [head batch pos d_model] of each layer; axes of length 1 mean that
    all texts, or positions, are alike.
    """

    def __init__(self, embed: Tensor, heads: list[Tensor], mlps: list[Tensor | None]) -> None:
        self.embed, self.heads, self.mlps = embed, heads, mlps

    @classmethod
    @torch.no_grad()
    def of(cls, model: HookedGPT, tokens: Int[Tensor, "batch pos"]) -> "Outputs":
        ends = ("attn.hook_z", "hook_mlp_out")
        names = [name for name in model.hook_points if name.endswith(ends)] + [START]
        _, cache = model.run_with_cache(tokens, names=names)
        zs = [(block, cache[f"blocks.{layer}.attn.hook_z"]) for layer, block in enumerate(model.blocks)]
        mlps = [
            None if block.mlp is None else cache[f"blocks.{layer}.hook_mlp_out"]
            for layer, block in enumerate(model.blocks)
        ]
        return cls(cache[START], [block.attn.results(z).movedim(2, 0) for block, z in zs], mlps)

    def mean(self, *axes: int) -> "Outputs":
        """Over texts (-3), positions (-2), or both."""
        return self._changed(lambda x: x.mean(axes, keepdim=True))

    def plus(self, other: "Outputs", share: float) -> "Outputs":
        """The mean of two, of which the other counts as this share."""

        def mean(x: Tensor | None, y: Tensor | None) -> Tensor | None:
            return None if x is None or y is None else torch.lerp(x, y, share)

        heads = [torch.lerp(x, y, share) for x, y in zip(self.heads, other.heads, strict=True)]
        mlps = [mean(x, y) for x, y in zip(self.mlps, other.mlps, strict=True)]
        return Outputs(torch.lerp(self.embed, other.embed, share), heads, mlps)

    def since(self, first: int) -> "Outputs":
        """At the positions from `first` on."""
        return self._changed(lambda x: x if x.shape[-2] == 1 else x[..., first:, :])

    def zeroed(self) -> "Outputs":
        return self._changed(lambda x: torch.zeros_like(x[..., :1, :1, :]))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> "Outputs":
        mlps = [None if x is None else change(x) for x in self.mlps]
        return Outputs(change(self.embed), [change(x) for x in self.heads], mlps)


class Mixer:
    """What receivers read when some of the nodes before them are changed and all others are held."""

    def __init__(self, model: HookedGPT, wiring: Wiring, held: Outputs) -> None:
        self.model, self.wiring, self.held = model, wiring, held
        self.node = {part.label: n for n, part in enumerate(wiring.nodes)}
        self.row = {receiver.label: r for r, receiver in enumerate(wiring.receivers)}
        self.normed = [layer for layer, block in enumerate(model.blocks) if block.ln1_post.hooked]
        """Layers where a norm follows attention, so that what a head adds depends on the other heads."""
        self.stream = self._streams()

    def heads(self, layer: int) -> slice:
        start = self.node[f"L{layer}H0"]
        return slice(start, start + self.wiring.config.n_heads)

    def inputs(self, layer: int, letter: str) -> list[int]:
        """The receivers that are a layer's queries, keys or values."""
        config = self.wiring.config
        shared = letter != "q" and config.n_kv_heads != config.n_heads
        count = config.n_kv_heads if shared else config.n_heads
        return [self.row[f"L{layer}{'KV' if shared else 'H'}{head}.{letter}"] for head in range(count)]

    def read(
        self,
        masks: Bool[Tensor, "circuit receiver node"],
        changes: Float[Tensor, "circuit node batch pos d_model"],
        layer: int,
        rows: Sequence[int],
        *,
        mid: bool = False,
    ) -> Float[Tensor, "receiver circuit batch pos d_model"]:
        """What receivers of a layer read (the layer after the last: the logits); `mid`: after its attention."""
        end = self.heads(layer).start if layer < len(self.model.blocks) else len(self.wiring.nodes)
        heard, before = end + mid * self.wiring.config.n_heads, [one for one in self.normed if one < layer + mid]
        chosen = masks[:, list(rows), :heard].to(changes.dtype)
        plain = chosen.clone() if before else chosen
        for earlier in before:
            plain[:, :, self.heads(earlier)] = 0
        found = self.stream[layer, mid] + _sums(plain, changes[:, :heard])
        for earlier in before:
            heads, norm, raw = self.heads(earlier), self.model.blocks[earlier].ln1_post, self._raw(earlier)
            found = found + norm(raw + _sums(chosen[:, :, heads], changes[:, heads])) - norm(raw)
        out: Tensor = found.transpose(0, 1)
        return out

    def _raw(self, layer: int) -> Tensor:
        """The held sum of a layer's heads, bias included."""
        return self.model.blocks[layer].attn.summed(self.held.heads[layer].movedim(0, -2))

    def _streams(self) -> dict[tuple[int, bool], Tensor]:
        """The stream where all nodes are held: before each block, and (True) between its attention and MLP."""
        total, found = self.held.embed, {}
        for layer, block in enumerate(self.model.blocks):
            found[layer, False] = total
            total = total + block.ln1_post(self._raw(layer))
            found[layer, True] = total
            mlp = self.held.mlps[layer]
            total = total if mlp is None else total + mlp
        found[len(self.model.blocks), False] = total
        return found


def _sums(chosen: Float[Tensor, "circuit receiver node"], changes: Tensor) -> Tensor:
    """[circuit receiver batch pos d_model] the changes that each receiver hears, added up."""
    found: Tensor = torch.bmm(chosen, changes.flatten(2)).unflatten(2, changes.shape[2:])
    return found


class CircuitRuns(Mixer):
    """Runs of circuits on one batch, all that lies outside a circuit held at its ablated value."""

    def __init__(
        self,
        model: HookedGPT,
        wiring: Wiring,
        tokens: Int[Tensor, "batch pos"],
        ablated: Outputs,
        *,
        read: Sequence[int] = (-1,),
        vocab: Sequence[int] | None = None,
        first: int = 0,
    ) -> None:
        """`ablated`: what each node adds where an edge is not in the circuit; before position `first`, which is not
        computed again, the same as in the clean run. `read`, `vocab`: logits wanted."""
        super().__init__(model, wiring, ablated.since(first))
        self.outputs = Outputs.of(model, tokens)
        self.tokens, self.first, self.clean = tokens, first, self.outputs.since(first)
        self.positions = [position % tokens.shape[1] - first for position in read]
        self.vocab = None if vocab is None else torch.tensor(list(vocab), device=model.device)
        self.before = self._before()
        if min(self.positions, default=0) < 0:
            raise InputError(f"a metric of position {min(self.positions) + first}", f"expected {first} or later")

    def _before(self) -> list[tuple[Tensor, Tensor]]:
        """Keys, as they enter the scores, and values of each layer before the first position that may change."""
        ends = [ready(block.attn)[1:] for block in self.model.blocks]
        names = [[f"blocks.{layer}.{end}" for end in some] for layer, some in enumerate(ends)]
        _, cache = self.model.run_with_cache(self.tokens, names=[name for some in names for name in some])
        return [(cache[key][:, : self.first], cache[value][:, : self.first]) for key, value in names]

    @torch.no_grad()
    def logits(
        self, masks: Bool[Tensor, "circuit receiver node"], *, first: int = 0
    ) -> Float[Tensor, "circuit batch read vocab"]:
        """The logits of each circuit, in chunks that fit in memory.

        `first`: the layer before which all edges are in every circuit, so that its nodes add what they do clean.
        """
        return torch.cat([self._logits(some, first) for some in self._chunks(masks)])

    def _chunks(self, masks: Tensor) -> Iterator[Tensor]:
        each = self.tokens.numel() * self.model.config.d_model * self.model.dtype.itemsize
        size = max(1, AT_ONCE // (each * (len(self.wiring.nodes) + 8)))
        yield from masks.to(self.model.device).split(size)

    def _logits(self, masks: Tensor, first: int) -> Tensor:
        config, nodes, embedded = self.model.config, len(self.wiring.nodes), self.clean.embed
        changes = embedded.new_zeros(len(masks), nodes, *embedded.shape)
        changes[:, 0] = embedded - self.held.embed
        _, frame = self.model.embed(self.tokens.repeat(len(masks), 1))
        for layer, block in enumerate(self.model.blocks):
            if layer < first:
                self._as_clean(changes, layer)
                continue
            groups = [self.inputs(layer, letter) for letter in INPUTS]
            read = self.read(masks, changes, layer, [row for group in groups for row in group])
            z = self._mixed(layer, list(block.ln1(read).split([len(group) for group in groups])), frame)
            changes[:, self.heads(layer)] = torch.einsum("cbphd,hdm->chbpm", z, block.attn.W_O) - self.held.heads[layer]
            if (held := self.held.mlps[layer]) is not None:
                stream = self.read(masks, changes, layer, [self.row[f"mlp {layer}"]], mid=not config.parallel)[0]
                changes[:, self.node[f"mlp {layer}"]] = mlp_of(self.model, layer, stream) - held
        stream = self.read(masks, changes, config.n_layers, [len(self.row) - 1])[0]
        return wide(self.model.unembedded(self.model.ln_final(stream[:, :, self.positions]), self.vocab))

    def _as_clean(self, changes: Tensor, layer: int) -> None:
        changes[:, self.heads(layer)] = self.clean.heads[layer] - self.held.heads[layer]
        clean, held = self.clean.mlps[layer], self.held.mlps[layer]
        if clean is not None and held is not None:
            changes[:, self.node[f"mlp {layer}"]] = clean - held

    def _mixed(
        self, layer: int, read: Sequence[Float[Tensor, "head circuit batch pos d_model"]], frame: Frame
    ) -> Float[Tensor, "circuit batch pos head d_head"]:
        """z of what each head's queries, keys and values read, normed; `frame` of all circuits' texts as one batch."""
        attn, first = self.model.blocks[layer].attn, self.first
        weights = ((attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K), (attn.W_V, attn.b_V))
        q, k, v = (
            (x.flatten(1, 3) @ weight + bias[:, None]).unflatten(1, (-1, x.shape[3])).permute(1, 2, 0, 3)
            for x, (weight, bias) in zip(read, weights, strict=True)
        )  # [circuit x batch, pos, head, d_head]
        if attn.prepares:
            tables = None
            if attn.rotary is not None:
                cos, sin = frame.rotations[attn.rotary]
                tables = cos[:, first:], sin[:, first:]
            q, k = attn.prepare_q(q, tables), attn.prepare_k(k, tables)
        circuits, mask = read[0].shape[1], frame.masks[attn.window]
        if first:
            k, v = (
                torch.cat([x.repeat(circuits, 1, 1, 1), y], 1) for x, y in zip(self.before[layer], (k, v), strict=True)
            )
            if mask is None:
                row = torch.arange(k.shape[1], device=k.device)
                mask = row <= row[:, None]
            mask = mask[..., first:, :]
        z: Tensor = attn.mix(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask).transpose(1, 2)
        apart: Tensor = z.unflatten(0, (circuits, -1))
        return apart
