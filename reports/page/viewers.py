"""The instruments as views: the attention viewer and the logit lens, with the data their scripts read.

Importing this module registers them with `views.view`.
"""

import base64
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from analyses.shared.panels import AttentionGrid, TokenGrid
from reports.numbers import Scale
from reports.page import packing
from reports.page.views import Cell, Grid, json_block, labels, legend, number_grid, packed, view_of
from reports.tokens import SPACE, coded, label, markup, parts, printable

HEAD_ROWS = 32
"""Rows of the table of heads below an attention viewer written as HTML (few nodes, so that large models stay quick)."""
TARGETS = 100
"""Tokens a reader of a token grid can choose to follow beside those that were followed everywhere."""


@view_of.register
def _(panel: TokenGrid) -> dict[str, Any]:
    spoken: Any = [] if panel.candidate_values is None else panel.candidate_values
    followed = dict(zip(panel.target_measures, spoken, strict=False))
    scales = {
        name: Scale.of(np.append(values, followed.get(name, [])), bool(np.nanmin(np.append(values, 0)) < 0))
        for name, values in panel.measures.items()
    }
    first = next(iter(panel.measures), "")
    rows = []
    for i, head in enumerate(labels(panel.rows)):
        cells = []
        for j, token in enumerate(panel.cells[i]):
            value = float(panel.measures[first][i, j]) if first else math.nan
            cells.append(
                Cell(
                    text=_word(token),
                    value=label(token),
                    shade=scales[first].shade(value) if first else "",
                )
            )
        rows.append([head, *cells])
    known: dict[str, int] = {}
    candidates = [known.setdefault(coded(token), len(known)) for token in panel.candidates]
    top = [[[known.setdefault(coded(token), len(known)) for token in cell] for cell in row] for row in panel.top]
    data = {
        "measures": [
            {"name": name, "values": values, "scale": [scales[name].low, scales[name].high],
             "diverging": scales[name].diverging, "log": scales[name].log,
             "unit": "" if panel.units.get(name) == name else panel.units.get(name, "")}
            for name, values in panel.measures.items()
        ],
        "tokens": [coded(token) for token in panel.tokens],
        "targets": [coded(token) for token in panel.targets],
        "rows": [printable(row) for row in panel.rows],
        "row_axis": printable(panel.row_axis),
        "top": top,
        "top_values": panel.top_values,
        "known": list(known),
        "first": panel.first,
        "target_measures": panel.target_measures,
        "candidates": candidates,
        "candidate_values": _short(panel.candidate_values),
    }  # fmt: skip
    grid = Grid(
        columns=("", *(markup(token, 12) for token in panel.tokens)),
        rows=rows,
        numeric=(False,) * (len(panel.tokens) + 1),
        corner=printable(panel.row_axis),
    )
    legends = [legend(scale, panel.units.get(name, ""), name) for name, scale in scales.items()]
    extra = {"measures": list(panel.measures), "legends": legends, "default_target": panel.target_name,
             "targets": _targets(panel, candidates, top, known), "top": len(top[0][0]) if top else 0}  # fmt: skip
    return {"kind": "lens", "grid": grid, "data": Markup(packed(data)), "extra": extra}


def _word(token: str) -> str:
    """Of a cell; the style sheet marks a space before a word, which spares an element in most of them."""
    runs = parts(token, 12)
    plain = len(runs) == 2 and runs[0] == (SPACE, True) and not runs[1][1]
    return runs[1][0] if plain else markup(token, 12, isolate=False)


def _short(values: np.ndarray | None) -> Any:
    """Three significant digits; whole numbers, such as ranks, as they are."""
    if values is None:
        return []
    flat = [x if x.is_integer() else float(f"{x:.3g}") for x in np.asarray(values, dtype=float).ravel().tolist()]
    return np.array(flat).reshape(values.shape)


def _targets(
    panel: TokenGrid, candidates: list[int], top: list[list[list[int]]], known: Mapping[str, int]
) -> list[tuple[str, list[tuple[int, str]]]]:
    """What a reader can choose to follow, by how much is known of it: numbers and labels of tokens."""
    if not panel.target_measures:
        return []
    peak: dict[int, float] = {}
    if panel.top_values is not None:
        for i, j, k in np.ndindex(panel.top_values.shape):
            peak[top[i][j][k]] = max(peak.get(top[i][j][k], 0.0), float(panel.top_values[i, j, k]))
    others = sorted(set(peak) - set(candidates), key=lambda i: -peak[i])[:TARGETS]
    names = [re.sub("[\x01\x02]", "", token) for token in known]
    groups = [("followed everywhere", candidates), ("known where it is among the likeliest", others)]
    return [(title, [(i, names[i]) for i in sorted(ids, key=lambda i: names[i])]) for title, ids in groups if ids]


@dataclass(frozen=True, kw_only=True)
class Compared(AttentionGrid):
    """Patterns of a text and of others to hold beside it; measures are those of the first."""

    names: tuple[str, ...]  # [text] what each is called


def compared(grid: AttentionGrid, other: AttentionGrid, names: tuple[str, ...]) -> Compared:
    """The texts of both viewers in one."""
    joined = {name: getattr(grid, name) + getattr(other, name) for name in ("patterns", "tokens", "value_norms")}
    return Compared(**(vars(grid) | joined), names=names)


@view_of.register
def _(panel: AttentionGrid) -> dict[str, Any]:
    n_layers, n_heads = panel.patterns[0].shape[:2]
    pictures, blobs = [], []
    texts: list[dict[str, Any]] = []
    for i, (pattern, keys) in enumerate(zip(panel.patterns, panel.tokens, strict=True)):
        tokens: tuple[str, ...] = keys
        uri, side = packing.mosaic(pattern)
        pictures.append(uri)
        norms = panel.value_norms[i] if panel.value_norms else None
        first = len(tokens) if panel.queries else 0
        if panel.queries:  # a text of keys and then queries, in which the viewer's triangle holds any pattern
            pattern, more = packing.joined(pattern), panel.queries[i]
            tokens = (*tokens, *more)
            norms = None if norms is None else np.pad(norms, ((0, 0), (0, 0), (0, len(more))))
        blobs.append([packing.pack(layer) for layer in pattern])
        texts.append({
            "tokens": [coded(token) for token in tokens], "first": first, "side": side,
            "bits": packing.bits_for(len(tokens)),
            "norms": None if norms is None else _norms(norms),
        })  # fmt: skip
    orders = {printable(name): _order(values) for name, values in panel.measures.items()}
    measures = [{"name": name, "values": values, "order": order}
                for (name, order), values in zip(orders.items(), panel.measures.values(), strict=True)]  # fmt: skip
    coarse = any(text["bits"] < 10 for text in texts)
    beginnings = [" ".join("".join(tokens).split())[:60] for tokens in panel.tokens]
    names = panel.names if isinstance(panel, Compared) else beginnings
    return {
        "kind": "attention",
        "pictures": tuple(pictures),
        "alt": f"Attention patterns of {n_layers} layers with {n_heads} heads each, one square a head",
        "data": json_block({
            "layers": n_layers, "heads": n_heads, "texts": texts, "measures": measures, "best": _best(panel),
            "blues": base64.b64encode(packing.blues(64).tobytes()).decode("ascii"),
        }),
        "grid": _measure_grid(panel),
        "note": "Texts over 512 tokens are stored in steps of 1/255." if coarse else "",
        "extra": {
            "blobs": blobs, "weighted": bool(panel.value_norms), "joined": bool(panel.queries),
            "texts": [printable(name) for name in names],
            "measures": list(orders),
        },
    }  # fmt: skip


def _best(panel: AttentionGrid) -> int:
    """The head shown first: the best induction head, else the largest share of attention a measure speaks of.

    Where keys are not the queries' own tokens, the head that rests most on single keys other than the first and last.
    """
    inner = panel.patterns[0][..., 1:-1]  # [layer, head, query, key]
    if panel.queries and inner.shape[-1]:
        return _order(inner.max(-1).mean(-1))[0]
    measures = {name: np.asarray(values, float) for name, values in panel.measures.items() if np.isfinite(values).any()}
    induction = [x for name, x in measures.items() if "induction" in name or "after the same" in name]
    shares = [x for name, x in measures.items() if "token" in name and "first" not in name]
    named = induction[:1] or sorted(shares, key=np.nanmax)[-1:] or [*measures.values()][:1]
    return _order(named[0])[0] if named else 0


def _order(values: np.ndarray) -> list[int]:
    """Heads by a measure, the largest first, what was not measured last."""
    flat = np.nan_to_num(np.asarray(values, dtype=float).ravel(), nan=-np.inf)
    order: list[int] = np.argsort(-flat, kind="stable").tolist()
    return order


def _measure_grid(panel: AttentionGrid) -> Grid | None:
    if not panel.measures:
        return None
    n_layers, n_heads = panel.patterns[0].shape[:2]
    heads = [tuple(f"L{layer}H{head}" for layer in range(n_layers) for head in range(n_heads))]
    columns = [np.asarray(values).ravel() for values in panel.measures.values()]
    return number_grid(heads, ["head", *map(printable, panel.measures)], columns, HEAD_ROWS)


def _norms(norms: np.ndarray) -> str:
    """Lengths of value vectors as 16-bit steps of the largest (rows are normalised, so the unit does not matter)."""
    known = np.nan_to_num(np.asarray(norms, dtype=float), posinf=0, neginf=0).clip(0)
    steps = np.rint(known / (float(known.max(initial=0)) or 1.0) * 65535).astype("<u2")
    return base64.b64encode(steps.tobytes()).decode("ascii")
