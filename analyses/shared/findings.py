"""Which findings a page may show, and which of them say the same thing.

An effect has beaten a null within its own analysis at the level `SURE`, the choice among that analysis' candidates paid
for. A page asks many analyses, and hears only of those that found something, so their chances are corrected together
here (Benjamini and Hochberg 1995), the silent ones counted: of the effects shown, at most one in twenty is expected to
be noise, and a page about noise shows one in twenty times. What is compared with a floor instead passes as it is.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from analyses.shared.claims import SURE
from analyses.shared.panels import Finding
from analyses.shared.statistics import q_values

ASKED = 24
"""Tests of a page of several analyses: those that found nothing report no p-value, and count as p = 1."""
SUBJECTS = {
    ("head_roles", "induction"): "induction",
    ("attention_patterns", "after-same"): "induction",
    ("head_roles", "previous-token"): "previous token",
    ("attention_patterns", "previous"): "previous token",
    ("head_roles", "duplicate-token"): "duplicate token",
    ("attention_patterns", "same"): "duplicate token",
    ("head_roles", "first-token"): "first token",
    ("attention_patterns", "first"): "first token",
    ("head_roles", "copying"): "copying",
    ("head_circuits", "copying"): "copying",
    ("composition", "strongest"): "composition",
    ("ablation", "loss-zero-heads"): "heads taken out",
    ("ablation", "loss-zero-others"): "others taken out",
    ("logit_lens", "kl"): "how the prediction forms",
    ("logit_lens", "settled"): "how the prediction forms",
    ("logit_lens", "probability"): "how the prediction forms",
    ("attribution_patching", "edges"): "straight to the logits",
    ("path_patching", "to-logits-heads"): "straight to the logits",
}
"""Analysis and key of findings that say the same of whichever components they name -> what they say. Those with one
subject share a card; a finding that is not listed is a subject of its own."""

Found = tuple[Finding, str]
"""A finding, and the name of the analysis that made it."""


@dataclass(frozen=True)
class Card:
    """One subject of the summary: a finding, and what else was found about the same component or subject."""

    first: Finding
    analysis: str
    others: tuple[Found, ...] = ()

    @property
    def text(self) -> str:
        """The sentence; of several findings their short forms behind the name of the first's component, with those of
        other components behind theirs."""
        if not self.others:
            return self.first.text
        name = self.first.about
        said = [_short(finding, name) for finding in (self.first, *(f for f, _ in self.others))]
        return f"{name}: " * bool(name) + f"{'; '.join(dict.fromkeys(said))}."


def _short(finding: Finding, told: str) -> str:
    """What is said behind the name that was told."""
    short = finding.short or finding.text.rstrip(".")
    return f"{finding.about}: {short}" if finding.short and finding.about not in ("", told) else short


def established(found: Iterable[Found]) -> list[Found]:
    """What may be shown, the most notable first: effects whose q-value over all tests of a page is at most `SURE`, and
    all else.

    Equal weights stay in the order given.
    """
    found = list(found)
    tested = [i for i, (finding, _) in enumerate(found) if finding.kind == "effect" and finding.p is not None]
    silent = [1.0] * (ASKED - len(tested)) if len({name for _, name in found}) > 1 else []
    q = q_values(np.array([*(found[i][0].p for i in tested), *silent], dtype=float))[: len(tested)]
    noise = {i for i, value in zip(tested, q, strict=True) if not value <= SURE}
    return sorted((one for i, one in enumerate(found) if i not in noise), key=lambda one: -one[0].weight)


def cards(found: Iterable[Found]) -> list[Card]:
    """Findings merged by their subject or else by the component they are about, the most notable first."""
    groups: list[list[Found]] = []
    for finding, name in established(found):
        subject = SUBJECTS.get((name, finding.key), "")
        same = [group for group in groups if subject and subject == SUBJECTS.get((group[0][1], group[0][0].key))]
        same += [group for group in groups if finding.about and finding.about == group[0][0].about]
        if same:
            same[0].append((finding, name))
        else:
            groups.append([(finding, name)])
    return [Card(*first, tuple(others)) for first, *others in groups]
