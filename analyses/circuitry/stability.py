"""Would the same search find the same circuit again: on other draws of the prompts, other prompts, other templates?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from analyses.shared.statistics import FEW

Choice = Callable[[Float[np.ndarray, " item"]], Bool[np.ndarray, " item"]]
"""From scores of edges (or nodes), means over texts, to a circuit: the search whose stability is asked for."""


@dataclass(frozen=True, eq=False)
class Stability:
    """How much of a circuit comes back."""

    found: Float[np.ndarray, " item"]
    """Share of the resamples of the prompts in which each edge (or node) was in the circuit."""
    table: pd.DataFrame
    """One row a comparison: what was changed, how many circuits were compared, the mean share of the circuit's edges
    that came back, and the share that would by chance."""

    @property
    def kept(self) -> float:
        """Share of the circuit's edges that come back when its prompts are drawn again."""
        return float(self.table["kept"].iloc[0])


def stability(
    scores: Float[np.ndarray, "text item"],
    choose: Choice,
    *,
    discovery: Int[np.ndarray, " chosen"],
    others: Mapping[str, Float[np.ndarray, "text item"]],
    clusters: Sequence[object] | None,
    resamples: int,
    seed: int,
) -> Stability:
    """The search of `choose` again on resamples of the discovery prompts (of whole templates where there are FEW), on
    each template alone, and on other prompts: what they are, and their scores."""
    circuit = choose(scores[discovery].mean(0))
    n = max(int(circuit.sum()), 1)
    draws = _draws(discovery, clusters, resamples, seed)
    again = np.stack([choose(scores[texts].mean(0)) for texts in draws])
    rows = [_row("prompts drawn again", circuit, again)]
    rows += [_row(name, circuit, choose(found.mean(0))[None]) for name, found in others.items() if len(found)]
    names = sorted({str(one) for one in clusters}) if clusters is not None else []
    if len(names) > 1:
        own = np.array([str(one) for one in clusters or ()])
        alone = np.stack([choose(scores[own == name].mean(0)) for name in names])
        rows.append(_row("one template alone", circuit, alone))
    frame = pd.DataFrame(rows)
    frame["by chance"] = n / scores.shape[1]
    return Stability(again.mean(0), frame)


def _draws(
    texts: Int[np.ndarray, " chosen"], clusters: Sequence[object] | None, n: int, seed: int
) -> list[Int[np.ndarray, " drawn"]]:
    """Texts drawn with replacement; whole templates where there are FEW or more among them."""
    rng = np.random.default_rng(seed)
    own = np.array([str(clusters[text]) for text in texts]) if clusters is not None else np.zeros(0)
    names = np.unique(own)
    if len(names) < FEW:
        return [rng.choice(texts, size=len(texts)) for _ in range(n)]
    return [np.concatenate([texts[own == name] for name in rng.choice(names, size=len(names))]) for _ in range(n)]


def _row(what: str, circuit: Bool[np.ndarray, " item"], others: Bool[np.ndarray, "other item"]) -> dict[str, object]:
    shared = (others & circuit).sum(1) / max(int(circuit.sum()), 1)
    either = (others | circuit).sum(1)
    return {
        "changed": what, "circuits": len(others), "kept": float(shared.mean()), "least": float(shared.min()),
        "overlap": float(np.mean((others & circuit).sum(1) / np.maximum(either, 1))),
    }  # fmt: skip
