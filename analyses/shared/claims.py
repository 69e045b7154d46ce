"""What findings about the largest of many effects share: its chance, its floor, and how its number is written."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Real

from analyses.shared.statistics import bootstrap, cluster_sums, least_p_value, sign_patterns

SURE = 0.05
"""Chance, the choice among an analysis' candidates paid for, up to which that analysis tells an effect. A page, which
asks many of them, asks for more (`analyses.shared.findings`)."""
FLOORS = {"logits": 0.3, "nats": 0.1, "probability": 0.02, "rank": 1.0}
"""Unit -> the least effect on an answer that is told: less is of no consequence, and often rounding."""
LOSS_FLOOR = 0.01
"""Least change of a text's mean loss that is told, in nats a token."""
UNIFORM = 0.95
"""Share of the largest possible entropy from which on a prediction is taken as none."""


def largest_p_value(
    effects: Real[np.ndarray, "text *shape"], *, clusters: Sequence[object] | None = None, seed: int = 0
) -> np.ndarray:
    """p-values [...] that effects are symmetric about zero, the choice of the largest of them paid for.

    By flipping the signs of texts (whole clusters where given): how often the largest sum of all entries is as large as
    that of this one (Westfall and Young 1993, "Resampling-Based Multiple Testing"). Exact for at most FLIPS patterns.
    NaN counts as no effect. A single text has p = 1.
    """
    values = np.nan_to_num(np.asarray(effects, dtype=float))
    sums = cluster_sums(values, clusters)
    signs = sign_patterns(len(sums), seed=seed)
    observed = np.abs(sums.sum(0))
    largest = np.zeros(len(signs))
    for start in range(0, sums.shape[1], 256):
        largest = np.maximum(largest, np.abs(signs @ sums[:, start : start + 256]).max(1))
    ordered = np.sort(largest)
    below = np.searchsorted(ordered, observed * (1 - 1e-9))
    return np.asarray((1 - below / len(ordered)).reshape(values.shape[1:]))


def testable(n: int) -> bool:
    """Whether so many texts or templates can reach .05 at all by flipping signs."""
    return n > 1 and least_p_value(n) <= SURE


def clear_of_zero(
    effects: Real[np.ndarray, "text *shape"], *, clusters: Sequence[object] | None = None, chosen_of: int = 1
) -> np.ndarray:
    """Whether each mean [...] of texts too few for `largest_p_value` is told: the interval that pays for the choice
    excludes zero. A single text, or template, has no interval: there all texts have to agree about the sign."""
    effects = np.asarray(effects, dtype=float)
    found = bootstrap(effects, clusters=clusters, chosen_of=max(chosen_of, 2))
    if found.low is None or found.high is None:
        return np.asarray((np.sign(effects) == np.sign(effects[0])).all(0))
    return np.asarray((found.low > 0) | (found.high < 0))


def signed(number: float, form: str = "+.3g") -> str:
    """With its sign, a true minus."""
    return f"{number:{form}}".replace("-", "\N{MINUS SIGN}")
