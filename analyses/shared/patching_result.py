"""What results of patching share: the whole gap and shares of it, tested effects, largest first, words and findings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analyses.shared.axes import MOST, Axes, largest_first, said_tests
from analyses.shared.claims import FLOORS, SURE, clear_of_zero, largest_p_value, signed, testable
from analyses.shared.clean_corrupted import Direction, Measure, Pairs
from analyses.shared.components import Component
from analyses.shared.panels import Bars, Finding, Graph, Matrix, Note, Panel, Result, Table, Tokens
from analyses.shared.statistics import Interval, bootstrap, held_out, independent, methods


@dataclass(frozen=True, kw_only=True)
class Effects(Matrix):
    """Effects of patching. Those that name the same quantity show the same, measured or estimated."""

    quantity: tuple[str, ...]
    """What is patched, in which direction, what is measured, and of which pairs; () where nothing else shows that."""
    estimated: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Patching:
    """Parts of one run are patched into another, and change a metric of each text: what can be said of such effects."""

    pairs: Pairs
    measure: Measure
    """The metric, and its values on the two unpatched runs."""
    direction: Direction
    answers: Tokens
    wrongs: Tokens
    seed: int

    @property
    def base(self) -> np.ndarray:
        """[text] the metric of the run patched into."""
        return self.measure.clean if self.direction == "noise" else self.measure.corrupted

    @property
    def gap(self) -> float:
        """What patching everything would change, mean over texts."""
        change = float((self.measure.corrupted - self.measure.clean).mean())
        return change if self.direction == "noise" else -change

    def spread(self, effects: np.ndarray, chosen_of: int = 1) -> Interval:
        """Means over texts of effects [text ...]; `chosen_of` as in `bootstrap`."""
        return bootstrap(effects, clusters=self.pairs.clusters, chosen_of=chosen_of, seed=self.seed)

    def tested(self, effects: Axes, tested: bool | np.ndarray = True) -> pd.DataFrame:
        """One row an entry: mean effect over texts, share of the whole gap; with several texts interval, p and q."""
        frame = effects.summary("effect", tested=tested, clusters=self.pairs.clusters, seed=self.seed)
        frame.insert(list(frame).index("effect") + 1, "share", frame["effect"] / self.gap if self.gap else np.nan)
        return frame

    def largest_first(self, frame: pd.DataFrame, what: str, tokens: frozenset[str] = frozenset()) -> Table:
        """The table of `tested` effects of so many `what`, such as "paths"."""
        shown, cut = largest_first(frame, "effect", MOST)
        tests = said_tests(frame, len(self.pairs.rows), self.pairs.clusters, what)
        return Table(
            "table", f"Every {what.removesuffix('s')}, largest effect first",
            f"share: the effect over what patching everything would change.{tests}{cut}", frame=shown,
            units={"effect": self.measure.unit}, diverging=frozenset({"effect"}), tokens=tokens,
        )  # fmt: skip

    @property
    def pair(self) -> list[Panel]:
        """What all patching of these texts shares: the pair, the metric of both runs, how they were chosen."""
        return self.pairs.panels(self.measure, self.answers, self.wrongs, self.floor)

    def caption(self, condition: str, what: str = "Change") -> str:
        """What a number is, and in which direction."""
        runs = ("corrupted", "clean") if self.direction == "noise" else ("clean", "corrupted")
        metric = self.measure.title.partition(" (")[0]
        return f"{what} of the {metric} {condition} from the {runs[0]} run into the {runs[1]}."

    def effects_of(self, matrix: Matrix, quantity: str = "", *, estimated: bool = False) -> Effects:
        """The matrix as one of the family of all patching with this metric: on one scale, grey where it is small."""
        shown = vars(matrix) | {"family": f"patched, {self.measure.unit}", "floor": self.small}
        of = (self.direction, self.measure.metric, *self.answers, *self.wrongs, *self.pairs.changes)
        return Effects(**shown, quantity=(quantity, *of) if quantity else (), estimated=estimated)

    def shown(self, panel: Panel, quantity: str = "", *, estimated: bool = False) -> Panel:
        """A matrix as `effects_of` makes it; bars with a word where all are small, since their axis ends with them."""
        if isinstance(panel, Bars) and (np.abs(panel.values) <= self.small).all():
            return replace(panel, caption=f"{panel.caption} None is beyond {self.small:.2g}: too little to count.")
        return self.effects_of(panel, quantity, estimated=estimated) if isinstance(panel, Matrix) else panel

    @property
    def small(self) -> float:
        """Less than a tenth of the total effect, and than what is told; all of it where that is too small."""
        return self.floor if self.weak else min(self.floor, abs(self.gap) / 10)

    @property
    def floor(self) -> float:
        """Smallest total effect, or effect of one part, that is told."""
        return FLOORS.get(self.measure.unit, 1e-6)

    @property
    def weak(self) -> bool:
        """Whether both runs do all but the same, so that there is nothing to find."""
        return not abs(self.gap) >= self.floor

    @property
    def question(self) -> str:
        """What is measured on which pair, for a sentence to begin with."""
        return self.pairs.question(self.measure.metric, self.measure.title, self.answers, self.wrongs)

    @property
    def made_up(self) -> bool:
        """Whether the program chose the corruption itself: then little rests on what is found."""
        return "corruption" in self.pairs.own

    def amount(self, effect: float) -> str:
        """An effect of the whole, with the unit: "+1.2 of +3.7 logits"."""
        return f"{signed(effect)} of {signed(self.gap)} {self.measure.unit}"

    def nothing(self, key: str) -> Finding:
        """That the pair's total effect is too small for patching to show anything."""
        total = abs(self.gap)
        shown = f"{total:.2f}" if total >= 0.005 or not np.isfinite(total) else "less than 0.01"
        text = (
            f"{self.question}: the total effect, {shown} {self.measure.unit}, is below the floor of {self.floor:g}: "
            "patching shows nothing here."
        )
        return Finding(text, key, 0.2, total, self.measure.unit, kind="negative")

    def tells(self, effects: np.ndarray, chosen: tuple[int, ...]) -> tuple[bool, float | None]:
        """Whether the chosen one of effects [text ...] is told, and its p-value (None: too few texts for a test).

        It is at least the floor and a twentieth of the whole; where texts allow a test, p is at most .05 with the
        choice paid for, where there are several but too few, an interval that pays for it excludes zero.
        """
        effect, clusters = _of_texts(effects, chosen), self.pairs.clusters
        mean = abs(float(effect.mean()))
        if self.weak or not mean >= max(self.floor, abs(self.gap) / 20):
            return False, None
        if not testable(independent(len(effects), clusters)[0]):
            of = int((effects != 0).any(0).sum())
            return bool(clear_of_zero(effect, clusters=clusters, chosen_of=of)), None
        p = float(largest_p_value(effects, clusters=clusters, seed=self.seed)[chosen])
        return p <= SURE, p

    def null(self, p: float | None, of: int, what: str) -> str:
        """What an effect was compared with."""
        if p is None:
            return f"a floor of {self.floor:g} {self.measure.unit}"
        unit = independent(len(self.pairs.rows), self.pairs.clusters)[1]
        return f"flipped signs of {unit}" + f", the largest of {of} {what}" * (of > 1)

    def _too_few(self) -> str:
        n, unit = independent(len(self.pairs.rows), self.pairs.clusters)
        return f"; {n} {unit} are too few for a test" if len(self.pairs.rows) > 1 else ""

    def finding(
        self,
        said: str,
        key: str,
        effects: np.ndarray,
        chosen: tuple[int, ...],
        what: str,
        about: str,
        short: str,
        estimates: np.ndarray | None = None,
        among: np.ndarray | None = None,
    ) -> list[Finding]:
        """The chosen one of effects [text ...] (NaN where not measured), where it is told (see `tells`).

        `said` is the sentence after the question; {} in it, and in `short`, becomes the amount. `what` are all that
        it was chosen from, in the plural, such as "paths". Where it was chosen by estimates [text ...], these pass
        the test too, and p is theirs. `among` [...] are those that it was chosen from, where these are not all.
        """
        measured, effects = effects, np.nan_to_num(effects)
        told, p = self.tells(effects, chosen)
        every = effects if estimates is None else np.nan_to_num(estimates)
        if estimates is not None and told:
            told, p = self.tells(every, chosen)
        if not told:
            return []
        of = int((every != 0).any(0).sum())
        found = self.spread(_of_texts(effects, chosen), chosen_of=of)
        (low, high), effect = found.ends(), float(found.value)
        by = every if among is None else every * among
        held = held_out(measured, chosen, by=by, clusters=self.pairs.clusters, seed=self.seed)
        tested = f"; p = {p:.2g} as the largest of {of} {what}" if p is not None else self._too_few()
        return [
            Finding(
                f"{self.question}: {said.format(self.amount(effect))}{tested}.", key,
                (0.3 if self.made_up else 0.5) + 0.4 * min(abs(effect / self.gap), 1.0) * (not self.made_up),
                effect, self.measure.unit, low, high, null=self.null(p, of, what), p=p, held=held, about=about,
                short=short.format(self.amount(effect)),
            )
        ]  # fmt: skip

    def said_methods(self, tests: int, chosen_of: int, more: str = "") -> list[Note]:
        """How intervals and tests were made."""
        return methods(
            len(self.pairs.rows), clusters=self.pairs.clusters, seed=self.seed, test="sign flips", tests=tests,
            chosen_of=chosen_of, more=more,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchingResult(Patching, Result):
    """What patching in one direction did."""


def _of_texts(effects: np.ndarray, chosen: tuple[int, ...]) -> np.ndarray:
    """[text] one entry of effects [text ...]."""
    at: tuple[Any, ...] = (slice(None), *chosen)
    return np.asarray(effects[at])


def depth_of(part: Component) -> int:
    """Its place from left to right in a graph of the model."""
    return 0 if part.layer is None else 2 * part.layer + 1 + (part.kind == "mlp")


def layered_graph(
    title: str, caption: str, edges: Sequence[tuple[str, str, float]], depth: Mapping[str, int], unit: str
) -> Graph:
    """Edges by name, from left to right by depth; those between the same two are added up."""
    names = list(dict.fromkeys([start for start, _, _ in edges] + [end for _, end, _ in edges]))
    nodes = sorted(names, key=lambda name: depth[name])
    columns = sorted({depth[name] for name in names})
    weights: dict[tuple[int, int], float] = {}
    for start, end, weight in edges:
        ends = nodes.index(start), nodes.index(end)
        weights[ends] = weights.get(ends, 0.0) + weight
    return Graph(
        "graph", title, caption, nodes=tuple(nodes), columns=tuple(columns.index(depth[name]) for name in nodes),
        edges=tuple((start, end, weight) for (start, end), weight in weights.items()), unit=unit,
    )  # fmt: skip
