"""Numbers as people read them: short text, and the shade of a cell."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.tokens import MINUS

SHADES = 20
"""Steps of the colour scale of shaded cells (classes q1 to q20 of the style sheet)."""
WHOLE = 1e9
"""Below this a whole number is written in full, also where it is kept as a float."""


def number(value: Any) -> str:
    """Three or four significant digits, whole numbers in full; an en dash for what was not measured."""
    if value is None or (isinstance(value, (float, np.floating)) and math.isnan(value)):
        return "\N{EN DASH}"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{int(value):,}".replace("-", MINUS)
    x = float(value)
    if math.isinf(x):
        return "∞" if x > 0 else MINUS + "∞"
    if x.is_integer() and abs(x) < WHOLE:
        return number(int(x))
    if not 1e-3 <= abs(x) < 1e5:
        text = f"{x:.2e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    elif abs(x) >= 1000:
        text = f"{x:,.0f}"
    else:
        text = f"{x:.3f}" if abs(x) < 1 else f"{x:.2f}" if abs(x) < 100 else f"{x:.1f}"
    return text.replace("-", MINUS)


def decimals(*tables: np.ndarray | None) -> int | None:
    """How many decimals numbers side by side are best written with; None where `number` suits each of them.

    Where a few large ones stand among many that are nearly zero, codes such as 3.1e-5 would hide the large ones.
    """
    values = np.concatenate([np.ravel(np.asarray(table, float)) for table in tables if table is not None])
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if not len(sizes) or sizes.min() >= 1e-3 or not 1e-3 <= sizes.max() < 100:
        return None
    return max(3, 2 - math.floor(math.log10(sizes.max())))


def decimal(value: Any, places: int | None) -> str:
    """With so many decimals (zero is 0); None: as `number` writes it."""
    if places is None or not math.isfinite(value) or value == 0:
        return number(value)
    text = f"{value:.{places}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", MINUS)


def brief(value: float) -> str:
    """At most three significant digits, for running text."""
    return (
        f"{value:.3g}".replace("-", MINUS)
        if math.isfinite(value) and 1e-3 <= abs(value) < 1000
        else number(float(value))
    )


def exact(value: Any) -> str:
    """A number as it leaves the page: nine significant digits, empty when not measured."""
    if value is None:
        return ""
    if isinstance(value, (bool, np.bool_, int, np.integer)):
        return str(value)
    x = float(value)
    return "" if math.isnan(x) else "inf" if x == math.inf else "-inf" if x == -math.inf else f"{x:.9g}"


@dataclass(frozen=True)
class Scale:
    """From number to shade: linear, logarithmic where the numbers span decades, or centred on zero."""

    low: float
    high: float
    diverging: bool = False
    log: bool = False

    @classmethod
    def of(cls, values: np.ndarray, diverging: bool = False, ends: tuple[float, float] | None = None) -> "Scale":
        """The scale for these numbers, or between the ends given."""
        known = np.asarray(values if ends is None else ends, dtype=float)
        known = known[np.isfinite(known)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        if diverging:
            reach = max(abs(low), abs(high)) or 1.0
            return cls(-reach, reach, diverging=True)
        log = low >= 1 and high > 50 * low
        if low == high:
            low, high = min(low, 0.0), max(high, 0.0) or float(low == 0)
        elif not log and low < 0.5 * high:
            low = min(low, 0.0)  # otherwise all numbers are much the same, and the scale shows how they differ
        return cls(low, high, log=log)

    def shade(self, value: float) -> str:
        """The classes of a cell with this number; none for zero and for what was not measured."""
        if value is None or not math.isfinite(value):
            return ""
        if self.diverging:
            step = round(abs(value) / self.high * SHADES)
            return f"{'p' if value > 0 else 'n'} q{min(step, SHADES)}" if step else ""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        place = math.log(value) if self.log else value
        step = round((place - low) / ((high - low) or 1.0) * SHADES)
        return f"s q{min(step, SHADES)}" if step > 0 else ""
