"""What a sweep's variants change, made ready for the engine: each edit with the positions, heads and units it touches.

Positions are sorted tuples of absolute places in the sequence. An edit "touches" a position when the activation there
may differ from the clean run because of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

from interp.errors import InputError
from interp.hooks import unknown_name
from interp.interventions import Index, Intervention, axes
from interp.models.gpt import HookedGPT

Positions: TypeAlias = tuple[int, ...]
Where: TypeAlias = slice | Tensor


def union(*parts: Positions) -> Positions:
    """Positions in any of them."""
    found: Positions = ()
    for part in parts:
        if part and part != found:
            found = tuple(sorted({*found, *part})) if found else part
    return found


@lru_cache(maxsize=1024)
def common(a: Positions, b: Positions) -> Positions:
    """Positions in both."""
    if a == b:
        return a
    chosen = set(b)
    return tuple(p for p in a if p in chosen)


@lru_cache(maxsize=8192)
def places(wanted: Positions, among: Positions, device: torch.device) -> Where:
    """Where `wanted`, all of them in `among`, stand in it: a slice when they are neighbours in order, else indices."""
    index = {p: place for place, p in enumerate(among)}
    return _as_where([index[p] for p in wanted], device)


def _as_where(found: Sequence[int], device: torch.device) -> Where:
    if not found:
        return slice(0, 0)
    if list(found) == list(range(found[0], found[0] + len(found))):
        return slice(found[0], found[-1] + 1)
    return torch.tensor(found, device=device)


def take(x: Tensor, where: Where, axis: int) -> Tensor:
    """Those places of one axis: a view for a slice, a copy for indices."""
    if isinstance(where, slice):
        return x.narrow(axis, where.start, where.stop - where.start)
    return x.index_select(axis, where)


def put(x: Tensor, where: Where, axis: int, value: Tensor) -> None:
    """Write `value` at those places of one axis."""
    if isinstance(where, slice):
        x.narrow(axis, where.start, where.stop - where.start).copy_(value)
    else:
        shape = list(x.shape)
        shape[axis] = len(where)
        x.index_copy_(axis, where, value.expand(shape))


@lru_cache(maxsize=8192)
def _flags(have: Positions, chosen: Positions, device: torch.device) -> Tensor:
    """For each of `have`, whether it is chosen."""
    inside = set(chosen)
    return torch.tensor([place in inside for place in have], dtype=torch.bool, device=device)


@dataclass(frozen=True, eq=False)
class Edit:
    """One intervention with its indices resolved; None means all heads, all units. What it does its source says."""

    source: Intervention
    positions: Positions
    """Where it applies."""
    touches: Positions
    """Where it may change something: `positions`, or nothing when it only puts back what the clean run has."""
    heads: Positions | None
    units: Positions | None
    whole: bool
    """Whether it replaces all of the activation, so that nothing upstream of it matters."""

    def apply(self, x: Tensor, positions: Positions, heads: Positions | None = None) -> Tensor:
        """The changed activation. x holds just these positions and heads (None: all) of one variant."""
        pos_axis, head_axis = axes(self.source.name)
        changed = self.source.change(x, self._value(x, positions, heads))
        for axis, have, chosen in (
            (pos_axis, positions, self.positions),
            (head_axis, heads, self.heads),
            (x.ndim - 1, None, self.units),
        ):
            if axis is None or chosen is None or have == chosen:
                continue
            flags = _flags(have or tuple(range(x.shape[axis])), chosen, x.device)
            changed = torch.where(flags.view([-1 if a == axis else 1 for a in range(x.ndim)]), changed, x)
        return changed

    def _value(self, x: Tensor, positions: Positions, heads: Positions | None) -> Tensor:
        """The value at these positions and heads, in x's dtype, with as many axes as x."""
        if not isinstance(self.source.value, Tensor):
            return x.new_full((), self.source.value)
        pos_axis, head_axis = axes(self.source.name)
        value = self.source.value.to(x)
        value = value.reshape((1,) * (x.ndim - value.ndim) + value.shape)
        for axis, have in ((pos_axis, positions), (head_axis, heads)):
            if axis is not None and have is not None and value.shape[axis] > 1:
                value = take(value, _as_where(have, x.device), axis)
        return value


def resolve(source: Intervention, model: HookedGPT, batch: int, length: int, kept: int) -> Edit:
    """An intervention made ready for tokens [batch length], of which the first `kept` positions are run.

    Raises InputError when it does not fit the model and tokens.
    """
    name = source.name
    if name not in model.hook_points:
        raise unknown_name(name, list(model.hook_points))
    shape = model.hook_shape(name, batch, length)
    pos_axis, head_axis = axes(name)
    if source.head is not None and head_axis is None:
        raise InputError(f"head = {source.head} at {name}", "this activation has no head axis")
    chosen = _resolve_index(source.pos, length, name)
    positions = tuple(range(length)) if chosen is None else chosen
    if isinstance(source.value, Tensor):
        value = [1] * (len(shape) - source.value.ndim) + list(source.value.shape)
        lengths = (length,) if source.of_run else (1, length)
        if len(value) == len(shape) and value[pos_axis] not in lengths:
            raise source.misfit(shape, length)
        if len(value) > len(shape) or any(have not in (1, want) for have, want in zip(value, shape, strict=True)):
            raise source.misfit(shape, None)
    heads = _resolve_index(source.head, shape[head_axis or 0], name)
    units = _resolve_index(source.unit, shape[-1], name)
    whole = not source.reads_old and heads is None and units is None and len(positions) == length
    if kept < length:
        positions = tuple(p for p in positions if p < kept)
    return Edit(source, positions, positions, heads, units, whole)


def _resolve_index(index: Index, size: int, name: str) -> Positions | None:
    """The places an index means, sorted, none of them negative; None for all."""
    if index is None:
        return None
    chosen = [index] if isinstance(index, int) else list(index)
    for place in chosen:
        if not -size <= place < size:
            raise InputError(f"index {place} at {name}", f"expected {-size} to {size - 1}")
    return tuple(sorted({place % size for place in chosen}))
