"""Which findings a page may show, and which of them are about the same thing.

A finding about an effect has beaten a null within its own analysis. A page holds many analyses, so their chances are
corrected together here (Benjamini and Hochberg 1995): of the effects shown, at most one in twenty is expected to be
noise. What an analysis compares with a floor instead of testing passes as it is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from analyses.shared.panels import Finding
from analyses.shared.statistics import q_values

Q_VALUE = 0.05
"""Share of noise expected at most among the effects that a page shows."""

Found = tuple[Finding, str]
"""A finding, and the name of the analysis that made it."""


@dataclass(frozen=True)
class Card:
    """One subject of the summary: a finding, and what else was found about the same component."""

    first: Finding
    analysis: str
    others: tuple[Found, ...] = ()

    @property
    def text(self) -> str:
        """The sentence; of several findings about one component, their short forms behind its name."""
        if not self.others:
            return self.first.text
        said = [finding.short or finding.text.rstrip(".") for finding in (self.first, *(f for f, _ in self.others))]
        return f"{self.first.about}: {'; '.join(dict.fromkeys(said))}."


def established(found: Iterable[Found]) -> list[Found]:
    """What may be shown, the most notable first: effects whose q-value over all is at most `Q_VALUE`, and all else.

    Equal weights stay in the order given.
    """
    found = list(found)
    tested = [i for i, (finding, _) in enumerate(found) if finding.kind == "effect" and finding.p is not None]
    q = q_values(np.array([found[i][0].p for i in tested], dtype=float))
    noise = {i for i, value in zip(tested, q, strict=True) if not value <= Q_VALUE}
    return sorted((one for i, one in enumerate(found) if i not in noise), key=lambda one: -one[0].weight)


def cards(found: Iterable[Found]) -> list[Card]:
    """Findings merged by the component they are about, the most notable first."""
    groups: dict[str, list[Found]] = {}
    for i, (finding, name) in enumerate(established(found)):
        groups.setdefault(finding.about or f"#{i}", []).append((finding, name))
    return [_card(group) for group in groups.values()]


def _card(group: Sequence[Found]) -> Card:
    (first, name), *others = group
    return Card(first, name, tuple(others))
