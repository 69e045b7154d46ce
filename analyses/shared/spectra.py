"""A matrix's singular values beside those of a random one: ranks, the Marchenko-Pastur law, the edge, its chance."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import numpy as np
import scipy
import torch
from jaxtyping import Float
from scipy import special

TRACY_WIDOM_99 = 2.0234
"""99 % point of the Tracy-Widom law of order one."""
SHUFFLES = 4
"""Times that a matrix's entries are shuffled for its edge, where that is needed."""

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def singular_values(matrix: Float[np.ndarray, "row column"]) -> Float[np.ndarray, " rank"]:
    """Singular values, largest first, from the smaller Gram matrix in float64.

    Their squares are exact within about 1e-15 of the largest square: below 1e-7 of the largest value they are noise.
    """
    tall = torch.from_numpy(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T)
    gram = torch.zeros((tall.shape[1],) * 2, dtype=torch.float64)
    for part in tall.split(8192):
        exact = part.double()
        for end in range(256, tall.shape[1] + 256, 256):  # the lower triangle is all that is read
            gram[end - 256 : end, :end].addmm_(exact[:, end - 256 : end].T, exact[:, :end])
    values: np.ndarray = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt().numpy()
    return values


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: hundreds of small decompositions lose more by waiting for each other than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(work: Callable[[Item], Outcome], items: Sequence[Item], size: Callable[[Item], int]) -> list[Outcome]:
    """The outcomes in order, of work that ran on as many threads as torch may use, the largest items first."""
    workers = min(torch.get_num_threads(), 8)  # each holds a few copies of a matrix
    order = sorted(range(len(items)), key=lambda i: -size(items[i]))
    with one_thread(), ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = {i: pool.submit(work, items[i]) for i in order}
        return [running[i].result() for i in range(len(items))]


def spectrum_numbers(
    singular: Float[np.ndarray, " rank"], shape: tuple[int, int], std: float, edge: float | None = None
) -> dict[str, float]:
    """Stable rank, effective rank and the comparison with a random matrix of the same shape and standard deviation.

    Stable rank: sum of squares over the largest square. Effective rank: exponential of the entropy of the normalised
    singular values (Roy and Vetterli, "The effective rank", 2007). `above_random`: singular values that exceed `edge`,
    by default what the largest of a random matrix stays below in 99 of 100 cases; `edge_ratio`: the largest over that
    bound; `energy_above`: their share of the sum of squares; `mp_distance`: Kolmogorov-Smirnov distance from the
    Marchenko-Pastur law.
    """
    squares = singular**2
    if not squares.sum():
        return dict.fromkeys(("stable_rank", "effective_rank"), 0.0) | dict.fromkeys(
            ("norm", "edge_ratio", "above_random", "energy_above", "mp_distance"), np.nan
        )
    share = singular / singular.sum()
    edge = random_edge(shape, std) if edge is None else edge
    above = singular > edge
    return {
        "norm": float(singular[0]),
        "stable_rank": float(squares.sum() / squares[0]),
        "effective_rank": float(np.exp(special.entr(share).sum())),
        "edge_ratio": float(singular[0] / edge) if edge else np.inf,
        "above_random": float(above.sum()),
        "energy_above": float(squares[above].sum() / squares.sum()),
        "mp_distance": marchenko_pastur_distance(squares, shape, std),
    }


def random_edge(shape: tuple[int, int], std: float) -> float:
    """What the largest singular value of a random matrix stays below in 99 % of cases.

    For independent entries with mean zero and light tails: the Tracy-Widom limit of Johnstone, "On the distribution of
    the largest eigenvalue in principal components analysis", 2001, with Ma's (2012) shift of one half, sharper for
    small matrices.
    """
    a, b = (np.sqrt(side - 0.5) for side in shape)
    centre, spread = (a + b) ** 2, (a + b) * (1 / a + 1 / b) ** (1 / 3)
    return float(std * np.sqrt(centre + TRACY_WIDOM_99 * spread))


def edge_p_value(shape: tuple[int, int], ratio: float) -> float:
    """Chance that a random matrix's largest singular value is this many times `random_edge`.

    The Tracy-Widom law by the shifted gamma law of Chiani, "Distribution of the largest eigenvalue for real Wishart and
    Gaussian random matrices", 2014: its tail is right within a few per cent of the chance. NaN for a ratio of NaN.
    """
    a, b = (np.sqrt(side - 0.5) for side in shape)
    centre, spread = (a + b) ** 2, (a + b) * (1 / a + 1 / b) ** (1 / 3)
    point = (ratio**2 * (centre + TRACY_WIDOM_99 * spread) - centre) / spread
    return float(scipy.stats.gamma.sf(point + 9.84801, 46.4446, scale=0.186054))


def tails_matter(shape: tuple[int, int], kurtosis: float, largest: float) -> bool:
    """Whether entries so heavy-tailed could alone move the largest singular value beyond the edge for light tails.

    A row (or column) stands out of the spectrum when its squared length exceeds the usual one by more than
    sqrt(rows x columns) variances (Benaych-Georges and Nadakuditi, "The singular values and vectors of low rank
    perturbations of large rectangular random matrices", 2012). Asked is whether the longest of independent entries may
    come half as far; `largest` is the largest entry in standard deviations.
    """
    reach = [
        np.sqrt((kurtosis + 2) * length * 2 * np.log(max(count, 2))) + largest**2
        for count, length in (shape, shape[::-1])
    ]
    return bool(max(reach) > 0.5 * np.sqrt(shape[0] * shape[1]))


def shuffled_edge(matrix: Float[np.ndarray, "row column"]) -> float:
    """What the largest singular value of the same entries in random order stays below in 99 % of cases.

    The mean of SHUFFLES shuffles and, of their spread, Student's 99 % point for one more.
    """
    rng, flat = np.random.default_rng(0), matrix.ravel()
    tops = [singular_values(rng.permutation(flat).reshape(matrix.shape))[0] for _ in range(SHUFFLES)]
    beyond = scipy.stats.t.ppf(0.99, SHUFFLES - 1) * np.sqrt(1 + 1 / SHUFFLES)
    return float(np.mean(tops) + beyond * np.std(tops, ddof=1))


def edge_of(matrix: Float[np.ndarray, "row column"], top: float, numbers: dict[str, float]) -> float:
    """The edge that the largest singular value `top` is held against; `numbers` are those of `describe`.

    That of light tails; where the tails are heavy enough to matter, and `top` exceeds it, the entries' own, shuffled.
    """
    rows, columns = matrix.shape
    edge, std = random_edge((rows, columns), numbers["std"]), numbers["std"]
    largest = max(abs(numbers["min"]), abs(numbers["max"])) / std if std else 0.0
    if top <= edge or not tails_matter((rows, columns), numbers["kurtosis"], largest):
        return edge
    return max(edge, shuffled_edge(matrix))


def marchenko_pastur_distance(squares: Float[np.ndarray, " rank"], shape: tuple[int, int], std: float) -> float:
    """Largest gap between the cumulative spectrum and the Marchenko-Pastur law: 0 random, 1 nothing alike."""
    if not std:
        return 1.0
    large, small = max(shape), min(shape)
    expected = np.interp(np.sort(squares) / (large * std**2), *_marchenko_pastur(small / large))
    steps = np.arange(small + 1) / small
    return float(max(np.abs(steps[1:] - expected).max(), np.abs(steps[:-1] - expected).max()))


@cache
def _marchenko_pastur(ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Squared singular values, over rows times variance, and the share of the law below each."""
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    angle = np.linspace(0, np.pi, 4001)
    x = (low + high) / 2 - (high - low) / 2 * np.cos(angle)  # the density's roots vanish with the sine
    density = ((high - low) / 2 * np.sin(angle)) ** 2 / (2 * np.pi * ratio * np.maximum(x, 1e-300))
    if low < 1e-12:  # square: the limit at zero
        density[0] = density[1]
    cumulative = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(angle))])
    return x, cumulative / cumulative[-1]
