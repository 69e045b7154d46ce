"""What the weights look like: distributions, tails, ranks, and what sets them apart from random matrices.

Question: how are the entries and the singular values of every matrix distributed, how far from normal and from random
are they, and how does that change from block to block? The text plays no part.

Method, for every weight matrix of every layer, every head's part of Q, K, V and O, and the embeddings (where several
query heads share keys and values, the parts of K and V are kv heads, `KV0`):

- entries: moments, quantiles, shares beyond 3 and 6 standard deviations; normal, Laplace and Student t laws fitted by
  maximum likelihood and compared by AIC (t on a sketch of the sorted entries, exact within about 0.01 nats in all).
- distance from normal as effect sizes: `ks`, the largest gap between the cumulative distributions, and `t_gain`, the
  nats an entry by which the best t law is more likely. With half a million entries a gap of .0013 is "significant" at
  5 % (`ks_5_percent`, Lilliefors' test, mean and deviation being fitted): a p-value says only that the matrix is large.
- spectrum: singular values, stable and effective rank, and the Marchenko-Pastur law (1967) of a random matrix with
  the same shape and standard deviation: how many singular values exceed its edge, and how far the spectrum is from
  it. Where entries have such heavy tails that these alone could exceed the edge, it is that of the matrix's own entries
  shuffled.
- moving average: means of windows, 64 x 64 where the matrix is large enough, against the same entries shuffled: the
  ratio of variances is 1 when neighbours have nothing in common. Columns and rows of most matrices have no natural
  order; heads lie side by side, positions in order.
- trend: Kendall's tau of a number with the block, exact p-values, Benjamini-Hochberg corrected; from six blocks on, the
  fewest with which a tau of 1 among the many that are looked at could be told from chance.
- outlier coordinates: of the embeddings' root mean squares, and, where positions are learned, of `W_pos[0] +
  mlp_0(W_pos[0])`, the residual stream that the first position starts from whatever its token is; more than 6 robust
  deviations (1.4826 MAD) from the median.

The summary speaks of tails where the excess kurtosis is at least .5 and beyond what normal entries have (Anscombe and
Glynn 1983), of singular values at least 1.2 times the edge and beyond the Tracy-Widom law, both for the largest of all
matrices (Bonferroni); where there is neither, it says that the weights look untrained.

What the numbers do not show: what a matrix does. Entries depend on the basis, and norms' gains and biases can be folded
into the matrices without changing the function; singular values and ranks change with that folding too. AIC
takes entries as independent, which they are not: read it as a ranking of shapes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
import scipy
from torch import Tensor

from analyses.shared.capabilities import analysis
from analyses.shared.claims import SURE
from analyses.shared.distributions import (
    HISTOGRAM_EDGES,
    Entries,
    describe,
    expected_counts,
    kurtosis_p_value,
    moving_average,
    normal_point,
    window_side,
    window_test,
)
from analyses.shared.inputs import TextOrTokens
from analyses.shared.matrices import (
    FIRST_POSITION,
    KINDS,
    find_outliers,
    head_parts,
    norm_gains,
    numpy_of,
    whole_matrices,
)
from analyses.shared.panels import WHOLE, Finding, Histogram, Lines, Matrix, Note, Panel, Result, Table
from analyses.shared.spectra import edge_of, edge_p_value, side_by_side, singular_values, spectrum_numbers
from analyses.shared.stacks import Model
from analyses.shared.statistics import methods_note, q_values
from interp.errors import InputError, nearest
from interp.models.encoder import HookedEncoder
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.gpt import HookedGPT

TRENDS = ("std", "kurtosis", "effective_share", "edge_ratio")
ENTRIES = (
    "std", "min", "max", "skewness", "kurtosis", "beyond_3", "beyond_6", "best", "nu", "t_gain", "ks", "ks_5_percent",
)  # fmt: skip
SPECTRUM = (
    "stable_rank", "effective_rank", "rank", "norm", "edge_ratio", "above_random", "energy_above", "mp_distance",
)  # fmt: skip
HEADS = ("std", "kurtosis", "beyond_3", "best", "nu", "ks", "stable_rank", "effective_rank", "norm", "edge_ratio")
LEAST_BLOCKS = 6
"""Blocks from which trends are looked for."""
HEAVY, SPIKE = 0.5, 1.2
"""Least excess kurtosis, and largest singular value over the random edge, that a finding may speak of."""
SMALLEST = 1e-300
"""Smaller p-values are not told apart."""
POINTS = np.linspace(0, 1, 65)
"""Places in the spectrum at which matrices of different sizes are compared."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightStatisticsResult(Result):
    """Numbers of every matrix. Names: `L3 W_Q`, a head's part `L3H2 W_Q` (a kv head's, where queries share them, `L3KV0
    W_K`), `W_E`, `W_pos` if positions are learned, and `W_U` if not tied; more in `whole_matrices`."""

    matrices: pd.DataFrame
    """One row per matrix, heads included: matrix layer (-1 outside the blocks) kind head (-1 for whole matrices) rows
    columns, then the numbers of `distributions.describe` and `spectrum_numbers`, `ks_5_percent`, `effective_share`
    (effective rank over the smaller side), and for whole matrices the window test: window window_ratio
    window_p window_q."""
    entries: Mapping[str, Entries]
    """Whole matrix -> its histogram and fits."""
    singular: Mapping[str, np.ndarray]
    """Matrix -> [rank] singular values, largest first."""
    gains: pd.DataFrame
    """One row per norm: norm layer (-1: outside blocks) mean std min max of the gain, mean and rms of its bias."""
    trends: pd.DataFrame
    """One row per kind and number: kind number tau p q, value in the first and last block. Empty below 6 layers."""
    outliers: pd.DataFrame
    """One row per outlier coordinate: of coordinate value deviation (in robust deviations), the furthest first."""
    first_position: np.ndarray
    """[d_model] W_pos[0] + mlp_0(ln2_0(W_pos[0])); empty where positions are not learned."""
    picture_of: str
    """The matrix whose moving average is drawn."""
    picture: np.ndarray
    """[window row, window column] its moving average."""
    shuffled: np.ndarray
    """[window row, window column] the moving average of its entries shuffled."""
    step: int
    """Rows and columns between neighbouring windows of the picture."""
    seed: int
    """Of the shuffle."""

    @property
    def whole(self) -> pd.DataFrame:
        """The rows of whole matrices."""
        return self.matrices[self.matrices["head"] == -1].reset_index(drop=True)

    @property
    def kinds(self) -> list[str]:
        """Kinds of the matrices inside blocks."""
        return list(dict.fromkeys(self.matrices[self.matrices["layer"] >= 0]["kind"]))

    @property
    def shaped(self) -> pd.DataFrame:
        """The rows of whole matrices whose entries are not all alike."""
        return self.whole[self.whole["best"] != "constant"].reset_index(drop=True)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per matrix, heads included; see `matrices`."""
        return self.matrices.copy()

    def panels(self) -> list[Panel]:
        by_block = [self._by_block(name) for name in TRENDS]
        return [*self._entry_panels(), *by_block, self._trend_table(), *self._spectrum_panels(), *self._other_panels()]

    def _entry_panels(self) -> list[Panel]:
        table = Table(
            key="entries",
            title="Entries of every matrix",
            caption="Kurtosis is excess over the normal law's. beyond_3 and beyond_6: shares beyond 3 and 6 standard "
            "deviations (normal: 0.0027 and 2e-9). best: law with the lowest AIC; nu: degrees of freedom of the t law.",
            frame=self.whole[["matrix", "count", "mean", *ENTRIES]],
            units={"t_gain": "nats an entry", "beyond_3": "share", "beyond_6": "share"},
        )
        if not self.shaped.size:
            text = "Every matrix is constant: there is no distribution to describe."
            return [table, Note(key="normality", title="How far from normal", text=text)]
        return [table, self._normality_note(self.shaped), self._histograms()]

    def _spectrum_panels(self) -> list[Panel]:
        heads = self.matrices[self.matrices["head"] >= 0].reset_index(drop=True)
        return [
            Table(
                key="spectra",
                title="Singular values of every matrix",
                caption="rank: the smaller side. edge_ratio: largest singular value over what a random matrix of the "
                "same shape and deviation (where tails are heavy, of the same entries shuffled) exceeds in 1 % of "
                f"cases: {len(self.matrices):,} random matrices would have {len(self.matrices) / 100:.2g} ratios above "
                "1. above_random: how many exceed it; energy_above: their share of the sum of squares.",
                frame=self.whole[["matrix", *SPECTRUM]],
            ),
            *([self._spectra()] if self.shaped.size else []),
            Table(
                key="heads",
                title="Every head's part",
                caption="The columns (rows for W_O) that belong to one head, as a matrix of its own.",
                frame=heads[["matrix", *HEADS]],
            ),
        ]

    def _other_panels(self) -> list[Panel]:
        had = bool(len(self.first_position))
        of_first = " `W_pos[0] + mlp_0(...)` is with the norm before the MLP, as the model has it, and without it."
        windows = self.whole[["matrix", "window", "window_ratio", "window_p", "window_q"]]
        return [
            self._picture(),
            Table(
                key="windows",
                title="Neighbouring entries against shuffled ones",
                caption="window_ratio: variance of window means over that of shuffled entries; 1 when neighbours have "
                "nothing in common. q is corrected for the number of matrices.",
                frame=readable_p(windows.sort_values("window_ratio", ascending=False, ignore_index=True)),
            ),
            *([] if self.gains.empty else self._gain_panels()),
            Table(
                key="outliers",
                title="Outlier coordinates",
                caption="Coordinates more than 6 robust deviations from the median." + of_first * had,
                frame=self.outliers,
                diverging=frozenset({"deviation"}),
            ),
            methods_note(
                "Windows: chi-squared test of the variance of window means against shuffled entries, Benjamini and "
                f"Hochberg over {int(self.whole['window_p'].notna().sum())} matrices."
                + f" Trends: Kendall's exact test, Benjamini and Hochberg over {len(self.trends)}."
                * bool(len(self.trends))
                + " Edges of spectra: Tracy and Widom's 99 % point, or from shuffled entries; not corrected."
            ),
        ]

    def _normality_note(self, whole: pd.DataFrame) -> Note:
        worst, least = extreme(whole, "ks"), extreme(whole, "ks", -1)
        text = (
            f"Distance from the normal law (ks, 0 to 1) runs from {least['ks']:.4f} ({least['matrix']}) to "
            f"{worst['ks']:.4f} ({worst['matrix']}). For a matrix as large as {least['matrix']} a test at 5 % "
            f"(Lilliefors) already rejects at {least['ks_5_percent']:.4f}; so read the distance, not a p-value."
        )
        return Note(key="normality", title="How far from normal", text=text)

    def _histograms(self) -> Histogram:
        layers = sorted({0, self.whole["layer"].max() // 2, self.whole["layer"].max()})
        layers = layers if len(self.kinds) <= len(KINDS) else layers[1:2]  # few enough pictures to look at
        inside = self.whole[self.whole["layer"].isin(layers)].sort_values("layer", kind="stable")
        names = [*inside["matrix"], *self.whole[self.whole["layer"] == -1]["matrix"]]
        names = [name for name in names if self.entries[name].laws]
        return Histogram(
            key="histograms",
            title="Distribution of entries",
            caption=f"Counts on a log scale, in standard deviations from the mean, with the fitted laws; blocks "
            f"{', '.join(map(str, layers))} and the embeddings. On this scale a normal law is a parabola.",
            edges=HISTOGRAM_EDGES,
            counts={name: self.entries[name].histogram for name in names},
            unit="standard deviations from the mean",
            fits={name: expected_counts(self.entries[name]) for name in names},
        )

    def _by_block(self, number: str) -> Lines:
        titles = {
            "std": ("Standard deviation by block", "standard deviation", "One line for each kind of matrix."),
            "kurtosis": ("Tails by block", "excess kurtosis", "0 is normal, 3 is Laplace."),
            "effective_share": (
                "Effective rank by block",
                "share of full rank",
                "Random matrices have .80 (square) to .97 (four times as long).",
            ),
            "edge_ratio": ("Largest singular value by block", "over a random matrix's edge", "1 is random."),
        }
        title, unit, caption = titles[number]
        inside = self.whole[self.whole["layer"] >= 0]
        table = inside.pivot(index="layer", columns="kind", values=number)
        return Lines(
            key=number.replace("_", "-"),
            title=title,
            caption=caption,
            x=table.index.to_numpy(),
            series={kind: table[kind].to_numpy() for kind in self.kinds},
            x_axis="block",
            y_axis=unit,
        )

    def _trend_table(self) -> Panel:
        if self.trends.empty:
            text = f"A trend over fewer than {LEAST_BLOCKS} blocks cannot be told from chance, so none was tested."
            return Note(key="trends", title="Trend over blocks", text=text)
        return Table(
            key="trends",
            title="Trend over blocks",
            caption="tau: Kendall's rank correlation with the block, 1 always rising, -1 always falling; exact p, "
            "and q corrected for the number of rows.",
            frame=self.trends.sort_values("p", ignore_index=True),
            diverging=frozenset({"tau"}),
        )

    def _spectra(self) -> Lines:
        series = {}
        for kind in dict.fromkeys((*self.kinds, *self.whole["kind"])):
            rows = self.whole[(self.whole["kind"] == kind) & (self.whole["edge_ratio"] > 0)]
            if not rows.empty:
                series[kind] = np.mean([self._scaled_spectrum(row) for _, row in rows.iterrows()], axis=0)
        return Lines(
            key="spectrum",
            title="Singular values against a random matrix",
            caption="Singular values over the edge of a random matrix of the same shape and deviation, mean over "
            "blocks. A random matrix lies above 1 in 1 % of cases; where tails are heavy the edge is that of the same "
            "entries shuffled.",
            x=POINTS,
            series=series,
            x_axis="place in the spectrum, largest first (share of the rank)",
            y_axis="over the random edge",
            log_y=True,
        )

    def _scaled_spectrum(self, row: pd.Series) -> np.ndarray:
        values = self.singular[row["matrix"]]
        scaled = values * (row["edge_ratio"] / row["norm"])
        at_points: np.ndarray = np.interp(POINTS, np.linspace(0, 1, len(scaled)), scaled)
        return at_points

    def _picture(self) -> Matrix:
        gap = np.full((len(self.picture), max(1, self.picture.shape[1] // 20)), np.nan)
        rows, columns = (tuple(str(i * self.step) for i in range(size)) for size in self.picture.shape)
        row = self.whole.set_index("matrix").loc[self.picture_of]
        return Matrix(
            key="moving-average",
            title=f"Moving average of {self.picture_of}",
            caption=f"Means of {row['window']} x {row['window']} windows: on the left the matrix, on the right the "
            f"same entries shuffled, on one colour scale. The means vary {row['window_ratio']:.3g} times as much as "
            "shuffled ones would.",
            values=np.concatenate([self.picture, gap, self.shuffled], axis=1),
            rows=rows,
            columns=(*columns, *[""] * gap.shape[1], *columns),
            row_axis="first row of the window",
            column_axis="first column of the window: the matrix | shuffled",
            unit="mean",
            diverging=True,
            image=True,
        )

    def _gain_panels(self) -> list[Panel]:
        inside = self.gains[self.gains["layer"] >= 0]
        layers = sorted(inside["layer"].unique())  # of the deepest stack: the others end before
        tables = {
            str(name): table.set_index("layer").reindex(layers) for name, table in inside.groupby("norm", sort=False)
        }
        return [
            Lines(
                key="gain",
                title="Gains of the norms by block",
                caption="Mean gain; the band runs from the 5 % to the 95 % quantile of the coordinates (it is no "
                "interval of confidence).",
                x=np.array(layers),
                series={name: table["mean"].to_numpy() for name, table in tables.items()},
                x_axis="block",
                y_axis="gain",
                low={name: table["q0.05"].to_numpy() for name, table in tables.items()},
                high={name: table["q0.95"].to_numpy() for name, table in tables.items()},
            ),
            Table(
                key="gains",
                title="Norms",
                caption="Numbers of the gains of every norm, and mean and root mean square of its bias if any.",
                frame=self.gains.replace({"layer": {-1: np.nan}}),  # outside the blocks
            ),
        ]

    def findings(self) -> list[Finding]:
        shaped = self.shaped
        if shaped.empty:
            return []
        tails = shaped.assign(p=[kurtosis_p_value(row["kurtosis"], int(row["count"])) for _, row in shaped.iterrows()])
        edges = shaped.assign(
            p=[edge_p_value((row["rows"], row["columns"]), row["edge_ratio"]) for _, row in shaped.iterrows()]
        )  # fmt: skip
        heavy = tails[(tails["kurtosis"] >= HEAVY) & (tails["p"] * len(shaped) <= SURE)]
        spiked = edges[(edges["edge_ratio"] >= SPIKE) & (edges["p"] * len(shaped) <= SURE)]
        if heavy.empty and spiked.empty:
            return [self._untrained(shaped), *self._outlier_finding(), *self._window_finding(shaped)]
        return [
            *self._tail_finding(heavy, len(shaped)), *self._spike_finding(spiked, len(shaped)),
            *self._outlier_finding(), *self._window_finding(shaped),
        ]  # fmt: skip

    def _untrained(self, shaped: pd.DataFrame) -> Finding:
        """That nothing sets the matrices apart from random ones."""
        value = float(shaped["edge_ratio"].max())
        return Finding(
            f"The weights look untrained: none of {len(shaped)} matrices has heavy tails, or a singular value clearly "
            f"beyond the edge of a random matrix (the largest is {value:.2f} times the edge).",
            "spectra", 0.6, value, "times the edge", kind="warning", about=WHOLE,
            short=f"no matrix differs from a random one (singular values up to {value:.2f} times its edge)",
        )  # fmt: skip

    def _tail_finding(self, heavy: pd.DataFrame, tests: int) -> list[Finding]:
        if heavy.empty:
            return []
        top = extreme(heavy, "kurtosis")
        text = (
            f"{len(heavy)} of {tests} matrices have heavier tails than a normal law, {top['matrix']} the heaviest: "
            f"excess kurtosis {top['kurtosis']:.1f}, and {top['beyond_6']:.2g} of its entries lie beyond 6 standard "
            "deviations (normal: 2e-9)."
        )
        return [Finding(
            text, "entries", 0.35 if top["kurtosis"] > 1 else 0.2, top["kurtosis"], "excess kurtosis", kind="effect",
            null="normal entries, the heaviest of as many matrices", p=min(float(top["p"]) * tests, 1.0),
        )]  # fmt: skip

    def _spike_finding(self, spiked: pd.DataFrame, tests: int) -> list[Finding]:
        if spiked.empty:
            return []
        top = extreme(spiked, "edge_ratio")
        text = (
            f"{len(spiked)} of {tests} matrices have singular values beyond the edge of a random matrix, most so "
            f"{top['matrix']}: {top['above_random']:.0f} of {top['rank']}, the largest {top['edge_ratio']:.1f} times "
            "the edge."
        )
        return [Finding(
            text, "spectra", 0.3, top["edge_ratio"], "times the edge", kind="effect",
            null="random matrices (Tracy and Widom), the largest of all", p=min(float(top["p"]) * tests, 1.0),
        )]  # fmt: skip

    def _outlier_finding(self) -> list[Finding]:
        rows = self.outliers[self.outliers["of"] == FIRST_POSITION]
        if rows.empty:
            return []
        named = ", ".join(f"{row.coordinate} ({row.deviation:+.0f})" for row in rows.head(3).itertuples())
        text = f"At the first position coordinates {named} stand out before any token counts, in robust deviations."
        value = float(rows["deviation"].iloc[0])
        return [Finding(
            text, "outliers", 0.4, value, "robust deviations", kind="effect",
            null="6 robust deviations",
        )]  # fmt: skip

    def _window_finding(self, shaped: pd.DataFrame) -> list[Finding]:
        known = shaped.dropna(subset="window_ratio")
        p = min(float(known["window_p"].min()) * len(known), 1.0)
        if not p <= SURE:
            return []
        top = extreme(known, "window_ratio")
        text = (
            f"Neighbouring entries are related in {int((known['window_q'] <= 0.05).sum())} of {len(known)} matrices "
            f"(q <= .05), most in {top['matrix']}: its window means vary {top['window_ratio']:.3g} times as much as"
            f" shuffled."
        )
        return [Finding(
            text, "windows", 0.2, top["window_ratio"], "ratio of variances", kind="effect", null="entries shuffled", p=p
        )]  # fmt: skip


def readable_p(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with p-values that are too small for a number written as what they are below."""
    frame = frame.copy()
    for name in ("window_p", "window_q"):
        if (frame[name] < SMALLEST).any():
            frame[name] = [
                f"< {SMALLEST:g}" if p < SMALLEST else "" if np.isnan(p) else f"{p:.2g}" for p in frame[name]
            ]
    return frame


def extreme(frame: pd.DataFrame, column: str, sign: int = 1) -> pd.Series:
    """The row with the largest (sign 1) or smallest (-1) value."""
    return frame.iloc[int(np.nanargmax(sign * frame[column].to_numpy(dtype=float)))]


@analysis(place=80, runs=True, weights_only=True)
def weight_statistics(
    model: HookedGPT | HookedEncoderDecoder | HookedEncoder,
    tokens: TextOrTokens | None = None,
    *,
    window: Annotated[int, "side of the moving average's window; smaller for small matrices"] = 64,
    matrix: Annotated[str | None, "matrix drawn, such as 'L3 W_Q'; default: the least like its shuffled self"] = None,
    seed: Annotated[int, "seed of the shuffle"] = 0,
) -> WeightStatisticsResult:
    """Statistics of every weight matrix. `tokens` are not used; they are accepted as every analysis accepts them.

    Raises InputError for an unknown matrix name or a window below 1.
    """
    if window < 1:
        raise InputError(f"window = {window}", "expected a whole number of at least 1")
    rows, entries, singular = measure_all(model, window)
    frame = pd.DataFrame(rows).astype({"window": "Int64"})
    frame["window_q"] = q_values(frame["window_p"].to_numpy(dtype=float))
    whole = frame[frame["head"] == -1]
    chosen = _chosen(whole, matrix)
    values = next(numpy_of(values) for name, _, _, values in whole_matrices(model) if name == chosen)
    side = window_side(values.shape, window)
    picture, step = moving_average(values, side)
    first, outliers = find_outliers(model)
    return WeightStatisticsResult(
        matrices=frame,
        entries=entries,
        singular=singular,
        gains=norm_gains(model),
        trends=block_trends(whole),
        outliers=outliers,
        first_position=first,
        picture_of=chosen,
        picture=picture,
        shuffled=moving_average(values, side, shuffle=np.random.default_rng(seed))[0],
        step=step,
        seed=seed,
    )


def measure_all(model: Model, window: int) -> tuple[list[dict[str, object]], dict[str, Entries], dict[str, np.ndarray]]:
    """Rows of the table of matrices, entries of whole matrices, singular values of all."""

    def measure(matrix: tuple[str, int, str, Tensor]) -> list[tuple[dict[str, object], Entries, np.ndarray]]:
        """The matrix, then each head's part of it."""
        name, layer, kind, weight = matrix
        values = numpy_of(weight)
        described, row, spectrum = _measure(values)
        side = window_side(values.shape, window)
        ratio, p = window_test(values, side, row["mean"], row["std"])
        place = {"matrix": name, "layer": layer, "kind": kind, "head": -1}
        windows = {"window": side, "window_ratio": ratio, "window_p": p}
        found = [(place | row | {"best": described.best} | windows, described, spectrum)]
        for head, label, part in head_parts(model, kind, values):
            described, row, spectrum = _measure(part)
            place = {"matrix": f"L{layer}{label} {kind}", "layer": layer, "kind": kind, "head": head}
            found.append((place | row | {"best": described.best}, described, spectrum))
        return found

    measured = side_by_side(measure, list(whole_matrices(model)), lambda matrix: matrix[3].numel())
    every = [(str(row["matrix"]), row, described, spectrum) for found in measured for row, described, spectrum in found]
    entries = {name: described for name, row, described, _ in every if row["head"] == -1}
    return [row for _, row, *_ in every], entries, {name: spectrum for name, *_, spectrum in every}


def _measure(values: np.ndarray) -> tuple[Entries, dict[str, float], np.ndarray]:
    described, spectrum = describe(values), singular_values(values)
    rows, columns = values.shape
    edge = edge_of(values, float(spectrum[0]), described.numbers)
    numbers = described.numbers | spectrum_numbers(spectrum, (rows, columns), described.numbers["std"], edge)
    numbers |= {"rows": rows, "columns": columns, "rank": min(rows, columns)}
    numbers["effective_share"] = numbers["effective_rank"] / min(rows, columns)
    numbers["ks_5_percent"] = normal_point(values.size)
    return described, numbers, spectrum


def _chosen(whole: pd.DataFrame, matrix: str | None) -> str:
    names = whole["matrix"].tolist()
    if matrix is None:
        ratios = whole["window_ratio"].fillna(0)
        return str(names[int(np.argmax(ratios))])
    if matrix not in names:
        close = nearest(matrix, names)
        raise InputError(
            f"no matrix {matrix!r}", f"expected one of {', '.join(close or [*names[:3], '...', *names[-2:]])}"
        )
    return matrix


def block_trends(whole: pd.DataFrame) -> pd.DataFrame:
    """Kendall's tau with the block of each number of each kind, exact p, and q; empty below LEAST_BLOCKS blocks."""
    rows = []
    for kind in dict.fromkeys(whole[whole["layer"] >= 0]["kind"]):
        blocks = whole[whole["kind"] == kind].sort_values("layer")
        for number in TRENDS:
            values = blocks[number].to_numpy(dtype=float)
            if len(values) < LEAST_BLOCKS or np.isnan(values).any() or len(set(values)) < len(values):
                continue
            found = scipy.stats.kendalltau(blocks["layer"], values, method="exact")
            row = {"kind": kind, "number": number, "tau": float(found.statistic), "p": float(found.pvalue)}
            rows.append(row | {"first": values[0], "last": values[-1]})
    frame = pd.DataFrame(rows, columns=["kind", "number", "tau", "p", "first", "last"])
    frame.insert(4, "q", q_values(frame["p"].to_numpy(dtype=float)))
    return frame
