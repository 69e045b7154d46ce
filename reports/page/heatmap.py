"""Large matrices as pictures: one pixel a number, in the colours of the page's tables, with labels on both sides.

The numbers are an 8-bit palette PNG at their own resolution, exact and small; labels and axes are SVG around it.
Written by hand and not drawn by matplotlib, because the page's script must know where each number stands, and because
a report holds dozens of them.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup, escape

from analyses.shared.panels import Matrix, Tokens
from reports import svgs
from reports.numbers import Scale
from reports.page.packing import png_uri
from reports.tokens import label, printable

STEPS = 120
"""Colours on each side of zero."""
GREY, UNKNOWN = 2 * STEPS + 1, 2 * STEPS + 2
WIDE, TALL = 860.0, 560.0
"""The most room the numbers may take, in CSS pixels."""
LETTER = 5.7
"""Width of a letter of a label, about, in CSS pixels."""

Box = tuple[float, float, float, float]
"""Left, top, width and height of the numbers, as shares of the picture."""


def uri(panel: Matrix, scale: Scale) -> tuple[Markup, Box]:
    """The picture as an SVG data URI, and where in it the numbers are."""
    n_rows, n_columns = panel.values.shape
    rows, columns = _names(panel.rows), _names(panel.columns)
    left = 32 + LETTER * max(map(len, rows), default=0)
    cell = (min(WIDE / max(n_columns, 1), 26.0), min(TALL / max(n_rows, 1), 18.0))
    width, height = cell[0] * n_columns, cell[1] * n_rows
    turned = max(map(len, columns), default=0) * LETTER > cell[0] * _every(n_columns, cell[0] / 30) - 4
    top = 22 + (LETTER * max(map(len, columns), default=0) if turned else 12)
    across = _every(n_columns, cell[0] / (12 if turned else 30))
    down = _every(n_rows, cell[1] / 12)
    whole = (left + width + 8, top + height + 8)
    words = [
        *(_text(left - 5, top + (i + 0.5) * cell[1] + 3.5, rows[i], "end") for i in range(0, n_rows, down)),
        *(_text(left + (j + 0.5) * cell[0], top - 5, columns[j], "start" if turned else "middle", turned)
          for j in range(0, n_columns, across)),
        _text(left, 12, f"{printable(panel.column_axis)} →", "start", soft=True),
        _text(12, top + height, f"{printable(panel.row_axis)} →", "start", True, soft=True),
    ]  # fmt: skip
    image = (
        f'<image x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" preserveAspectRatio="none"'
        f' style="image-rendering:pixelated" href="{png_uri(_steps(panel, scale), _palette())}"/>'
    )
    drawn = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole[0]:.0f} {whole[1]:.0f}" width="{whole[0]:.0f}"'
        f' height="{whole[1]:.0f}" font-family="system-ui,sans-serif" font-size="10" fill="#222">'
        f"{image}{''.join(words)}</svg>"
    )
    box = (left / whole[0], top / whole[1], width / whole[0], height / whole[1])
    return svgs.uri(drawn), box


def _names(labels: Sequence[str]) -> list[str]:
    if isinstance(labels, Tokens):
        return [label(token, 12) for token in labels]
    return [printable(name if len(name) <= 28 else name[:27] + "…") for name in labels]


def _every(count: int, room: float) -> int:
    """Every so many labels fit where one takes up `1 / room` cells."""
    least = max(1, math.ceil(1 / room)) if room else 1
    return least if least <= 2 else next((step for step in (5, 10, 20, 50, 100, 200, 500) if step >= least), count)


def _text(x: float, y: float, text: str, anchor: str, turned: bool = False, *, soft: bool = False) -> str:
    place = (
        f'transform="translate({x + 3.5 * turned:.1f} {y:.1f}) rotate(-90)"' if turned else f'x="{x:.1f}" y="{y:.1f}"'
    )
    colour = ' fill="#6b6b6b"' if soft else ""
    return f'<text {place} text-anchor="{anchor}"{colour}>{escape(text)}</text>'


def _steps(panel: Matrix, scale: Scale) -> UInt8[np.ndarray, "row column"]:
    """The palette entry of each number: STEPS stands for zero."""
    values = np.asarray(panel.values, dtype=float)
    bend = np.log if scale.log else np.asarray
    with np.errstate(invalid="ignore", divide="ignore"):
        if scale.diverging:
            place = values / scale.high
        else:
            low, high = float(bend(scale.low)), float(bend(scale.high))
            place = ((bend(values) - low) / ((high - low) or 1.0)).clip(0, 1)
    steps = STEPS + np.rint(np.nan_to_num(place, posinf=1, neginf=-1).clip(-1, 1) * STEPS)
    steps = np.where(panel.grey, GREY, steps)
    known: UInt8[np.ndarray, "row column"] = np.where(np.isnan(values), UNKNOWN, steps).astype(np.uint8)
    return known


def _palette() -> UInt8[np.ndarray, "step 3"]:
    """Red below zero, white at zero, blue above; grey for what chance gives, a paler one for what was not measured."""
    ends = np.array([[178, 24, 43], [255, 255, 255], [33, 102, 172]], dtype=float)
    share = np.linspace(0, 1, STEPS + 1)[:, None]
    below, above = ends[1] + (ends[0] - ends[1]) * share[::-1], ends[1] + (ends[2] - ends[1]) * share
    colours = np.concatenate([below, above[1:], [[222, 222, 222], [243, 243, 243]]])
    whole: UInt8[np.ndarray, "step 3"] = np.rint(colours).astype(np.uint8)
    return whole


def thumbnail(panel: Matrix, scale: Scale) -> Markup:
    """The numbers alone; of a large matrix, the one of largest size in each of at most 64 by 64 parts."""
    values = np.where(panel.grey, 0.0, np.asarray(panel.values, dtype=float))
    floor = np.finfo(float).tiny if panel.grey.any() else 0.0
    for axis, length in enumerate(values.shape):
        if length > 64:
            starts = np.arange(0, length, -(-length // 64))
            known = np.nan_to_num(values)
            high, low = (reduce.reduceat(known, starts, axis) for reduce in (np.maximum, np.minimum))
            values = np.where(high > -low, high, low)
    return Markup(png_uri(_steps(replace(panel, values=values, floor=floor), scale), _palette()))
