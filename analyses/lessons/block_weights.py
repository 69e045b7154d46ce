"""One weight matrix of every block as an image, raw and as a moving average beside its shuffled control.

Question: is there structure in a fully connected layer's weights, and do blocks differ in the size of their weights?

Method: of each block a square piece of one matrix is averaged over windows that slide over it, and so is the same piece
with its entries shuffled. A moving average is smooth whatever it is made of, because neighbouring windows share most of
their entries; so the smooth hills of such an image prove nothing. What a shuffle cannot do is make the hills high:
`ratio` is the variance of the means of windows that do not overlap, over what shuffled entries would give (1 when
neighbours have nothing in common), with its p-value, and Benjamini-Hochberg q over blocks. `smooth` is the correlation
of neighbouring windows of the image.

Sizes of weights: the distribution of their absolute values in each whole matrix. `apart` is the largest gap between the
cumulative distributions of any two blocks (Kolmogorov-Smirnov); chance would make the largest of all pairs exceed
`apart_5_percent` in at most one of twenty models. `ks` is the gap to the normal law with the same mean and deviation,
`ks_5_percent` what chance exceeds in one of twenty blocks (Lilliefors); `kurtosis` is excess kurtosis.

What the numbers do not show: what the structure is for. Rows and columns of most matrices have no natural order, and
neighbours in them may be related for no reason but the initialisation or the way columns are stored.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import scipy
from jaxtyping import Float

from analyses.shared.axes import Axes, lines
from analyses.shared.capabilities import analysis
from analyses.shared.distributions import moving_average, normal_point, samples_point, window_side, window_test
from analyses.shared.inputs import TextOrTokens
from analyses.shared.matrices import numpy_of, whole_matrices
from analyses.shared.panels import Finding, Lines, Matrix, Panel, Result, Table
from analyses.shared.statistics import methods_note, q_values
from interp.errors import InputError, NotApplicable, check_seed
from interp.models.gpt import HookedGPT

Kind = Literal["W_Q", "W_K", "W_V", "W_O", "W_gate", "W_in", "W_out"]
ACROSS = 4
"""Blocks side by side in the picture of moving averages."""
WINDOWS = 80
"""Windows a side, at most, in that picture."""
BINS = 1024
"""Steps of the distribution of sizes."""
CURVE = 64
"""Steps of its drawing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockWeightsResult(Result):
    """One matrix of every block."""

    kind: str
    piece: np.ndarray
    """[row column] the first block's piece, raw."""
    averages: tuple[np.ndarray, ...]
    """[block][window row, window column]"""
    shuffled: tuple[np.ndarray, ...]
    """[block][window row, window column] of the same entries shuffled."""
    table: pd.DataFrame
    """One row per block: block window ratio p q smooth smooth_shuffled std kurtosis ks ks_5_percent largest."""
    sizes: np.ndarray
    """[bin] absolute weights at which the distributions are given."""
    cumulative: np.ndarray
    """[block bin] share of the block's weights that are at most that large."""
    apart_5_percent: float
    seed: int

    @property
    def apart(self) -> float:
        """Largest gap between the distributions of two blocks' sizes; 0 for one block."""
        gaps = np.abs(self.cumulative[:, None] - self.cumulative[None]).max(-1)
        return float(gaps.max())

    def to_dataframe(self) -> pd.DataFrame:
        """One row per block; see `table`."""
        return self.table.copy()

    def facts(self) -> dict[str, object]:
        return {"kind": self.kind, "apart": self.apart, "apart_5_percent": self.apart_5_percent}

    def panels(self) -> list[Panel]:
        raw = Axes.of(self.piece, row=None, column=None).matrix(
            "raw", f"{self.kind} of the first block", f"A piece of {' x '.join(map(str, self.piece.shape))} weights.",
            unit="weight", diverging=True, image=True,
        )  # fmt: skip
        windows = self.table[["block", "window", "ratio", "p", "q", "smooth", "smooth_shuffled"]]
        shapes = self.table[["block", "std", "largest", "kurtosis", "ks", "ks_5_percent"]]
        return [
            raw,
            self._mosaic(),
            Table(
                "windows", "Is there more than chance in the averages?", "ratio: variance of window means over that of "
                "shuffled entries. smooth: correlation of neighbouring windows in the image; the shuffled matrix is "
                "nearly as smooth, because windows overlap.",
                frame=windows.rename(columns={"smooth_shuffled": "smooth, shuffled"}),
            ),
            self._curves(),
            Table(
                "shapes", "Spread and shape of each block's weights", "kurtosis: 0 is normal, above 0 heavy tails. ks: "
                "distance from the normal law, which chance would keep below ks_5_percent in 19 of 20 blocks "
                "(Lilliefors).", frame=shapes,
            ),
            methods_note(
                "Windows: chi-squared test of the variance of window means against shuffled entries, Benjamini and "
                f"Hochberg over {int(self.table['p'].notna().sum())} blocks. Distances: Kolmogorov and Smirnov's, "
                "between blocks at .05 / pairs, from the normal law with Lilliefors' correction."
            ),
        ]  # fmt: skip

    def _mosaic(self) -> Matrix:
        strips, across = list[np.ndarray](), min(ACROSS, len(self.averages))
        for start in range(0, len(self.averages), ACROSS):
            for images, gap in ((self.averages, 3), (self.shuffled, 9)):
                strips.append(_beside(images[start : start + ACROSS], across))
                strips.append(np.full((gap, strips[0].shape[1]), np.nan))
        values, window = np.concatenate(strips[:-1]), self.table["window"][0]
        many = len(self.averages) > ACROSS
        place = f"{ACROSS} blocks side by side, block 0 first" if many else "block 0 to the left"
        axes = ("matrix above, shuffled below", f"{across} blocks, from left to right")
        return Axes.of(values, **{name: [""] * n for name, n in zip(axes, values.shape, strict=True)}).matrix(
            "averages", "Moving averages of every block, above the same weights shuffled",
            f"Means of {window} x {window} windows, one colour scale; {place}. Of each pair the upper image is the "
            "matrix, the lower one its shuffled copy.", unit="mean weight", diverging=True, image=True,
        )  # fmt: skip

    def _curves(self) -> Lines:
        ends = slice(None, None, BINS // CURVE)
        steps = np.diff(self.sizes[ends])
        density = np.diff(self.cumulative[:, ends], axis=1) / steps
        return lines(
            "sizes", "How large the weights are, block by block", f"Density of the absolute weights of {self.kind}. "
            f"The largest gap between two blocks' distributions is {self.apart:.3f}; of as many pairs of blocks chance "
            f"would keep the largest below {self.apart_5_percent:.4f} in 19 of 20 cases.",
            {f"block {i}": row for i, row in enumerate(density)}, x=self.sizes[ends][:-1] + steps / 2,
            x_axis="absolute weight", y_axis="density",
        )  # fmt: skip

    def findings(self) -> list[Finding]:
        ratios = self.table["ratio"].fillna(0).to_numpy(dtype=float)
        block = int(ratios.argmax())
        p = min(float(self.table["p"][block]) * len(ratios), 1.0)
        text = (
            f"Averaged over windows, {self.kind} of block {block} varies {ratios[block]:.2g} times as much as its "
            f"entries shuffled{f' (p = {p:.2g})' if p >= 1e-300 else ''}, the most of {len(ratios)} blocks."
        )
        if not p <= 0.05:
            return [Finding(text, "windows", 0.15, ratios[block], "ratio of variances", kind="negative")]
        return [Finding(
            text, "windows", 0.15, ratios[block], "ratio of variances", kind="effect", null="its entries shuffled", p=p
        )]  # fmt: skip


@analysis(place=81, in_report=None, runs=True)
def block_weights(
    model: HookedGPT,
    tokens: TextOrTokens | None = None,
    *,
    kind: Annotated[Kind, "which matrix of each block"] = "W_in",
    window: Annotated[int, "side of the moving average's window; smaller for small matrices"] = 64,
    side: Annotated[int, "side of the piece; at most the matrix's smaller side"] = 768,
    seed: Annotated[int, "seed of the shuffle"] = 0,
) -> BlockWeightsResult:
    """One matrix of every block. `tokens` are not used; they are accepted as every analysis accepts them.

    Raises InputError for a matrix that blocks do not have, a window or side below 1, or a seed out of range.
    """
    check_seed(seed)
    if window < 1 or side < 1:
        raise InputError(f"window = {window}, side = {side}", "expected whole numbers of at least 1")
    kinds = dict.fromkeys(name for _, layer, name, _ in whole_matrices(model) if layer >= 0)
    if kind not in kinds:
        raise NotApplicable(f"this model has no matrix {kind!r}", f"expected one of {', '.join(kinds)}")
    matrices = [numpy_of(values) for _, _, name, values in whole_matrices(model) if name == kind]
    side = min(side, *matrices[0].shape)
    generator = np.random.default_rng(seed)
    pieces = [values[:side, :side] for values in matrices]
    width = window_side(pieces[0].shape, window)
    averages = [moving_average(piece, width, WINDOWS)[0] for piece in pieces]
    shuffled = [moving_average(piece, width, WINDOWS, generator)[0] for piece in pieces]
    rows = [
        _row(block, values, piece, width, average, control)
        for block, (values, piece, average, control) in enumerate(
            zip(matrices, pieces, averages, shuffled, strict=True)
        )
    ]
    table = pd.DataFrame(rows)
    table.insert(4, "q", q_values(table["p"].to_numpy(dtype=float)))
    largest = max(float(np.quantile(np.abs(values), 0.9995)) for values in matrices)
    sizes = np.linspace(0, largest or 1.0, BINS)
    cumulative = [
        np.searchsorted(np.sort(np.abs(values), axis=None), sizes, "right") / values.size for values in matrices
    ]
    return BlockWeightsResult(
        kind=kind,
        piece=pieces[0],
        averages=tuple(averages),
        shuffled=tuple(shuffled),
        table=table,
        sizes=sizes,
        cumulative=np.stack(cumulative),
        apart_5_percent=samples_point(matrices[0].size, len(matrices)),
        seed=seed,
    )


def _row(
    block: int, values: np.ndarray, piece: np.ndarray, width: int, average: np.ndarray, control: np.ndarray
) -> dict[str, float]:
    ratio, p = window_test(piece, width, float(piece.mean(dtype=np.float64)), float(piece.std(dtype=np.float64)))
    flat = values.ravel().astype(np.float64)
    std = float(flat.std())
    return {
        "block": block,
        "window": width,
        "ratio": ratio,
        "p": p,
        "smooth": smoothness(average),
        "smooth_shuffled": smoothness(control),
        "std": std,
        "largest": float(np.abs(flat).max()),
        "kurtosis": float(scipy.stats.kurtosis(flat)) if std else np.nan,
        "ks": float(scipy.stats.kstest((flat - flat.mean()) / std, "norm").statistic) if std else np.nan,
        "ks_5_percent": normal_point(flat.size),
    }


def smoothness(image: Float[np.ndarray, "row column"]) -> float:
    """Correlation of horizontally neighbouring entries; NaN where there are too few or they are all alike."""
    left, right = image[:, :-1].ravel(), image[:, 1:].ravel()
    if left.size < 2 or not left.std() or not right.std():
        return float("nan")
    return float(np.corrcoef(left, right)[0, 1])


def _beside(images: tuple[np.ndarray, ...], count: int) -> np.ndarray:
    """Images side by side with gaps, and empty places up to `count`."""
    gap = np.full((images[0].shape[0], 3), np.nan)
    empty = np.full_like(images[0], np.nan)
    parts: list[np.ndarray] = []
    for i in range(count):
        parts += [images[i] if i < len(images) else empty, gap]
    return np.asarray(np.concatenate(parts[:-1], axis=1))
