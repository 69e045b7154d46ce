"""The first screen of a page: the headline, a map of the model, and the findings as cards with a small picture each."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from analyses.shared.findings import Card, cards
from analyses.shared.panels import AttentionGrid, Bars, Finding, Headline, Lines, Marks, Matrix, Panel, TokenStrip
from reports.numbers import Scale, brief, number
from reports.page import heatmap, packing
from reports.page.heads import named
from reports.page.views import View, view
from reports.tokens import markup, printable

COMPONENT = re.compile(r"L(\d+)H(\d+)|mlp (\d+)")
"""A head or an MLP, as labelled everywhere."""
ROLES = 8
"""Colours for what components do; further roles share the last."""
PITCH, MLP = 22, 34
"""Room for a head on the map, and for an MLP, in CSS pixels."""


@dataclass(frozen=True)
class Said:
    """A card, ready for the template."""

    text: str
    link: str
    where: str
    number: str
    interval: str
    null: str
    kind: str
    picture: Markup | str = ""


@dataclass(frozen=True)
class Dot:
    """A component on the map."""

    x: float
    y: float
    radius: float
    role: int  # index of its colour; -1 for none
    label: str
    link: str
    square: bool  # MLPs are squares
    hollow: bool  # without it the model does better


@dataclass(frozen=True)
class ModelMap:
    """Layers upwards, heads to the right, MLPs at the end of each row."""

    width: float
    height: float
    dots: tuple[Dot, ...]
    layers: tuple[tuple[float, int], ...]  # place and number of each row that is labelled
    roles: tuple[str, ...]
    unit: str
    link: str


@dataclass(frozen=True)
class First:
    """All that the first screen shows."""

    facts: tuple[tuple[str, str], ...]
    strips: tuple[View, ...]
    following: tuple[tuple[Markup, str], ...]
    map: ModelMap | None
    cards: list[Said]


Shown = Sequence[tuple[str, str, Sequence[Panel]]]
"""Of each section: name, title, panels."""


def first_screen(
    shown: Shown, headline: Headline | None, marks: Iterable[tuple[str, Marks]], found: Iterable[tuple[Finding, str]]
) -> First:
    """What stands on the first screen, of the sections as shown and what their results say of themselves.

    Args:
        marks, found: with the name of the analysis.
    """
    panels = {(name, panel.key): panel for name, _, those in shown for panel in those}
    titles = {name: title for name, title, _ in shown}
    grids = [panel for panel in panels.values() if isinstance(panel, AttentionGrid)]
    said = [_said(card, titles, panels, grids) for card in cards(found)]
    if headline is None:
        return First((), (), (), _map(list(marks)), said)
    following = zip(headline.following, headline.probabilities, strict=True)
    return First(
        facts=tuple((printable(name), printable(value)) for name, value in headline.facts),
        strips=tuple(view(strip, "first") for strip in headline.strips),
        following=tuple((markup(token), f"{share:.1%}") for token, share in following),
        map=_map(list(marks)), cards=said,
    )  # fmt: skip


def _said(
    card: Card, titles: dict[str, str], panels: dict[tuple[str, str], Panel], grids: Sequence[AttentionGrid]
) -> Said:
    finding, name = card.first, card.analysis
    interval = ""
    if finding.low is not None and finding.high is not None:
        scale = max(abs(finding.low), abs(finding.high), abs(finding.value))
        low, high = (0.0 if abs(end) < 1e-4 * scale else end for end in (finding.low, finding.high))
        interval = f"[{brief(low)}, {brief(high)}]"
    picture = _picture(finding, panels.get((name, finding.key)), grids)
    return Said(
        text=printable(card.text), link=f"{name}-{finding.key}", where=printable(titles[name]),
        number=f"{brief(finding.value)} {printable(finding.unit)}".strip(), interval=interval,
        null=printable(finding.null), kind=finding.kind, picture=picture,
    )  # fmt: skip


def _picture(finding: Finding, panel: Panel | None, grids: Sequence[AttentionGrid]) -> Markup | str:
    """A thumbnail: the pattern of the one head it is about, else the panel in small; "" where that says nothing."""
    heads = named(finding.about)
    for grid in grids[:1] if len(heads) == 1 else ():
        layer, head = heads[0]
        if layer < grid.patterns[0].shape[0] and head < grid.patterns[0].shape[1]:
            return packing.mosaic(grid.patterns[0][layer : layer + 1, head : head + 1])[0]
    match panel:
        case Matrix() if panel.values.size > 1:
            return heatmap.thumbnail(panel, Scale.of(panel.values, panel.diverging, panel.scale))
        case Lines():
            return heatmap.curves([np.asarray(values, float) for values in panel.series.values()])
        case Bars() | TokenStrip():
            return heatmap.columns(np.asarray(panel.values, float))
    return ""


def _map(marks: Sequence[tuple[str, Marks]]) -> ModelMap | None:
    """The model as dots: coloured by the first marks that name roles, sized by the first that give sizes."""
    by_role = next(((name, mark) for name, mark in marks if mark.roles), None)
    by_size = next(((name, mark) for name, mark in marks if mark.sizes), None)
    if not by_role and not by_size:
        return None
    roles = dict(by_role[1].roles) if by_role else {}
    sizes = dict(by_size[1].sizes) if by_size else {}
    places = {label: (int(at[1] or at[3]), at[2]) for label in (*roles, *sizes) if (at := COMPONENT.fullmatch(label))}
    if not places:
        return None
    n_layers = 1 + max(layer for layer, _ in places.values())
    n_heads = 1 + max((int(head) for _, head in places.values() if head), default=-1)
    kinds = list(dict.fromkeys(roles.values()))
    largest = max((abs(size) for size in sizes.values() if math.isfinite(size)), default=0.0)
    dots = []
    for label, (layer, head) in places.items():
        size = sizes.get(label, 0.0)
        share = math.sqrt(abs(size) / largest) if largest and math.isfinite(size) else 0.5
        x = 30 + PITCH * (int(head) + 0.5) if head else 30 + PITCH * n_heads + MLP / 2
        role = min(kinds.index(roles[label]), ROLES - 1) if label in roles else -1
        said = [label, *([roles[label]] if label in roles else []), *([f"{number(size)} {unit}"] if (
            unit := by_size[1].unit if by_size and label in sizes else "") else [])]  # fmt: skip
        link = f"head-{layer}.{head}" if head else f"{by_size[0]}-{by_size[1].key}" if by_size else "summary"
        dots.append(
            Dot(round(x, 1), PITCH * (n_layers - layer - 0.5), round(2.2 + 7.3 * share, 1), role,
                printable(": ".join([said[0], ", ".join(said[1:])]) if said[1:] else said[0]), link, not head, size < 0)
        )  # fmt: skip
    step = 1 if n_layers <= 16 else 4
    layers = tuple((PITCH * (n_layers - layer - 0.5), layer) for layer in range(0, n_layers, step))
    link = "-".join([by_role[0], by_role[1].key] if by_role else [by_size[0], by_size[1].key] if by_size else [])
    has_mlps = any(dot.square for dot in dots)
    return ModelMap(
        30 + PITCH * n_heads + (MLP if has_mlps else 0), PITCH * n_layers + 18, tuple(dots), layers,
        tuple(map(printable, kinds[:ROLES])), printable(by_size[1].unit) if by_size else "", link,
    )  # fmt: skip
