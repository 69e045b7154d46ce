"""Interventions: small frozen objects that say what to change in a run. No model, no run, just the change.

They are hooks (`with model.hooks([ablate_head(3, 1)]):`), they work in generation with and without a KV cache
(then positions count from the start of the sequence), and sweeps take lists of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.hooks import HookPair, HookPoint
from interp.models.kernels import wide_dtype

Index: TypeAlias = int | Sequence[int] | None
"""One place on an axis, several, or (None) all of them; negative counts from the end."""

PATTERN = ("hook_pattern", "hook_attn_scores")
PER_HEAD = (
    "hook_q", "hook_k", "hook_v", "hook_rot_q", "hook_rot_k", "hook_z", "hook_result", "hook_q_input", "hook_k_input",
    "hook_v_input",
)  # fmt: skip


def whole(index: Any, what: str) -> int | tuple[int, ...] | None:
    """A place as an int, several as a tuple of them, from numbers, sequences, arrays or tensors; None stays None.

    Raises InputError for anything else, such as a mask of booleans, which is not read as the places that it marks.
    """
    found = index.tolist() if isinstance(index, (Tensor, np.ndarray, np.generic)) else index
    if found is None or (isinstance(found, int) and not isinstance(found, bool)):
        return found
    if not isinstance(found, Iterable) or isinstance(found, (str, bytes)):
        raise InputError(f"{what}: {index!r:.60}", "expected a whole number, or several")
    places: list[Any] = [one.tolist() if isinstance(one, (Tensor, np.generic)) else one for one in found]
    if any(not isinstance(one, int) or isinstance(one, bool) for one in places):
        raise InputError(f"{what}: {index!r:.60}", "expected a whole number, or several")
    return tuple(places)


def axes(name: str) -> tuple[int, int | None]:
    """The position axis (query for patterns) and the head axis, if any, of the activation at a hook point."""
    if name.endswith(PATTERN):
        return 2, 1
    return 1, 2 if name.endswith(PER_HEAD) else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Intervention:
    """Where and what: a hook point, on it some heads, positions and last-axis units (None means all), and a value.

    A kind of intervention says what it does once, in `change`; hooks, generation and sweeps find the place and call it.
    """

    name: str
    """Full name of the hook point."""
    head: Index = None
    pos: Index = None
    unit: Index = None
    """Coordinates of the last axis: neurons at mlp hooks, residual dimensions, keys of a pattern."""
    value: float | Tensor = 0.0
    """A number, or a tensor that broadcasts to the activation (or is longer on the position axis)."""

    reads_old: ClassVar[bool] = True
    """Whether the new activation depends on the old one; if not, nothing upstream of a whole replacement matters."""
    of_run: ClassVar[bool] = False
    """Whether the value is another run's activation, each position for its own, so that one position is not for all."""

    def __post_init__(self) -> None:
        """Places become whole numbers, whatever they were given as. Raises InputError for what is none."""
        for axis in ("head", "pos", "unit"):
            object.__setattr__(self, axis, whole(getattr(self, axis), f"{axis} at {self.name}"))

    def change(self, x: Tensor, value: Tensor) -> Tensor:
        """The new activation, from the old one and this intervention's value there."""
        raise TypeError(f"{type(self).__name__} does not say what to change")

    def parameters(self) -> tuple[object, ...]:
        """What, beside place and value, decides the change: numbers and tensors."""
        return ()

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
        mask = self.mask(x, start, growing=growing)
        value, rows = self._aligned(x, start, growing=growing)
        if rows == 0:
            return x
        axis = axes(self.name)[0]
        changed = self.change(x.narrow(axis, 0, rows), value)
        if rows < x.shape[axis]:
            changed = torch.cat([changed, x.narrow(axis, rows, x.shape[axis] - rows)], axis)
        return torch.where(mask, changed, x)

    def _aligned(self, x: Tensor, start: int, *, growing: bool) -> tuple[Tensor, int]:
        """The value for the rows of x, and to how many of them it applies: it may be shorter than a text that grows."""
        axis = axes(self.name)[0]
        rows = x.shape[axis]
        if not isinstance(self.value, Tensor):
            return x.new_full((), self.value), rows
        value = self.value.to(x)
        value = value.reshape((1,) * (x.ndim - value.ndim) + value.shape)
        if self.name.endswith(PATTERN) and growing and value.shape[-1] < x.shape[-1]:
            value = F.pad(value, (0, x.shape[-1] - value.shape[-1]))  # keys that came later get no attention
        length, total = value.shape[axis] if value.ndim == x.ndim else 1, start + rows
        if length > 1 or self.of_run:
            if not growing and (length < total or (length > total and start == 0)):
                raise self.misfit(x, total)
            rows = max(0, min(rows, length - start))
            value = value.narrow(axis, min(start, length), rows)
        return self._fitting(value, x.narrow(axis, 0, rows)), rows

    def _fitting(self, value: Tensor, x: Tensor) -> Tensor:
        if value.ndim > x.ndim or any(have not in (1, want) for have, want in zip(value.shape, x.shape, strict=True)):
            raise self.misfit(x, None)
        return value

    def misfit(self, x: Tensor | Sequence[int], length: int | None) -> InputError:
        """The error for a value that does not fit an activation x; `length`: of the text, where that is why."""
        shape = tuple(x.shape if isinstance(x, Tensor) else x)
        given = tuple(self.value.shape) if isinstance(self.value, Tensor) else ()
        if length is None:
            return InputError(f"value of shape {given} at {self.name}", f"expected one that broadcasts to {shape}")
        return InputError(
            f"value of shape {given} at {self.name}, in a text of {length} positions",
            "expected a value for each position" + ("" if self.of_run else ", or one for all"),
            "patch from a run of the same length that keeps all positions",
        )

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
class Replace(Intervention):
    """Put a value there: 0.0 ablates; an activation of another run patches."""

    reads_old: ClassVar[bool] = False

    def change(self, x: Tensor, value: Tensor) -> Tensor:
        return value.expand_as(x)


@dataclass(frozen=True, kw_only=True, eq=False)
class Patch(Replace):
    """Put another run's activation there, position by position: the run must have been as long."""

    of_run: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Intervention):
    """Add a vector there: steering."""

    value: float | Tensor
    scale: float = 1.0

    def change(self, x: Tensor, value: Tensor) -> Tensor:
        return x + self.scale * value

    def parameters(self) -> tuple[object, ...]:
        return (self.scale,)


@dataclass(frozen=True, kw_only=True, eq=False)
class Affine(Intervention):
    """x becomes factor x + (x left) right + value: scaling, projecting, erasing a subspace."""

    factor: float = 1.0
    left: Tensor | None = None
    """[width rank] of the activation's last axis; None for no such term."""
    right: Tensor | None = None
    """[rank width]"""

    def change(self, x: Tensor, value: Tensor) -> Tensor:
        changed = x if self.factor == 1.0 else self.factor * x
        if self.left is not None and self.right is not None:
            changed = changed + (x @ self.left.to(x)) @ self.right.to(x)
        return changed + value

    def parameters(self) -> tuple[object, ...]:
        return (self.factor, self.left, self.right)


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


def patch(name: str, source: Mapping[str, Tensor], *, head: Index = None, pos: Index = None) -> Patch:
    """Put another run's activation (its cache) at a hook point, for chosen heads and positions.

    The runs have the same length and the cache all positions; in generation the source may be as short as the prompt.
    """
    return Patch(name=name, value=source[name], head=head, pos=pos)


def steer(layer: int, vector: Tensor, scale: float = 1.0, *, pos: Index = None, stack: str = "blocks") -> Add:
    """Add a vector [d_model] to the residual stream that enters a block."""
    return Add(name=f"{stack}.{layer}.hook_resid_pre", value=vector, scale=scale, pos=pos)


def scale(name: str, factor: float, *, head: Index = None, pos: Index = None, unit: Index = None) -> Affine:
    """Multiply an activation by a number."""
    return Affine(name=name, factor=factor, head=head, pos=pos, unit=unit)


def project_out(name: str, directions: Float[Tensor, "rank width"], *, head: Index = None, pos: Index = None) -> Affine:
    """Take the span of some directions out of an activation, so that what is left is orthogonal to all of them.

    Directions may depend on each other, or be zero: the span is what their singular vectors span. Raises InputError for
    directions that are not finite.
    """
    if not directions.isfinite().all():
        raise InputError(f"directions to project out at {name} that are no numbers", "expected finite ones")
    sides, sizes, _ = torch.linalg.svd(directions.to(wide_dtype(directions.dtype)).T, full_matrices=False)
    basis = sides[:, sizes > sizes[:1].sum() * max(directions.shape) * torch.finfo(sizes.dtype).eps]
    return Affine(name=name, left=-basis, right=basis.T, head=head, pos=pos)


def erase(
    name: str,
    left: Float[Tensor, "width rank"],
    right: Float[Tensor, "rank width"],
    mean: Float[Tensor, " width"],
    *,
    pos: Index = None,
) -> Affine:
    """x - (x - mean) left right: LEACE (Belrose et al. 2023, theorem 4.3), or another projection, from its factors."""
    return Affine(name=name, left=-left, right=right, value=(mean @ left) @ right, pos=pos)


def freeze(names: Iterable[str], source: Mapping[str, Tensor]) -> list[Patch]:
    """Hold activations at their values of another run of the same length."""
    return [Patch(name=name, value=source[name]) for name in names]
