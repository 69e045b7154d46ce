"""A result made of grids: one number for each head of a stack, each layer and position, or each part of a kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analyses._panels import Bars, Finding, Matrix, Note, Panel, Result, Table, Tokens, TokenStrip
from analyses._statistics import bootstrap


@dataclass(frozen=True, kw_only=True)
class NumberGrid:
    """Numbers of every text over two axes, such as layer and head."""

    key: str
    title: str
    caption: str
    values: np.ndarray
    """[text row column]; one text where columns are its positions."""
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    row_axis: str
    column_axis: str
    names: tuple[tuple[str, ...], ...]
    """[row][column] what each number belongs to, such as `cross L2H3`."""
    unit: str = ""
    """Where it is not that of the result."""


@dataclass(frozen=True, kw_only=True)
class GridsResult(Result):
    """Signed effects or contributions of the parts of a model, grid by grid."""

    what: str
    """What a number says, in words: "change of the loss"."""
    unit: str
    texts: tuple[str, ...]
    grids: tuple[NumberGrid, ...]
    notes: tuple[Note, ...] = ()
    strips: tuple[TokenStrip, ...] = ()
    main: int | None = None
    """The first so many grids go into the table of the strongest parts and the findings; None: all."""
    seed: int = 0

    def to_dataframe(self) -> pd.DataFrame:
        """One row per text and part: text, grid, part, row, column, value."""
        frames = []
        for grid in self.grids:
            text, row, column = (axis.ravel() for axis in np.indices(grid.values.shape))
            columns: dict[str, Any] = {"text": text, "grid": grid.key}
            columns["part"] = [grid.names[r][c] for r, c in zip(row, column, strict=True)]
            columns["row"] = [grid.rows[r] for r in row]
            columns["column"] = [grid.columns[c] for c in column]
            frames.append(pd.DataFrame(columns | {"value": grid.values.ravel()}))
        return pd.concat(frames, ignore_index=True)

    def panels(self) -> list[Panel]:
        return [*self.notes, *(self._panel(grid) for grid in self.grids), *self.strips, self._table()]

    def _panel(self, grid: NumberGrid) -> Panel:
        spread = bootstrap(grid.values, seed=self.seed)
        if len(grid.columns) == 1:
            ends = (None if x is None else x[:, 0] for x in (spread.low, spread.high))
            low, high = ends
            return Bars(
                key=grid.key, title=grid.title, caption=grid.caption, labels=tuple(n[0] for n in grid.names),
                values=spread.value[:, 0], unit=grid.unit or self.unit, low=low, high=high,
            )  # fmt: skip
        return Matrix(
            key=grid.key, title=grid.title, caption=grid.caption, values=spread.value, rows=grid.rows,
            columns=grid.columns, row_axis=grid.row_axis, column_axis=grid.column_axis, unit=grid.unit or self.unit,
            diverging=True, low=spread.low, high=spread.high,
        )  # fmt: skip

    def strongest(self) -> pd.DataFrame:
        """One row per part, mean over texts, the largest first."""
        frame = self.to_dataframe()[["grid", "part", "value"]]
        frame = frame[frame["grid"].isin([grid.key for grid in self.grids[: self.main]])]
        frame = frame.groupby(["grid", "part"], as_index=False, sort=False).mean()
        return frame.iloc[np.argsort(-frame["value"].abs().to_numpy(), kind="stable")].reset_index(drop=True)

    def _table(self) -> Table:
        frame = self.strongest()
        return Table(
            key="strongest", title="Every part, largest first", frame=frame[["part", "value"]].head(500),
            units={"value": self.unit}, diverging=frozenset({"value"}),
            caption=f"{self.what[0].upper()}{self.what[1:]}, in {self.unit}."
            + (f" Mean of {len(self.texts)} texts." if len(self.texts) > 1 else ""),
        )  # fmt: skip

    def findings(self) -> list[Finding]:
        frame = self.strongest()
        frame = frame[~frame["part"].str.contains("bias|embed")]
        if frame.empty or not np.isfinite(frame["value"].iloc[0]):
            return []
        top = frame.iloc[0]
        typical = float(frame["value"].abs().median())
        return [
            Finding(
                text=f"The largest {self.what}, of {len(frame)} parts: {top['part']}, {top['value']:+.3g} {self.unit}.",
                key=str(top["grid"]),
                weight=0.2 + 0.6 * (1 - typical / max(abs(float(top["value"])), 1e-12)),
                value=float(top["value"]),
                unit=self.unit,
            )
        ]


def head_grid(
    key: str, title: str, caption: str, values: np.ndarray, prefix: str, layers: Sequence[int] | None = None
) -> NumberGrid:
    """[text layer head] as a grid; parts are named `prefix L0H0`."""
    _, n_layers, n_heads = values.shape
    numbers = list(range(n_layers)) if layers is None else list(layers)
    return NumberGrid(
        key=key, title=title, caption=caption, values=values, rows=tuple(map(str, numbers)),
        columns=tuple(map(str, range(n_heads))), row_axis="layer", column_axis="head",
        names=tuple(tuple(f"{prefix} L{layer}H{head}" for head in range(n_heads)) for layer in numbers),
    )  # fmt: skip


def list_grid(key: str, title: str, caption: str, values: np.ndarray, names: Sequence[str]) -> NumberGrid:
    """[text part] as a grid of one column, which is drawn as bars."""
    return NumberGrid(
        key=key, title=title, caption=caption, values=values[:, :, None], rows=tuple(names), columns=("",),
        row_axis="part", column_axis="", names=tuple((name,) for name in names),
    )  # fmt: skip


def position_grid(
    key: str, title: str, caption: str, values: np.ndarray, rows: Sequence[str], tokens: Tokens, prefix: str
) -> NumberGrid:
    """[row pos] of one text as a grid; parts are named `prefix row at 'token'`."""
    return NumberGrid(
        key=key, title=title, caption=caption, values=values[None], rows=tuple(rows), columns=tokens,
        row_axis="layer", column_axis="position",
        names=tuple(tuple(f"{prefix} {row} at {token!r} ({i})" for i, token in enumerate(tokens)) for row in rows),
    )  # fmt: skip
