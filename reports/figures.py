"""Panels as matplotlib figures: for pages read without JavaScript, for papers, for notebooks.

`figure(panel)` draws one panel, `figure(result)` all of a result's panels below each other. Figures are built without
pyplot, so nothing is registered, shown or left open. `svg` and `svg_uri` give the same bytes on every run.
"""

import io
import warnings
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import FancyArrowPatch
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from analyses.shared.panels import (
    AttentionGrid,
    Bars,
    CircuitGraph,
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
from interp.keeping import kept_whole
from reports import circuits, graphs, svgs
from reports.page.packing import thumbnails
from reports.tokens import MINUS, label, printable

INK, SOFT, FAINT = "#222222", "#6b6b6b", "#d9d9d9"
SERIES = ("#2166ac", "#c2571a", "#6a51a3", "#222222", "#4393c3", "#e08214", "#9e7bb5", "#8c8c8c")
STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "interp",
}
WIDTH = 7.2
"""Inches; the width of the page's text column."""


def figure(thing: Panel | Result) -> Figure:
    """A matplotlib figure of a panel, or of all panels of a result."""
    panels = [thing] if isinstance(thing, Panel) else list(thing.panels())
    with rc_context(STYLE):
        sizes = [height(panel) for panel in panels]
        whole = Figure(figsize=(WIDTH, max(sum(sizes), 1.0)))
        slots: list[Figure | SubFigure] = [whole]
        if len(panels) > 1:
            slots = list(whole.subfigures(len(panels), 1, height_ratios=sizes, squeeze=False)[:, 0])
        for slot, panel, inches in zip(slots, panels, sizes, strict=False):
            if not isinstance(panel, Note):
                slot.subplots_adjust(left=1.0 / WIDTH, right=1 - 0.2 / WIDTH, bottom=0.5 / inches, top=1 - 0.3 / inches)
            draw(panel, slot)
            if len(panels) > 1 and panel.title:
                slot.suptitle(printable(panel.title), x=0.02, ha="left", fontsize=10, fontweight="bold")
    return whole


def svg(panel: Panel | Result) -> bytes:
    """The figure as SVG; the same panel gives the same bytes, which `interp.keeping.remembered` keeps. Text stays
    text."""
    return kept_whole(lambda: ("svg", panel), lambda: _save(panel, "svg"))


def png(panel: Panel | Result, dpi: int = 144) -> bytes:
    """The figure as PNG on white."""
    return _save(panel, "png", dpi=dpi, facecolor="white")


def svg_uri(panel: Panel | Result) -> str:
    """The figure as an SVG data URI for `<img src>`."""
    return svgs.uri(svg(panel).decode())


def _save(panel: Panel | Result, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None} if form == "svg" else {"Software": None}
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the browser has the fonts we lack
        drawn = figure(panel)
        canvas: Any = FigureCanvasAgg(drawn)
        box = drawn.get_tightbbox(canvas.get_renderer()).padded(0.06)  # "tight" would draw it twice
        drawn.savefig(out, format=form, metadata=metadata, bbox_inches=box, **{"dpi": 144} | options)
    return svgs.smaller(out.getvalue()) if form == "svg" else out.getvalue()


def height(panel: Panel) -> float:
    """Inches that a panel's figure is high."""
    match panel:
        case Matrix():
            return float(np.clip(0.9 + 0.24 * len(panel.rows), 1.8, 5.5))
        case AttentionGrid():
            layers, heads = panel.patterns[0].shape[:2]
            return 0.8 + (WIDTH - 1.2) * layers / heads if heads else 1.0
        case TokenGrid():
            return 1.0 + 0.24 * len(panel.rows)
        case TokenStrip():
            return 2.6
        case Bars():
            return float(np.clip(0.9 + 0.21 * len(panel.labels), 1.4, 12))
        case Histogram():
            return 0.6 + 1.05 * -(-len(panel.counts) // histogram_columns(panel))
        case Table():
            return 0.6 + 0.24 * min(max(len(panel.frame), 1), 20)
        case Note():
            return 0.6 + 0.18 * (len(panel.text) // 95 + 1)
        case Graph(places=(_, *_)):
            return graphs.height(panel)
        case CircuitGraph():
            return circuits.height(panel)
        case Graph():
            most = max((panel.columns.count(column) for column in set(panel.columns)), default=1)
            return float(np.clip(0.8 + 0.36 * most, 2.2, 9))
        case _:
            return 2.9


def names(labels: Sequence[str], limit: int = 24) -> list[str]:
    """Labels as they are shown: tokens with their signs, anything else printable."""
    if isinstance(labels, Tokens):
        return [label(token, limit) for token in labels]
    return [printable(name if len(name) <= 60 else name[:59] + "…") for name in labels]


def finite(values: np.ndarray) -> np.ndarray:
    """As float, with infinities as NaN, so that nothing is drawn there."""
    values = np.asarray(values, dtype=float)
    return np.where(np.isfinite(values), values, np.nan)


def colours(diverging: bool) -> LinearSegmentedColormap:
    """RdBu with blue positive, or Blues from white."""
    from matplotlib import colormaps

    return colormaps["RdBu" if diverging else "Blues"]  # type: ignore[return-value]


def scale(values: np.ndarray, diverging: bool) -> Normalize:
    """The colour scale: centred on zero when signed, from the smallest to the largest number otherwise."""
    known = values[np.isfinite(values)]
    if diverging:
        reach = float(np.abs(known).max(initial=0)) or 1.0
        return TwoSlopeNorm(0, -reach, reach)
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    return Normalize(min(low, 0) if low < 0.5 * high else low, high if high > low else low + 1)


@singledispatch
def draw(panel: Panel, slot: Figure | SubFigure) -> None:
    """Draws one panel into a figure or part of one."""
    raise TypeError(f"no drawing for a panel of type {type(panel).__name__}")


def _ticks(place: Any, labels: list[str], room: float, **style: Any) -> None:
    """Labels on an axis of `room` inches, as many as fit."""
    every = max(1, -(-len(labels) * 13 // int(room * 72)))
    if every > 1 and all(name.isdecimal() for name in labels):
        every = next((step for step in (5, 10, 20, 50, 100, 200, 500, 1000) if step >= 3 * every), 2000)
    at = list(range(0, len(labels), every))
    place.set_ticks(at, [labels[i] for i in at], **style)


def _plain_decades(axis: Axis) -> None:
    """Labels 0.01, 1, 1000 on a log axis (powers would need formulas, which are off: labels may hold dollar signs)."""

    def text(value: float, _: object) -> str:
        return f"{value:,g}" if 1e-4 <= abs(value) < 1e6 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")

    low, high = sorted(axis.get_view_interval())
    within_decade = high < 30 * low
    axis.set_major_formatter(FuncFormatter(text))
    axis.set_minor_formatter(FuncFormatter(text) if within_decade else NullFormatter())
    if within_decade:
        axis.set_minor_locator(LogLocator(subs=(2, 5)))


def _heat(slot: Figure | SubFigure, values: np.ndarray, panel: Any, cell_text: list[list[str]] | None = None) -> Axes:
    """A heat map with its colour bar; shared by matrices and token grids."""
    axes = slot.subplots()
    diverging = bool(getattr(panel, "diverging", False))
    shown = finite(values)
    picture = axes.imshow(
        shown,
        cmap=colours(diverging),
        norm=scale(shown, diverging),
        aspect="auto",
        interpolation="none",
    )
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    bar = slot.colorbar(picture, ax=axes, fraction=0.03, pad=0.02, aspect=18)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(4)
    bar.update_ticks()
    bar.ax.tick_params(length=0, labelsize=7.5)
    if cell_text:
        dark = (
            np.nan_to_num(
                np.abs(np.asarray(picture.norm(shown), dtype=float) - (0.5 if diverging else 0))
                * (2 if diverging else 1)
            )
            > 0.6
        )
        for (row, column), is_dark in np.ndenumerate(np.asarray(dark)):
            text = cell_text[row][column]
            axes.text(
                column, row, text, ha="center", va="center", fontsize=6, color="white" if is_dark else INK, clip_on=True
            )
    return axes


@draw.register
def _(panel: Matrix, slot: Figure | SubFigure) -> None:
    axes = _heat(slot, panel.values, panel)
    inches = height(panel)
    _ticks(axes.yaxis, names(panel.rows), inches - 0.8)
    columns = names(panel.columns, 12)
    numbers = all(name.isdecimal() for name in columns) and len(columns) > 40  # thinned out by _ticks
    turned = max(map(len, columns), default=0) * min(len(columns), 40) > 80 and not numbers
    _ticks(axes.xaxis, columns, WIDTH - 1.4, rotation=90 if turned else 0)
    axes.set_xlabel(printable(panel.column_axis))
    axes.set_ylabel(printable(panel.row_axis))
    axes.figure.axes[-1].set_title(printable(panel.unit), fontsize=8, loc="left", color=SOFT)


@draw.register
def _(panel: TokenGrid, slot: Figure | SubFigure) -> None:
    name = next(iter(panel.measures), "")
    values = np.asarray(panel.measures[name]) if name else np.zeros((len(panel.rows), len(panel.tokens)))
    wide = len(panel.tokens) > 24
    words = [] if wide else [[label(token, 7) for token in row] for row in panel.cells]
    axes = _heat(slot, values, panel, words or None)
    _ticks(axes.yaxis, names(panel.rows), height(panel) - 0.8)
    _ticks(axes.xaxis, names(panel.tokens, 12), WIDTH - 1.4, rotation=90)
    axes.set_ylabel(printable(panel.row_axis))
    unit = panel.units.get(name, "")
    axes.figure.axes[-1].set_title(printable(f"{name} ({unit})" if unit else name), fontsize=8, loc="right", color=SOFT)


@draw.register
def _(panel: AttentionGrid, slot: Figure | SubFigure) -> None:
    small = thumbnails(panel.patterns[0])
    layers, heads, side, _ = small.shape
    framed = np.pad(small, ((0, 0), (0, 0), (0, max(1, side // 12)), (0, max(1, side // 12))), constant_values=np.nan)
    image = np.sqrt(framed.transpose(0, 2, 1, 3).reshape(layers * framed.shape[2], heads * framed.shape[3]))
    axes = slot.subplots()
    axes.imshow(image, cmap="Blues", norm=Normalize(0, 1), aspect="auto", interpolation="nearest")
    step = framed.shape[2]
    axes.set_xticks(np.arange(heads) * step + side / 2, [str(head) for head in range(heads)])
    axes.set_yticks(np.arange(layers) * step + side / 2, [str(layer) for layer in range(layers)])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("head (in each square: key to the right, query downwards; square-root contrast)")
    axes.set_ylabel("layer")


@draw.register
def _(panel: TokenStrip, slot: Figure | SubFigure) -> None:
    axes = slot.subplots()
    values = finite(panel.values)
    shades = colours(panel.diverging)(scale(values, panel.diverging)(values))
    axes.bar(np.arange(len(values)), np.nan_to_num(values), color=np.asarray(shades), edgecolor=SOFT, linewidth=0.4)
    _ticks(axes.xaxis, names(panel.tokens, 12), WIDTH - 1.2, rotation=90)
    axes.set_ylabel(printable(panel.unit))
    axes.margins(x=0.01)


@draw.register
def _(panel: Lines, slot: Figure | SubFigure) -> None:
    axes = slot.subplots()
    labelled = not isinstance(panel.x, np.ndarray)
    x = np.arange(len(panel.x)) if labelled else finite(np.asarray(panel.x))
    for i, (name, values) in enumerate(panel.series.items()):
        colour = SERIES[i % len(SERIES)]
        style = ("-", "--", ":")[i // len(SERIES) % 3]
        axes.plot(x, finite(values), style, color=colour, label=printable(name), marker="o" if len(x) < 2 else "")
        if name in panel.low and name in panel.high:
            low, high = finite(panel.low[name]), finite(panel.high[name])
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    if panel.log_x and not labelled:
        axes.set_xscale("log")
        _plain_decades(axes.xaxis)
    if panel.log_y:
        axes.set_yscale("log", nonpositive="mask")
        _plain_decades(axes.yaxis)
    if labelled:
        shown = names(tuple(panel.x) if not isinstance(panel.x, Tokens) else panel.x, 12)
        turned = sum(map(len, shown)) > 90
        _ticks(axes.xaxis, shown, WIDTH - 1.2, rotation=90 if turned and len(shown) > 8 else 0)
    elif not panel.log_x and x.size and np.array_equal(x, np.round(x)):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    axes.set_xlabel(printable(panel.x_axis))
    axes.set_ylabel(printable(panel.y_axis))
    axes.grid(axis="y", color=FAINT, linewidth=0.5)
    axes.margins(x=0.02)
    if len(panel.series) > 1:
        if len(panel.series) <= 14:
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), borderaxespad=0.4, handlelength=1.4)
        else:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=6, handlelength=1.4)


@draw.register
def _(panel: Bars, slot: Figure | SubFigure) -> None:
    axes = slot.subplots()
    values, y = finite(panel.values), np.arange(len(panel.labels))
    axes.barh(y, np.nan_to_num(values), height=0.68, color=np.where(values < 0, "#d6604d", "#4393c3"))
    if panel.low is not None and panel.high is not None:
        axes.hlines(y, finite(panel.low), finite(panel.high), color=INK, linewidth=1.1)
    _ticks(axes.yaxis, names(panel.labels), height(panel) - 0.8)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.axvline(0, color=SOFT, linewidth=0.7)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel(printable(panel.unit))
    if np.abs(np.nan_to_num(values)).max(initial=0) >= 1e5:
        axes.xaxis.set_major_formatter(EngFormatter(sep="\N{NO-BREAK SPACE}"))  # 5 M
    axes.margins(y=0.02)


def histogram_columns(panel: Histogram) -> int:
    """How many small multiples stand side by side."""
    count = len(panel.counts)
    return next((c for c in (6, 5, 4) if count > c and count % c == 0), min(count, 4)) or 1


@draw.register
def _(panel: Histogram, slot: Figure | SubFigure) -> None:
    """All small multiples share one pair of axes and a few collections: axes for each would take seconds to draw."""
    axes = slot.subplots()
    columns, step = histogram_columns(panel), 1.12
    rows = -(-len(panel.counts) // columns)
    edges = finite(panel.edges)
    start, width = edges[0], (edges[-1] - edges[0]) or 1.0
    x = (edges - start) / width
    counts = {name: np.clip(np.nan_to_num(finite(c)), 0, None) for name, c in panel.counts.items()}
    top = max(1.0, *(float(np.log10(1 + c.max(initial=0))) for c in counts.values()))
    decades = [10**d for d in range(0, int(top) + 1, 1 if top < 4 else 2)]

    def rise(count: Any) -> Any:
        return np.log10(1 + np.asarray(count)) / top * 0.72

    small: dict[str, Any] = {"fontsize": 6.5, "color": SOFT}
    grid, bases, bodies = [], [], []
    curves: dict[str, list[np.ndarray]] = {}
    for i, (name, count) in enumerate(counts.items()):
        left, bottom = (i % columns) * step, -(i // columns) * step
        outline = np.concatenate([[0.0], np.repeat(rise(count), 2), [0.0]])
        bodies.append(np.column_stack([left + np.repeat(x, 2), bottom + outline]))
        grid += [[(left, bottom + rise(d)), (left + 1, bottom + rise(d))] for d in decades]
        bases.append([(left, bottom), (left + 1, bottom)])
        for fit, expected in panel.fits.get(name, {}).items():
            known = np.nan_to_num(finite(expected)) >= 0.05
            middle = (x[1:] + x[:-1])[known] / 2
            curves.setdefault(fit, []).append(np.column_stack([left + middle, bottom + rise(finite(expected)[known])]))
        axes.text(left, bottom + 0.78, printable(name), fontsize=8)
        if i % columns == 0:
            for d in decades:
                text = f"{d:,}" if d < 10_000 else f"1e{len(str(d)) - 1}"
                axes.text(left - 0.02, bottom + rise(d), text, ha="right", va="center", **small)
        if i >= len(counts) - columns:
            for place, side in ((0.0, "left"), (0.5, "center"), (1.0, "right")):
                text = f"{start + place * width:.3g}".replace("-", MINUS)
                axes.text(left + place, bottom - 0.05, text, ha=side, va="top", **small)
    axes.add_collection(LineCollection(grid, colors=FAINT, linewidths=0.5))
    axes.add_collection(PolyCollection(bodies, facecolors="#92c5de", linewidths=0))
    axes.add_collection(LineCollection(bases, colors=SOFT, linewidths=0.7))
    for fit, colour in zip(curves, SERIES[1:] * len(curves), strict=False):
        axes.add_collection(LineCollection(curves[fit], colors=colour, linewidths=0.9, label=printable(fit)))
    axes.set(xlim=(-0.1, columns * step), ylim=(-(rows - 1) * step - 0.2, 1.0), xlabel=printable(panel.unit))
    axes.set_ylabel("count", labelpad=14)
    axes.xaxis.set_major_locator(NullLocator())
    axes.yaxis.set_major_locator(NullLocator())
    for spine in axes.spines.values():
        spine.set_visible(False)
    if curves:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1.0), ncols=len(curves), handlelength=1.4)


@draw.register
def _(panel: Graph, slot: Figure | SubFigure) -> None:
    if panel.places:
        return graphs.draw(panel, slot)
    axes = slot.subplots()
    columns = sorted(set(panel.columns))
    where: dict[int, tuple[float, float]] = {}
    crowded = len(columns) > 10  # then neighbours stand at other heights
    for place, column in enumerate(columns):
        members = [i for i, own in enumerate(panel.columns) if own == column]
        for rank, node in enumerate(members):
            where[node] = (place, (len(members) - 1) / 2 - rank + crowded * (0.5 * (place % 2) - 0.25))
    reach = max((abs(weight) for *_, weight in panel.edges), default=1.0) or 1.0
    for source, target, weight in sorted(panel.edges, key=lambda edge: abs(edge[2])):
        share = abs(weight) / reach
        arrow = FancyArrowPatch(
            where[source], where[target], connectionstyle="arc3,rad=0.08", arrowstyle="-|>", mutation_scale=7,
            shrinkA=14, shrinkB=14, linewidth=0.4 + 2.2 * share, alpha=0.25 + 0.7 * share,
            color="#2166ac" if weight >= 0 else "#b2182b",
        )  # fmt: skip
        axes.add_patch(arrow)
    for node, text in enumerate(names(panel.nodes)):
        axes.text(*where[node], text, ha="center", va="center", fontsize=min(8, 112 / max(len(columns), 1)),
                  bbox={"boxstyle": "round,pad=0.3", "fc": "#f3f3f3", "ec": SOFT, "lw": 0.6})  # fmt: skip
    spread = max((abs(y) for _, y in where.values()), default=0)
    axes.set(xlim=(-0.5, max(len(columns), 1) - 0.5), ylim=(-spread - 0.7, spread + 0.7))
    axes.set_axis_off()
    axes.set_title(f"{printable(panel.unit)}; widest line {reach:.3g}", fontsize=8, color=SOFT, loc="right")


draw.register(circuits.draw)


@draw.register
def _(panel: Table, slot: Figure | SubFigure) -> None:
    axes = slot.subplots()
    axes.set_axis_off()
    top = panel.frame.head(20)
    cells = [[_cell(value, str(column) in panel.tokens) for column, value in zip(top.columns, row, strict=True)]
             for row in top.itertuples(index=False, name=None)]  # fmt: skip
    heads = names([str(column) for column in top.columns])
    if not cells or not heads:
        axes.text(0, 0.5, "no rows")
        return
    drawn = axes.table(cells, colLabels=heads, loc="upper left", edges="horizontal", cellLoc="left")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7.5)


def _cell(value: object, is_token: bool) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    return label(str(value)) if is_token else printable(str(value)[:40])


@draw.register
def _(panel: Note, slot: Figure | SubFigure) -> None:
    slot.text(0.02, 0.95, printable(panel.text.replace("\n", " ")), va="top", wrap=True)
