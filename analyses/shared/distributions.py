"""Distribution of a matrix's entries: moments, quantiles, fits, distances between laws, local means.

Entries are sorted once; the fit of the t law and the distance from normality then work on a sketch of about four
thousand weighted points, in which each of the 512 smallest and largest entries is kept as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import scipy
from jaxtyping import Float
from scipy import special

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
HISTOGRAM_EDGES = np.linspace(-10, 10, 81)
"""In standard deviations from the mean; what lies beyond is counted in the end bins."""
TAIL, MIDDLE = 512, 2048
"""Entries kept one by one at each end, and bins between them, in a sketch."""
INSTANTS, DRAWN = 256, 8192
"""Points of a Brownian bridge, and how many sets of them are drawn, where their law is not known."""
BLOCK = 1 << 16
"""Entries that are widened to float64 at a time: few enough to stay near the processor."""


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """Sorted entries in unequal bins, in standard deviations from their mean."""

    mean: np.ndarray
    """[bin] mean of the entries in the bin."""
    variance: np.ndarray
    """[bin] variance of the entries in the bin."""
    count: np.ndarray
    """[bin] entries in the bin."""
    upper: np.ndarray
    """[bin] largest entry in the bin."""


@dataclass(frozen=True, kw_only=True)
class Entries:
    """What is known of a matrix's entries."""

    numbers: dict[str, float]
    """count mean std min max skewness kurtosis (excess) beyond_3 beyond_6 (shares), quantiles q0.001 to q0.999; AIC of
    each law, `nu` of the t law, `t_gain` of its likelihood over the normal law's in nats an entry, and `ks`, the
    Kolmogorov-Smirnov distance from the normal law."""
    best: str
    """Law with the lowest AIC: normal, laplace or t."""
    histogram: np.ndarray
    """[bin] counts between HISTOGRAM_EDGES."""
    laws: dict[str, tuple[float, ...]]
    """Fitted parameters, in standard deviations from the mean: (location, scale), for t (nu, location, scale)."""


def describe(values: Float[np.ndarray, "*shape"]) -> Entries:
    """Everything about the entries of a matrix, taken as one sample. Constant matrices have NaN shape and no fits."""
    ordered = np.sort(np.asarray(values, dtype=np.float32 if values.dtype != np.float64 else np.float64).ravel())
    count = len(ordered)
    mean, std, skewness, kurtosis = moments(ordered)
    numbers = {"count": count, "mean": mean, "std": std, "min": float(ordered[0]), "max": float(ordered[-1])}
    numbers |= {"skewness": skewness, "kurtosis": kurtosis}
    for k in (3, 6):
        below, within = count_below(ordered, [mean - k * std, np.nextafter(mean + k * std, np.inf)])
        numbers[f"beyond_{k}"] = float(below + count - within) / count if std else 0.0
    numbers |= {f"q{q:g}": float(x) for q, x in zip(QUANTILES, sorted_quantiles(ordered, QUANTILES), strict=True)}
    if not std:
        names = ("aic_normal", "aic_laplace", "aic_t", "nu", "t_gain", "ks")
        empty = np.zeros(len(HISTOGRAM_EDGES) - 1, dtype=int)
        return Entries(numbers=numbers | dict.fromkeys(names, np.nan), best="constant", histogram=empty, laws={})
    borders = count_below(ordered, mean + std * HISTOGRAM_EDGES[1:-1])
    sketch = make_sketch(ordered, mean, std)
    laws = {"normal": (0.0, 1.0), "laplace": fit_laplace(ordered, mean, std), "t": fit_t(sketch, kurtosis)}
    shift = count * np.log(std)  # from standard deviations back to the entries' own unit
    likelihood = {name: log_likelihood(name, laws[name], sketch) - shift for name in laws}
    aic = {name: 2 * (3 if name == "t" else 2) - 2 * value for name, value in likelihood.items()}
    numbers |= {f"aic_{name}": value for name, value in aic.items()}
    numbers |= {
        "nu": laws["t"][0],
        "t_gain": (likelihood["t"] - likelihood["normal"]) / count,
        "ks": normal_distance(sketch),
    }
    histogram = np.diff(np.concatenate([[0], borders, [count]]))
    return Entries(numbers=numbers, best=min(aic, key=aic.__getitem__), histogram=histogram, laws=laws)


def moments(values: Float[np.ndarray, " entry"]) -> tuple[float, float, float, float]:
    """Mean, standard deviation (of the population), skewness and excess kurtosis, in float64, block by block."""
    n = len(values)
    mean = sum(float(values[i : i + BLOCK].sum(dtype=np.float64)) for i in range(0, n, BLOCK)) / n
    powers = np.zeros(3)
    for i in range(0, n, BLOCK):
        d = values[i : i + BLOCK].astype(np.float64) - mean
        square = d * d
        powers += square.sum(), np.einsum("i,i", square, d), np.einsum("i,i", square, square)
    second, third, fourth = powers / n
    if second <= (1e-7 * abs(mean)) ** 2:  # all alike, up to the rounding of float32
        return mean, 0.0, np.nan, np.nan
    return mean, float(np.sqrt(second)), float(third / second**1.5), float(fourth / second**2 - 3)


def count_below(ordered: Float[np.ndarray, " entry"], limits: np.ndarray | list[float]) -> np.ndarray:
    """[limit] how many sorted values are smaller than each limit, exactly, without a float64 copy of the values."""
    exact = np.asarray(limits, dtype=np.float64)
    rounded = exact.astype(ordered.dtype)
    upward = np.where(rounded < exact, np.nextafter(rounded, np.array(np.inf, dtype=ordered.dtype)), rounded)
    return np.searchsorted(ordered, upward.astype(ordered.dtype))


def sorted_quantiles(ordered: Float[np.ndarray, " entry"], q: tuple[float, ...]) -> np.ndarray:
    """Quantiles of sorted values, linear between neighbours (numpy's default)."""
    place = np.asarray(q) * (len(ordered) - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, len(ordered) - 1)
    below, above = ordered[low].astype(float), ordered[high].astype(float)
    mixed: np.ndarray = below + (place - low) * (above - below)
    return mixed


def make_sketch(ordered: Float[np.ndarray, " entry"], mean: float, std: float) -> Sketch:
    """Bins of sorted values: one value each in the tails, equal shares and equal log-odds between them."""
    n = len(ordered)
    if n <= 2 * TAIL + MIDDLE:
        z = (ordered.astype(np.float64) - mean) / std
        return Sketch(mean=z, variance=np.zeros(n), count=np.ones(n), upper=z)
    end = float(special.logit(TAIL / n))
    odds = special.expit(np.linspace(end, -end, MIDDLE // 2)) * n
    edges = np.concatenate(
        [
            np.arange(TAIL),
            np.linspace(TAIL, n - TAIL, MIDDLE),
            np.clip(odds, TAIL, n - TAIL),
            np.arange(n - TAIL, n + 1),
        ]
    )
    edges = np.sort(edges.round().astype(int))
    edges = edges[np.diff(edges, prepend=-1) > 0]
    starts, count = edges[:-1], np.diff(edges)
    first, second = np.empty((2, len(starts)))
    cuts = np.unique([*np.searchsorted(starts, np.arange(0, n, BLOCK)), len(starts)])
    for i, j in pairwise(cuts.tolist()):
        exact, places = ordered[starts[i] : edges[j]].astype(np.float64), starts[i:j] - starts[i]
        first[i:j] = np.add.reduceat(exact, places) / count[i:j]
        exact -= np.repeat(first[i:j], count[i:j])
        second[i:j] = np.add.reduceat(np.square(exact, out=exact), places) / count[i:j]
    return Sketch(
        mean=(first - mean) / std, variance=second / std**2, count=count.astype(float),
        upper=(ordered[edges[1:] - 1] - mean) / std,
    )  # fmt: skip


def fit_laplace(ordered: Float[np.ndarray, " entry"], mean: float, std: float) -> tuple[float, float]:
    """Location (the median) and scale (the mean absolute deviation from it): the maximum of the likelihood."""
    n, half = len(ordered), len(ordered) // 2
    median = float(ordered[(n - 1) // 2] / 2 + ordered[half] / 2)
    scale = float(ordered[n - half :].sum(dtype=np.float64) - ordered[:half].sum(dtype=np.float64)) / n
    return (median - mean) / std, scale / std


def fit_t(sketch: Sketch, kurtosis: float) -> tuple[float, float, float]:
    """Degrees of freedom nu, location and scale of Student's t, by maximum likelihood on the sketch.

    Newton's method in (location, log scale, 1 / nu), in which the likelihood is smooth up to the normal law at 1 / nu =
    0; nu is from 1/4 to 10,000. Along a direction that bends the wrong way the step goes downhill all the same.
    """
    x, weight = sketch.mean, sketch.count / sketch.count.sum()
    low, high = np.array([-np.inf, -np.inf, 1e-4]), np.array([np.inf, np.inf, 4.0])
    start = 1 / min(max(4 + 6 / kurtosis, 2.5), 50.0) if kurtosis > 0 else 0.02
    quartiles = np.interp([0.25, 0.75], weight.cumsum(), x)
    point = np.array([float(np.median(quartiles)), np.log(max((quartiles[1] - quartiles[0]) / 1.35, 1e-3)), start])
    value, slope, bend = _t_loss(point, x, weight)
    for _ in range(100):
        free = ~(((point == low) & (slope > 0)) | ((point == high) & (slope < 0)))
        sizes, directions = np.linalg.eigh(bend[np.ix_(free, free)])
        step = np.zeros(3)
        step[free] = -(directions / np.maximum(np.abs(sizes), 1e-6)) @ (directions.T @ slope[free])
        gain, shrink = -slope @ step, 1.0
        while gain * shrink > 1e-15:
            near = np.clip(point + shrink * step, low, high)
            found = _t_loss(near, x, weight)
            if found[0] < value:
                break
            shrink /= 4
        else:  # nothing left to gain but rounding
            break
        point, (value, slope, bend) = near, found
    location, log_scale, inverse = point
    return float(1 / inverse), float(location), float(np.exp(log_scale))


def _t_loss(point: np.ndarray, x: np.ndarray, weight: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean negative log-likelihood of Student's t at (location, log scale, 1 / nu), its gradient and its Hessian."""
    nu, scale = 1 / point[2], np.exp(point[1])
    z = (x - point[0]) / scale
    square = z * z
    within = nu + square
    spread = weight @ np.log1p(square / nu)
    pull = weight * (nu + 1) / within
    turn, change = pull * nu / within, weight * (square - 1) / (within * within)  # the latter: pull by nu
    first, second = pull @ z, pull @ square
    by_nu = 0.5 * (special.digamma((nu + 1) / 2) - special.digamma(nu / 2) - 1 / nu - spread + second / nu)
    bend_nu = 0.25 * (special.polygamma(1, (nu + 1) / 2) - special.polygamma(1, nu / 2)) + 0.5 / nu**2
    bend_nu += 0.5 / nu * (pull @ square / (nu + 1) - second / nu + change @ square)
    value = -(_t_constant(nu) - point[1] - (nu + 1) / 2 * spread)
    slope = np.array([-first / scale, 1 - second, nu**2 * by_nu])
    both, inverse, across = 2 * (turn @ z) / scale, nu**2 * (change @ square), nu**2 * (change @ z) / scale
    bend = np.array(
        [
            [(2 * turn.sum() - pull.sum()) / scale**2, both, across],
            [both, 2 * (turn @ square), inverse],
            [across, inverse, -(nu**3) * (2 * by_nu + nu * bend_nu)],
        ]
    )
    return float(value), slope, bend


def _t_constant(nu: float) -> float:
    """Logarithm of the t density's constant; for large nu by its series, where the gamma functions would cancel."""
    if nu > 1e3:
        return float(-0.5 * np.log(2 * np.pi) - 0.25 / nu + 1 / (24 * nu**3))
    return float(special.gammaln((nu + 1) / 2) - special.gammaln(nu / 2) - 0.5 * np.log(np.pi * nu))


def log_likelihood(law: str, parameters: tuple[float, ...], sketch: Sketch) -> float:
    """Log-likelihood of the entries, in standard deviations from the mean, under a fitted law.

    Exact for normal and Laplace; for t each bin counts to second order (its mean and variance), which is right within
    about 0.01 nats in all.
    """
    n = sketch.count.sum()
    if law == "normal":
        return float(-0.5 * n * (np.log(2 * np.pi) + 1))
    if law == "laplace":
        return float(-n * (np.log(2 * parameters[1]) + 1))
    nu, location, scale = parameters
    square = ((sketch.mean - location) / scale) ** 2
    bend = -(nu + 1) * (nu - square) / (nu + square) ** 2 / scale**2  # second derivative of the log density
    density = _t_constant(nu) - np.log(scale) - (nu + 1) / 2 * np.log1p(square / nu)
    return float(sketch.count @ (density + 0.5 * bend * sketch.variance))


def normal_distance(sketch: Sketch) -> float:
    """Kolmogorov-Smirnov distance of the entries from the normal law of their mean and deviation, at the bin ends."""
    cumulative, expected = sketch.count.cumsum() / sketch.count.sum(), special.ndtr(sketch.upper)
    before = cumulative - np.where(sketch.count == 1, 1, 0) / sketch.count.sum()
    return float(max(np.abs(cumulative - expected).max(), np.abs(before - expected)[sketch.count == 1].max(initial=0)))


def expected_counts(entries: Entries) -> dict[str, np.ndarray]:
    """Law -> [bin] counts that each fitted law expects in the histogram's bins."""
    cumulative: dict[str, Callable[..., np.ndarray]] = {
        "normal": scipy.stats.norm.cdf,
        "laplace": scipy.stats.laplace.cdf,
        "t": scipy.stats.t.cdf,
    }
    counts: dict[str, np.ndarray] = {}
    for name, parameters in entries.laws.items():
        below = cumulative[name](HISTOGRAM_EDGES[1:-1], *parameters)
        counts[name] = entries.numbers["count"] * np.diff(np.concatenate([[0], below, [1]]))
    return counts


def normal_point(count: int) -> float:
    """What the distance of `count` normal numbers from the normal law of their own mean and deviation exceeds in 5 %.

    Lilliefors' test; the constants are those of Stephens, "EDF Statistics for Goodness of Fit", 1974, table 1A (.886 /
    sqrt(count) in Lilliefors 1967). Kolmogorov's 1.358 is for a law that is known beforehand.
    """
    root = np.sqrt(count)
    return float(0.895 / (root - 0.01 + 0.85 / root))


def samples_point(count: int, samples: int) -> float:
    """What the largest Kolmogorov-Smirnov distance between any two of so many samples of `count` exceeds in 5 %.

    Of large samples of one law; two samples have Kolmogorov's point.
    """
    return _bridges_point(samples) / float(np.sqrt(count))


@cache
def _bridges_point(bridges: int) -> float:
    """What the widest range, over time, of so many independent Brownian bridges exceeds in 5 %, simulated.

    Between the INSTANTS the range rises by .5826 standard deviations of a step more (Chernoff, "Sequential tests for
    the mean of a normal distribution IV", 1965); those of two bridges' difference are of sqrt(2 / INSTANTS).
    """
    if bridges < 3:
        return float(special.kolmogi(0.05) * np.sqrt(2))
    rng, widest = np.random.default_rng(0), []
    time = np.arange(1, INSTANTS + 1, dtype=np.float32) / INSTANTS
    for _ in range(DRAWN // 1024):
        walks = rng.standard_normal((1024, bridges, INSTANTS), dtype=np.float32).cumsum(-1) / np.float32(INSTANTS**0.5)
        widest.append(np.ptp(walks - walks[..., -1:] * time, axis=1).max(-1))
    return float(np.quantile(np.concatenate(widest), 0.95) + 0.5826 * np.sqrt(2 / INSTANTS))


def kurtosis_p_value(excess: float, count: int) -> float:
    """One-sided p-value that `count` normal numbers have so high an excess kurtosis (of the population formula).

    Anscombe and Glynn, "Distribution of the kurtosis statistic b2 for normal samples", 1983; 1 below 20 numbers.
    """
    n = float(count)
    if n < 20 or np.isnan(excess):
        return 1.0
    mean, variance = 3 * (n - 1) / (n + 1), 24 * n * (n - 2) * (n - 3) / ((n + 1) ** 2 * (n + 3) * (n + 5))
    skewness = 6 * (n**2 - 5 * n + 2) / ((n + 7) * (n + 9)) * np.sqrt(6 * (n + 3) * (n + 5) / (n * (n - 2) * (n - 3)))
    freedom = 6 + 8 / skewness * (2 / skewness + np.sqrt(1 + 4 / skewness**2))
    below = 1 + (excess + 3 - mean) / np.sqrt(variance) * np.sqrt(2 / (freedom - 4))
    z = (1 - 2 / (9 * freedom) - np.cbrt((1 - 2 / freedom) / below)) / np.sqrt(2 / (9 * freedom))
    return float(scipy.stats.norm.sf(z))


def window_side(shape: tuple[int, int], wanted: int) -> int:
    """Side of the square window: as wanted, but at most a quarter of the matrix's smaller side."""
    return max(1, min(wanted, min(shape) // 4))


def window_test(matrix: Float[np.ndarray, "row column"], window: int, mean: float, std: float) -> tuple[float, float]:
    """Variance of window means over what shuffled entries would give, and the p-value of a larger ratio.

    Windows do not overlap. With the entries shuffled, a window's mean is close to normal with a known variance (that of
    drawing without replacement), so the sum of squares is close to chi-squared.
    """
    rows, columns = (side // window for side in matrix.shape)
    size, n = window * window, matrix.size
    if not std or rows * columns < 2:
        return np.nan, np.nan
    cut = matrix[: rows * window, : columns * window].reshape(rows, window, columns, window)
    means = cut.mean((1, 3), dtype=np.float64)
    freedom = rows * columns * (n - size) / (n - 1)
    statistic = float((((means - mean) / std) ** 2).sum() * size)
    return statistic / freedom, float(scipy.stats.chi2.sf(statistic, freedom))


def moving_average(
    matrix: Float[np.ndarray, "row column"],
    window: int,
    most: int = 128,
    shuffle: np.random.Generator | None = None,
) -> tuple[np.ndarray, int]:
    """Means of square windows [window row, window column], at most `most` a side, and the step between windows.

    With `shuffle` of the same entries in random order; where windows leave rows out, of the rows that they see.
    """
    step = max(1, -(-max(side - window + 1 for side in matrix.shape) // most))
    upper, left = (np.arange(0, side - window + 1, step) for side in matrix.shape)
    if shuffle is not None:
        if step > window:
            matrix = np.concatenate([matrix[row : row + window] for row in upper])
            upper = window * np.arange(len(upper))
        matrix = shuffle.permutation(matrix.ravel()).reshape(matrix.shape)
    bands = np.stack([matrix[row : row + window].sum(0, dtype=np.float64) for row in upper])
    total = np.pad(bands.cumsum(1), ((0, 0), (1, 0)))
    image: np.ndarray = (total[:, left + window] - total[:, left]) / window**2
    return image, step


def outlier_coordinates(values: Float[np.ndarray, " coordinate"], beyond: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates more than `beyond` robust deviations (1.4826 MAD) from the median, furthest first; all deviations."""
    centred = values - np.median(values)
    spread = 1.4826 * np.median(np.abs(centred))
    deviation = np.divide(centred, spread, out=np.zeros_like(centred, dtype=float), where=spread > 0)
    order = np.argsort(-np.abs(deviation), kind="stable")
    return order[np.abs(deviation[order]) > beyond], deviation
