"""Circuits as matplotlib figures: the drawing of the page for the size shown first, and curves of faithfulness."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter

from analyses.shared.panels import CircuitGraph
from reports.tokens import printable
from reports.wires import COLOURS, HALF, OTHER, Wires, curve, shares

FILL = {"end": "#e6e6e6", "head": "#dfe6f5", "shared": "#d3ecea", "mlp": "#f7e6c4"}
POSITIVE, NEGATIVE, LINK = "#2166ac", "#b2182b", "#8c8c8c"
WIDTH = 690.0
"""Of the static drawing; as all lengths here in CSS pixels."""
PORTS = {"q": -9.0, "k": 0.0, "v": 9.0}
"""Where edges end below a head, from its middle."""


def height(panel: CircuitGraph) -> float:
    """Inches that the figure of a circuit is high."""
    wires = Wires(panel)
    return max(3.2, wires.places(wires.alive(panel.chosen), WIDTH)[2] * 7.2 / (WIDTH + 210) + 0.5)


def draw(panel: CircuitGraph, slot: Figure | SubFigure) -> None:
    """The circuit shown first, and beside it how faithful circuits are by their number of edges."""
    slot.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.99)
    left, right = slot.subplots(1, 2, width_ratios=(WIDTH, 210), gridspec_kw={"wspace": 0.08})
    _graph(panel, left)
    _curves(panel, right)


def _graph(panel: CircuitGraph, axes: Axes) -> None:
    wires = Wires(panel)
    links = wires.alive(panel.chosen)
    where, width, high = wires.places(links, WIDTH)
    sizes = shares(panel)
    for i in links[::-1].tolist():
        sender, receiver = (where[end] for end in wires.ends[i].tolist())
        edge = i < len(sizes)
        points = curve(sender, receiver, PORTS.get(panel.inputs[i], 0.0) if edge else 0.0)
        colour = (POSITIVE if panel.scores[i] > 0 else NEGATIVE) if edge else LINK
        share = sizes[i] if edge else 0.5
        line: Any = {"linewidth": 0.42 + 2.28 * share} if edge else {"linewidth": 0.7, "linestyle": ":"}
        path = Path(points, [Path.MOVETO, *[Path.CURVE4] * 3])
        axes.add_patch(PathPatch(path, fill=False, edgecolor=colour, alpha=0.3 + 0.6 * share, **line))
    for i, (x, y) in where.items():
        room, kind = wires.wide(i) - 12, wires.kinds[i]
        style = f"round,pad=0,rounding_size={1 if kind == 'mlp' else 6}"
        axes.add_patch(FancyBboxPatch((x - room / 2, y - HALF), room, 2 * HALF, boxstyle=style, facecolor=FILL[kind],
                                      edgecolor="#8a929c", linewidth=0.6, zorder=3))  # fmt: skip
        axes.text(x, y, wires.names[i], fontsize=6, ha="center", va="center", zorder=4)
    if not where:
        axes.text(width / 2, high / 2, "no way from the embedding to the logits", ha="center", va="center")
    axes.set(xlim=(0, width), ylim=(high, 0), aspect="equal", anchor="NW")
    axes.set_axis_off()


def _curves(panel: CircuitGraph, axes: Axes) -> None:
    if not panel.measured:
        return axes.set_axis_off()
    sizes = np.maximum(panel.sizes, 1)
    box = axes.get_position()
    inches = axes.figure.get_figheight()  # type: ignore[union-attr]
    axes.set_position((box.x0 + 0.03, 1 - 2.0 / inches, box.width - 0.03, 1.6 / inches))
    for name, values in panel.measured.items():
        colour = COLOURS.get(name, OTHER)
        axes.plot(sizes, values, color=colour, label=printable(name), marker="o" if len(sizes) < 2 else "")
        if name in panel.measured_low:
            ends = panel.measured_low[name], panel.measured_high[name]
            axes.fill_between(sizes, *ends, color=colour, alpha=0.15, linewidth=0)
    axes.axvline(max(panel.chosen, 1), color="#222222", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set_xlabel("edges", fontsize=8)
    axes.set_ylabel("faithfulness", fontsize=8)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.35), handlelength=1.4)
