"""One run split along a direction of its logits: what each part of the model adds to a logit, directly.

The parts sum to the logit that the model itself computed; see `analyses.direct_logit_attribution`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyses.shared.stacks import Reading, Stack
from interp.models.parts import NoNorm, Norm
from interp.residual import Reader, decompose, decompose_names, leaving, norm_at, stream_of, writes


@dataclass(frozen=True)
class Target:
    """A logit, or a difference or mean of logits, as a linear function of what passes the final layer norm."""

    column: Tensor  # [d_model]
    bias: Tensor  # []

    @classmethod
    def logit(cls, model: Reader, token: int) -> "Target":
        return cls(_wide(model.W_U[:, token]), _bias(model)[token])

    @classmethod
    def mean(cls, model: Reader) -> "Target":
        """That of all logits."""
        return cls(_wide(model.W_U.mean(1)), _bias(model).mean())

    def __sub__(self, other: "Target") -> "Target":
        return Target(self.column - other.column, self.bias - other.bias)


class Run:
    """One text's run, kept at one position (the values at all), to be split along a direction of the logits."""

    def __init__(self, model: Reader, stack: Stack, text: Reading, place: int) -> None:
        self.model, self.stack = model, stack
        self.values: dict[int, Tensor] = {}
        ends = (f"{stack.part}.hook_pattern", "mlp.hook_post", "ln2_post.hook_scale")
        inside = [name for name in model.hook_points if name.startswith(f"{stack.path}.") and name.endswith(ends)]
        final = ["ln_final.hook_scale"] if norm_at(model, "ln_final").hooked else []
        names = {*decompose_names(model), leaving(model), *inside, *final}
        keep = (list(stack.hooks("hook_v")), lambda v, hook: self.values.update({hook.layer: v}))
        with model.hooks([keep], reads_only=True):
            _, self.cache = model.run_with_cache(*text.inputs, names=list(names), pos=[place])
        capped: Any = {} if getattr(model.config, "logit_softcap", None) is None else {"capped": False}
        self.logits: Tensor = model.unembedded(model.ln_final(self.cache[leaving(model)]), **capped)[0, 0]
        """[d_vocab] before a soft-cap, where they are the sum of the parts."""
        self.written = int(text.following[place] if text.given else self.logits.argmax())
        """The token that the text gives as written here; else the model's own choice."""

    @cached_property
    def written_by(self) -> tuple[Tensor, Sequence[str]]:
        """[component d_model] what each part of the model adds to the last residual stream; the parts' names."""
        components, labels = decompose(self.model, self.cache)
        return _wide(components[:, 0, 0]), labels

    def _before(self, norm: Norm | NoNorm, name: str, direction: Tensor) -> Tensor:
        """[d_model] the direction that what enters a norm is multiplied by, given the one for what leaves it."""
        if not isinstance(norm, Norm):
            return direction
        return norm.centre(direction * _wide(norm.gain)) / _wide(self.cache[f"{name}.hook_scale"]).squeeze()

    def direction(self, target: Target) -> Tensor:
        """[d_model] what the last residual stream is multiplied by to give the target, norms' biases left out."""
        return self._before(norm_at(self.model, "ln_final"), "ln_final", target.column)

    def directions(self, target: Target) -> dict[tuple[int, str], Tensor]:
        """(layer, part) -> [d_model], the same for what a part writes, before any norm that it passes."""
        stack, blocks = stream_of(self.model)
        direction, found = self.direction(target), {}
        for layer in reversed(range(len(blocks))):
            for write in reversed(writes(blocks[layer])):
                at = f"{stack}.{layer}."
                direction = self._before(norm_at(blocks[layer], write.after), at + write.after, direction)
                found[layer, write.part] = self._before(norm_at(blocks[layer], write.post), at + write.post, direction)
        return found

    def split(self, target: Target, neurons: bool) -> tuple[tuple[str, ...], np.ndarray]:
        """Names of the components and their parts of the target, [component]."""
        written, labels = self.written_by
        parts = dict(zip(labels, written @ self.direction(target), strict=True))
        if neurons:
            inner = self.directions(target)
            split = [self._neurons(label, part, inner, target) for label, part in parts.items()]
            parts = {name: part for some in split for name, part in some.items()}
        bias = norm_at(self.model, "ln_final").b
        if bias is not None:
            parts["ln_final bias"] = _wide(bias) @ target.column
        parts["unembed bias"] = target.bias
        return tuple(parts), torch.stack(list(parts.values())).numpy()

    def by_chance(self, target: Target, names: Sequence[str]) -> np.ndarray:
        """[component] standard deviation of each part if it had a random direction; NaN for what writes no vector."""
        written, labels = self.written_by
        sizes = written.norm(dim=-1) * self.direction(target).norm() / written.shape[-1] ** 0.5
        known = dict(zip(labels, sizes.tolist(), strict=True))
        return np.array([known.get(name) or np.nan for name in names])

    def _neurons(
        self, label: str, part: Tensor, inner: dict[tuple[int, str], Tensor], target: Target
    ) -> dict[str, Tensor]:
        """An MLP's part split by neuron, its output bias apart; any other component as it is."""
        if not label.startswith("mlp"):
            return {label: part}
        layer = int(label.split()[1])
        block, direction = stream_of(self.model)[1][layer], inner[layer, "mlp"]
        post = self.cache[f"{self.stack.path}.{layer}.mlp.hook_post"][0, 0]
        parts = _wide(post) * (_wide(block.mlp.W_out) @ direction)
        bias = torch.zeros_like(part) if block.mlp.b_out is None else _wide(block.mlp.b_out) @ direction
        passed = norm_at(block, "ln2_post").b
        bias = bias if passed is None else bias + _wide(passed) @ self.direction(target)
        return {f"L{layer}N{neuron}": each for neuron, each in enumerate(parts)} | {f"mlp bias {layer}": bias}

    def by_source(self, target: Target) -> np.ndarray:
        """[layer head source]: each head's part by the position it reads from."""
        inner, layers = self.directions(target), []
        for (name, layer), attention in zip(
            self.stack.hooks("hook_pattern").items(), self.stack.attentions, strict=True
        ):
            own = _wide(self.values[layer][0])[:, [attention.kv_head(head) for head in range(attention.n_heads)]]
            written = torch.einsum("phd,hd->hp", own, _wide(attention.W_O) @ inner[layer, self.stack.part])
            layers.append(_wide(self.cache[name][0, :, 0]) * written)
        return torch.stack(layers).numpy()


def _wide(x: Tensor) -> Tensor:
    """In float64 on the CPU, so that adding up the parts adds no error of its own."""
    return x.detach().cpu().double()


def _bias(model: Reader) -> Tensor:
    """[d_vocab] the logits' bias, zero for a model without one."""
    return torch.zeros(model.W_U.shape[1], dtype=torch.double) if model.b_U is None else _wide(model.b_U)
