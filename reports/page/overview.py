"""The first screen of a page: the headline, a map of the model, and the findings as cards with a small picture each."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup

from analyses.shared.findings import Card, cards
from analyses.shared.panels import AttentionGrid, Bars, Finding, Headline, Lines, Marks, Matrix, Panel, TokenStrip
from reports import svgs
from reports.numbers import Scale, brief, number
from reports.page import heatmap, packing
from reports.page.heads import named
from reports.page.views import View, view
from reports.tokens import markup, printable

COMPONENT = re.compile(r"L(\d+)H(\d+)|mlp (\d+)")
"""A head or an MLP, as labelled everywhere."""
ROLES = 8
"""Colours for what components do; further roles share the last."""
ROOM, LEAST, MOST, LEFT = 300.0, 18.0, 40.0, 30
"""Width of the map where that gives a head between LEAST and MOST; LEFT is for the numbers of layers. CSS pixels."""
TALL, FLAT = 440.0, 12.0
"""Height of the map of many layers, so that all are seen at once, where that gives a layer at least FLAT."""


@dataclass(frozen=True)
class Said:
    """A card, ready for the template."""

    text: str
    link: str
    where: str
    number: str
    interval: str
    null: str
    held: str
    """What half of the texts, which had no say in a choice, measure; empty where there was none."""
    kind: str
    picture: Markup | str = ""
    of: str = ""
    """The component whose number this is, where the card speaks of several."""


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
    roles: tuple[tuple[int, str], ...]  # colour and name of those that colour a dot
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
    number, interval = _amount(finding)
    picture = _picture(finding, panels.get((name, finding.key)), grids)
    several = any(other.about not in ("", finding.about) for other, _ in card.others)
    chance = f"; p = {finding.p:.2g}" if card.others and finding.p is not None else ""  # a whole sentence says it
    return Said(
        text=printable(card.text), link=f"{name}-{finding.key}", where=printable(titles[name]),
        number=number, interval=interval, null=printable(finding.null + chance * bool(finding.null)),
        held=_held(finding), kind=finding.kind, picture=picture, of=printable(finding.about) if several else "",
    )  # fmt: skip


def _amount(finding: Finding) -> tuple[str, str]:
    """The number with its unit, and its interval; shares in percent."""
    word, _, of = finding.unit.partition(" ")
    write = "{:.1%}".format if word in ("share", "probability") else brief
    unit = of if word == "share" else finding.unit
    number = f"{write(finding.value)} {printable(unit)}".strip()
    if finding.low is None or finding.high is None:
        return number, ""
    scale = max(abs(finding.low), abs(finding.high), abs(finding.value))
    low, high = (0.0 if abs(end) < 1e-4 * scale else end for end in (finding.low, finding.high))
    return number, f"[{write(low)}, {write(high)}]"


def _held(finding: Finding) -> str:
    """The same choice by half of the texts, measured on the other half."""
    held = finding.held
    if held is None:
        return ""
    amount = " ".join(_amount(replace(finding, value=held.value, low=held.low, high=held.high)))
    if held.again:
        return f"held out {amount}"
    return f"half of the {held.unit} chose {printable(held.what) or 'another'}: {amount} on the other half"


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
            return svgs.curves([np.asarray(values, float) for values in panel.series.values()])
        case Bars() | TokenStrip():
            return svgs.columns(np.asarray(panel.values, float))
    return ""


def _map(marks: Sequence[tuple[str, Marks]]) -> ModelMap | None:
    """The model as dots: coloured by the first marks that name roles, sized by the first that give sizes."""
    colours, sizes = (next(((name, m) for name, m in marks if getattr(m, of)), None) for of in ("roles", "sizes"))
    roles, kinds = (colours[1].roles, colours[1].kinds) if colours else ({}, ())
    shown = dict.fromkeys(does[0] for does in roles.values())
    kinds = kinds or tuple(shown)
    effects = dict(sizes[1].sizes) if sizes else {}
    found = {label: at for label in (*roles, *effects) if (at := COMPONENT.fullmatch(label))}
    if not found:
        return None
    n_layers = 1 + max(int(at[1] or at[3]) for at in found.values())
    n_heads = 1 + max((int(at[2]) for at in found.values() if at[2]), default=-1)
    columns = n_heads + any(at[3] for at in found.values())
    pitch = min(max(ROOM / columns, LEAST), MOST)
    row = min(pitch, max(TALL / n_layers, FLAT))
    largest = max((abs(size) for size in effects.values() if math.isfinite(size)), default=0.0)
    first = f"{sizes[0]}-{sizes[1].key}" if sizes else "summary"

    def colour(role: str) -> int:
        return min(kinds.index(role), ROLES - 1)

    def dot(label: str, at: re.Match[str]) -> Dot:
        size, does = effects.get(label, math.nan), roles.get(label, ())
        share = math.sqrt(abs(size) / largest) if largest and math.isfinite(size) else 0.5
        said = [*does, *([f"{number(size)} {sizes[1].unit}"] if sizes and label in effects else [])]
        return Dot(
            x=LEFT + pitch * (int(at[2]) if at[2] else n_heads) + pitch / 2,
            y=row * (n_layers - int(at[1] or at[3]) - 0.5), radius=round(row * (0.1 + 0.35 * share), 1),
            role=colour(does[0]) if does else -1, label=printable(f"{label}: {', '.join(said)}"),
            link=f"head-{at[1]}.{at[2]}" if at[1] else first, square=not at[1], hollow=size < 0,
        )  # fmt: skip

    return ModelMap(
        width=LEFT + pitch * columns, height=row * n_layers + 18, unit=printable(sizes[1].unit) if sizes else "",
        dots=tuple(dot(label, at) for label, at in found.items()),
        roles=tuple((colour(kind), printable(kind)) for kind in kinds if kind in shown),
        layers=tuple((row * (n_layers - i - 0.5), i) for i in range(0, n_layers, 1 if n_layers <= 16 else 4)),
        link=f"{colours[0]}-{colours[1].key}" if colours else first,
    )  # fmt: skip
