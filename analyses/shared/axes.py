"""An array whose axes have names, and what results make of one: a tidy table, means and tests, panels.

    scores = Axes.of(values, text=None, layer=None, head=None)  # None: numbers from 0
    scores.frame("score")                                       # text layer head score, one row an entry
    scores.mean().matrix("scores", "Scores", unit="share")      # layer x head, mean over texts with its interval
    scores.summary("score")                                     # layer head score low high p q

The unit of observation is the text: intervals and tests are those of `analyses.shared.statistics`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analyses.shared.panels import Bars, Lines, Matrix, Panel, Tokens
from analyses.shared.statistics import Interval, bootstrap, independent, q_values, sign_flip_p_value
from interp.errors import InputError

MOST = 500
"""Rows of a table of everything, largest first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Axes:
    """Numbers with a name and labels for every axis, and the ends of their intervals where there are any."""

    values: np.ndarray
    labels: Mapping[str, Sequence[Any]]
    """Axis -> what each of its entries is called, in the order of the axes."""
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    @classmethod
    def of(cls, values: ArrayLike | Interval, /, **labels: Sequence[Any] | None) -> "Axes":
        """An array, or a mean with its interval; labels of None are numbers from 0.

        Raises InputError where the labels are not as many as the array has entries.
        """
        array = np.asarray(values.value if isinstance(values, Interval) else values)
        sized = zip(labels.items(), array.shape, strict=False)
        named = {name: range(n) if names is None else names for (name, names), n in sized}
        if len(labels) != array.ndim or tuple(map(len, named.values())) != array.shape:
            raise InputError(f"axes {', '.join(labels)} for an array {array.shape}", "expected a label for each entry")
        low, high = (values.low, values.high) if isinstance(values, Interval) else (None, None)
        return cls(values=array, labels=named, low=low, high=high)

    def mean(
        self,
        over: str = "text",
        *,
        clusters: Sequence[object] | None = None,
        least: float | np.ndarray = -np.inf,
        seed: int = 0,
    ) -> "Axes":
        """The mean over one axis, with a 95 % interval where it has several entries (see `bootstrap`)."""
        values = np.moveaxis(self.values, list(self.labels).index(over), 0)
        found = bootstrap(values, clusters=clusters, least=least, seed=seed)
        return Axes.of(found, **{name: names for name, names in self.labels.items() if name != over})

    def frame(self, name: str = "value", **more: ArrayLike) -> pd.DataFrame:
        """Tidy: one row an entry, last axis fastest; a column for each axis, the values, their ends, and `more`.

        `more` are arrays that broadcast against the values: [layer, 1] beside [layer, head]. Text in them has to be of
        dtype object: numpy cuts NUL characters off its own strings.
        """
        return self._frame(np.arange(self.values.size), name, more)

    def largest(self, name: str = "value", most: int = MOST, **more: ArrayLike) -> tuple[pd.DataFrame, str]:
        """That frame of the largest absolute values alone, at most so many, and how many were left out, in a sentence.

        Entries that are NaN are neither shown nor counted.
        """
        known = int(np.isfinite(self.values).sum())
        order = np.argsort(-np.abs(self.values), axis=None, kind="stable")[: min(most, known)]
        return self._frame(order, name, more), said_left_out(known, most)

    def _frame(self, order: np.ndarray, name: str, more: dict[str, ArrayLike]) -> pd.DataFrame:
        columns: dict[str, ArrayLike] = {name: self.values}
        if self.low is not None and self.high is not None:
            columns |= {"low": self.low, "high": self.high}
        place = np.unravel_index(order, self.values.shape)
        axes = {axis: pd.Index(list(x)).take(at) for (axis, x), at in zip(self.labels.items(), place, strict=True)}
        spread = {column: np.broadcast_to(x, self.values.shape).ravel() for column, x in (columns | more).items()}
        return pd.DataFrame(axes | {column: x[order] for column, x in spread.items()})

    def summary(
        self,
        name: str = "value",
        over: str = "text",
        *,
        tested: bool | np.ndarray = True,
        clusters: Sequence[object] | None = None,
        least: float | np.ndarray = -np.inf,
        seed: int = 0,
    ) -> pd.DataFrame:
        """One row an entry: its mean over one axis; where that has several entries also low, high, p and q.

        Intervals are 95 %, each for itself; p by flipping signs, q by Benjamini and Hochberg over all rows. Entries
        [...] that are not `tested`, and those without a mean, have neither p nor q.
        """
        mean = self.mean(over, clusters=clusters, least=least, seed=seed)
        frame = mean.frame(name)
        if mean.low is None:
            return frame
        values = np.moveaxis(self.values, list(self.labels).index(over), 0)
        p = sign_flip_p_value(values, clusters=clusters, seed=seed)
        p = np.where(tested & ~np.isnan(mean.values), p, np.nan).ravel()
        return frame.assign(p=p, q=q_values(p))

    def matrix(
        self,
        key: str,
        title: str,
        caption: str = "",
        *,
        unit: str,
        diverging: bool = False,
        image: bool = False,
        family: str = "",
        floor: float | np.ndarray = 0.0,
    ) -> Matrix:
        """A panel of two axes, the first down and the second across; `family` and `floor` as in `Matrix`."""
        (down, rows), (across, columns) = self.labels.items()
        return Matrix(
            key, title, caption, values=self.values, rows=written(rows), columns=written(columns), row_axis=down,
            column_axis=across, unit=unit, diverging=diverging, low=self.low, high=self.high, image=image,
            family=family, floor=floor,
        )  # fmt: skip

    def bars(self, key: str, title: str, caption: str = "", *, unit: str) -> Bars:
        """A panel of one axis."""
        (names,) = self.labels.values()
        return Bars(
            key, title, caption, labels=written(names), values=self.values, unit=unit, low=self.low, high=self.high
        )


def written(labels: Sequence[Any]) -> tuple[str, ...]:
    """Labels as text; tokens stay tokens."""
    return labels if isinstance(labels, Tokens) else tuple(map(str, labels))


def numbered(tokens: Sequence[str], positions: Sequence[int] | None = None) -> Tokens:
    """Tokens as labels of positions, which tell equal ones apart: `be (8)`; by default counted from 0."""
    places = range(len(tokens)) if positions is None else positions
    return Tokens(f"{token} ({place})" for token, place in zip(tokens, places, strict=True))


def lines(
    key: str,
    title: str,
    caption: str,
    found: Mapping[str, np.ndarray | Interval],
    *,
    x: Sequence[Any] | np.ndarray,
    x_axis: str,
    y_axis: str,
    log_x: bool = False,
    log_y: bool = False,
) -> Lines:
    """A panel of curves by name: [point] each; means with an interval get their band."""
    spread = {name: one for name, one in found.items() if isinstance(one, Interval)}
    return Lines(
        key, title, caption, x=x if isinstance(x, np.ndarray) else written(x), x_axis=x_axis, y_axis=y_axis,
        series={name: one.value if isinstance(one, Interval) else one for name, one in found.items()},
        low={name: one.low for name, one in spread.items() if one.low is not None},
        high={name: one.high for name, one in spread.items() if one.high is not None}, log_x=log_x, log_y=log_y,
    )  # fmt: skip


def similarity(key: str, title: str, caption: str, cosines: np.ndarray, axis: str, labels: Sequence[Any]) -> Matrix:
    """A picture of the cosines of the entries of one axis with each other."""
    names = written(labels)
    return Matrix(
        key, title, caption, values=cosines, rows=names, columns=names, row_axis=axis, column_axis=axis, unit="cosine",
        diverging=True, image=True,
    )  # fmt: skip


def related(panels: Sequence[Panel], family: str) -> list[Panel]:
    """The panels, their matrices on one common scale."""
    return [replace(one, family=family) if isinstance(one, Matrix) else one for one in panels]


def largest_first(frame: pd.DataFrame, by: str, most: int = MOST) -> tuple[pd.DataFrame, str]:
    """The rows with the largest absolute values in front, and how many were left out, in a sentence; "" where none."""
    order = np.argsort(-frame[by].abs().to_numpy(), kind="stable")[:most]
    return frame.iloc[order].reset_index(drop=True), said_left_out(len(frame), most)


def said_left_out(n: int, most: int) -> str:
    """That only so many effects of n are shown; empty where all are."""
    return f" The {most:,} largest of {n:,} effects." if n > most else ""


def said_tests(frame: pd.DataFrame, n: int, clusters: Sequence[object] | None, corrected: str) -> str:
    """What low, high, p and q of a `summary` over n texts are, in a sentence; empty where it has none."""
    count, unit = independent(n, clusters)
    said = f" 95 % intervals over {count} {unit}; p by flipping the signs of {unit}, q corrected for all {corrected}."
    return said if "q" in frame else ""


def said_mean(n: int, unit: str = "text") -> str:
    """Over how many texts a mean is, and whether it has an interval, in a sentence."""
    return f"Mean of {n} {unit}s with 95 % intervals over {unit}s." if n > 1 else f"One {unit}, so no interval."
