"""The circuit as a view: its edges packed, what stands where, curves of faithfulness, and a table of the first edges.

Importing this module registers it with `views.view`.
"""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from analyses.shared.panels import CircuitGraph
from reports import figures
from reports.numbers import decimal, number
from reports.page.packing import deflate
from reports.page.views import Grid, json_block, labels, limited, number_cell, view_of
from reports.tokens import printable
from reports.wires import COLOURS, KINDS, OTHER, Wires, largest, nearest

LISTED, SHOWN = 500, 32
"""Edges in the table below, and those of them that stand in the HTML."""
NUMBERS = ("scores", "exact", "low", "high", "stability")
COLUMNS = ("sender", "receiver", "input", "score", *NUMBERS[1:])
STOPS = 120
"""Places of the slider, from one edge to all on a log scale; sizes that were measured are added."""
LEFT, TOP, WIDE, HIGH = 32.0, 8.0, 258.0, 120.0
"""The box of the curves, in CSS pixels."""


@dataclass(frozen=True)
class Curve:
    """Faithfulness by number of edges: points of a line, and of the outline of its interval, as SVG has them."""

    name: str
    colour: str
    line: str
    band: str


def packed(panel: CircuitGraph) -> str:
    """All edges, deflated, in base64.

    First the numbers [kind edge] as float32 without their last eight bits (to within 8e-6 of their size). Then, of all
    links, as uint16 [what link]: sender, receiver, which input, and how long after its own rank it is first drawn.
    """
    wires, kinds = Wires(panel), _inputs(panel)
    bits = np.array([getattr(panel, name) for name in NUMBERS], dtype="<f4").view("<u4")
    inputs = [*map(kinds.index, panel.inputs), *[len(kinds)] * len(panel.serves)]
    later = (wires.since - np.arange(len(wires.since))) % 2**16
    parts = (bits + 2**7) >> 8 << 8, np.array([*wires.ends.T, inputs, later], dtype="<u2")
    return base64.b64encode(deflate(b"".join(part.tobytes() for part in parts))).decode("ascii")


def _inputs(panel: CircuitGraph) -> list[str]:
    """The different inputs, in the order of their first edge."""
    return list(dict.fromkeys(panel.inputs))


def stops(panel: CircuitGraph) -> list[tuple[int, int, float]]:
    """Of each place of the slider: the number of edges, the nearest measured size, and where that number is drawn."""
    count, sizes = len(panel.senders), np.asarray(panel.sizes, dtype=int)
    even = np.rint(count ** np.linspace(0, 1, STOPS + 1)).astype(int).tolist()
    every = sorted({*even, *sizes[sizes <= count].tolist(), panel.chosen})
    near = [nearest(sizes, size) for size in every]
    return [(size, i, round(_across(panel, size) - LEFT, 1)) for size, i in zip(every, near, strict=True)]


def _across(panel: CircuitGraph, size: float) -> float:
    """Where a number of edges lies on the log axis of the curves."""
    first, last = np.log(np.maximum([panel.sizes[0], panel.sizes[-1]], 1)) if len(panel.sizes) else (0.0, 1.0)
    return LEFT + WIDE * float(np.clip((np.log(max(size, 1)) - first) / ((last - first) or 1.0), 0, 1))


def _said(panel: CircuitGraph, place: int) -> str:
    """Faithfulness of circuits of one measured size."""
    told = []
    for name, values in panel.measured.items():
        ends = [curve[name][place] for curve in (panel.measured_low, panel.measured_high) if name in curve]
        interval = f" [{', '.join(decimal(float(end), 3) for end in ends)}]" if len(ends) == 2 else ""
        told.append(f"{printable(name)} {decimal(float(values[place]), 3)}{interval}")
    return f"{number(int(panel.sizes[place]))} edges: {', '.join(told)}."


def _curves(panel: CircuitGraph) -> tuple[list[Curve], list[tuple[float, str]]]:
    """The curves, and the heights that are labelled."""
    every = [*panel.measured.values(), *panel.measured_low.values(), *panel.measured_high.values()]
    known = np.array(every, dtype=float)
    low, high = (float(f(known[np.isfinite(known)], initial=at)) for f, at in ((np.min, 0.0), (np.max, 1.0)))

    def height(value: float) -> float:
        return TOP + HIGH * (high - value) / (high - low)

    def points(values: Any, sizes: Any) -> list[str]:
        pairs = zip(sizes, np.asarray(values, float).tolist(), strict=True)
        return [f"{_across(panel, size):.1f},{height(value):.1f}" for size, value in pairs if np.isfinite(value)]

    curves = []
    for name, values in panel.measured.items():
        both = (panel.measured_high, panel.measured_low)
        band = [points(curve[name], panel.sizes) for curve in both if name in curve]
        outline = [*band[0], *band[1][::-1]] if len(band) == 2 else []
        line = " ".join(points(values, panel.sizes))
        curves.append(Curve(printable(name), COLOURS.get(name, OTHER), line, " ".join(outline)))
    return curves, [(round(height(value), 1), f"{value:g}") for value in (0.0, 1.0)]


@view_of.register
def _(panel: CircuitGraph) -> dict[str, Any]:
    wires, count = Wires(panel), len(panel.senders)
    data: dict[str, Any] = {
        "nodes": wires.names, "kinds": wires.kinds, "levels": wires.levels,
        "across": wires.across, "wide": [wires.wide(i) for i in range(len(panel.nodes))], "inputs": _inputs(panel),
        "held": count, "links": len(wires.ends), "chosen": panel.chosen, "total": panel.total, "columns": COLUMNS,
        "unit": printable(panel.unit), "largest": largest(panel), "steps": stops(panel),
        "said": [_said(panel, i) for i in range(len(panel.sizes))],
    }  # fmt: skip
    curves, heights = _curves(panel)
    return {
        "kind": "circuit", "pictures": (figures.svg_uri(panel),), "data": json_block(data), "grid": _grid(panel),
        "alt": f"The circuit of the {panel.chosen:,} best of {panel.total:,} edges, layers upwards; {panel.unit}",
        "note": f"The table lists the first {LISTED} edges; the CSV has all {count:,}." if count > LISTED else "",
        "extra": {
            "edges": packed(panel), "unit": printable(panel.unit), "kinds": [k for k in KINDS if k in wires.kinds],
            "curves": curves, "heights": heights, "last": len(data["steps"]) - 1,
            "ends": [number(int(size)) for size in (*panel.sizes[:1], *panel.sizes[-1:])],
        },
    }  # fmt: skip


def _grid(panel: CircuitGraph) -> Grid:
    """The first edges, a row each."""
    nodes, inputs = labels(panel.nodes), labels(panel.inputs[:LISTED])
    columns = [np.asarray(getattr(panel, name), dtype=float).tolist() for name in NUMBERS]
    rows = [
        [nodes[panel.senders[i]], nodes[panel.receivers[i]], inputs[i], *(number_cell(column[i]) for column in columns)]
        for i in range(len(inputs))
    ]
    return limited(COLUMNS, rows, (False,) * 3 + (True,) * len(NUMBERS), SHOWN)
