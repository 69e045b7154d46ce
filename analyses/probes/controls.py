"""What a probe's accuracy has to be compared with: the majority, the token alone, random and shuffled labels."""

import numpy as np

from analyses.probes.moments import Array
from analyses.probes.passes import Scores, score

BLOCKS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of the training texts after which the online code, and the learning curve, fit the probe again."""


DRAWS = 8
"""Control tasks, each with labels of its own: one draw's accuracy can be off by several percent."""
DRAWN = tuple(f"control {number}" for number in range(DRAWS))
"""Their names."""


def control_labels(codes: Array, token: Array, train: Array, n_classes: int, seed: int, draw: int = 0) -> Array:
    """[row] a random class for every token type, drawn as the classes are distributed in training (-1 stays -1).

    Hewitt and Liang 2019, "Designing and Interpreting Probes with Control Tasks": only a probe that memorises can learn
    them, so the accuracy it reaches on them tells how much of its accuracy memory could explain. `draw` numbers the
    tasks.
    """
    share = np.bincount(codes[train], minlength=n_classes) / max(len(train), 1)
    types, place = np.unique(token, return_inverse=True)
    rng = np.random.default_rng([seed, 1, draw] if draw else [seed, 1])
    drawn = rng.choice(n_classes, size=len(types), p=share).astype(np.int32)
    return np.where(codes >= 0, drawn[place], -1)


def shuffled_labels(codes: Array, rows: Array, seed: int) -> Array:
    """[row] the labels of the chosen rows, dealt out anew among them."""
    found = codes.copy()
    found[rows] = np.random.default_rng([seed, 2]).permutation(codes[rows])
    return found


def majority(codes: Array, texts: Array, train: Array, test: Array, n_classes: int) -> Scores:
    """Scores on the test rows of always answering with the classes' shares in training."""
    share = np.bincount(codes[train], minlength=n_classes) / len(train)
    return score(np.tile(share, (len(test), 1)), codes[test], texts[test], int(texts.max()) + 1)


def token_identity(codes: Array, token: Array, texts: Array, train: Array, test: Array, n_classes: int) -> Scores:
    """Scores of the classes' shares for the same token in training, with one row's worth of the overall shares."""
    size = int(token.max()) + 1
    share = np.bincount(codes[train], minlength=n_classes) / len(train)
    flat = np.bincount(token[train] * n_classes + codes[train], minlength=size * n_classes)
    counts = flat.reshape(size, n_classes) + share
    table = counts / counts.sum(1, keepdims=True)
    return score(table[token[test]], codes[test], texts[test], int(texts.max()) + 1)


def blocks(texts: Array, rows: Array, seed: int) -> list[Array]:
    """The rows in blocks of whole texts, in a random order of texts, that end at the shares of BLOCKS."""
    names, place, sizes = np.unique(texts[rows], return_inverse=True, return_counts=True)
    order = np.random.default_rng([seed, 3]).permutation(len(names))
    filled = np.cumsum(sizes[order]) - sizes[order] / 2
    block = np.empty(len(names), dtype=int)
    block[order] = np.searchsorted(np.array(BLOCKS[:-1]) * len(rows), filled, side="right")
    return [rows[block[place] == number] for number in range(len(BLOCKS)) if (block == number).any()]
