"""Parts of a model that can be changed one at a time: heads, MLPs, attention layers, layers, neurons, embeddings.

Those of a translation model are named after their attention: `enc L0H1`, `dec L0H1`, `cross L0H1`, `enc mlp 0`,
`cross attn 0`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from analyses.shared.capabilities import require
from analyses.shared.panels import Bars, Matrix, Panel
from analyses.shared.stacks import Model, Stack, attentions
from analyses.shared.statistics import Interval
from interp.errors import InputError, nearest
from interp.interventions import Index, Replace

Kind = Literal["head", "mlp", "attn", "layer", "neuron", "embed"]
GROUPS: dict[str, Kind] = {
    "heads": "head", "mlps": "mlp", "attention": "attn", "layers": "layer", "neurons": "neuron", "embed": "embed",
}  # fmt: skip
WORDS: dict[Kind, str] = {
    "head": "heads", "mlp": "MLPs", "attn": "attention layers", "layer": "whole layers", "neuron": "neurons",
    "embed": "the embedding",
}  # fmt: skip
STACKS = {"": "", "enc": "encoder ", "dec": "decoder self-attention ", "cross": "cross-attention "}
"""Before labels -> in words."""
BARS = 20
"""Most components in a bar chart."""
_LABEL = re.compile(r"L(\d+)([HN])(\d+)|(mlp|attn|layer) (\d+)|embed")
_PREFIX = re.compile(r"(?:(enc|dec|cross) )?(.*)")


@dataclass(frozen=True, order=True)
class Component:
    """One part. Labels: `L1H3` a head, `mlp 1`, `attn 1`, `layer 1` (all of it), `L1N17` a neuron, `embed`."""

    label: str
    kind: Kind
    layer: int | None = None
    index: int | None = None
    """The head's or neuron's number."""
    short: str = ""
    """Which attention of a translation model it belongs to: `enc`, `dec` or `cross`."""
    stack: str = "blocks"
    attention: str = "attn"
    """The attention in its block: `attn` or `cross_attn`."""

    @property
    def names(self) -> tuple[str, ...]:
        """Hook points that hold its output."""
        if self.kind == "embed":
            return ("blocks.0.hook_resid_pre",)
        across = ("hook_cross_attn_out",) if self.stack == "decoder" else ()
        ends = {
            "head": (f"{self.attention}.hook_z",),
            "neuron": ("mlp.hook_post",),
            "mlp": ("hook_mlp_out",),
            "attn": (f"hook_{self.attention}_out",),
            "layer": ("hook_attn_out", *across, "hook_mlp_out"),
        }
        return tuple(f"{self.stack}.{self.layer}.{end}" for end in ends[self.kind])

    def replace(self, value: Callable[[str], float | Tensor], pos: Index = None) -> list[Replace]:
        """Its output replaced by what `value` gives for each of its hook points."""
        head = self.index if self.kind == "head" else None
        unit = self.index if self.kind == "neuron" else None
        return [Replace(name=name, head=head, unit=unit, pos=pos, value=value(name)) for name in self.names]


def choose(
    model: Model,
    chosen: str | Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    allowed: Sequence[str] = ("heads", "mlps", "attention", "layers", "neurons"),
) -> tuple[Component, ...]:
    """The components that groups ("heads") and single labels ("L1H3", "mlp 0") name, in order, each once.

    Args:
        chosen: one string, separated by commas, or several. Of a translation model "heads" are those of all three
            attentions, "cross heads" those of one.
        layers: take groups from these layers alone (negative ones count from the end); None means all. A stack that is
            not as deep has no such layer.

    Raises InputError for a name that means nothing, or a layer, head or neuron that the model does not have.
    """
    parts = chosen.split(",") if isinstance(chosen, str) else [part for one in chosen for part in one.split(",")]
    found: dict[Component, None] = {}
    for part in map(str.strip, parts):
        short, name = _PREFIX.fullmatch(part).groups(default="")  # type: ignore[union-attr]
        stacks = [stack for stack in attentions(model) if short in ("", stack.short)]
        if stacks and name in GROUPS and name in allowed:
            group = _groups(model, stacks, GROUPS[name], layers)
            if short and not group:
                raise InputError(f"components {part!r}", f"expected {name} of another stack, or other layers")
            found.update(dict.fromkeys(group))
        else:
            found[_single(model, stacks, part, name, allowed)] = None
    if not found:
        require(model, ("mlp",))
    return tuple(found)


def _groups(model: Model, stacks: Sequence[Stack], kind: Kind, layers: Sequence[int] | None) -> list[Component]:
    return [part for stack in stacks for part in _group(model, stack, kind, layers)]


def _group(model: Model, stack: Stack, kind: Kind, layers: Sequence[int] | None) -> list[Component]:
    if kind == "embed":
        return [Component("embed", "embed")]
    if kind in ("mlp", "layer", "neuron") and (stack.crosses or getattr(model.config, "attn_only", False)):
        return []
    depth, n_heads = stack.shape
    numbers, where = layer_numbers(model, layers, depth), (stack.short, stack.path, stack.part)
    if kind in ("mlp", "attn", "layer"):
        return [Component(_label(stack, f"{kind} {layer}"), kind, layer, None, *where) for layer in numbers]
    letter, size = ("H", n_heads) if kind == "head" else ("N", model.config.d_mlp)
    return [
        Component(_label(stack, f"L{layer}{letter}{i}"), kind, layer, i, *where)
        for layer in numbers
        for i in range(size)
    ]


def _label(stack: Stack, rest: str) -> str:
    """`L0H1` as it is called beside those of other attentions: `cross L0H1`."""
    return f"{stack.short} {rest}".lstrip()


def layer_numbers(model: Model, layers: Sequence[int] | None, depth: int | None = None) -> tuple[int, ...]:
    """The layers as numbers from 0; None means all. Of a stack that has `depth` layers those that it has.

    Raises InputError for a layer that no stack of the model has.
    """
    total = max(model.stack_sizes.values())
    for layer in layers or ():
        if not -total <= layer < total:
            raise InputError(f"layer {layer}", f"expected 0 to {total - 1}")
    depth = total if depth is None else depth
    return tuple(range(depth)) if layers is None else tuple(n % depth for n in layers if -depth <= n < depth)


def _single(model: Model, stacks: Sequence[Stack], part: str, name: str, allowed: Sequence[str]) -> Component:
    match = _LABEL.fullmatch(name) if stacks else None
    kind: Kind = "embed"
    if match and match[1]:
        kind = "head" if match[2] == "H" else "neuron"
    elif match and match[4]:
        kind = match[4]  # type: ignore[assignment]
    if match is None or kind not in [GROUPS[group] for group in allowed]:
        close = nearest(name, list(allowed), 1)
        first = attentions(model)[0]
        raise InputError(
            f"unknown component {part!r}",
            f"expected {', '.join(allowed)}, or single ones such as {_label(first, 'L0H1')}, {_label(first, 'mlp 0')}",
            f"did you mean {close[0]!r}?" if close else "",
        )
    known = _groups(model, stacks, kind, None)
    for component in known:
        if component.label == part:
            return component
    if not known:
        require(model, ("mlp",))
        raise InputError(f"component {part!r}", "expected a part of that kind where there are any: enc or dec")
    raise InputError(f"component {part!r}", f"expected {known[0].label} to {known[-1].label}")


def component_panels(
    key: str, title: str, components: Sequence[Component], spread: Interval, *, caption: str, unit: str
) -> list[Panel]:
    """One number a component: heads as a layer x head matrix (one an attention), the rest as bars (the BARS largest).

    Args:
        key: of the panels; "-heads" (of a translation model "-enc-heads" and so on) or "-others" is added.
        title: of the panels; {} in it becomes "heads", "MLPs", ...
        spread: values [component] with their interval.
    """
    key, panels = key.replace("_", "-"), list[Panel]()
    for short in dict.fromkeys(c.short for c in components if c.kind == "head"):
        heads = [i for i, c in enumerate(components) if c.kind == "head" and c.short == short]
        layers = tuple(sorted({components[i].layer or 0 for i in heads}))
        width = 1 + max(components[i].index or 0 for i in heads)
        low, high = (
            None if x is None else _grid(components, heads, layers, width, x) for x in (spread.low, spread.high)
        )
        panels.append(
            Matrix(
                key=f"{key}-{short}-heads" if short else f"{key}-heads", title=title.format(f"{STACKS[short]}heads"),
                caption=caption, unit=unit, low=low, high=high, rows=tuple(map(str, layers)),
                values=_grid(components, heads, layers, width, spread.value), columns=tuple(map(str, range(width))),
                row_axis="layer", column_axis="head", diverging=True,
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
