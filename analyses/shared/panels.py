"""Panels: how a result describes itself, as numbers and labels. No colour, no HTML, no drawing.

An analysis returns panels from `Result.panels()`; `reports` knows how to draw each kind, once, as HTML, as a static
figure, as a terminal table. Arrays are numpy; axis names are given in each field's comment.

Labels are tuples of strings. Labels that are model tokens are `Tokens`, so that they can be shown the way the field
shows tokens (a leading space as a dot, a newline as a return sign).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd


class Tokens(tuple[str, ...]):
    """Labels that are model tokens, as `model.to_str_tokens` gives them (incomplete UTF-8 already as \\xNN)."""


@dataclass(frozen=True)
class Panel:
    """One figure, table or remark. Key, title and caption may be given by place, all else by name."""

    key: str
    """Address within the analysis, such as "pattern"; unique among the panels of one result; [a-z0-9-]."""
    title: str
    """A short heading."""
    caption: str = ""
    """One to three sentences: how to read it, the unit, what it does not show."""


@dataclass(frozen=True, kw_only=True)
class Matrix(Panel):
    """A heat map that is also a table of numbers: layer x head, layer x position, coordinate x token, ..."""

    values: np.ndarray  # [row column]; NaN = not measured
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    row_axis: str
    column_axis: str
    unit: str
    diverging: bool = False  # signed quantity, centred on zero (blue positive); otherwise sequential
    low: np.ndarray | None = None  # [row column] lower end of the interval
    high: np.ndarray | None = None  # [row column] upper end of the interval
    image: bool = False  # True: too large for a table of numbers, draw as a picture only
    family: str = ""  # matrices of one result that name the same family are coloured on one common scale
    scale: tuple[float, float] | None = None  # ends of the colour scale; by default the smallest and largest number
    floor: float | np.ndarray = 0.0  # [row column], or one for all: what chance gives, in the matrix's unit

    @property
    def grey(self) -> np.ndarray:
        """[row column] what is no larger than chance gives, and therefore drawn as no colour."""
        return np.asarray((np.abs(self.values) <= self.floor) & (np.asarray(self.floor) > 0))


@dataclass(frozen=True, kw_only=True)
class AttentionGrid(Panel):
    """Attention patterns of every head over one or several texts, with measures by head to sort by."""

    patterns: tuple[np.ndarray, ...]  # one per text: [layer head query key], rows sum to one, lower triangular
    tokens: tuple[Tokens, ...]  # one per text: [pos]
    value_norms: tuple[
        np.ndarray, ...
    ] = ()  # one per text: [layer head key], the length of each value vector times W_O
    measures: Mapping[str, np.ndarray] = field(default_factory=dict)  # name -> [layer head]
    queries: tuple[Tokens, ...] = ()  # one per text, where queries are not the keys: patterns are then not triangular


@dataclass(frozen=True, kw_only=True)
class TokenGrid(Panel):
    """A word in every cell (the logit lens): rows are places in the model, columns are positions of the text."""

    tokens: Tokens  # [column] the text itself
    rows: tuple[str, ...]
    row_axis: str
    cells: tuple[Tokens, ...]  # [row][column] the token written in the cell
    measures: Mapping[str, np.ndarray]  # name -> [row column]; the first is shown at the start
    units: Mapping[str, str]  # name -> unit
    top: tuple[tuple[Tokens, ...], ...] = ()  # [row][column] -> top-k tokens, best first, shown on request
    top_values: np.ndarray | None = None  # [row column k] their probabilities
    targets: Tokens = field(default_factory=Tokens)  # [column] the token whose rank and probability the measures give
    target_measures: tuple[str, ...] = ()  # names of the measures that speak of the target: its probability, its rank
    candidates: Tokens = field(default_factory=Tokens)  # other targets a reader can choose, whatever the column
    candidate_values: np.ndarray | None = None  # [target measure, candidate, row, column]
    target_name: str = "the token that follows"  # what the measures' own target is
    first: int = 0  # position in the text of the first column


@dataclass(frozen=True, kw_only=True)
class TokenStrip(Panel):
    """The text with one number a token."""

    tokens: Tokens  # [pos]
    values: np.ndarray  # [pos]
    unit: str
    diverging: bool = False


@dataclass(frozen=True, kw_only=True)
class Lines(Panel):
    """One or several curves over a common x axis."""

    x: tuple[str, ...] | np.ndarray  # [point] labels or numbers
    series: Mapping[str, np.ndarray]  # name -> [point]
    x_axis: str
    y_axis: str  # name and unit
    low: Mapping[str, np.ndarray] = field(default_factory=dict)  # name -> [point]
    high: Mapping[str, np.ndarray] = field(default_factory=dict)  # name -> [point]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, kw_only=True)
class Bars(Panel):
    """One number a label, with its interval where there is one."""

    labels: tuple[str, ...]  # [bar]
    values: np.ndarray  # [bar]
    unit: str
    low: np.ndarray | None = None  # [bar]
    high: np.ndarray | None = None  # [bar]


@dataclass(frozen=True, kw_only=True)
class Histogram(Panel):
    """Distributions as small multiples on common bins, counts on a log scale; optional fitted densities on top."""

    edges: np.ndarray  # [bin + 1]
    counts: Mapping[str, np.ndarray]  # name -> [bin]
    unit: str
    fits: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)  # name -> fit -> expected counts [bin]


@dataclass(frozen=True, kw_only=True)
class Table(Panel):
    """A table to sort and to take away."""

    frame: pd.DataFrame
    tokens: frozenset[str] = frozenset()  # names of the columns that hold model tokens
    units: Mapping[str, str] = field(default_factory=dict)  # column -> unit
    diverging: frozenset[str] = frozenset()  # numeric columns to shade around zero


@dataclass(frozen=True, kw_only=True)
class Graph(Panel):
    """A directed graph laid out in columns (head composition, circuits, Markov chains)."""

    nodes: tuple[str, ...]
    columns: tuple[int, ...]  # [node] the column of each node, 0 leftmost
    edges: tuple[tuple[int, int, float], ...]  # (from node, to node, weight)
    unit: str
    places: tuple[
        tuple[float, float], ...
    ] = ()  # [node] x to the right, y upwards: then drawn there, weights on arrows
    values: np.ndarray | None = None  # [node] what shades a placed node, such as the share of time spent there
    frames: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Name -> weights [edge] and values [node] of the same graph at other times, drawn as small pictures instead."""


@dataclass(frozen=True, kw_only=True)
class CircuitGraph(Panel):
    """Edges of a model's computational graph, best first, of which a reader takes as many as they like."""

    nodes: tuple[str, ...]  # "embed", "L0H1", "L3KV1" (keys and values that heads share; only receives), "mlp 2"
    rows: tuple[int, ...]  # [node] height in the drawing: the lowest row holds the sources, the highest the sinks
    serves: tuple[tuple[int, int], ...] = ()  # (node of shared keys and values, head that reads them)
    senders: np.ndarray  # [edge] node; the first k edges are the circuit of size k
    receivers: np.ndarray  # [edge] node
    inputs: tuple[str, ...]  # [edge] what of the receiver: "q", "k", "v", "in"
    scores: np.ndarray  # [edge] in the panel's unit
    exact: np.ndarray  # [edge] the effect as measured; NaN where it was not
    low: np.ndarray  # [edge] lower end of the measured effect's interval; NaN = none
    high: np.ndarray  # [edge] upper end
    stability: np.ndarray  # [edge] share of resamples that find it, 0 to 1; NaN = not measured
    chosen: int  # size of the circuit shown first
    total: int  # edges of the whole graph, of which the panel may hold the first only
    unit: str
    sizes: np.ndarray  # [size] numbers of edges, rising, at which circuits were measured
    measured: Mapping[str, np.ndarray]  # "held out", "discovery", "random" -> faithfulness [size], 1 = whole model
    measured_low: Mapping[str, np.ndarray] = field(default_factory=dict)  # name -> [size]
    measured_high: Mapping[str, np.ndarray] = field(default_factory=dict)  # name -> [size]


@dataclass(frozen=True, kw_only=True)
class Note(Panel):
    """A remark in plain words: a limit, a caution, a definition."""

    text: str


WHOLE = "The model"
"""What findings about no single component are about, so that they share a card."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """What half of the texts choose as the largest, measured on the other half, which had no say in the choice."""

    again: bool
    """Whether it is what all texts choose."""
    what: str
    """What they choose, such as "L2H0"; empty where it has no name of its own."""
    value: float
    """In the finding's unit."""
    low: float | None
    high: float | None
    n: int
    """How many it was measured on."""
    unit: str
    """What of: texts, templates, sequences."""


@dataclass(frozen=True)
class Finding:
    """A sentence for the summary, with the number it rests on."""

    text: str
    """A plain sentence that already contains its number."""
    key: str
    """The panel that shows it."""
    weight: float
    """How notable, 0 to 1; the summary lists the highest first."""
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    kind: Literal["effect", "size", "warning", "negative"] = field(default="effect", kw_only=True)
    """An effect has beaten its null. A size says what was counted or measured without a claim, a warning what the
    reader should beware of, a negative that something looked for was not found."""
    null: str = field(default="", kw_only=True)
    """Of an effect: what its number was compared with and beat, in a few words: "128 shuffled texts"."""
    p: float | None = field(default=None, kw_only=True)
    """Of an effect: chance of so large a number under its null, the choice among this analysis' own candidates already
    paid for. The page corrects over all its findings. None where the comparison is a floor, not a test."""
    held: Held | None = field(default=None, kw_only=True)
    """Of the largest of many: the same choice by half of the texts; None where they are too few for that."""
    about: str = field(default="", kw_only=True)
    """The component it speaks of, as labelled everywhere: "L1H0", "mlp 3"; findings about the same share a card."""
    short: str = field(default="", kw_only=True)
    """What is said of that component in a few words, number included: "previous-token head, 99%"."""


@dataclass(frozen=True, kw_only=True)
class Headline:
    """What a page says first: what the model is, and how well it does on the text."""

    facts: tuple[tuple[str, str], ...]
    """Names and values."""
    strips: tuple[TokenStrip, ...]
    """[text] the text, shaded."""
    following: Tokens
    """[candidate] what the model expects after the first text, the likeliest first."""
    probabilities: np.ndarray  # [candidate]


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What a map of the model shows of its components, which are named as everywhere: "L0H1", "mlp 0"."""

    key: str
    """The panel with the numbers."""
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Component -> what it does, in a word or two each, the most telling first: that one colours it."""
    kinds: tuple[str, ...] = ()
    """All that a component may do: each has a colour of its own, the same on every page; by default those found."""
    sizes: Mapping[str, float] = field(default_factory=dict)
    """Component -> how much it matters; its size on the map."""
    unit: str = ""
    """Of the sizes, and what they are: "nats of loss without it"."""


def on_common_scales(panels: Sequence[Panel]) -> list[Panel]:
    """The panels with the colour scales of matrices of one family made the same: from the smallest to the largest."""
    ends: dict[str, list[float]] = {}
    for panel in panels:
        if isinstance(panel, Matrix) and panel.family:
            ends.setdefault(panel.family, []).extend(panel.values[np.isfinite(panel.values)].tolist())
    return [
        replace(panel, scale=(min(known), max(known)))
        if isinstance(panel, Matrix) and (known := ends.get(panel.family)) else panel
        for panel in panels
    ]  # fmt: skip


def _brief(value: Any) -> str:
    """A value in a few characters: arrays and collections by their size."""
    if isinstance(value, np.ndarray):
        return f"[{' '.join(map(str, value.shape))}]"
    if isinstance(value, pd.DataFrame):
        return f"[{value.shape[0]} rows]"
    if isinstance(value, (tuple, list, dict, set, frozenset)) and len(repr(value)) > 40:
        return f"[{len(value)}]"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


class Result(ABC):
    """What every analysis returns: a frozen dataclass that can be tabulated and can describe itself."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__repr__ = Result.__repr__  # type: ignore[method-assign]  # before the dataclass writes out all numbers

    def __repr__(self) -> str:
        """What it holds, by name and shape: one line."""
        return f"{type(self).__name__}({', '.join(f'{name}={_brief(value)}' for name, value in vars(self).items())})"

    @abstractmethod
    def to_dataframe(self) -> pd.DataFrame:
        """Tidy: one row per observation, named columns."""

    def facts(self) -> dict[str, Any]:
        """Single values that the table does not hold, for machines: JSON output gives them beside the table's rows."""
        return {}

    @abstractmethod
    def panels(self) -> list[Panel]:
        """Figures, tables and remarks, in reading order."""

    def findings(self) -> list[Finding]:
        """What is most notable; empty when nothing is."""
        return []

    def saved(self) -> str:
        """The text of a file that other programs read; empty where there is none."""
        return ""

    def headline(self) -> Headline | None:
        """What a page says first; None but for the analysis whose subject it is."""
        return None

    def marks(self) -> Marks | None:
        """What it has to say of each component on a map of the model, if anything."""
        return None
