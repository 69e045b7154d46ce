"""Chapters: what several sections show alike is shown once, and estimates stand beside what they estimate."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np

from analyses.shared.panels import Panel, on_common_scales
from analyses.shared.patching_result import Effects
from reports.page.views import View, view

Named = Sequence[tuple[str, Sequence[Panel]]]
"""Of each section of a chapter: name, panels."""


@dataclass(frozen=True)
class Arranged:
    """What the sections of a chapter show."""

    head: list[View]
    """What several of them begin with, alike."""
    members: list[list[View]]
    """[section] what each shows besides."""
    moved: list[list[View]]
    """[section] what of each stands in another section, beside what it estimates."""
    order: list[int]
    """Numbers of the sections: those that the head is of follow it."""


def on_one_scale(sections: Named) -> list[tuple[str, list[Panel]]]:
    """The panels of each section, matrices of one family on one scale across the chapter."""
    panels = iter(on_common_scales([panel for _, those in sections for panel in those]))
    return [(name, [next(panels) for _ in those]) for name, those in sections]


def arranged(sections: Named) -> Arranged:
    """The sections of a chapter with what they share in front, and estimates beside what they estimate."""
    effects = [(name, panel) for name, those in sections for panel in those if isinstance(panel, Effects)]
    exact = {_quantity(one): (f"{name}-{one.key}", one) for name, one in effects if one.quantity and not one.estimated}
    members: list[list[View]] = []
    moved: list[list[View]] = []
    beside: dict[str, list[View]] = {}
    for name, panels in sections:
        members.append([])
        moved.append([])
        for panel in panels:
            made = view(panel, name)
            if isinstance(panel, Effects) and panel.estimated and _quantity(panel) in exact:
                place, truth = exact[_quantity(panel)]
                made = replace(made, note=" ".join([_agreement(panel, truth), made.note]).strip(), beside=True)
                beside.setdefault(place, []).append(made)
                moved[-1].append(made)
            else:
                members[-1].append(made)
    members = [[one for made in views for one in (made, *beside.get(made.id, ()))] for views in members]
    head, of = _alike([name for name, _ in sections], members)
    return Arranged(head, members, moved, sorted(range(len(members)), key=lambda i: i not in of))


def _quantity(effects: Effects) -> tuple[object, ...]:
    """Equal for panels that show the same, cell by cell."""
    return effects.quantity, effects.rows, effects.columns, effects.unit


def _agreement(estimate: Effects, truth: Effects) -> str:
    """The correlation of an estimate with what was measured, in a sentence; "" where there is none."""
    pairs = np.stack([estimate.values.ravel(), truth.values.ravel()])
    pairs = pairs[:, np.isfinite(pairs).all(0)]
    if pairs.shape[1] < 3 or not np.ptp(pairs, axis=1).all():
        return ""
    return f"Correlation with the exact effects over {pairs.shape[1]} cells: {np.corrcoef(pairs)[0, 1]:.2f}."


def _alike(names: Sequence[str], members: list[list[View]]) -> tuple[list[View], list[int]]:
    """What several sections begin with, taken from them, and their numbers; it answers to the address it had in each.

    The last panel of a section stays in it.
    """
    bare = [
        [replace(one, id=one.id.removeprefix(name)) for one in views]
        for name, views in zip(names, members, strict=True)
    ]
    groups = ([j for j, views in enumerate(bare) if views[:1] == first[:1] != []] for first in bare)
    same = next((group for group in groups if len(group) > 1), [])
    rows = takewhile(lambda row: all(one == row[0] for one in row), zip(*(bare[i][:-1] for i in same), strict=False))
    count = len(list(rows))
    if not count:
        return [], []
    head = [
        replace(one, also=tuple(other.id for other in others))
        for one, *others in zip(*(members[i][:count] for i in same), strict=True)
    ]
    for i in same:
        del members[i][:count]
    return head, same
