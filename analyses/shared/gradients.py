"""First-order scores of nodes and edges: change of an output times gradient of the metric.

A node is what a head or MLP adds to the stream (after the norm that follows it, if one does), or the embedding; an edge
leads from a node to what a receiver reads. The gradient at a receiver's own input (not at the whole stream there) makes
the edge. Keys and values that several heads share are one receiver, whose gradient is the sum of theirs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.shared.components import Component
from analyses.shared.paths import INPUTS, START, Paths, all_receivers, mlp_reads, receivers_of
from interp.hooks import HookPair, HookPoint
from interp.models.gpt import HookedGPT
from interp.models.kernels import wide


class Gradients:
    """Gradients of a metric with respect to the residual stream and to what every receiver reads, one batch."""

    def __init__(
        self,
        model: HookedGPT,
        tokens: Int[Tensor, "batch pos"],
        start: Tensor,
        metric: Callable[[Tensor], Tensor],
        *,
        read: Sequence[int],
        vocab: Sequence[int] | None = None,
        held: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`start` [batch pos d_model] is put in place of the embeddings, `held` at other hook points.

        `metric` maps logits [batch read d_vocab], of the tokens in `vocab` alone where it is given, to [batch]; no
        other logits are computed.
        """
        self.model = model
        streams = [name for name in model.hook_points if "hook_resid_" in name]
        inputs = [name for name in model.hook_points if name.endswith(INSIDE)]

        def put(x: Tensor, hook: HookPoint) -> Tensor:
            return start.detach().clone().requires_grad_()

        puts: list[HookPair] = [(START, put)]
        puts += [(name, lambda x, hook: held[hook.name]) for name in held or {}]  # type: ignore[index]
        cache: dict[str, Tensor] = {}
        keep = ([*streams, *inputs], lambda x, hook: cache.update({hook.name: x}))
        with torch.enable_grad(), model.hooks(puts), model.hooks([keep], reads_only=True):
            ends = model.run_to(tokens)[:, list(read)]
            chosen = None if vocab is None else torch.tensor(list(vocab), device=model.device)
            value = metric(wide(model.unembedded(model.ln_final(ends), chosen))).sum()
            found = torch.autograd.grad(value, [cache[name] for name in [*streams, *inputs]], allow_unused=True)
        pairs = zip([*streams, *inputs], found, strict=True)
        self.of = {name: torch.zeros_like(cache[name]) if g is None else g.detach() for name, g in pairs}
        self.streams = {name: cache[name].detach() for name in streams}

    def at_output(self, node: Component) -> Float[Tensor, "batch pos d_model"]:
        """With respect to what a node adds: the gradient of the stream just after it."""
        if node.layer is None:
            return self.of[START]
        between = f"blocks.{node.layer}.hook_resid_mid"
        after = node.kind != "head" or between not in self.of
        return self.of[f"blocks.{node.layer}.hook_resid_post" if after else between]

    def at_inputs(self, layer: int) -> Float[Tensor, "receiver batch pos d_model"]:
        """With respect to what each receiver of a layer reads, in the order of `receivers_of`."""
        if layer == self.model.config.n_layers:
            return self.of[f"blocks.{layer - 1}.hook_resid_post"][None]
        block, base = self.model.blocks[layer], f"blocks.{layer}."
        found: dict[str, Tensor] = {}
        for letter in INPUTS:
            weight = getattr(block.attn, f"W_{letter.upper()}").detach()
            back = torch.einsum("bphd,hmd->hbpm", self.of[f"{base}attn.hook_{letter}"], weight)
            found[letter] = block.ln1.backward(self.streams[f"{base}hook_resid_pre"], back * block.ln1.gain)
        if block.mlp is not None:
            back = self._into_mlp(layer) * block.ln2.gain
            found["in"] = block.ln2.backward(self.streams[mlp_reads(self.model, layer)], back)[None]
        return torch.stack([found[one.input][one.head or 0] for one in receivers_of(self.model, layer)])

    def _into_mlp(self, layer: int) -> Tensor:
        """With respect to the normed stream that an MLP reads [batch pos d_model]."""
        mlp, base = self.model.blocks[layer].mlp, f"blocks.{layer}.mlp."
        assert mlp is not None
        if not mlp.gated:
            return self.of[f"{base}hook_pre"] @ mlp.W_in.detach().T
        linear = self.of[f"{base}hook_pre_linear"] @ mlp.W_in.detach().T
        return self.of[f"{base}hook_pre"] @ mlp.W_gate.detach().T + linear


INSIDE = ("attn.hook_q", "attn.hook_k", "attn.hook_v", "mlp.hook_pre", "mlp.hook_pre_linear")


Points = Literal["right", "left", "middle"]
"""Where gradients are taken along the way from the source (0) to the base (1), cut into equal steps: at each step's end
(the paper's equation), at its beginning (the code released with it), or half way (the rule with the smallest error)."""


def fractions(steps: int, points: Points = "right") -> list[float]:
    """How far from the source towards the base."""
    return [(step + {"left": 0.0, "middle": 0.5, "right": 1.0}[points]) / steps for step in range(steps)]


@torch.no_grad()
def scores(
    model: HookedGPT,
    paths: Paths,
    tokens: Int[Tensor, "batch pos"],
    metric: Callable[[Tensor], Tensor],
    nodes: Sequence[Component],
    *,
    steps: int,
    points: Points = "right",
    along: Literal["inputs", "activations"] = "inputs",
    read: Sequence[int],
    vocab: Sequence[int] | None = None,
    apart: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of nodes [batch node] and of edges [batch node receiver]; NaN where the node writes too late.

    `apart`: those of edges are told apart by position, [batch node receiver pos].

    The gradient of the metric, a function of logits as in `Gradients`, is averaged over `steps` points between the
    source and the base. Along "inputs" the embeddings are moved: one step is EAP (Syed et al. 2023), more are EAP-IG
    (Hanna et al. 2024, equation 4). Along "activations" the embeddings, all heads of a layer, or an MLP are moved, one
    after the other, all before them as in the base, and gradients are averaged over these runs too (the variant of the
    code released with that paper); it takes 1 + 2 n_layers times as long.
    """
    change = torch.stack([paths.change(node) for node in nodes], dim=1)  # [batch node pos d_model]
    across = change.flatten(2)  # laid out for the products with every layer's gradients
    receivers = all_receivers(model)
    hears = [[one.hears(node) for one in receivers] for node in nodes]
    node_scores, edge_scores = [], []
    for start, held in _moved(model, paths, fractions(steps, points), along):
        gradients = Gradients(model, tokens, start, metric, read=read, vocab=vocab, held=held)
        outputs = [(change[:, n] * gradients.at_output(node)).sum((-1, -2)) for n, node in enumerate(nodes)]
        node_scores.append(torch.stack(outputs, dim=-1))
        layers = range(model.config.n_layers + 1)
        inputs = (gradients.at_inputs(layer).transpose(0, 1) for layer in layers)
        if apart:
            found = [torch.einsum("bnpm,brpm->bnrp", change, each) for each in inputs]
        else:
            found = [across @ each.flatten(2).mT for each in inputs]
        edge_scores.append(torch.cat(found, 2))
    node, edge = (torch.stack(found).mean(0).double().cpu().numpy() for found in (node_scores, edge_scores))
    heard = np.array(hears)
    return node, np.where(heard[..., None] if apart else heard, edge, np.nan)


def _moved(
    model: HookedGPT, paths: Paths, at: Sequence[float], along: Literal["inputs", "activations"]
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """The embeddings, and what else is put in place, of each run whose gradient is taken."""
    names = [START]
    if along == "activations":
        names += [name for name in paths.source if name != START]
    for name in names:
        for fraction in at:
            value = paths.source[name] + fraction * (paths.base[name] - paths.source[name])
            yield (value, {}) if name == START else (paths.base[START], {name: value})
