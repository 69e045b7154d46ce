"""Interventions: small frozen objects that say what to change in a run. No model, no run, just the change.

They are hooks (`with model.hooks([ablate_head(3, 1)]):`), they work in generation with and without a KV cache
(then positions count from the start of the sequence), and sweeps take lists of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.errors import InputError
from interp.hooks import HookPair, HookPoint

Index: TypeAlias = int | Sequence[int] | None
"""One place on an axis, several, or (None) all of them; negative counts from the end."""

PATTERN = ("hook_pattern", "hook_attn_scores")
PER_HEAD = ("hook_q", "hook_k", "hook_v", "hook_z", "hook_result")


def axes(name: str) -> tuple[int, int | None]:
    """The position axis (query for patterns) and the head axis, if any, of the activation at a hook point."""
    if name.endswith(PATTERN):
        return 2, 1
    return 1, 2 if name.endswith(PER_HEAD) else None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Place:
    """Where: a hook point, and on it some heads, positions and last-axis units. None means all."""

    name: str
    """Full name of the hook point."""
    head: Index = None
    pos: Index = None
    unit: Index = None
    """Coordinates of the last axis: neurons at mlp hooks, residual dimensions, keys of a pattern."""

    def hooks(self) -> list[HookPair]:
        return [(self.name, self._apply)]

    def _apply(self, x: Tensor, hook: HookPoint) -> Tensor:
        if hook.name != self.name:
            raise InputError(f"an intervention at {self.name!r}", f"expected a full hook name such as {hook.name!r}")
        return self.edit(x, hook.start, growing=hook.context.growing)

    def edit(self, x: Tensor, start: int = 0, *, growing: bool = False) -> Tensor:
        """The changed activation.

        Args:
            start: position in the sequence of the first row of x.
            growing: whether the sequence will grow, so that positions beyond its end are not wrong but yet to come.

        Raises InputError for a place that is not there.
        """
        raise TypeError(f"{type(self).__name__} does not say what to change")

    def mask(self, x: Tensor, start: int = 0, *, growing: bool = False) -> Tensor:
        """Booleans that broadcast to x, True where the change applies."""
        pos_axis, head_axis = axes(self.name)
        chosen = torch.ones((1,) * x.ndim, dtype=torch.bool, device=x.device)
        for index, axis in ((self.head, head_axis), (self.pos, pos_axis), (self.unit, x.ndim - 1)):
            if index is None:
                continue
            if axis is None:
                raise InputError(f"head = {index} at {self.name}", "this activation has no head axis")
            shape = [1] * x.ndim
            shape[axis] = x.shape[axis]
            before = start if axis == pos_axis else 0
            ahead = growing and (axis == pos_axis or (axis == x.ndim - 1 and self.name.endswith(PATTERN)))
            chosen = chosen & _flags(index, before, x.shape[axis], ahead, self.name).to(x.device).view(shape)
        return chosen


def _flags(index: int | Sequence[int], before: int, size: int, ahead: bool, name: str) -> Tensor:
    """[size] booleans for the places before ... before + size - 1 of an axis; `ahead` allows places beyond."""
    total = before + size
    flags = torch.zeros(total, dtype=torch.bool)
    for place in [index] if isinstance(index, int) else index:
        if place < 0 and ahead:
            raise InputError(f"index {place} at {name} while generating", "expected positions counted from the start")
        if -total <= place < total:
            flags[place] = True
        elif not ahead:
            raise InputError(f"index {place} at {name}", f"expected {-total} to {total - 1}")
    return flags[before:]


@dataclass(frozen=True, kw_only=True, eq=False)
class Replace(_Place):
    """Put a value there: 0.0 ablates; an activation of another run patches."""

    value: float | Tensor = 0.0
    """A number, or a tensor that broadcasts to the activation (or is longer on the position axis)."""

    def edit(self, x: Tensor, start: int = 0, *, growing: bool = False) -> Tensor:
        mask = self.mask(x, start, growing=growing)
        if not isinstance(self.value, Tensor):
            return x.masked_fill(mask, self.value)
        value = self.value.to(x)
        value = value.reshape((1,) * (x.ndim - value.ndim) + value.shape)
        axis = axes(self.name)[0]
        if self.name.endswith(PATTERN) and growing and value.shape[-1] < x.shape[-1]:
            value = F.pad(value, (0, x.shape[-1] - value.shape[-1]))  # keys that came later get no attention
        if value.shape[axis] > 1:
            if start == 0 and value.shape[axis] < x.shape[axis]:  # generation without a cache: the text has grown
                value = value.expand([-1 if a == axis else size for a, size in enumerate(x.shape)])
                value = torch.cat([value, x.narrow(axis, value.shape[axis], x.shape[axis] - value.shape[axis])], axis)
            elif start >= value.shape[axis]:
                return x
            value = value.narrow(axis, start, x.shape[axis])
        return torch.where(mask, value, x)


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(_Place):
    """Add a vector there: steering."""

    value: Tensor
    """A tensor that broadcasts to the activation, such as [d_model]."""
    scale: float = 1.0

    def edit(self, x: Tensor, start: int = 0, *, growing: bool = False) -> Tensor:
        return torch.where(self.mask(x, start, growing=growing), x + self.scale * self.value.to(x), x)


# A translation model has two stacks, "encoder" and "decoder", and in the decoder a second attention, "cross_attn".


def ablate_head(
    layer: int,
    head: Index,
    value: float | Tensor = 0.0,
    *,
    pos: Index = None,
    stack: str = "blocks",
    attention: str = "attn",
) -> Replace:
    """Replace a head's mixed values z, before the output projection, where heads are still apart."""
    return Replace(name=f"{stack}.{layer}.{attention}.hook_z", value=value, head=head, pos=pos)


def ablate_attention(
    layer: int, value: float | Tensor = 0.0, *, pos: Index = None, stack: str = "blocks", attention: str = "attn"
) -> Replace:
    """Replace a whole attention layer's output."""
    return Replace(name=f"{stack}.{layer}.hook_{attention}_out", value=value, pos=pos)


def ablate_mlp(layer: int, value: float | Tensor = 0.0, *, pos: Index = None, stack: str = "blocks") -> Replace:
    """Replace an MLP's output."""
    return Replace(name=f"{stack}.{layer}.hook_mlp_out", value=value, pos=pos)


def ablate_neurons(
    layer: int, neurons: Index, value: float | Tensor = 0.0, *, pos: Index = None, stack: str = "blocks"
) -> Replace:
    """Replace the activations of chosen neurons, after the non-linearity."""
    return Replace(name=f"{stack}.{layer}.mlp.hook_post", value=value, unit=neurons, pos=pos)


def patch(name: str, source: Mapping[str, Tensor], *, head: Index = None, pos: Index = None) -> Replace:
    """Put another run's activation (its cache) at a hook point, for chosen heads and positions."""
    return Replace(name=name, value=source[name], head=head, pos=pos)


def steer(layer: int, vector: Tensor, scale: float = 1.0, *, pos: Index = None, stack: str = "blocks") -> Add:
    """Add a vector [d_model] to the residual stream that enters a block."""
    return Add(name=f"{stack}.{layer}.hook_resid_pre", value=vector, scale=scale, pos=pos)


def freeze(names: Iterable[str], source: Mapping[str, Tensor]) -> list[Replace]:
    """Hold activations at their values of another run."""
    return [Replace(name=name, value=source[name]) for name in names]
