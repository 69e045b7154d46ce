"""Finite Markov chains: closed classes, periods, stationary distributions, entropy rate and mixing time.

A chain is its transition matrix [state state]: entry (i, j) is the probability of going from i to j; rows sum to one.
Notation and definitions follow Levin, Peres and Wilmer, "Markov chains and mixing times" (2nd edition, 2017).
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.sparse.csgraph import breadth_first_order, connected_components

MIXED = 0.25
"""Distance from the stationary distribution at which a chain counts as mixed, by convention (their equation 4.31)."""


def closed_classes(matrix: Float[np.ndarray, "state state"]) -> list[np.ndarray]:
    """Sets of states that reach each other and nothing else, as ascending indices; every chain has at least one."""
    count, labels = connected_components((matrix > 0).astype(int), directed=True, connection="strong")
    classes = [np.flatnonzero(labels == label) for label in range(count)]
    return [members for members in classes if not np.delete(matrix[members], members, axis=1).any()]


def period(matrix: Float[np.ndarray, "state state"]) -> int:
    """The period of an irreducible chain: the greatest common divisor of the lengths of its cycles; 1 is aperiodic."""
    order, before = breadth_first_order((matrix > 0).astype(int), 0, directed=True)
    level = np.zeros(len(matrix), dtype=int)
    for state in order[1:]:
        level[state] = level[before[state]] + 1
    start, stop = np.nonzero(matrix)
    return int(np.gcd.reduce(np.abs(level[start] + 1 - level[stop]), initial=0)) or 1


def stationary(matrix: Float[np.ndarray, "state state"]) -> Float[np.ndarray, " state"]:
    """The one distribution that an irreducible chain leaves as it is.

    Elimination without subtractions (Grassmann, Taksar and Heyman 1985): even very small entries come out accurate.
    """
    left = np.array(matrix, dtype=float)
    for last in range(len(left) - 1, 0, -1):
        left[:last, last] /= left[last, :last].sum()
        left[:last, :last] += np.outer(left[:last, last], left[last, :last])
    weights = np.zeros(len(left))
    weights[0] = 1.0
    for state in range(1, len(left)):
        weights[state] = weights[:state] @ left[:state, state]
    return np.asarray(weights / weights.sum())


def entropy_bits(probabilities: Float[np.ndarray, "*rows outcome"]) -> Float[np.ndarray, "*rows"]:
    """Entropy of each row in bits."""
    p = np.asarray(probabilities, dtype=float)
    return np.asarray(-np.sum(p * np.log2(p, out=np.zeros_like(p), where=p > 0), axis=-1))


def distance(power: Float[np.ndarray, "state state"], goal: Float[np.ndarray, " state"]) -> float:
    """How far the worst starting state still is from `goal`: half the sum of absolute differences, 0 to 1."""
    return float(np.abs(power - goal).sum(1).max() / 2)


def mixing_time(
    matrix: Float[np.ndarray, "state state"], goal: Float[np.ndarray, " state"], *, limit: int = 2**20
) -> int | None:
    """The first step after which every starting state is within MIXED of `goal`; None if that is beyond `limit`.

    The distance never grows with time, so doubling the step and then halving the gap finds the first.
    """
    powers, reached = [np.asarray(matrix, dtype=float)], 1
    if distance(np.eye(len(matrix)), goal) <= MIXED:
        return 0
    while distance(powers[-1], goal) > MIXED:
        if 2 * reached > limit:
            return None
        powers.append(powers[-1] @ powers[-1])
        reached *= 2
    if reached == 1:
        return 1
    here, steps = powers[-2], reached // 2  # not mixed yet
    for exponent in range(len(powers) - 3, -1, -1):
        ahead = here @ powers[exponent]
        if distance(ahead, goal) > MIXED:
            here, steps = ahead, steps + 2**exponent
    return steps + 1


def distances(
    matrix: Float[np.ndarray, "state state"], goal: Float[np.ndarray, " state"], times: Sequence[int]
) -> Float[np.ndarray, " time"]:
    """The distance of the worst starting state from `goal` after each of the ascending `times`."""
    found, here, now = [], np.eye(len(matrix)), 0
    for time in times:
        here = here @ np.linalg.matrix_power(matrix, time - now)
        found.append(distance(here, goal))
        now = time
    return np.array(found)


def second_eigenvalue(matrix: Float[np.ndarray, "state state"]) -> float:
    """The second largest absolute value among the eigenvalues: the factor by which the slowest part fades each step."""
    if len(matrix) < 2:
        return 0.0
    return float(np.sort(np.abs(np.linalg.eigvals(matrix)))[-2])


def state_bits(d_vocab: int, context: int) -> float:
    """Bits needed to name one state of a model that reads `context` tokens of a vocabulary."""
    return context * math.log2(d_vocab)
