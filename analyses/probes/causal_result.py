"""What erasing a concept and steering along it did."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analyses.probes.layers import short
from analyses.probes.moments import Array
from analyses.shared.panels import Bars, Finding, Lines, Panel, Result, Table
from analyses.shared.statistics import Interval, bootstrap, methods

CONTROLS = ("random erased", "random with as much variance erased")


@dataclass(frozen=True, kw_only=True)
class CausalResult(Result):
    """Measured on held-out texts; [text] arrays are NaN for the others."""

    label: str
    classes: tuple[str, ...]
    kind: str
    name: str
    """Hook point of the erasure and the steering."""
    later: tuple[str, ...]
    """[layer] that hook point and those after it."""
    rank: int
    """Directions that the eraser removes."""
    removed: float
    """Share of the variance at that hook point that erasing takes out."""
    removed_random: Array
    """[control draw] the same for the random controls: drawn evenly, and with as much variance as the concept."""
    rows: Array
    """[text] labelled rows."""
    before: Array
    """[layer text] accuracy of probes."""
    after: Array
    """[layer text] accuracy of probes fitted anew after the erasure."""
    majority: Array
    """[text]"""
    positions: Array
    """[text] positions with a next token."""
    loss: Array
    """[text] the model's own, nats a token."""
    loss_erased: Array
    loss_random: Array
    """[control draw text]"""
    scales: Array
    """[scale] multiples of the distance between the class means."""
    towards: str
    length: float
    """Of the steering vector at scale 1."""
    favoured: str
    """Which next tokens the concept speaks for; empty when that is not known."""
    share: Array
    """[text] their probability in the run as it is."""
    share_steered: Array
    """[scale text]"""
    share_random: Array
    """[scale draw text]"""
    kl_steered: Array
    """[scale text] KL(as it is || steered), nats."""
    kl_random: Array
    """[scale draw text]"""
    loss_steered: Array
    """[scale text] nats a token."""
    loss_steered_random: Array
    """[scale draw text]"""
    seed: int

    def mean(self, values: Array, *, by_rows: bool = False) -> Interval:
        """Over texts [text *shape], weighted by labelled rows or by positions."""
        return bootstrap(values, weights=self.rows if by_rows else self.positions, seed=self.seed)

    def accuracy(self, values: Array) -> Interval:
        """Of accuracies [text *shape], weighted by labelled rows."""
        return bootstrap(values, weights=self.rows, share=True, seed=self.seed)

    @property
    def cost(self) -> Interval:
        """What erasing costs the model's predictions, nats a token."""
        return self.mean(self.loss_erased - self.loss)

    @property
    def cost_random(self) -> Interval:
        """[control] the same for random erasures, the mean over draws."""
        return self.mean((self.loss_random - self.loss).mean(1).T)

    @property
    def cost_beyond(self) -> Interval:
        """[control] how much more the concept costs than random directions, paired by text."""
        return self.mean((self.loss_erased - self.loss_random.mean(1)).T)

    @property
    def above_majority(self) -> Interval:
        """[layer] accuracy after the erasure less the majority's."""
        return self.mean((self.after - self.majority).T, by_rows=True)

    def to_dataframe(self) -> pd.DataFrame:
        """Columns kind (probe, loss, steering), place, condition, value, low, high, unit."""
        rows: list[tuple[Any, ...]] = []

        def add(kind: str, place: str, condition: str, found: Interval, unit: str) -> None:
            rows.append((kind, place, condition, float(found.value), *found.ends(), unit))

        add("probe", "", "majority class", self.accuracy(self.majority), "accuracy")
        for layer, name in enumerate(self.later):
            add("probe", name, "as it is", self.accuracy(self.before[layer]), "accuracy")
            add("probe", name, "erased", self.accuracy(self.after[layer]), "accuracy")
        add("loss", self.name, "as it is", self.mean(self.loss), "nats")
        add("loss", self.name, "change: concept erased", self.cost, "nats")
        for control, condition in enumerate(CONTROLS):
            found = self.mean((self.loss_random[control] - self.loss).mean(0))
            add("loss", self.name, f"change: {condition}", found, "nats")
        for place, scale in enumerate(self.scales):
            for condition, share, kl, loss in (
                ("concept", self.share_steered[place], self.kl_steered[place], self.loss_steered[place]),
                (
                    "random",
                    self.share_random[place].mean(0),
                    self.kl_random[place].mean(0),
                    self.loss_steered_random[place].mean(0),
                ),
            ):
                where = f"{condition} x {scale:+g}"
                add("steering", self.name, where, self.mean(kl), "KL, nats")
                add("steering", self.name, where, self.mean(loss - self.loss), "change of loss, nats")
                if self.favoured:
                    add("steering", self.name, where, self.mean(share - self.share), "change of probability")
        return pd.DataFrame(rows, columns=["kind", "place", "condition", "value", "low", "high", "unit"])

    def facts(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "hook_point": self.name,
            "rank": self.rank,
            "variance_removed": self.removed,
            "variance_removed_random": self.removed_random.mean(1).tolist(),
            "steering_towards": self.towards,
            "steering_length": self.length,
            "favoured_tokens": self.favoured,
            "test_texts": int((self.positions > 0).sum()),
            "seed": self.seed,
        }

    def panels(self) -> list[Panel]:
        panels: list[Panel] = [self._probes(), self._losses()]
        panels += [self._steering(True)] if self.favoured else []
        said = methods(
            int((self.positions > 0).sum()), unit="held-out texts", weighted=True, seed=self.seed,
            more="Accuracies have Clopper-Pearson intervals (Korn and Graubard 1998), weighted by labelled positions.",
        )  # fmt: skip
        return [*panels, self._steering(False), self._table(), *said]

    def _probes(self) -> Lines:
        places = tuple(short(name) for name in self.later)
        before, after = (self.accuracy(values.T) for values in (self.before, self.after))
        most = float(self.mean(self.majority, by_rows=True).value)
        low, high = {}, {}
        for name, found in (("as it is", before), ("erased", after)):
            if found.low is not None and found.high is not None:
                low[name], high[name] = found.low, found.high
        return Lines(
            key="erased-probes",
            title=f"Probes for “{self.label}” before and after erasing it at {short(self.name)}",
            caption=f"A probe ({self.kind}) fitted anew in each case, accuracy on held-out texts, 95 % intervals over "
            f"texts. It was erased at the first place ({self.rank} of the stream's directions, {self.removed:.1%} of "
            "its variance); what rises again later was written anew by the blocks between.",
            x=places,
            series={
                "as it is": before.value,
                "erased": after.value,
                "majority class": np.full(len(places), most),
            },
            x_axis="where in the model",
            y_axis="accuracy on held-out texts",
            low=low,
            high=high,
        )

    def _losses(self) -> Bars:
        draws = [self.mean(loss - self.loss) for loss in self.loss_random.reshape(-1, len(self.loss))]
        found = [self.cost, *draws]
        ends = [one.ends() for one in found]
        known = all(low is not None for low, _ in ends)
        even, alike = self.removed_random
        labels = [f"{name} {draw + 1}" for name in ("random", "as loud") for draw in range(len(even))]
        return Bars(
            key="erased-loss",
            title="What the model's predictions lose",
            caption="Rise of the loss on held-out texts when the concept is erased, and when as many random directions "
            f"are (mean over texts, 95 % interval). The concept takes {self.removed:.2%} of the variance there, "
            f"directions drawn at random {even.mean():.2%}; “as loud” are random directions that take as much as the "
            f"concept ({alike.mean():.2%}). None of them touches what can be read of the concept.",
            labels=(self.label, *labels),
            values=np.array([float(one.value) for one in found]),
            unit="nats a token",
            low=np.array([low for low, _ in ends], dtype=float) if known else None,
            high=np.array([high for _, high in ends], dtype=float) if known else None,
        )

    def _steering(self, share: bool) -> Lines:
        own, random = (self.share_steered, self.share_random) if share else (self.kl_steered, self.kl_random)
        base = self.share if share else np.zeros_like(self.share)
        place = int(np.searchsorted(self.scales, 0.0))
        x = np.insert(self.scales, place, 0.0)
        still = float(self.mean(base).value)
        found = self.mean(own.T)
        each = np.stack([self.mean(random[:, draw].T).value for draw in range(random.shape[1])])  # [draw scale]
        series = {self.label: np.insert(found.value, place, still), "random": np.insert(each.mean(0), place, still)}
        low, high = {"random": np.insert(each.min(0), place, still)}, {"random": np.insert(each.max(0), place, still)}
        if found.low is not None and found.high is not None:
            ends = self.mean(base).ends()
            low[self.label] = np.insert(found.low, place, still if ends[0] is None else ends[0])
            high[self.label] = np.insert(found.high, place, still if ends[1] is None else ends[1])
        what = f"Probability of {self.favoured}" if share else "How far the predictions move"
        return Lines(
            key="steering-effect" if share else "steering-size",
            title=f"{what}, steered along the concept",
            caption=f"The difference of the class means (towards “{self.towards}”, length {self.length:.3g}) times the "
            "number below is added at every position. Random: directions of the same length, distributed as the "
            "activations; their band is the smallest and largest, that of the concept the 95 % interval over texts.",
            x=x,
            series=series,
            x_axis="multiples of the distance between the class means",
            y_axis="probability" if share else "KL(as it is || steered), nats",
            low=low,
            high=high,
        )

    def _table(self) -> Table:
        frame = self.to_dataframe()
        return Table(
            key="table",
            title="All numbers",
            caption="Means over held-out texts, weighted by positions, with 95 % intervals over texts.",
            frame=frame.assign(place=[short(place) if place else "" for place in frame["place"]]),
        )

    def findings(self) -> list[Finding]:
        cost, other, beyond = self.cost, self.cost_random, self.cost_beyond
        low, high = cost.ends()
        after, most = self.mean(self.after[0], by_rows=True), self.mean(self.majority, by_rows=True)
        more = [beyond.low is not None and float(beyond.low[control]) > 0 for control in range(2)]
        text = f"With “{self.label}” erased at {short(self.name)} a probe there gets {float(after.value):.1%} right "
        text += (
            f"(majority {float(most.value):.1%}), and the model's loss rises by {float(cost.value):.3f} nats a token: "
        )
        text += f"{'more' if more[0] else 'no more'} than for random directions ({other.value[0]:.3f}), "
        text += f"{'more' if more[1] else 'no more'} than for random ones with as much variance ({other.value[1]:.3f})."
        weight = 0.2 + 0.1 * sum(more)
        return [
            Finding(
                text=text, key="erased-loss", weight=weight, value=float(cost.value), unit="nats", low=low, high=high
            )
        ]
