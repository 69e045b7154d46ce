"""The activations of one run, by name."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from interp.errors import HookNameError, nearest
from interp.migration import CACHE, unknown_attribute

Key: TypeAlias = str | tuple[str, int] | tuple[str, int, str]


def stack_sizes(names: Iterable[str]) -> dict[str, int]:
    """How many blocks each stack of blocks has, by the hook names: {"blocks": 12}, {"encoder": 6, "decoder": 6}."""
    sizes: dict[str, int] = {}
    for stack, layer, *_ in (name.split(".") for name in names if name.count(".") > 1):
        if layer.isdigit():
            sizes[stack] = max(sizes.get(stack, 0), int(layer) + 1)
    return sizes


def find_names(key: Key, known: list[str], sizes: Mapping[str, int] | None = None) -> list[str]:
    """Full names that a key means: a full name, a short name ("resid_pre"), or one with its layer and place.

    `("pattern", 3)` is `blocks.3.attn.hook_pattern`; `("scale", 3, "ln1")` is `blocks.3.ln1.hook_scale`. The place is a
    part of the path, or several: `("pattern", 3, "encoder")`, `("k", 3, "decoder.attn")`. A negative layer counts from
    the last block of its stack, of which `sizes` says how many there are (by default up to the last one that is known).
    Empty when nothing matches.
    """
    if isinstance(key, str):
        return [name for name in known if name == key or name.rsplit(".", 1)[-1] == f"hook_{key}"]
    short, layer, *place = key
    wanted = set(place[0].split(".")) if place else set()
    found = []
    for name in known:
        parts = name.split(".")
        if parts[-1] == f"hook_{short}" and len(parts) > 2 and parts[1].isdigit() and wanted <= set(parts):
            if layer < 0 and sizes is None:
                sizes = stack_sizes(known)
            size = sizes.get(parts[0], 0) if sizes else 0
            if int(parts[1]) == (layer if layer >= 0 else layer + size):
                found.append(name)
    return found


class ActivationCache(Mapping[str, Tensor]):
    """A read-only mapping from hook names to activations; `cache["pattern", 3]` and `cache["embed"]` work too."""

    def __init__(self, activations: Mapping[str, Tensor], sizes: Mapping[str, int] | None = None) -> None:
        """`sizes`: blocks of each stack, also those of which nothing is kept; negative layers count from the last."""
        self._activations = dict(activations)
        self._sizes = sizes

    def __getitem__(self, key: Key) -> Tensor:
        """The activation a key means. Raises HookNameError when it means none, or more than one."""
        if isinstance(key, str) and key in self._activations:
            return self._activations[key]
        found = find_names(key, list(self._activations), self._sizes)
        if len(found) == 1:
            return self._activations[found[0]]
        if found:
            raise HookNameError(
                f"cache key {key!r} means {len(found)} activations", f"expected one of {', '.join(found[:4])}"
            )
        text = key if isinstance(key, str) else f"hook_{key[0]}"
        close = nearest(text, list(self._activations))
        raise HookNameError(
            f"the cache holds nothing for {key!r}",
            f"nearest: {', '.join(close)}" if close else f"it holds {len(self)} activations: list(cache)",
            "was it left out by names=... of run_with_cache?",
        )

    def __getattr__(self, name: str) -> object:
        if name in CACHE:
            raise unknown_attribute("an activation cache", name, CACHE)
        raise AttributeError(f"an activation cache has no attribute {name!r}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._activations)

    def __len__(self) -> int:
        return len(self._activations)

    def __contains__(self, key: object) -> bool:
        if isinstance(key, str) and key in self._activations:
            return True
        return isinstance(key, (str, tuple)) and len(find_names(key, list(self._activations), self._sizes)) == 1

    def __repr__(self) -> str:
        return f"ActivationCache({len(self)} activations, {self.nbytes / 1e6:.1f} MB)"

    @property
    def nbytes(self) -> int:
        """Bytes held by all activations together."""
        return sum(x.numel() * x.element_size() for x in self._activations.values())

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "ActivationCache":
        """A copy on another device or in another dtype."""
        return ActivationCache({name: x.to(device=device, dtype=dtype) for name, x in self.items()}, self._sizes)

    def stack(self, short: str, stack: str = "blocks") -> Tensor:
        """One activation of every block of a stack that has it: `stack("z")` is [layer batch pos head d_head].

        Raises HookNameError when there is none, or a block has two (`scale`: give `"ln1.hook_scale"`).
        """
        short = short if "hook_" in short else f"hook_{short}"
        found = [name for name in self._activations if name.startswith(f"{stack}.") and name.endswith(f".{short}")]
        if len(found) != len({name.split(".")[1] for name in found}) or not found:
            problem = "two for each block" if found else "nothing"
            raise HookNameError(
                f"the cache holds {problem} for {short!r}", f"it holds {', '.join(found[:4]) or list(self)[:4]}"
            )
        return torch.stack([self._activations[name] for name in found])
