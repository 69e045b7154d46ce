"""Parts of terminal output: numbers, labels, and charts a line high, all made to a width counted in columns.

Nothing here knows a panel. No label can steer the terminal: what is not printable is written as a code first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from analyses.shared.panels import Tokens
from reports.tokens import label, printable

UNKNOWN = "–"  # noqa: RUF001 - the sign that figures and pages use too
SPARKS = "▁▂▃▄▅▆▇█"
SHADES = " ░▒▓█"
# Alike in brightness and rising in saturation, so that they read on dark and on light terminals.
POSITIVE = ("#6e8296", "#507daf", "#3273be", "#145fbe", "#084594")
NEGATIVE = ("#966e69", "#af5f50", "#be4637", "#b42828", "#8c0f14")


def number(value: Any) -> str:
    """Three or four significant digits, whole numbers in full, in ASCII to copy; a dash for what was not measured."""
    if pd.isna(value):
        return UNKNOWN
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)) or (float(value).is_integer() and abs(value) < 1e9):
        return f"{int(value):,}" if abs(value) >= 10_000 else str(int(value))
    size = abs(float(value))
    if np.isinf(size):
        return "inf" if value > 0 else "-inf"
    if size != 0 and not 1e-3 <= size < 1e5:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return f"{value:.3f}" if size < 1 else f"{value:.2f}" if size < 100 else f"{value:.0f}"


def wrap(text: str, width: int) -> list[Text]:
    """Plain words, broken into lines."""
    console = Console(width=width, color_system=None, force_jupyter=False)
    out = list(Text(printable(" ".join(text.split()))).wrap(console, width)) or [Text()]
    for line in out:
        line.rstrip()
    return out


def dim(text: str, width: int) -> list[Text]:
    """An explanation below a drawing."""
    return [Text(line.plain, style="dim") for line in wrap(text, width)]


def names(labels: Sequence[str], limit: int = 24) -> list[str]:
    """Labels as they are shown: tokens with their signs, anything else printable; cut at `limit` columns."""
    plain = [label(name, limit) if isinstance(labels, Tokens) else printable(name) for name in labels]
    return [cut(name, limit) for name in plain]


def cut(text: str, limit: int) -> str:
    return text if cell_len(text) <= limit else set_cell_size(text, limit - 1).rstrip() + "…"


def pad(text: Text | str, width: int, right: bool = False) -> Text:
    """Filled with spaces, or cut, to exactly `width` columns."""
    text = Text(text) if isinstance(text, str) else text.copy()
    if text.cell_len > width:
        text.truncate(width, overflow="ellipsis")
    space = Text(" " * (width - text.cell_len))
    return space + text if right else text + space


def more(count: int, what: str) -> list[Text]:
    return [Text(f"… {count} more {what}", style="dim")] if count > 0 else []


def level(value: float, low: float, high: float, diverging: bool) -> float:
    """Where a value lies between the ends of its scale: 0 to 1, or -1 to 1 around zero. NaN counts as 0."""
    if pd.isna(value) or not np.isfinite(value):
        return 0.0
    if diverging:
        reach = max(abs(low), abs(high)) or 1.0
        return float(np.clip(value / reach, -1, 1))
    return float(np.clip((value - low) / ((high - low) or 1.0), 0, 1))


def ends(values: np.ndarray) -> tuple[float, float]:
    """The ends of the scale: the known values' own, but zero for those above it, unless it is far from all of them."""
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if not known.size:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    near = low < 0.5 * high or 0.95 * high < low  # alike to 5 %: noise must not look like contrast
    return (0.0 if near and low > 0 else low), high


def colour(at: float) -> str:
    """The style of a cell's background for a level from -1 to 1; none near zero."""
    if abs(at) < 0.08:
        return ""
    ramp = POSITIVE if at > 0 else NEGATIVE
    return f"#ffffff on {ramp[min(int(abs(at) * len(ramp)), len(ramp) - 1)]}"


def shade(at: float, count: int = 1) -> Text:
    """A pixel: darker for a higher level; its colour tells the sign."""
    ramp = POSITIVE if at >= 0 else NEGATIVE
    return Text(SHADES[round(abs(at) * (len(SHADES) - 1))] * count, style=ramp[2])


def pooled(values: np.ndarray, n_rows: int, n_columns: int) -> np.ndarray:
    """At most [n_rows n_columns]; each entry is the one of its block that lies furthest from zero."""
    grid: np.ndarray = np.nan_to_num(np.asarray(values, dtype=float))
    for axis, count in ((0, n_rows), (1, n_columns)):
        if 0 < count < grid.shape[axis]:
            blocks = np.array_split(grid, count, axis=axis)
            best = [np.expand_dims(np.abs(block).argmax(axis), axis) for block in blocks]
            grid = np.concatenate([np.take_along_axis(b, i, axis) for b, i in zip(blocks, best, strict=True)], axis)
    return grid


def spark(values: np.ndarray, low: float, high: float, width: int) -> str:
    """A curve in one line, each point up to four columns wide; gaps where nothing is known."""
    known = np.asarray(values, dtype=float)
    known = np.repeat(known, max(1, min(4, width // max(1, len(known)))))
    if len(known) > width:
        parts = [part[np.isfinite(part)] for part in np.array_split(known, width)]
        known = np.array([part.mean() if part.size else np.nan for part in parts])
    steps = len(SPARKS) - 1
    return "".join(SPARKS[round(level(v, low, high, False) * steps)] if np.isfinite(v) else " " for v in known)


def bar(value: float, low: float, high: float, width: int) -> Text:
    """A bar from zero, in eighths of a column; room on both sides when the scale has both signs."""
    low, high = min(low, 0.0), max(high, 0.0)
    span = (high - low) or 1.0
    zero = round(width * -low / span)
    if not np.isfinite(value):
        return Text(" " * width)
    if value < 0:
        length = min(zero, max(1, round(width * -value / span)))
        return Text(" " * (zero - length)) + Text("█" * length, style=NEGATIVE[2]) + Text(" " * (width - zero))
    eighths = min(round(8 * width * value / span), 8 * (width - zero))
    drawn = "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")
    return Text(" " * zero) + Text(drawn, style=POSITIVE[2]) + Text(" " * (width - zero - len(drawn)))


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    title: str
    cells: list[Text]
    right: bool = True


def plain(title: str, cells: Sequence[str], right: bool = False) -> Column:
    return Column(title, [Text(cell) for cell in cells], right)


def numbers(title: str, values: Iterable[Any]) -> Column:
    return Column(title, [Text(number(value)) for value in values])


def table(columns: Sequence[Column], width: int, *, gap: int = 2, what: str = "columns") -> list[Text]:
    """Columns side by side, as many as fit; the others are named below."""
    widths = [max([cell_len(c.title), *(cell.cell_len for cell in c.cells)]) for c in columns]
    fitting = used = 0
    for size in widths:
        used += size + (gap if fitting else 0)
        if used > width and fitting:
            break
        fitting += 1
    chosen = list(zip(columns[:fitting], widths[:fitting], strict=True))
    space = Text(" " * gap)
    out = []
    if any(column.title for column, _ in chosen):
        out.append(space.join(Text.styled(str(pad(c.title, min(w, width), c.right)), "dim") for c, w in chosen))
    for row in range(len(columns[0].cells)):
        out.append(space.join(pad(c.cells[row], min(w, width), c.right) for c, w in chosen))
    hidden = [column.title for column in columns[fitting:]]
    if hidden:
        listed = ", ".join(hidden) if len(hidden) <= 12 else f"{len(hidden)} {what}"
        out += dim(f"not shown, too wide: {listed}", width)
    return out
