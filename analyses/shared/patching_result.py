"""What results of patching share: the whole gap and shares of it, tested effects, largest first, words and findings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.shared.axes import MOST, Axes, largest_first, said_tests
from analyses.shared.clean_corrupted import Direction, Measure, Pairs, notable
from analyses.shared.components import Component
from analyses.shared.panels import Finding, Graph, Note, Result, Table, Tokens
from analyses.shared.statistics import Interval, bootstrap, independent, methods, said_clear


@dataclass(frozen=True, kw_only=True, eq=False)
class Patching:
    """Parts of one run are patched into another, and change a metric of each text: what can be said of such effects."""

    pairs: Pairs
    measure: Measure
    """The metric, and its values on the two unpatched runs."""
    direction: Direction
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

    def caption(self, condition: str, what: str = "Change") -> str:
        """What a number is, in which direction, what patching everything would do, and how many pairs there are."""
        runs = ("corrupted", "clean") if self.direction == "noise" else ("clean", "corrupted")
        return (
            f"{what} of the {self.measure.title} {condition} from the {runs[0]} run into the {runs[1]}; patching "
            f"everything would change it by {self.gap:+.3g}. {self.pairs.said()}"
        )

    def share(self, effect: float) -> str:
        """An effect as a share of the whole gap, to be put after it; empty where there is no gap."""
        if abs(self.gap) <= 1e-6:
            return ""
        return f", {100 * effect / self.gap:z.0f} % of what patching everything does ({self.gap:+.3g})"

    def finding(
        self, start: str, key: str, effects: np.ndarray, rows: pd.DataFrame, best: int, what: str, of: int | None = None
    ) -> Finding:
        """The effect [text] that was chosen, as row `best`, from `tested` rows.

        `start` is the sentence up to "changes the ...", `what` what was tested, such as "paths", and `of` how many of
        them; by default all rows.
        """
        of = len(rows) if of is None else of
        found = self.spread(effects, chosen_of=of)
        (low, high), effect, q = found.ends(), float(found.value), rows.get("q")
        known = said_clear([] if q is None else q, *independent(len(self.pairs.rows), self.pairs.clusters))
        told = "" if q is None else f"; {of} {what} were tested: {known}"
        return Finding(
            f"{start} changes the {self.measure.title} by {effect:+.3g}{self.share(effect)}{told}.",
            key, self.weight(effect, low, high, None if q is None else float(q.iloc[best])), effect, self.measure.unit,
            low, high,
        )  # fmt: skip

    def weight(self, effect: float, low: float | None, high: float | None, q: float | None) -> float:
        """Of a finding: `notable` for its share of the whole gap."""
        return notable(effect / self.gap if abs(self.gap) > 1e-6 else 0.0, low, high, q)

    def said_methods(self, tests: int, chosen_of: int, more: str = "") -> list[Note]:
        """How intervals and tests were made."""
        return methods(
            len(self.pairs.rows), clusters=self.pairs.clusters, seed=self.seed, test="sign flips", tests=tests,
            chosen_of=chosen_of, more=more,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchingResult(Patching, Result):
    """What patching in one direction did."""

    answers: Tokens
    wrongs: Tokens

    def choices(self, notes: Sequence[str] = ()) -> Note:
        """How texts and answers were chosen, and `notes` on the rest."""
        return self.pairs.choices(self.measure, self.answers, self.wrongs, notes)


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
