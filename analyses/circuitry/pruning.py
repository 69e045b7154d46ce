"""Pruning by true effects, from the logits down, in the manner of ACDC (Conmy et al. 2023).

ACDC takes receivers from the last to the first and drops each edge whose loss changes the metric by less than a
threshold, one after the other. Here the edges into one receiver are measured together, each lost alone; then they are
dropped from the smallest effect up, until one changes the metric by the threshold. So the order in which edges happen
to be numbered decides nothing, and what is before the receiver, still whole, is never computed again.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from analyses.circuitry.faithfulness import Runs


def prune(
    runs: Runs, threshold: float, texts: Int[np.ndarray, " chosen"]
) -> tuple[Bool[np.ndarray, " edge"], Float[np.ndarray, " edge"]]:
    """The circuit that is left, and what the metric (mean over the texts) loses without each edge when it was tried."""
    wiring = runs.wiring
    circuit, losses = np.ones(len(wiring), dtype=bool), np.full(len(wiring), np.nan)
    for receiver in reversed(range(len(wiring.receivers))):
        into = np.flatnonzero(wiring.targets == receiver)
        heard = wiring.feeds[receiver]
        if receiver < len(wiring.receivers) - 1 and not circuit[np.isin(wiring.senders, np.flatnonzero(heard))].any():
            circuit[into] = False  # nobody hears what it feeds
            continue
        layer = wiring.receivers[receiver].layer
        runs.planned(2 * len(into) + 1)
        alone = [_without(circuit, [edge]) for edge in into]
        values = runs.values([circuit, *alone], first=layer)[:, texts].mean(1)
        losses[into] = values[0] - values[1:]
        order = into[np.argsort(np.abs(losses[into]), kind="stable")]
        prefixes = [_without(circuit, order[: n + 1]) for n in range(len(order))]
        after = values[0] - runs.values(prefixes, first=layer)[:, texts].mean(1)
        steps = np.abs(np.diff(np.concatenate([[0.0], after])))
        dropped = int(np.argmax(steps >= threshold)) if (steps >= threshold).any() else len(order)
        circuit[order[:dropped]] = False
    return wiring.pruned(circuit), losses


def _without(circuit: Bool[np.ndarray, " edge"], edges: object) -> Bool[np.ndarray, " edge"]:
    out = circuit.copy()
    out[np.asarray(edges)] = False
    return out
