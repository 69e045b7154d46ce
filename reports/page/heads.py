"""Everything a report says about one attention head, gathered from the panels of all its sections: the head pages.

No analysis is known here by name. A panel speaks of heads when its axes are layer and head, when its rows, columns or
bars are labelled like "L2H3", or when it is a table with such labels or with the columns layer and head; a circuit
speaks of the heads that its edges join.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from analyses.shared.panels import AttentionGrid, Bars, CircuitGraph, Finding, Matrix, Panel, Table, Tokens
from reports.numbers import number
from reports.page.views import packed, words
from reports.tokens import coded, printable

NAME = re.compile(r"\bL(\d+)H(\d+)\b")
STACKED = re.compile(r"[a-z]+ L\d+H\d+")
"""A head of one stack of several, such as "cross L2H3"."""
SPELT = re.compile(r"\blayer (\d+), head (\d+)\b", re.IGNORECASE)
BEST = 5
"""Entries shown of a head's row or column in a matrix, the largest first."""
ROWS = 6
"""Rows of a table shown for one head."""

Head = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One number a head."""

    title: str
    link: str
    unit: str = ""
    values: list[float]  # [layer * head]; NaN = not measured
    low: list[float] | None = None  # [layer * head]
    high: list[float] | None = None  # [layer * head]

    def interval(self, head: int) -> str:
        """The ends of the interval of one head, or nothing."""
        ends = [] if self.low is None or self.high is None else [self.low[head], self.high[head]]
        return f"{number(ends[0])} to {number(ends[1])}" if np.isfinite(ends).all() and ends else ""


Cell = str | tuple[str, str]
"""A text, or a text and the address it leads to."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some rows a head: of a table, its facts, or the largest entries of its row or column in a matrix."""

    title: str
    link: str
    columns: list[str]
    rows: dict[int, list[list[Cell]]] = field(default_factory=dict)  # index of the head -> rows of cells
    more: dict[int, int] = field(default_factory=dict)  # index of the head -> rows left out


@dataclass(frozen=True)
class Group:
    """What one section says."""

    title: str
    link: str
    tables: list[Rows]


@dataclass(frozen=True)
class HeadPages:
    """The data of all head pages; a head's index is layer * heads + head."""

    layers: int
    heads: int
    viewer: str  # address of the first attention viewer, or ""
    groups: list[Group]

    def packed(self) -> str:
        """As JSON, deflated, in base64."""
        return packed(asdict(self))


def named(text: str) -> list[Head]:
    """The heads a text names, each once."""
    found = NAME.findall(text) + SPELT.findall(text)
    return list(dict.fromkeys((int(layer), int(head)) for layer, head in found))


def gather(
    sections: Iterable[tuple[str, str, Sequence[Panel]]], findings: Iterable[tuple[Finding, str]]
) -> HeadPages | None:
    """The head pages of sections, given as (name, title, panels), and findings, as (finding, link); None without heads.

    None too where layer and head name no single head: where heads lie in several stacks (encoder, decoder, cross).
    The model's shape is that of the first attention viewer, else what the largest labels ask for.
    """
    sections = list(sections)
    grids = [(f"{name}-{panel.key}", panel) for name, _, panels in sections for panel in panels
             if isinstance(panel, AttentionGrid)]  # fmt: skip
    several = len(grids) > 1 and any(panel.queries for _, panel in grids)
    if several or any(_stacked(panel) for _, _, panels in sections for panel in panels):
        return None
    if grids:
        layers, heads = grids[0][1].patterns[0].shape[:2]
    else:
        shapes = [_reach(panel) for _, _, panels in sections for panel in panels]
        layers, heads = (max((shape[axis] for shape in shapes), default=0) for axis in (0, 1))
    if not layers * heads:
        return None

    def index(head: Head) -> int | None:
        return head[0] * heads + head[1] if head[0] < layers and head[1] < heads else None

    groups = [_group(name, title, panels, index, layers * heads) for name, title, panels in sections]
    named_in = Rows(title="Sentences that name it", link="summary", columns=["finding"])
    for finding, link in findings:
        for i in (i for i in map(index, named(finding.text)) if i is not None):
            named_in.rows.setdefault(i, []).append([(printable(finding.text), link)])
    groups.insert(0, Group("Findings", "summary", [named_in]))
    kept = [group for group in groups if any(table.rows for table in group.tables)]
    return HeadPages(layers, heads, grids[0][0] if grids else "", kept)


def _stacked(panel: Panel) -> bool:
    """Whether a panel's labels say in which stack a head lies."""
    match panel:
        case Matrix():
            labels = [*panel.rows, *panel.columns]
        case Bars():
            labels = list(panel.labels)
        case Table():
            columns = [x for name, x in panel.frame.items() if str(name) not in panel.tokens]
            labels = [str(text) for x in columns if x.dtype.kind not in "iufb" for text in x]
        case _:
            return False
    return any(STACKED.fullmatch(label) for label in labels)


def _reach(panel: Panel) -> Head:
    """Layers and heads that a panel's labels ask for at least."""
    labels: list[str] = []
    match panel:
        case Matrix() if _by_head(panel):
            return panel.values.shape[0], panel.values.shape[1]
        case Matrix():
            labels = [*panel.rows, *panel.columns]
        case Bars():
            labels = list(panel.labels)
        case CircuitGraph():
            labels = list(panel.nodes)
        case Table():
            found = [head for row in _table_heads(panel) for head in row]
            labels = [f"L{layer}H{head}" for layer, head in found]
    heads = [head for label in labels for head in named(label)]
    return (max(layer for layer, _ in heads) + 1, max(head for _, head in heads) + 1) if heads else (0, 0)


def _by_head(panel: Matrix) -> bool:
    labels = (*panel.rows, *panel.columns)
    return (panel.row_axis, panel.column_axis) == ("layer", "head") and all(label.isdecimal() for label in labels)


Index = Callable[[Head], int | None]


def _group(name: str, title: str, panels: Sequence[Panel], index: Index, count: int) -> Group:
    facts: list[Fact] = []
    tables: list[Rows] = []
    for panel in panels:
        link = f"{name}-{panel.key}"
        panel = _edges(panel) if isinstance(panel, CircuitGraph) else panel
        _add(facts, _facts(panel, link, index, count))
        match panel:
            case Matrix() if not _by_head(panel):
                tables += _slices(panel, link, index)
            case Table() if any(heads := _table_heads(panel)) and not _only_numbers(panel, heads):
                tables.append(_rows(panel, link, heads, index))
    if facts:
        tables.insert(0, _facts_table(facts, name, count))
    return Group(printable(title), name, [table for table in tables if table.rows])


def _facts_table(facts: Sequence[Fact], link: str, count: int) -> Rows:
    """The facts of each head with their place among all heads, the largest size first."""
    table = Rows(title="Its numbers", link=link, columns=["measure", "value", "interval", "unit", "place by size"])
    sizes = [np.abs(np.asarray(fact.values)) for fact in facts]
    for i in range(count):
        table.rows[i] = [
            [(fact.title, fact.link), number(fact.values[i]), fact.interval(i), fact.unit,
             f"{1 + int((size > size[i]).sum())} of {int(np.isfinite(size).sum())}"]
            for fact, size in zip(facts, sizes, strict=True) if not np.isnan(fact.values[i])
        ]  # fmt: skip
    return table


def _facts(panel: Panel, link: str, index: Index, count: int) -> list[Fact]:
    """The numbers of which a panel has one a head."""

    def spread(places: Sequence[Sequence[Head]], numbers: Any) -> list[float]:
        out = np.full(count, np.nan)
        for heads, value in zip(places, np.asarray(numbers, float).ravel(), strict=True):
            i = index(heads[0]) if heads else None
            if i is not None:
                out[i] = value
        return out.tolist()

    match panel:
        case AttentionGrid():
            measures = {k: np.asarray(v, float).ravel() for k, v in panel.measures.items() if np.size(v) == count}
            return [Fact(title=printable(name), link=link, values=v.tolist()) for name, v in measures.items()]
        case Table():
            places = _table_heads(panel)
            return [
                Fact(title=f"{words(name)} · {printable(panel.title)}", link=link,
                     unit=printable(panel.units.get(name, "")), values=spread(places, panel.frame[name]))
                for name in _only_numbers(panel, places)
            ]  # fmt: skip
        case Matrix() if _by_head(panel):
            places = [[(int(row), int(column))] for row in panel.rows for column in panel.columns]
        case Bars() if not isinstance(panel.labels, Tokens):
            places = [named(label) for label in panel.labels]
        case _:
            return []
    ends = {"low": panel.low, "high": panel.high}
    bounds = {end: spread(places, values) for end, values in ends.items() if values is not None}
    return [Fact(title=printable(panel.title), link=link, unit=printable(panel.unit),
                 values=spread(places, panel.values), **bounds)]  # fmt: skip


def _add(facts: list[Fact], new: Iterable[Fact]) -> None:
    """Appends facts that say something new; the same numbers twice are kept once, with what is known of them."""
    for fact in new:
        if not np.isfinite(fact.values).any():
            continue
        same = [i for i, old in enumerate(facts) if np.allclose(old.values, fact.values, 1e-6, 0, equal_nan=True)]
        if same:
            old = facts[same[0]]
            facts[same[0]] = replace(
                old, unit=old.unit or fact.unit, low=old.low or fact.low, high=old.high or fact.high
            )
        else:
            facts.append(fact)


def _slices(panel: Matrix, link: str, index: Index) -> list[Rows]:
    """The largest entries of each head's row, and of its column."""
    both = panel.rows == panel.columns and np.allclose(panel.values, panel.values.T, equal_nan=True)
    sides = [(panel.rows, panel.columns, panel.column_axis, panel.values)]
    if not both:
        sides.append((panel.columns, panel.rows, panel.row_axis, panel.values.T))
    made = []
    for labels, others, axis, values in sides:
        if isinstance(labels, Tokens):
            continue
        tokens = isinstance(others, Tokens)
        table = Rows(title=printable(panel.title), link=link, columns=[printable(axis), printable(panel.unit)])
        for label, row in zip(labels, np.asarray(values, float), strict=True):
            places = [i for i in map(index, named(label)) if i is not None]
            size = np.where(np.isfinite(row), np.abs(row), 0)
            best = [int(j) for j in np.argsort(-size, kind="stable")[:BEST] if size[j] > 0 and others[j] != label]
            for i in places:
                names = [f"{coded(others[j])} ({j})" if tokens else printable(others[j]) for j in best]
                table.rows[i] = [[name, number(row[j])] for name, j in zip(names, best, strict=True)]
        made.append(table)
    return [table for table in made if any(table.rows.values())]


def _table_heads(panel: Table) -> list[list[Head]]:
    """The heads each row of a table speaks of."""
    frame = panel.frame
    if not frame.columns.is_unique:
        return [[] for _ in range(len(frame))]
    if {"layer", "head"} <= set(frame.columns):
        pairs = zip(frame["layer"], frame["head"], strict=True)
        found = [[(int(a), int(b))] if _whole(a) and _whole(b) else [] for a, b in pairs]
        if any(found):
            return found
    texts = [column for column in frame.columns if str(column) not in panel.tokens]
    cells = [frame[column] for column in texts if frame[column].dtype.kind not in "iufb"]
    return [
        list(dict.fromkeys(head for value in row for head in named(str(value)))) for row in zip(*cells, strict=True)
    ] or [[] for _ in range(len(frame))]


def _whole(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and np.isfinite(value) and value == int(value)


def _only_numbers(panel: Table, heads: Sequence[Sequence[Head]]) -> list[str]:
    """The columns of a table that has at most one row a head and nothing but numbers beside the head's name."""
    flat = [head for row in heads for head in row]
    other = [column for column in panel.frame.columns if panel.frame[column].dtype.kind not in "iufb"]
    if not flat or len(set(flat)) < len(flat) or any(len(row) > 1 for row in heads) or len(other) > 1:
        return []
    return [c for c in panel.frame.columns if c not in ("layer", "head") and panel.frame[c].dtype.kind in "iuf"]


def _edges(panel: CircuitGraph) -> Table:
    """A circuit's edges, the best first."""
    served = {node: [panel.nodes[head] for at, head in panel.serves if at == node] for node, _ in panel.serves}
    named = (f"{name} of {', '.join(served[i])}" if i in served else name for i, name in enumerate(panel.nodes))
    nodes = np.array(list(named), dtype=object)
    edges = {
        "from": nodes[panel.senders], "to": nodes[panel.receivers], "input": panel.inputs, "score": panel.scores,
        "exact": panel.exact, "stability": panel.stability,
    }  # fmt: skip
    frame = pd.DataFrame(edges)[: panel.chosen]
    frame.insert(0, "rank", frame.index + 1)
    units = dict.fromkeys(("score", "exact"), panel.unit)
    return Table(panel.key, "Its edges in the circuit", "", frame=frame, units=units)


def _rows(panel: Table, link: str, heads: Sequence[Sequence[Head]], index: Index) -> Rows:
    """Some rows of each head, without the column that only repeats its name."""
    frame, units = panel.frame, panel.units
    naming = [name for name in frame.columns if any(NAME.search(str(value)) for value in frame[name])]
    own = naming if len(naming) == 1 and all(NAME.fullmatch(str(value)) for value in frame[naming[0]]) else []
    frame = frame.drop(columns=[*own, *({"layer", "head"} & set(frame.columns) if not naming else ())])
    columns = [str(column) for column in frame.columns]
    titles = [words(name) + (f" ({printable(units[name])})" if units.get(name) else "") for name in columns]
    table = Rows(title=printable(panel.title), link=link, columns=titles)
    for row, places in zip(frame.itertuples(index=False, name=None), heads, strict=True):
        for i in (i for i in map(index, places) if i is not None):
            kept = table.rows.setdefault(i, [])
            if len(kept) == ROWS:
                table.more[i] = table.more.get(i, 0) + 1
                continue
            kept.append([_text(value, name in panel.tokens) for name, value in zip(columns, row, strict=True)])
    return table


def _text(value: Any, is_token: bool) -> str:
    if isinstance(value, (bool, int, float, np.number, np.bool_)) or value is None:
        return number(value)
    text = str(value)
    return coded(text) if is_token else printable(text if len(text) <= 200 else text[:199] + "…")
