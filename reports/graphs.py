"""Graphs whose nodes have places of their own, such as Markov chains: circles, bent arrows with numbers, loops."""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Circle, FancyArrowPatch
from matplotlib.path import Path

from analyses.shared.panels import Graph
from reports.tokens import printable

INK, SOFT, ARROW = "#222222", "#6b6b6b", "#2166ac"
COLUMNS = 3
"""Small pictures side by side."""
NUMBERED = 36
"""Most arrows that get a number each; more would hide each other."""
SPAN = 2.4
"""The longer side of the nodes' places in units of the drawing; a circle's radius is at most 0.17."""


def height(panel: Graph) -> float:
    """Inches that the figure of a placed graph is high."""
    if panel.frames:
        return 0.3 + 1.95 * -(-len(panel.frames) // COLUMNS)
    return 4.3 if len(panel.nodes) <= 16 else 5.4


def draw(panel: Graph, slot: Figure | SubFigure) -> None:
    """The graph, or one small picture a frame; arrows are as wide as their weight, nodes as dark as their value."""
    weights = np.array([weight for *_, weight in panel.edges], dtype=float)
    values = np.zeros(len(panel.nodes)) if panel.values is None else np.asarray(panel.values, dtype=float)
    frames: Mapping[str, tuple[np.ndarray, np.ndarray]] = panel.frames or {"": (weights, values)}
    top = max((float(np.nanmax(v, initial=0)) for _, v in frames.values()), default=0) or 1.0
    columns = min(COLUMNS, len(frames))
    grid = slot.subplots(-(-len(frames) // columns), columns, squeeze=False)
    slot.subplots_adjust(
        left=0.01, right=0.99, bottom=0.02, top=0.94 if panel.frames else 0.98, wspace=0.04, hspace=0.16
    )
    for axes in grid.ravel():
        axes.set_axis_off()
    for axes, (name, (edge_weights, node_values)) in zip(grid.ravel(), frames.items(), strict=False):
        _picture(axes, panel, edge_weights, np.asarray(node_values) / top, small=bool(panel.frames))
        if name:
            axes.set_title(printable(name), fontsize=9, pad=2)


def _picture(axes: Axes, panel: Graph, weights: np.ndarray, shades: np.ndarray, *, small: bool) -> None:
    places = np.asarray(panel.places, dtype=float)
    places = (places - places.min(0)) / max(float((places.max(0) - places.min(0)).max()), 1e-9) * SPAN
    radius = min(0.17 if small else 0.13, 0.4 * _nearest(places))
    centre = places.mean(0)
    ends = {(start, stop) for start, stop, _ in panel.edges}
    unit = max(1.0, float(np.max(weights, where=np.isfinite(weights), initial=0)))
    for (start, stop, _), weight in zip(panel.edges, weights, strict=True):
        if not 0 < weight < math.inf:
            continue
        bent = (stop, start) in ends or _crosses(places, start, stop, radius)
        path = _loop(places[start], centre, radius) if start == stop else _bend(
            places[start], places[stop], radius, 0.22 * bent
        )  # fmt: skip
        share = float(weight) / unit
        axes.add_patch(
            FancyArrowPatch(
                path=path, arrowstyle="-|>", mutation_scale=6 if small else 10, shrinkA=0, shrinkB=0, color=ARROW,
                linewidth=(0.3 + 1.6 * share) * (0.75 if small else 1.0), alpha=0.2 + 0.75 * share,
            )
        )  # fmt: skip
        if len(panel.edges) <= NUMBERED and (not small or weight >= 0.495 * unit):
            x, y = _along(path, 0.5 if start == stop else 0.42)
            axes.text(
                x, y, f"{weight:.2f}".removeprefix("0"), fontsize=5.5 if small else 7.5, ha="center", va="center",
                color=INK, zorder=4, bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.85},
            )  # fmt: skip
    size = radius * (38 if small else 76) * min(1.0, 3.2 / max(map(len, panel.nodes)))
    for place, text, shade in zip(places, panel.nodes, np.nan_to_num(shades), strict=True):
        fill = colormaps["Blues"](0.08 + 0.72 * float(shade))
        axes.add_patch(Circle(tuple(place), radius, facecolor=fill, edgecolor=SOFT, linewidth=0.8, zorder=5))
        axes.text(
            float(place[0]), float(place[1]), printable(text), fontsize=size, ha="center", va="center", zorder=6,
            color="white" if shade > 0.62 else INK,
        )  # fmt: skip
    room = 3.1 * radius
    axes.set(xlim=(-room, places[:, 0].max() + room), ylim=(-room / 2, places[:, 1].max() + room / 2), aspect="equal")


def _nearest(places: np.ndarray) -> float:
    """The smallest distance between two nodes."""
    gap = np.linalg.norm(places[:, None] - places[None, :], axis=-1)
    np.fill_diagonal(gap, np.inf)
    return float(gap.min())


def _crosses(places: np.ndarray, start: int, stop: int, radius: float) -> bool:
    """Whether the straight line between two nodes runs through a third."""
    along = places[stop] - places[start]
    length = float(np.hypot(*along)) or 1.0
    to = places - places[start]
    t = to @ along / length**2
    off = np.abs(to[:, 0] * along[1] - to[:, 1] * along[0]) / length
    through = (t > 0.05) & (t < 0.95) & (off < 1.2 * radius)
    through[[start, stop]] = False
    return bool(through.any())


def _bend(start: np.ndarray, stop: np.ndarray, radius: float, bend: float) -> Path:
    """A curve from edge to edge of two circles; `bend` is how far it leaves the straight line, as a share of it."""
    along = stop - start
    middle = (start + stop) / 2 + bend * np.array([along[1], -along[0]])
    first, last = middle - start, stop - middle
    begin = start + radius * first / np.hypot(*first)
    end = stop - radius * last / np.hypot(*last)
    return Path([begin, middle, end], [Path.MOVETO, Path.CURVE3, Path.CURVE3])


def _loop(place: np.ndarray, centre: np.ndarray, radius: float) -> Path:
    """A loop on the side that looks away from the other nodes."""
    away = place - centre
    angle = math.atan2(away[1], away[0]) if np.hypot(*away) > 1e-6 else math.pi / 2
    corners = [place + radius * scale * np.array([math.cos(angle + turn), math.sin(angle + turn)])
               for scale, turn in ((1, 0.5), (3.2, 0.55), (3.2, -0.55), (1, -0.5))]  # fmt: skip
    return Path(corners, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])


def _along(path: Path, t: float) -> tuple[float, float]:
    """The point of a Bezier curve at t."""
    points = np.asarray(path.vertices)
    while len(points) > 1:
        points = (1 - t) * points[:-1] + t * points[1:]
    return float(points[0, 0]), float(points[0, 1])
