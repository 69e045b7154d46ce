"""Panels as what the page's templates need: cells with their text, shade and number; pictures; data for the scripts.

No HTML is written here except through `tokens.markup`; no numbers are computed, only rounded for display.
"""

import base64
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from analyses.shared.clean_corrupted import PairStrip
from analyses.shared.panels import (
    Bars,
    Graph,
    Histogram,
    Lines,
    Matrix,
    Note,
    Panel,
    Table,
    Tokens,
    TokenStrip,
)
from reports import figures
from reports.numbers import Scale, brief, decimal, decimals, exact, number
from reports.page import heatmap, packing
from reports.tokens import label, markup, printable

TABLE_ROWS = 12
"""Rows of a long table shown at once; the page's script unpacks the rest on request."""
SHORT = 16
"""A table of at most so many rows is shown whole."""
MATRIX_CELLS = 100
"""Largest matrix written as a table of numbers; others are pictures whose numbers are read by pointing."""
PICTURE_ONLY = 20_000
"""Matrices with more numbers than this carry no table of them."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell: what is read, and what is sorted by and taken away."""

    text: str
    value: str = ""
    shade: str = ""
    low: str = ""
    high: str = ""
    interval: str = ""
    title: str = ""
    head: bool = False


def _bare(cell: Cell) -> str | list[str]:
    """What a script needs to make the cell again; tokens as `tokens.coded` writes them."""
    text = str(cell.text)
    if isinstance(cell.text, Markup):
        text = text.replace("<i>", "\x01").replace("</i>", "\x02")
        text = Markup(text).unescape()
    parts = [text, "" if cell.value == cell.text else cell.value, cell.shade, cell.low, cell.high, cell.interval]
    while len(parts) > 1 and not parts[-1]:
        parts.pop()
    return parts if len(parts) > 1 else text


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table: column titles, rows of cells, and the rows that the page's script adds on request."""

    columns: tuple[str, ...]
    rows: list[list[Cell]]
    numeric: tuple[bool, ...]
    corner: str = ""  # names both axes of a matrix
    rest: Sequence[list[Cell]] = ()  # rows left out of the HTML
    compact: bool = False

    def folded(self) -> "Grid":
        """The same table with all its rows left out of the HTML."""
        return replace(self, rows=[], rest=[*self.rows, *self.rest])

    def packed(self) -> str:
        """The rows left out, as JSON, deflated, in base64: a cell is its text, or a list of all that it holds."""
        heads = sum(cell.head for cell in self.rest[0]) if self.rest else 0
        return packed({"heads": heads, "rows": [[_bare(cell) for cell in row] for row in self.rest]})


@dataclass(frozen=True, kw_only=True)
class View:
    """One panel, ready for the template of its kind."""

    kind: str
    id: str
    title: str
    caption: str | Markup = ""
    note: str = ""  # what was left out, what a colour means
    pictures: tuple[str, ...] = ()
    alt: str = ""
    grid: Grid | None = None
    strip: tuple[Cell, ...] = ()
    data: Markup | None = None
    legend: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    beside: bool = False  # stands next to the panel before it
    also: tuple[str, ...] = ()  # further addresses

    @property
    def is_small(self) -> bool:
        """Whether there is room for another one beside it."""
        return (
            self.kind == "matrix"
            and self.grid is not None
            and len(self.grid.columns) <= (5 if self.grid.rows and self.grid.rows[0][-1].interval else 9)
            and len(self.grid.rows) <= 24
        )


def json_block(data: Any) -> Markup:
    """JSON that is safe inside `<script>`: plain ASCII, no `<`, `>`, `&`; NaN and infinities are null."""
    text = json.dumps(_plain(data), allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def packed(data: Any) -> str:
    """The same, deflated, in base64."""
    return base64.b64encode(packing.deflate(json_block(data).encode())).decode("ascii")


def _plain(data: Any) -> Any:
    match data:
        case None | bool() | str() | int():
            return data
        case Mapping():
            return {str(key): _plain(value) for key, value in data.items()}
        case np.ndarray():
            return _plain(data.tolist())
        case np.generic():
            return _plain(data.item())
        case float():
            short = float(f"{data:.6g}") if math.isfinite(data) else None
            return int(short) if short is not None and short.is_integer() else short
        case Iterable():
            return [_plain(item) for item in data]
        case _:
            return str(data)


def prose(text: str) -> Markup:
    """One paragraph, escaped; what stands between backquotes is code."""
    pieces = re.split(r"`+([^`]+)`+", printable(" ".join(text.split())))
    return Markup().join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(pieces))


def words(name: str) -> str:
    """The name of a column as words: "stable_rank" without its underscore, "W_Q" as it is."""
    return printable(re.sub(r"(?<=[a-z0-9])_(?=[a-z0-9])", " ", str(name)))


def shown(text: str, is_token: bool) -> str:
    """Text for a cell, already escaped when it is a token."""
    return markup(text, isolate=False) if is_token else printable(text if len(text) <= 200 else text[:199] + "…")


def labels(sequence: Sequence[str]) -> list[Cell]:
    """Row heads."""
    is_token = isinstance(sequence, Tokens)
    return [Cell(text=shown(text, is_token), value=printable(text), head=True) for text in sequence]


def _interval(low: Any, high: Any, places: int | None) -> dict[str, Any]:
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return {}
    ends = f"{decimal(float(low), places)} to {decimal(float(high), places)}"
    return {"low": exact(low), "high": exact(high), "interval": ends}


def number_cell(value: Any, shade: str = "", low: Any = None, high: Any = None, places: int | None = None) -> Cell:
    """A cell that holds a number, with so many decimals, or as many as suit it."""
    return Cell(text=decimal(value, places), value=exact(value), shade=shade, **_interval(low, high, places))


def number_grid(
    heads: Sequence[Sequence[str]], titles: Sequence[str], columns: Sequence[np.ndarray], limit: int = TABLE_ROWS
) -> Grid:
    """Columns of labels, then columns of numbers, one row an entry."""
    n_rows = len(heads[0])
    head_cells = [labels(column) for column in heads]
    rows = [
        [*(column[i] for column in head_cells), *(number_cell(column[i]) for column in columns)] for i in range(n_rows)
    ]
    return limited(tuple(titles), rows, (False,) * len(heads) + (True,) * len(columns), limit)


def limited(
    columns: tuple[str, ...], rows: list[list[Cell]], numeric: tuple[bool, ...], limit: int = TABLE_ROWS
) -> Grid:
    """A grid whose rows beyond `limit` are left out of the HTML, where there are more than `SHORT`."""
    limit = limit if len(rows) > max(SHORT, limit) else len(rows)
    return Grid(columns=columns, rows=rows[:limit], numeric=numeric, rest=rows[limit:])


def view(panel: Panel, section: str) -> View:
    """The view of a panel of the analysis named `section`."""
    base = {"id": f"{section}-{panel.key}", "title": printable(panel.title), "caption": prose(panel.caption)}
    return View(**{**base, **view_of(panel)})


@singledispatch
def view_of(panel: Panel) -> dict[str, Any]:
    raise TypeError(f"no view for a panel of type {type(panel).__name__}")


def _figure(panel: Panel, alt: str, grid: Grid | None = None, **more: Any) -> dict[str, Any]:
    grid = grid.folded() if grid else None
    return {"kind": "figure", "pictures": (figures.svg_uri(panel),), "alt": alt, "grid": grid, **more}


@view_of.register
def _(panel: Note) -> dict[str, Any]:
    return {"kind": "note", "extra": {"paragraphs": [printable(p) for p in panel.text.split("\n") if p.strip()]}}


@view_of.register
def _(panel: Matrix) -> dict[str, Any]:
    n_rows, n_columns = panel.values.shape
    alt = printable(f"{panel.row_axis} (down) by {panel.column_axis} (across); {panel.unit}")
    scale = Scale.of(panel.values, panel.diverging, panel.scale)
    by_head = (panel.row_axis, panel.column_axis) == ("layer", "head")
    shared: dict[str, Any] = {
        "alt": alt,
        "legend": legend(scale, panel.unit),
        "note": _floored(panel),
        "extra": {"by_head": by_head},
    }
    if not panel.image and n_rows * n_columns <= MATRIX_CELLS:
        return {"kind": "matrix", "grid": _matrix_grid(panel, scale), **shared}
    picture, box = heatmap.uri(panel, scale)
    shared["extra"] = {"by_head": by_head, "box": box, "rows": n_rows, "columns": n_columns}
    if panel.image or n_rows * n_columns > PICTURE_ONLY:
        return {"kind": "heat", "pictures": (picture,), **shared}
    return {"kind": "heat", "pictures": (picture,), "grid": _matrix_grid(panel, scale).folded(), **shared}


def _floored(panel: Matrix) -> str:
    sizes = np.asarray(panel.floor)[np.isfinite(panel.floor)]
    if not sizes.size or sizes.max() <= 0:
        return ""
    ends = list(dict.fromkeys(f"\N{PLUS-MINUS SIGN}{brief(size)}" for size in (sizes.min(), sizes.max())))
    return (
        f"Grey: within {ends[0]}, too little to count."
        if len(ends) == 1
        else (f"Grey: within what chance gives there, {' to '.join(ends)}.")
    )


def _matrix_grid(panel: Matrix, scale: Scale) -> Grid:
    n_columns = panel.values.shape[1]
    places = None if scale.log else decimals(panel.values, panel.low, panel.high)
    rows, grey = [], panel.grey
    for i, head in enumerate(labels(panel.rows)):
        bounds: list[tuple[Any, Any]] = [(None, None)] * n_columns
        if panel.low is not None and panel.high is not None:
            bounds = list(zip(panel.low[i], panel.high[i], strict=True))
        cells = zip(panel.values[i], grey[i], bounds, strict=True)
        rows.append([head, *(number_cell(v, "grey" if g else scale.shade(v), *b, places) for v, g, b in cells)])
    is_token = isinstance(panel.columns, Tokens)
    return Grid(
        columns=("", *(shown(name, is_token) for name in panel.columns)),
        rows=rows,
        numeric=(False,) + (True,) * n_columns,
        corner=f"{printable(panel.row_axis)}\N{NO-BREAK SPACE}↓ {printable(panel.column_axis)}\N{NO-BREAK SPACE}→",
        compact=n_columns > 8,
    )


def legend(scale: Scale, unit: str, name: str = "") -> dict[str, Any]:
    """What the shades mean: ends of the scale, unit, kind."""
    return {
        "low": brief(scale.low),
        "high": brief(scale.high),
        "unit": printable(" ".join(part for part in (name, f"({unit})" if unit and name else unit) if part)),
        "diverging": scale.diverging,
        "log": scale.log,
    }


@view_of.register
def _(panel: Lines) -> dict[str, Any]:
    x = panel.x if not isinstance(panel.x, np.ndarray) else tuple(number(v) for v in panel.x.tolist())
    titles, columns = [panel.x_axis], []
    for name, values in panel.series.items():
        titles.append(name)
        columns.append(np.asarray(values))
        for end, bound in (("low", panel.low), ("high", panel.high)):
            if name in bound:
                titles.append(f"{name} {end}")
                columns.append(np.asarray(bound[name]))
    alt = f"Curves of {panel.y_axis} over {panel.x_axis}: {', '.join(list(panel.series)[:12])}"
    return _figure(panel, printable(alt), number_grid([x], [printable(t) for t in titles], columns))


@view_of.register
def _(panel: Bars) -> dict[str, Any]:
    bounds = [c for c in (panel.low, panel.high) if c is not None]
    titles = ["label", panel.unit, *(["low", "high"] if len(bounds) == 2 else [])]
    grid = number_grid(
        [panel.labels], [printable(t) for t in titles], [panel.values, *(bounds if len(bounds) == 2 else [])]
    )
    return _figure(panel, printable(f"Bars of {panel.unit} for {len(panel.labels)} labels"), grid)


@view_of.register
def _(panel: Histogram) -> dict[str, Any]:
    edges = panel.edges.tolist()
    heads = [tuple(number(e) for e in edges[:-1]), tuple(number(e) for e in edges[1:])]
    grid = number_grid(heads, ["from", "to", *map(printable, panel.counts)], list(panel.counts.values()))
    return _figure(
        panel, printable(f"Histograms of {panel.unit}, counts on a log scale: {', '.join(panel.counts)}"), grid
    )


@view_of.register
def _(panel: Graph) -> dict[str, Any]:
    order = sorted(range(len(panel.edges)), key=lambda i: -abs(panel.edges[i][2]))
    heads = [tuple(panel.nodes[ends[end]] for ends in (panel.edges[i][:2] for i in order)) for end in (0, 1)]
    names, columns = [panel.unit], [np.array([panel.edges[i][2] for i in order])]
    if panel.frames:
        names, columns = list(panel.frames), [weights[order] for weights, _ in panel.frames.values()]
    grid = number_grid(heads, ["from", "to", *map(printable, names)], columns)
    return _figure(panel, printable(f"Graph of {len(panel.nodes)} nodes and {len(order)} edges; {panel.unit}"), grid)


@view_of.register
def _(panel: TokenStrip) -> dict[str, Any]:
    scale = Scale.of(panel.values, panel.diverging)
    cells = [
        Cell(text=markup(token, None, isolate=False), shade=scale.shade(value), value=number(value),
             title=f"{i}: {label(token)} {number(value)} {printable(panel.unit)}")
        for i, (token, value) in enumerate(zip(panel.tokens, np.asarray(panel.values, dtype=float), strict=True))
    ]  # fmt: skip
    positions = tuple(str(i) for i in range(len(panel.tokens)))
    grid = number_grid(
        [positions, panel.tokens], ["position", "token", printable(panel.unit)], [np.asarray(panel.values)]
    )
    return {"kind": "strip", "strip": tuple(cells), "grid": grid.folded(), "legend": legend(scale, panel.unit)}


@view_of.register
def _(panel: PairStrip) -> dict[str, Any]:
    both = [[markup(token, None, isolate=False) for token in tokens] for tokens in (panel.tokens, panel.below)]
    positions = tuple(map(str, range(len(panel.tokens))))
    grid = number_grid([positions, panel.tokens, panel.below], ["position", *panel.names, panel.unit], [panel.values])
    columns = list(zip(*both, panel.values.tolist(), strict=True))
    return {"kind": "aligned", "grid": grid.folded(), "extra": {"names": panel.names, "columns": columns}}


@view_of.register
def _(panel: Table) -> dict[str, Any]:
    names = [str(column) for column in panel.frame.columns]
    scales = {name: Scale.of(panel.frame.iloc[:, i].to_numpy(dtype=float), True)
              for i, name in enumerate(names) if name in panel.diverging}  # fmt: skip
    numeric = tuple(panel.frame.iloc[:, i].dtype.kind in "iufb" for i in range(len(names)))
    rows = []
    for record in panel.frame.itertuples(index=False, name=None):
        row = []
        for name, value in zip(names, record, strict=True):
            if isinstance(value, (bool, int, float, np.number, np.bool_)) or value is None:
                number: Any = value
                row.append(number_cell(value, scales[name].shade(float(number)) if name in scales else ""))
            else:
                row.append(Cell(text=shown(str(value), name in panel.tokens), value=printable(str(value))))
        rows.append(row)
    titles = tuple(
        words(name) + (f" ({printable(panel.units[name])})" if panel.units.get(name) else "") for name in names
    )
    return {"kind": "table", "grid": limited(titles, rows, numeric)}
