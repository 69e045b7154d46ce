"""A result made of grids: one number for each head of a stack, each layer and position, or each part of a kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analyses.shared.claims import FLOORS, SURE, signed
from analyses.shared.panels import Bars, Finding, Matrix, Note, Panel, Result, Table, TokenStrip
from analyses.shared.statistics import bootstrap, held_out, methods, q_values, sign_flip_p_value


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
    signed: bool = True
    """False for what cannot be negative: its sign tells nothing, so there is no test."""
    p_values: Mapping[str, float] = field(default_factory=dict)
    """Part -> chance of so large a number, the choice of the part paid for; of others nothing is said."""
    null: str = ""
    """What these compare with, in words."""
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
        return [
            *self.notes, *(self._panel(grid) for grid in self.grids), *self.strips, self._table(),
            *methods(
                len(self.texts), chosen_of=len(self._named()), test="sign flips" if self.signed else None,
                tests=len(self.strongest()), seed=self.seed,
            ),
        ]  # fmt: skip

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
            diverging=True, low=spread.low, high=spread.high, family=grid.unit or self.unit,
        )  # fmt: skip

    def strongest(self) -> pd.DataFrame:
        """One row per part, mean over texts, the largest first; with several texts q, over all parts, by sign flips.

        The index is the part's place in `_values`.
        """
        names = [(grid.key, name) for grid in self.grids[: self.main] for row in grid.names for name in row]
        values = self._values()
        frame = pd.DataFrame(names, columns=["grid", "part"]).assign(value=bootstrap(values, resamples=1).value)
        if len(values) > 1 and self.signed:
            frame["q"] = q_values(sign_flip_p_value(values, seed=self.seed))
        return frame.iloc[np.argsort(-frame["value"].abs().to_numpy(), kind="stable")]

    def _values(self) -> np.ndarray:
        """[text part] of the grids that the table and the findings speak of."""
        return np.concatenate([grid.values.reshape(len(grid.values), -1) for grid in self.grids[: self.main]], axis=1)

    def _named(self) -> pd.DataFrame:
        """Those of `strongest` that a finding may name."""
        frame = self.strongest()
        return frame[~frame["part"].str.contains("bias|embed")]

    def _table(self) -> Table:
        frame = self.strongest().drop(columns="grid")
        return Table(
            key="strongest", title="Every part, largest first", frame=frame.reset_index(drop=True).head(500),
            units={"value": self.unit}, diverging=frozenset({"value"}),
            caption=f"{self.what[0].upper()}{self.what[1:]}, in {self.unit}."
            + (f" Mean of {len(self.texts)} texts." if len(self.texts) > 1 else "")
            + " q over all parts." * ("q" in frame),
        )  # fmt: skip

    def findings(self) -> list[Finding]:
        """The largest part, where its p-value is small."""
        named = self._named()
        frame = named[[self.p_values.get(part, 1.0) <= SURE for part in named["part"]]]
        if frame.empty or not abs(frame["value"].iloc[0]) >= FLOORS.get(self.unit, 0.0):
            return []
        top, tested = frame.iloc[0], len(named)
        name, value = top["part"], float(top["value"])
        effects, place = self._values(), int(frame.index[0])
        low, high = bootstrap(effects[:, place], chosen_of=tested).ends()
        by = effects * np.isin(np.arange(effects.shape[1]), named.index)
        held = held_out(effects, place, by=by, called=lambda one: str(named.loc[one, "part"]), seed=self.seed)
        amount = f"{signed(value)} {self.unit}"
        return [
            Finding(
                f"{name} has the largest {self.what}, of {tested} parts: {amount}.", str(top["grid"]), 0.5, value,
                self.unit, low, high, null=self.null, p=float(self.p_values[top["part"]]), held=held,
                about=name, short=f"{self.what} {amount}",
            )
        ]  # fmt: skip


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
