"""Parts of a model that can be changed one at a time: heads, MLPs, attention layers, layers, neurons, embeddings."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from analyses.shared.capabilities import require
from analyses.shared.panels import Bars, Matrix, Panel
from analyses.shared.statistics import Interval
from interp.errors import InputError, nearest
from interp.interventions import Index, Replace
from interp.models.gpt import HookedGPT

Kind = Literal["head", "mlp", "attn", "layer", "neuron", "embed"]
GROUPS: dict[str, Kind] = {
    "heads": "head", "mlps": "mlp", "attention": "attn", "layers": "layer", "neurons": "neuron", "embed": "embed",
}  # fmt: skip
WORDS: dict[Kind, str] = {
    "head": "heads", "mlp": "MLPs", "attn": "attention layers", "layer": "whole layers", "neuron": "neurons",
    "embed": "the embedding",
}  # fmt: skip
BARS = 20
"""Most components in a bar chart."""
_LABEL = re.compile(r"L(\d+)([HN])(\d+)|(mlp|attn|layer) (\d+)|embed")


@dataclass(frozen=True, order=True)
class Component:
    """One part. Labels: `L1H3` a head, `mlp 1`, `attn 1`, `layer 1` (both), `L1N17` a neuron, `embed`."""

    label: str
    kind: Kind
    layer: int | None = None
    index: int | None = None
    """The head's or neuron's number."""

    @property
    def names(self) -> tuple[str, ...]:
        """Hook points that hold its output."""
        if self.kind == "embed":
            return ("blocks.0.hook_resid_pre",)
        ends = {
            "head": ("attn.hook_z",),
            "neuron": ("mlp.hook_post",),
            "mlp": ("hook_mlp_out",),
            "attn": ("hook_attn_out",),
        }
        return tuple(f"blocks.{self.layer}.{end}" for end in ends.get(self.kind, ("hook_attn_out", "hook_mlp_out")))

    def replace(self, value: Callable[[str], float | Tensor], pos: Index = None) -> list[Replace]:
        """Its output replaced by what `value` gives for each of its hook points."""
        head = self.index if self.kind == "head" else None
        unit = self.index if self.kind == "neuron" else None
        return [Replace(name=name, head=head, unit=unit, pos=pos, value=value(name)) for name in self.names]


def choose(
    model: HookedGPT,
    chosen: str | Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    allowed: Sequence[str] = ("heads", "mlps", "attention", "layers", "neurons"),
) -> tuple[Component, ...]:
    """The components that groups ("heads") and single labels ("L1H3", "mlp 0") name, in order, each once.

    Args:
        chosen: one string, separated by commas, or several.
        layers: take groups from these layers alone (negative ones count from the end); None means all.

    Raises InputError for a name that means nothing, or a layer, head or neuron that the model does not have.
    """
    parts = chosen.split(",") if isinstance(chosen, str) else [part for one in chosen for part in one.split(",")]
    found: dict[Component, None] = {}
    for part in map(str.strip, parts):
        if part in GROUPS and part in allowed:
            found.update(dict.fromkeys(_group(model, GROUPS[part], layer_numbers(model, layers))))
        else:
            found[_single(model, part, allowed)] = None
    if not found:
        require(model, ("mlp",))
    return tuple(found)


def _group(model: HookedGPT, kind: Kind, layers: Sequence[int]) -> list[Component]:
    if kind == "embed":
        return [Component("embed", "embed")]
    if model.config.attn_only and kind in ("mlp", "layer", "neuron"):
        return []
    if kind in ("mlp", "attn", "layer"):
        return [Component(f"{kind} {layer}", kind, layer) for layer in layers]
    letter, size = ("H", model.config.n_heads) if kind == "head" else ("N", model.config.d_mlp)
    return [Component(f"L{layer}{letter}{i}", kind, layer, i) for layer in layers for i in range(size)]


def layer_numbers(model: HookedGPT, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers as numbers from 0; None means all. Raises InputError for a layer that the model does not have."""
    total = model.config.n_layers
    for layer in layers or ():
        if not -total <= layer < total:
            raise InputError(f"layer {layer}", f"expected 0 to {total - 1}")
    return tuple(range(total)) if layers is None else tuple(layer % total for layer in layers)


def _single(model: HookedGPT, part: str, allowed: Sequence[str]) -> Component:
    match = _LABEL.fullmatch(part)
    kind: Kind = "embed"
    if match and match[1]:
        kind = "head" if match[2] == "H" else "neuron"
    elif match and match[4]:
        kind = match[4]  # type: ignore[assignment]
    if match is None or kind not in [GROUPS[name] for name in allowed]:
        close = nearest(part, list(allowed), 1)
        raise InputError(
            f"unknown component {part!r}",
            f"expected {', '.join(allowed)}, or single ones such as L0H1, mlp 0",
            f"did you mean {close[0]!r}?" if close else "",
        )
    known = _group(model, kind, range(model.config.n_layers))
    for component in known:
        if component.label == part:
            return component
    if not known:
        require(model, ("mlp",))
    raise InputError(f"component {part!r}", f"expected {known[0].label} to {known[-1].label}")


def component_panels(
    key: str, title: str, components: Sequence[Component], spread: Interval, *, caption: str, unit: str
) -> list[Panel]:
    """One number a component: heads as a layer x head matrix, the rest as bars (the BARS largest).

    Args:
        key: of the panels; "-heads" or "-others" is added.
        title: of the panels; {} in it becomes "heads", "MLPs", ...
        spread: values [component] with their interval.
    """
    key, panels = key.replace("_", "-"), list[Panel]()
    heads = [i for i, c in enumerate(components) if c.kind == "head"]
    if heads:
        layers = tuple(sorted({components[i].layer or 0 for i in heads}))
        width = 1 + max(components[i].index or 0 for i in heads)
        low, high = (
            None if x is None else _grid(components, heads, layers, width, x) for x in (spread.low, spread.high)
        )
        panels.append(
            Matrix(
                key=f"{key}-heads", title=title.format("heads"), caption=caption, unit=unit, low=low, high=high,
                values=_grid(components, heads, layers, width, spread.value), rows=tuple(map(str, layers)),
                columns=tuple(map(str, range(width))), row_axis="layer", column_axis="head", diverging=True,
            )
        )  # fmt: skip
    others = [i for i, c in enumerate(components) if c.kind != "head"]
    words = [WORDS[kind] for kind in dict.fromkeys(components[i].kind for i in others)]
    title = title.format(" and ".join(words))
    if len(others) > BARS:
        others = sorted(others, key=lambda i: -abs(spread.value[i]))[:BARS]
        title += f" (the {BARS} largest)"
    if others:
        low, high = (None if x is None else x[others] for x in (spread.low, spread.high))
        panels.append(
            Bars(
                key=f"{key}-others", title=title, caption=caption, unit=unit, values=spread.value[others],
                labels=tuple(components[i].label for i in others), low=low, high=high,
            )
        )  # fmt: skip
    return panels


def _grid(
    components: Sequence[Component], heads: list[int], layers: tuple[int, ...], width: int, values: np.ndarray
) -> np.ndarray:
    """[layer head] of values [component]; NaN for heads that are not among them."""
    grid = np.full((len(layers), width), np.nan)
    for i in heads:
        grid[layers.index(components[i].layer or 0), components[i].index or 0] = values[i]
    return grid
