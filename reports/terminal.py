"""Panels as text for a terminal: tables, bars and shaded cells, with colour where there is colour.

Every line is made here to the width at hand; nothing is left to the terminal, and no token can steer it: labels pass
through `reports.tokens`, which writes control characters and direction marks as codes.
"""

import shutil
import sys
from collections.abc import Callable, Iterable
from functools import singledispatch
from typing import IO, Any

import numpy as np
import pandas as pd
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from analyses.shared.panels import (
    AttentionGrid,
    Bars,
    CircuitGraph,
    Finding,
    Graph,
    Histogram,
    Lines,
    Matrix,
    Note,
    Panel,
    Result,
    Table,
    TokenGrid,
    Tokens,
    TokenStrip,
)
from reports.charts import (
    UNKNOWN,
    Column,
    bar,
    colour,
    cut,
    dim,
    ends,
    level,
    more,
    names,
    number,
    numbers,
    pad,
    plain,
    pooled,
    shade,
    spark,
    table,
    wrap,
)
from reports.tokens import label, printable
from reports.wires import nearest

WIDTH = 100
"""Columns, where the output is no terminal and COLUMNS does not say."""
MAX_ROWS, MAX_POSITIONS, MAX_FINDINGS, MAX_EDGES = 20, 60, 8, 12
PICTURE = 12
"""Pixels a side of a small picture of an attention pattern."""
WIDE = 2
"""Columns that one value of a curve takes at most."""
HEAD = 14
"""Columns for the names of the rows beside a text."""
PICTURE_WIDTH = 72
"""Pixels across a matrix too large for numbers."""


class _Console(Console):
    """A console that leaves a closed pipe to its caller; rich's own ends the program."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def show(thing: Panel | Result, *, file: IO[str] | None = None, width: int | None = None) -> None:
    """Print a panel, or a result's findings and all its panels, on `file` (standard output).

    Colours only on a terminal, and not when NO_COLOR is set.
    """
    stream = file or sys.stdout
    columns = width or shutil.get_terminal_size((WIDTH, 24)).columns
    console = _Console(file=stream, width=columns, highlight=False, markup=False, emoji=False, force_jupyter=False)
    for i, block in enumerate(blocks(thing, columns)):
        for line in ([Text()] if i else []) + block:
            if console.color_system is None:
                line.rstrip()
            console.print(line, no_wrap=True, overflow="ignore", crop=False)


def blocks(thing: Panel | Result, width: int) -> list[list[Text]]:
    """The lines of the findings and of each panel."""
    panels = [thing] if isinstance(thing, Panel) else thing.panels()
    found = [] if isinstance(thing, Panel) else thing.findings()
    return [*([findings(found, width)] if found else []), *(lines(panel, width) for panel in panels)]


def findings(found: Iterable[Finding], width: int) -> list[Text]:
    """The most notable findings, one a paragraph."""
    ordered = sorted(found, key=lambda finding: -finding.weight)
    out = [Text("Findings", style="bold")]
    for finding in ordered[:MAX_FINDINGS]:
        first, *rest = wrap(finding.text, width - 4)
        out += [Text("  • ") + first, *(Text("    ") + line for line in rest)]
    return out + more(len(ordered) - MAX_FINDINGS, "findings")


def lines(panel: Panel, width: int = WIDTH) -> list[Text]:
    """A panel as lines no wider than `width` (from 40 up): title, body, caption."""
    title = [Text(cut(printable(panel.title), width), style="bold")] if panel.title else []
    caption = dim(panel.caption, width) if panel.caption else []
    return title + body(panel, max(width, 40)) + caption


@singledispatch
def body(panel: Panel, width: int) -> list[Text]:
    """What stands between a panel's title and its caption."""
    raise TypeError(f"no terminal output for a panel of type {type(panel).__name__}")


# Each kind of panel, once.


@body.register
def _(panel: Note, width: int) -> list[Text]:
    return wrap(panel.text, width)


@body.register
def _(panel: Matrix, width: int) -> list[Text]:
    low, high = ends(panel.values)
    heads = names(panel.rows, 28)
    columns = names(panel.columns, 12)
    flat = map(number, panel.values.ravel())
    cells = [[next(flat) for _ in row] for row in panel.values]
    head_width = max([cell_len(panel.row_axis), *map(cell_len, heads)])
    size = 1 + max([cell_len(text) for row in [columns, *cells] for text in row], default=1)
    legend = f"{panel.unit}; {panel.column_axis} to the right"
    if not panel.image and len(heads) <= 4 * MAX_ROWS and head_width + 1 + size * len(columns) <= width:
        out = [Text.styled(str(pad(panel.row_axis, head_width)), "dim")]
        for text in columns:
            out[0] += Text.styled(str(pad(text, size, right=True)), "dim")
        for head, row, values in zip(heads, cells, panel.values, strict=True):
            line = pad(head, head_width)
            for text, value in zip(row, values, strict=True):
                line += Text(" ") + Text.styled(
                    str(pad(text, size - 1, right=True)), colour(level(value, low, high, panel.diverging))
                )
            out.append(line)
        return out + dim(legend, width)
    whole = len(heads) <= 2 * MAX_ROWS
    across = min(PICTURE_WIDTH, max(8, width - head_width - 1))
    small = pooled(panel.values, 2 * MAX_ROWS if whole else MAX_ROWS, across)
    out = []
    for i, row in enumerate(small):
        start = pad(heads[i], head_width + 1) if whole else Text()
        out.append(start + Text().join(shade(level(v, low, high, panel.diverging)) for v in row))
    reach = f"{'darker is further from zero' if panel.diverging else 'darker is more'}; {number(low)} to {number(high)}"
    size_note = "" if whole and small.shape[1] == len(columns) else f"; {len(heads)} x {len(columns)} shrunk to fit"
    return out + dim(f"{legend} ({len(columns)}); {reach}{size_note}", width)


@body.register
def _(panel: AttentionGrid, width: int) -> list[Text]:
    """For each measure its strongest heads, and a picture of the strongest on the first text."""
    heads, best, titles = [], [], []
    for name, values in panel.measures.items():
        order = np.argsort(-np.nan_to_num(np.asarray(values, dtype=float), nan=-np.inf), axis=None)[:4]
        at = [tuple(int(i) for i in np.unravel_index(flat, values.shape)) for flat in order]
        heads.append("   ".join(f"L{layer}H{head} {number(values[layer, head])}" for layer, head in at))
        best.append(at[0])
        titles.append(printable(name))
    out = table([plain("measure", titles), plain("heads with the most", heads)], width) if titles else []
    pictures: dict[tuple[int, ...], list[str]] = {}
    for where, title in zip(best or [(0, 0)], titles or [""], strict=True):
        pictures.setdefault(where, []).append(title)
    fitting = list(pictures.items())[: max(1, (width + 3) // (2 * PICTURE + 3))]
    drawn = []
    for (layer, head), what in fitting:
        small = pooled(panel.patterns[0][layer, head], PICTURE, PICTURE)
        rows = [Text().join(shade(level(v, 0, 1, False) ** 0.5, 2) for v in row) for row in small]
        top = Text(f"L{layer}H{head} ", style="bold") + Text(cut(", ".join(what), 2 * PICTURE - 6) if what[0] else "")
        drawn.append([pad(line, 2 * PICTURE) for line in [top, *rows]])
    out.append(Text())
    out += [Text(" │ ", style="dim").join(parts) for parts in zip(*drawn, strict=True)]
    return out + dim("rows: from (query), columns: to (key); first text", width)


@body.register
def _(panel: TokenGrid, width: int) -> list[Text]:
    """Positions downwards, places in the model to the right, because a text is longer than a model is deep."""
    shown = min(len(panel.tokens), MAX_POSITIONS)
    measure = next(iter(panel.measures), "")
    values = np.asarray(panel.measures[measure], dtype=float) if measure else np.full((len(panel.rows), shown), np.nan)
    low, high = ends(values)
    columns = [
        plain("", [str(i) for i in range(shown)], right=True),
        plain("token", names(panel.tokens[:shown] and Tokens(panel.tokens[:shown]), 14)),
    ]
    if panel.targets:
        columns.append(plain("next", names(Tokens(panel.targets[:shown]), 14)))
    unit = panel.units.get(measure, "")
    title = printable(measure) + (f" ({printable(unit)})" if unit and unit != measure else "")
    size = 9
    used = sum(max([cell_len(c.title), *(cell.cell_len for cell in c.cells)]) + 1 for c in columns)
    spare = width - used - (size + 1) * len(panel.rows)
    last = [numbers(cut(title, max(12, spare)), values[-1, :shown])] if measure else []
    used += sum(max([cell_len(c.title), *(cell.cell_len for cell in c.cells)]) + 1 for c in last)
    room = max(1, (width - used) // (size + 1))
    chosen = sorted({round(i) for i in np.linspace(len(panel.rows) - 1, 0, min(room, len(panel.rows)))})
    for row in chosen:
        cells = []
        for position in range(shown):
            text = pad(label(panel.cells[row][position], size), size)
            cells.append(Text.styled(str(text), colour(level(values[row, position], low, high, False))))
        columns.append(Column(cut(printable(panel.rows[row]), size), cells, right=False))
    notes = more(len(panel.tokens) - shown, "positions")
    if len(chosen) < len(panel.rows):
        notes += dim(f"{len(chosen)} of {len(panel.rows)} rows shown ({panel.row_axis})", width)
    if measure:
        scale = f"{number(low)} to {number(high)}; the last column is that of the last row"
        notes += dim(f"colour: {title}, {scale}", width)
    return table(columns + last, width, gap=1) + notes


@body.register
def _(panel: TokenStrip, width: int) -> list[Text]:
    """The text in lines, each token above its number."""
    low, high = ends(panel.values)
    unit = printable(panel.unit)
    room = min(HEAD, max(len("token"), cell_len(unit)))
    heads = [Text.styled(str(pad(cut(name, room), room + 2)), "dim") for name in ("token", unit)]
    upper, lower, out = heads[0].copy(), heads[1].copy(), []
    cells = list(zip(names(panel.tokens, 16), panel.values, map(number, panel.values), strict=True))
    for token, value, text in cells[: 4 * MAX_POSITIONS]:
        size = max(cell_len(token), len(text))
        if upper.cell_len + size > width:
            out += [upper, lower]
            upper, lower = heads[0].copy(), heads[1].copy()
        upper += pad(token, size) + Text(" ")
        lower += Text.styled(str(pad(text, size)), colour(level(value, low, high, panel.diverging))) + Text(" ")
    for line in (out := [*out, upper, lower]):
        line.rstrip()
    return [
        *out,
        *more(len(panel.tokens) - 4 * MAX_POSITIONS, "tokens"),
        *(dim(unit, width) if cell_len(unit) > room else []),
    ]


@body.register
def _(panel: Lines, width: int) -> list[Text]:
    def height(values: np.ndarray) -> np.ndarray:
        known = np.asarray(values, dtype=float)
        return np.log10(known, out=np.full_like(known, np.nan), where=known > 0) if panel.log_y else known

    series = dict(list(panel.series.items())[: 2 * MAX_ROWS])
    low, high = ends(np.concatenate([height(values) for values in series.values()]) if series else np.zeros(0))
    titles = names(tuple(series), 28)
    room = max(8, width - max(map(cell_len, titles), default=0) - 4 * 9 - 12)
    known = [np.asarray(values, dtype=float) for values in series.values()]
    room = min(room, WIDE * max(map(len, known), default=1))
    columns = [
        plain("", titles),
        plain("", [spark(height(values), low, high, room) for values in known]),
        numbers("first", (values[0] if values.size else np.nan for values in known)),
        numbers("last", (values[-1] if values.size else np.nan for values in known)),
        numbers("least", (_best(values, np.min) for values in known)),
        numbers("most", (_best(values, np.max) for values in known)),
    ]
    x = [number(v) for v in panel.x.tolist()] if isinstance(panel.x, np.ndarray) else names(panel.x)
    span = f", {x[0]} to {x[-1]}" if x else ""
    scale = " (log scale)" if panel.log_y else ""
    legend = dim(f"{panel.y_axis}{scale} over {panel.x_axis}{span}", width)
    return [*table(columns, width), *more(len(panel.series) - len(series), "curves"), *legend]


def _best(values: np.ndarray, choose: Callable[[np.ndarray], Any]) -> float:
    known = values[np.isfinite(values)]
    return float(choose(known)) if known.size else float("nan")


@body.register
def _(panel: Bars, width: int) -> list[Text]:
    shown = min(len(panel.labels), 2 * MAX_ROWS)
    low, high = ends(panel.values)
    columns = [plain("", names(panel.labels, 32)[:shown]), numbers(printable(panel.unit), panel.values[:shown])]
    if panel.low is not None and panel.high is not None:
        bounds = zip(panel.low[:shown], panel.high[:shown], strict=True)
        columns.append(plain("interval", [f"[{number(a)}, {number(b)}]" for a, b in bounds]))
    used = sum(max([cell_len(c.title), *(cell.cell_len for cell in c.cells)]) + 2 for c in columns)
    room = min(40, width - used)
    if room >= 6:
        columns.append(Column("", [bar(v, low, high, room) for v in panel.values[:shown]], right=False))
    return table(columns, width) + more(len(panel.labels) - shown, "bars")


@body.register
def _(panel: Histogram, width: int) -> list[Text]:
    shown = dict(list(panel.counts.items())[: 2 * MAX_ROWS])
    titles = names(tuple(shown), 28)
    room = min(48, max(8, width - max(map(cell_len, titles), default=0) - 12))
    room = min(room, WIDE * max(1, len(panel.edges) - 1))
    logs = [np.log10(1 + np.clip(np.nan_to_num(np.asarray(c, dtype=float)), 0, None)) for c in shown.values()]
    high = max((float(values.max(initial=0)) for values in logs), default=1.0)
    columns = [
        plain("", titles),
        plain("counts on a log scale", [spark(values, 0.0, high, room) for values in logs]),
        numbers("total", (int(np.nansum(counts)) for counts in shown.values())),
    ]
    legend = dim(f"{panel.unit}, {number(panel.edges[0])} to {number(panel.edges[-1])}", width)
    return [*table(columns, width), *more(len(panel.counts) - len(shown), "distributions"), *legend]


@body.register
def _(panel: Table, width: int) -> list[Text]:
    shown = panel.frame.head(MAX_ROWS)
    columns = []
    for i, title in enumerate(map(str, shown.columns)):
        values = shown.iloc[:, i]
        unit = panel.units.get(title, "")
        heading = printable(f"{title} ({unit})" if unit and len(unit) <= 12 else title)
        if values.dtype.kind in "iufb":
            low, high = ends(panel.frame.iloc[:, i].to_numpy(dtype=float, na_value=np.nan))
            signed = title in panel.diverging
            cells = [
                Text(text, style=colour(level(v, low, high, True)) if signed else "")
                for text, v in zip(map(number, values), values, strict=True)
            ]
            columns.append(Column(heading, cells))
        else:
            texts = [UNKNOWN if pd.isna(value) else str(value) for value in values]
            columns.append(plain(heading, names(Tokens(texts) if title in panel.tokens else texts, 48)))
    if not columns or shown.empty:
        return [Text("no rows", style="dim")]
    return table(columns, width) + more(len(panel.frame) - len(shown), "rows; --format csv gives all")


@body.register
def _(panel: Graph, width: int) -> list[Text]:
    edges = sorted(panel.edges, key=lambda edge: -abs(edge[2]))
    if not edges:
        return [Text("no edges", style="dim")]
    shown = edges[:MAX_ROWS]
    nodes = names(panel.nodes, 28)
    low, high = ends(np.array([weight for *_, weight in edges]))
    columns = [
        plain("from", [nodes[start] for start, *_ in shown]),
        plain("to", [nodes[end] for _, end, _ in shown]),
        numbers(printable(panel.unit), (weight for *_, weight in shown)),
        Column("", [bar(weight, low, high, 20) for *_, weight in shown], right=False),
    ]
    return table(columns, width) + more(len(edges) - len(shown), "edges")


@body.register
def _(panel: CircuitGraph, width: int) -> list[Text]:
    """The first edges, and how faithful the circuit shown first is."""
    shown, nodes = slice(MAX_EDGES), names(panel.nodes, 28)
    columns = [
        plain("from", [nodes[i] for i in panel.senders[shown]]),
        plain("to", [nodes[i] for i in panel.receivers[shown]]),
        plain("input", names(panel.inputs[shown])),
        numbers(printable(panel.unit), panel.scores[shown]),
    ]
    columns += [numbers(name, x[shown]) for name in ("exact", "low", "high", "stability")
                if np.isfinite(x := getattr(panel, name)[shown]).any()]  # fmt: skip
    near = nearest(panel.sizes, panel.chosen)
    known = ", ".join(f"{name} {values[near]:.3f}" for name, values in panel.measured.items())
    faithful = f"; faithfulness at {panel.sizes[near]}: {known}" if known else ""
    told = f"The circuit holds {panel.chosen} of {panel.total} edges{faithful}."
    return table(columns, width) + more(panel.chosen - MAX_EDGES, "edges in the circuit") + dim(told, width)
