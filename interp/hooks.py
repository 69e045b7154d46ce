"""Hook points, and the base of every model that has them.

A hook point is a named place in the forward pass. With no listener it hands its tensor on and costs one Python call.
A hook is `fn(tensor, hook) -> tensor | None`: it may return a replacement (same shape, dtype and device), or change
the tensor it was given in place; it always works on its own copy, so neither weights nor cached activations change.

Hooks belong to the thread, or the asynchronous task, that placed them: passes elsewhere on the same model do not see
them. (Tasks that are started inside a `with model.hooks` inherit its hooks, as they inherit every context variable.)
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from itertools import count
from typing import Any, NamedTuple, Protocol, TypeAlias, cast, runtime_checkable

import torch
from torch import Tensor, nn

from interp.cache import ActivationCache, Key, find_names, stack_sizes
from interp.errors import HookNameError, InputError, nearest
from interp.migration import ATTRIBUTES, unknown_attribute

HookFn: TypeAlias = Callable[[Tensor, "HookPoint"], Tensor | None]
NameSpec: TypeAlias = Key | Callable[[str], bool] | Sequence["NameSpec"]
HookPair: TypeAlias = tuple[NameSpec, HookFn]


@runtime_checkable
class SupportsHooks(Protocol):
    """Anything that can say which hooks it places: every intervention does."""

    def hooks(self) -> list[HookPair]: ...


HookSpec: TypeAlias = HookPair | SupportsHooks

_scopes: ContextVar[tuple[object, ...]] = ContextVar("scopes", default=())
"""Of each `with model.hooks` around the code that runs here, what its listeners are known by."""


class RunContext(threading.local):
    """What hooks may want to know of the run they are in; one per model, shared by its hook points, and per thread."""

    start: int = 0
    """Position in the sequence of the first row of this pass; more than 0 only when generating with a KV cache."""
    growing: bool = False
    """Whether this is one step of generation, so that positions beyond the sequence are merely not there yet."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return RunContext, ()


class _Listener(NamedTuple):
    """One function at one hook point. `reads_only` promises that it never changes its tensor, which saves a copy."""

    fn: HookFn
    reads_only: bool
    scope: object


class HookPoint:
    """A named place in the forward pass; call it with the tensor that passes there."""

    _created = count()

    def __init__(self) -> None:
        self.order = next(HookPoint._created)  # modules define their hook points in the order of computation
        self.name = ""
        self.context = RunContext()
        self.forward_listeners: list[_Listener] = []
        self.backward_listeners: list[_Listener] = []

    def __repr__(self) -> str:
        return f"HookPoint({self.name})"

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a model, or a pickle, has none of the hooks that happen to be placed."""
        return {**vars(self), "forward_listeners": [], "backward_listeners": []}

    @property
    def active(self) -> bool:
        """Whether anybody listens here; modules ask before they compute what only a listener would need."""
        placed = self.forward_listeners or self.backward_listeners
        return bool(placed and (_here(self.forward_listeners) or _here(self.backward_listeners)))

    @property
    def edited(self) -> bool:
        """Whether a listener may change the tensor."""
        return any(not listener.reads_only for listener in _here(self.forward_listeners))

    @property
    def start(self) -> int:
        """Position in the sequence of the first row of the tensor; 0 unless a KV cache holds earlier ones."""
        return self.context.start

    @property
    def layer(self) -> int:
        """The block this point lies in; raises HookNameError for points outside the blocks."""
        parts = self.name.split(".")
        if len(parts) < 2 or not parts[1].isdigit():
            raise HookNameError(f"hook point {self.name!r} lies in no block")
        return int(parts[1])

    def __call__(self, x: Tensor) -> Tensor:
        if not self.forward_listeners and not self.backward_listeners:
            return x
        for listener in _here(self.forward_listeners):
            x = self._apply(listener, x)
        placed = _here(self.backward_listeners)
        if placed and x.requires_grad:
            x = x.view_as(x)
            x.register_hook(lambda grad: self._backward(placed, grad))
        return x

    def _backward(self, placed: list[_Listener], grad: Tensor) -> Tensor:
        for listener in placed:
            if listener in self.backward_listeners:  # a hook does not outlive its `with`, even in a later backward()
                grad = self._apply(listener, grad)
        return grad

    def _apply(self, listener: _Listener, x: Tensor) -> Tensor:
        if listener.reads_only:
            listener.fn(x, self)
            return x
        given = x.clone()
        out = listener.fn(given, self)
        if out is None:
            return given
        if not isinstance(out, Tensor) or (out.shape, out.dtype, out.device) != (x.shape, x.dtype, x.device):
            raise InputError(
                f"hook at {self.name} returned {_describe(out)}", f"expected a replacement like {_describe(x)}, or None"
            )
        return out


def _here(listeners: list[_Listener]) -> list[_Listener]:
    """Those that were placed by this thread or task."""
    if not listeners:
        return listeners
    scopes = _scopes.get()
    return [one for one in tuple(listeners) if one.scope in scopes]  # a copy: other threads come and go


def _describe(x: object) -> str:
    if isinstance(x, Tensor):
        return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')} on {x.device}"
    return type(x).__name__


APART = ("hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in")
"""Copies of the stream, before the norm: what each head's queries, keys and values, and the MLP, read; for edits that
only one of these shall see. Computed only for listeners; hooks at the norm itself do not see the heads' copies."""
DERIVED = ("hook_result", *APART)
"""Hook points that are large or copies of others: `run_with_cache` keeps them only when asked."""


PLACED = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module of PyTorch's keeps its own hooks; `_global` before these, where PyTorch keeps those of all."""
EDITS = "give what shall change as interventions, or run the model itself: run_with_cache"


class HookedModule(nn.Module):
    """Base of hooked models: finds its hook points, places hooks for the length of a `with`, runs with a cache."""

    hook_points: dict[str, HookPoint]
    stack_sizes: dict[str, int]
    """How many blocks each stack has: {"blocks": 12}, or {"encoder": 6, "decoder": 6}."""

    def _name_hook_points(self) -> None:
        """Collect every HookPoint attribute, in the order of computation, named by its path. Call it in __init__."""
        found: list[HookPoint] = []
        self.context = RunContext()
        for path, module in self.named_modules():
            for attribute, value in vars(module).items():
                if isinstance(value, HookPoint):
                    value.name = f"{path}.{attribute}".lstrip(".")
                    value.context = self.context
                    found.append(value)
        self.hook_points = {point.name: point for point in sorted(found, key=lambda point: point.order)}
        self.stack_sizes = stack_sizes(self.hook_points)
        self._built = {path: type(module) for path, module in self.named_modules()}

    def changes(self, *, edits_only: bool = False) -> Iterator[tuple[str, str]]:
        """What a run of the modules obeys and the parts' own algebra does not: where ("" is everywhere), and in words.

        Hooks placed here (`edits_only`: but those that only read), PyTorch's own hooks, of one module or of all, a
        `forward` put on an instance, a module put in another's place.
        """
        for name, point in self.hook_points.items():
            if point.edited if edits_only else point.active:
                yield name, f"inside `model.hooks`, at {name}"
        if any(getattr(torch.nn.modules.module, f"_global{hooks}") for hooks in PLACED):
            yield "", "while PyTorch has hooks on all modules"
        for path, kind in self._built.items():
            module = self.get_submodule(path)
            parametrized = hasattr(module, "parametrizations") and issubclass(type(module), kind)
            if any(getattr(module, hooks) for hooks in PLACED):
                yield path, f"while PyTorch has a hook on {path or 'the model'}"
            elif "forward" in vars(module) or (type(module) is not kind and not parametrized):
                yield path, f"after {path or 'the model'} was given another forward, or replaced"

    def refuse_changes(self, what: str, changes: Iterable[tuple[str, str]] | None = None) -> None:
        """Raises InputError for the first of these changes (by default all `changes`), which `what` would not see."""
        for _, words in self.changes() if changes is None else changes:
            raise InputError(f"{what} {words}", "expected the model as it was built, without hooks", EDITS)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name not in ATTRIBUTES:
                raise
        raise unknown_attribute(type(self).__name__, name, ATTRIBUTES)

    def match(self, names: NameSpec) -> list[str]:
        """Full names of the hook points that `names` means, in the model's order.

        `names` is a full name, a pattern with `*` (`"blocks.*.hook_resid_post"`), a short name (`"resid_post"`, all
        layers), a short name with its layer and place (`("pattern", 3)`, `("pattern", 3, "encoder")`), a predicate on
        full names, or a sequence of these.
        Raises HookNameError, with the nearest names, for whatever matches nothing.
        """
        return match_names(names, list(self.hook_points), self.stack_sizes)

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Iterable[HookSpec] | SupportsHooks = (),
        bwd_hooks: Iterable[HookPair] = (),
        *,
        reads_only: bool = False,
    ) -> Iterator[None]:
        """Place hooks for the length of the `with` block; they are removed also when it is left by an exception.

        Args:
            fwd_hooks: pairs (names, fn), interventions, or one intervention (a circuit is one). Names as in `match`.
            bwd_hooks: pairs (names, fn); fn sees the gradient with respect to the tensor at that point.
            reads_only: a promise that no function changes its tensor, which saves a copy for each.
        """
        placed: list[tuple[list[_Listener], _Listener]] = []
        scope = object()
        _scopes.set((*_scopes.get(), scope))
        try:
            for spec in [fwd_hooks] if isinstance(fwd_hooks, SupportsHooks) else fwd_hooks:
                for names, fn in spec.hooks() if isinstance(spec, SupportsHooks) else [spec]:
                    for name in self.match(names):
                        self._place(self.hook_points[name].forward_listeners, _Listener(fn, reads_only, scope), placed)
            for names, fn in bwd_hooks:
                for name in self.match(names):
                    self._place(self.hook_points[name].backward_listeners, _Listener(fn, reads_only, scope), placed)
            yield
        finally:
            _scopes.set(tuple(other for other in _scopes.get() if other is not scope))
            for listeners, listener in reversed(placed):
                listeners.remove(listener)

    @staticmethod
    def _place(
        listeners: list[_Listener], listener: _Listener, placed: list[tuple[list[_Listener], _Listener]]
    ) -> None:
        if not callable(listener.fn):
            raise InputError(
                f"a hook of type {type(listener.fn).__name__}",
                "expected a function fn(tensor, hook), or an intervention",
            )
        listeners.append(listener)
        placed.append((listeners, listener))

    def run_with_hooks(self, *inputs: Any, fwd_hooks: Iterable[HookSpec] = (), **options: Any) -> Tensor:
        """One forward pass with hooks, gone afterwards. For backward hooks put `with model.hooks` around backward()."""
        with self.hooks(fwd_hooks):
            return self(*inputs, **options)  # type: ignore[no-any-return]

    def run_with_cache(
        self,
        *inputs: Any,
        names: NameSpec | None = None,
        pos: int | slice | Sequence[int] | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        detach: bool = True,
        **options: Any,
    ) -> tuple[Tensor, ActivationCache]:
        """One forward pass that keeps activations.

        Args:
            inputs: what the model's own call takes: text or tokens.
            names: which hook points, as in `match`; None keeps all but those in DERIVED.
            pos: positions to keep (queries for scores and pattern); an int keeps that axis with length one.
            device, dtype: where and how to keep them; by default as they are.
            detach: cut the kept tensors off the autograd graph.

        Returns:
            logits [batch pos d_vocab] and the cache.
        """
        kept: dict[str, Tensor] = {}

        def keep(x: Tensor, hook: HookPoint) -> None:
            x = select_positions(x.detach() if detach else x, hook.name, pos)
            kept[hook.name] = x.to(device=device, dtype=dtype)

        chosen = self.match(self.cached_by_default if names is None else names)
        with self.hooks([(chosen, keep)], reads_only=True):
            logits = self(*inputs, **options)
        return logits, ActivationCache(kept, self.stack_sizes)

    @staticmethod
    def cached_by_default(name: str) -> bool:
        """Whether `run_with_cache` keeps this hook point when no names are given."""
        return not name.endswith(DERIVED)


def select_positions(x: Tensor, name: str, pos: int | slice | Sequence[int] | None) -> Tensor:
    """The chosen positions of an activation; its position axis (the query axis for scores and pattern) stays."""
    if pos is None:
        return x
    axis = 2 if name.endswith(("hook_pattern", "hook_attn_scores")) else 1
    if isinstance(pos, int):
        pos = [pos]
    length = x.shape[axis]
    if not isinstance(pos, slice) and (wrong := [place for place in pos if not -length <= place < length]):
        raise InputError(f"position {wrong[0]} of {name}", f"expected {-length} to {length - 1}")
    index = pos if isinstance(pos, slice) else torch.as_tensor(list(pos), device=x.device)
    return x[(slice(None),) * axis + (index,)].clone()  # a view would keep the whole tensor alive


def match_names(names: NameSpec, known: list[str], sizes: Mapping[str, int] | None = None) -> list[str]:
    """Those of the `known` full names that `names` means, in their order; `HookedModule.match` without a model."""
    if isinstance(names, str) and names in known:
        return [names]
    if callable(names):
        found = [name for name in known if names(name)]
        if not found:
            raise HookNameError("the predicate matches no hook point", f"there are {len(known)}: model.hook_points")
        return found
    if isinstance(names, str) and "*" in names:
        found = [name for name in known if fnmatchcase(name, names)]
    elif isinstance(names, str) or (isinstance(names, tuple) and _is_key(names)):
        found = find_names(names, known, sizes)
    elif not isinstance(names, Iterable):
        raise InputError(f"names of type {type(names).__name__}", "expected a name, a pattern, a predicate, or several")
    else:
        parts = cast(Sequence[NameSpec], names)
        wanted = {name for part in parts for name in match_names(part, known, sizes)}
        return [name for name in known if name in wanted]
    if not found:
        raise unknown_name(names, known)
    return found


def unknown_name(names: NameSpec, known: list[str]) -> HookNameError:
    """The error for a name that matches nothing, with the nearest ones."""
    text = names if isinstance(names, str) else repr(names)
    short = {name.rsplit("hook_", 1)[-1] for name in known}
    close = nearest(text, known) or nearest(text, sorted(short))
    return HookNameError(
        f"no hook point matches {text!r}",
        f"nearest: {', '.join(close)}" if close else f"short names: {', '.join(sorted(short))}",
        "all names: list(model.hook_points)",
    )


def _is_key(names: tuple[Any, ...]) -> bool:
    """Whether a tuple is one key such as ("pattern", 3) rather than a sequence of names."""
    return len(names) in (2, 3) and isinstance(names[0], str) and isinstance(names[1], int)
