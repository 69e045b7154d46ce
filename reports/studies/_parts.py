"""What a study is made of: runs, items and claims, and how a claim gets its verdict.

A study is data. `runs` names the analyses it needs and how to call them; an item of the article says which panels of
which runs to show, with which words, and which claims to check. A claim's number is a pure function of the runs'
results and its verdict a pure function of that number, so a test can plant a violation and see the verdict change.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from analyses.shared.panels import Panel, Result, Tokens
from reports.numbers import brief

if TYPE_CHECKING:
    from interp.models.gpt import HookedGPT

Verdict = Literal["holds", "holds only if", "does not hold", "not measured"]
Results: TypeAlias = Mapping[str, Any]
"""Name of a run -> its result."""
Show: TypeAlias = str | Panel | Callable[[Results], Panel]
"""A panel of a run as "run.panel-key", a panel, or a function of the results that makes one."""


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, both included."""

    low: float = -math.inf
    high: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if self.low == self.high:
            return short(self.low)
        if math.isinf(self.low):
            return f"at most {short(self.high)}"
        return f"at least {short(self.low)}" if math.isinf(self.high) else f"{short(self.low)} to {short(self.high)}"


def short(value: float) -> str:
    """A number in a sentence: whole numbers in full, others to three digits."""
    if math.isfinite(value) and value == round(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return re.sub(r"\.0+e", "e", brief(value))


def exactly(value: float) -> Range:
    return Range(value, value)


def at_most(value: float) -> Range:
    return Range(high=value)


def at_least(value: float) -> Range:
    return Range(low=value)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something the article says, and the measurement that decides whether it is so."""

    text: str
    """The claim in plain words, a sentence."""
    value: Callable[[Results], float]
    """The measurement: a pure function of the results. NaN: it could not be measured."""
    measured: str
    """What the number is: "largest distance of a row's sum from one"."""
    holds: Range
    """The numbers for which the claim holds."""
    corrected: Range | None = None
    """Further numbers, of which `correction` speaks."""
    then: Verdict = "holds only if"
    """The verdict on those numbers: with a condition, or "does not hold"."""
    correction: str = ""
    """The condition, as it goes on after "holds only if"; or, kindly, how it is instead, a sentence."""

    def verdict(self, value: float) -> Verdict:
        """What a measured number says about the claim. An infinite one never holds, nor does NaN."""
        if math.isnan(value):
            return "not measured"
        if math.isinf(value):
            return "does not hold"
        if value in self.holds:
            return "holds"
        return self.then if self.corrected is not None and value in self.corrected else "does not hold"


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A claim with its number and verdict."""

    claim: Claim
    value: float

    @property
    def verdict(self) -> Verdict:
        return self.claim.verdict(self.value)

    @property
    def sentence(self) -> str:
        """The verdict, with its condition or with how it is instead."""
        return f"{self.verdict}{' ' if self.verdict == 'holds only if' else ': '}{self.correction}".rstrip(": ")

    @property
    def correction(self) -> str:
        """What is said beside the verdict; "" where the claim simply holds, or where nothing is known of the number."""
        claim, value = self.claim, self.value
        spoken = claim.corrected is not None and value in claim.corrected and value not in claim.holds
        return claim.correction if spoken and math.isfinite(value) else ""


def counted(checked: Iterable[Checked]) -> str:
    """How many claims got which verdict: "17 of 21 claims hold, 2 hold only if, 2 do not"."""
    count = Counter(c.verdict for c in checked)
    words: dict[Verdict, tuple[str, str]] = {
        "holds only if": ("holds only if", "hold only if"),
        "does not hold": ("does not", "do not"),
        "not measured": ("is not measured", "are not measured"),
    }
    rest = [f"{count[said]} {one if count[said] == 1 else many}" for said, (one, many) in words.items() if count[said]]
    total = count.total()
    first = f"{count['holds']} of {total} claim{'s' * (total != 1)} {'holds' if count['holds'] == 1 else 'hold'}"
    return ", ".join([first, *rest])


@dataclass(frozen=True, kw_only=True)
class Item:
    """One item of the article."""

    address: str
    """Its name in the list of requirements and on the page: S0.1."""
    title: str
    words: str
    """What the article shows and what to look at; blank lines part paragraphs. The first is set larger."""
    shows: tuple[Show, ...] = ()
    claims: tuple[Claim, ...] = ()
    differs: str = ""
    """What is not as in the article here, and why."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """All of one article."""

    title: str
    model: "HookedGPT"
    """For the provenance; a model on the meta device where only shapes are shown."""
    runs: Mapping[str, Callable[[], Result]]
    """Name -> the analysis, called when an item first needs it."""
    items: tuple[Item, ...]
    after: str = ""
    """Whose article it follows: title, author, year; "" where that is not known."""
    texts: tuple[Tokens, ...] = ()
    """Shown at the top of the page."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further provenance."""
