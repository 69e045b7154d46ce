"""What erasing a concept and steering along it did."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analyses.probes.layers import short
from analyses.probes.moments import Array
from analyses.shared.axes import Axes, lines
from analyses.shared.panels import Bars, Finding, Lines, Panel, Result, Table
from analyses.shared.statistics import Interval, bootstrap, methods, weighted_t_p_value

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
        rows = [("probe", "", "majority class", self.accuracy(self.majority), "accuracy")]
        for layer, name in enumerate(self.later):
            for condition, values in (("as it is", self.before), ("erased", self.after)):
                rows.append(("probe", name, condition, self.accuracy(values[layer]), "accuracy"))
        random = [self.mean((losses - self.loss).mean(0)) for losses in self.loss_random]
        changes = {"as it is": self.mean(self.loss), "change: concept erased": self.cost}
        changes |= {f"change: {condition}": found for condition, found in zip(CONTROLS, random, strict=True)}
        rows += [("loss", self.name, condition, found, "nats") for condition, found in changes.items()]
        steered = {"concept": (self.kl_steered, self.loss_steered, self.share_steered)}
        drawn = (self.kl_random, self.loss_steered_random, self.share_random)
        steered["random"] = tuple(values.mean(1) for values in drawn)
        for place, scale in enumerate(self.scales):
            for condition, (kl, loss, share) in steered.items():
                where = f"{condition} x {scale:+g}"
                rows.append(("steering", self.name, where, self.mean(kl[place]), "KL, nats"))
                rows.append(("steering", self.name, where, self.mean(loss[place] - self.loss), "change of loss, nats"))
                if self.favoured:
                    more = self.mean(share[place] - self.share)
                    rows.append(("steering", self.name, where, more, "change of probability"))
        told = [(*row[:3], float(row[3].value), *row[3].ends(), row[4]) for row in rows]
        return pd.DataFrame(told, columns=["kind", "place", "condition", "value", "low", "high", "unit"])

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
        said = methods(
            int((self.positions > 0).sum()), unit="held-out texts", weighted=True, seed=self.seed,
            more="Accuracies have Clopper-Pearson intervals (Korn and Graubard 1998), weighted by labelled positions.",
        )  # fmt: skip
        frame = self.to_dataframe()
        table = Table(
            "table", "All numbers",
            "Means over held-out texts, weighted by positions, with 95 % intervals over texts.",
            frame=frame.assign(place=[short(place) if place else "" for place in frame["place"]]),
        )  # fmt: skip
        share = [self._steering(True)] if self.favoured else []
        return [self._probes(), self._losses(), *share, self._steering(False), table, *said]

    def _probes(self) -> Lines:
        most = float(self.mean(self.majority, by_rows=True).value)
        caption = (
            f"A probe ({self.kind}) fitted anew in each case, accuracy on held-out texts, 95 % intervals over texts. "
            f"It was erased at the first place ({self.rank} of the stream's directions, {self.removed:.1%} of its "
            "variance); what rises again later was written anew by the blocks between."
        )
        found: dict[str, Array | Interval] = {
            "as it is": self.accuracy(self.before.T), "erased": self.accuracy(self.after.T),
            "majority class": np.full(len(self.later), most),
        }  # fmt: skip
        return lines(
            "erased-probes", f"Probes for “{self.label}” before and after erasing it at {short(self.name)}", caption,
            found, x=[short(name) for name in self.later], x_axis="where in the model",
            y_axis="accuracy on held-out texts",
        )  # fmt: skip

    def _losses(self) -> Bars:
        even, alike = self.removed_random
        labels = [f"{name} {draw + 1}" for name in ("random", "as loud") for draw in range(len(even))]
        rise = np.stack([self.loss_erased, *self.loss_random.reshape(-1, len(self.loss))]) - self.loss  # [bar text]
        return Axes.of(self.mean(rise.T), erased=[self.label, *labels]).bars(
            "erased-loss", "What the model's predictions lose",
            "Rise of the loss on held-out texts when the concept is erased, and when as many random directions are "
            f"(mean over texts, 95 % interval). The concept takes {self.removed:.2%} of the variance there, directions "
            f"drawn at random {even.mean():.2%}; “as loud” are random directions that take as much as the concept "
            f"({alike.mean():.2%}). None of them touches what can be read of the concept.", unit="nats a token",
        )  # fmt: skip

    def _steering(self, share: bool) -> Lines:
        own, random = (self.share_steered, self.share_random) if share else (self.kl_steered, self.kl_random)
        base, place = self.share if share else np.zeros_like(self.share), int(np.searchsorted(self.scales, 0.0))
        own, random = (np.insert(values, place, base, axis=0) for values in (own, random))  # the run as it is, at 0
        each = np.stack([self.mean(random[:, draw].T).value for draw in range(random.shape[1])])  # [draw scale]
        band = Interval(value=each.mean(0), low=each.min(0), high=each.max(0), n=len(each))
        what = f"Probability of {self.favoured}" if share else "How far the predictions move"
        caption = (
            f"The difference of the class means (towards “{self.towards}”, length {self.length:.3g}) times the number "
            "below is added at every position. Random: directions of the same length, distributed as the activations; "
            "their band is the smallest and largest, that of the concept the 95 % interval over texts."
        )
        return lines(
            "steering-effect" if share else "steering-size", f"{what}, steered along the concept", caption,
            {self.label: self.mean(own.T), "random": band},
            x=np.insert(self.scales, place, 0.0), x_axis="multiples of the distance between the class means",
            y_axis="probability" if share else "KL(as it is || steered), nats",
        )  # fmt: skip

    def findings(self) -> list[Finding]:
        cost, other, beyond = self.cost, self.cost_random, self.cost_beyond
        after, most = self.mean(self.after[0], by_rows=True), self.mean(self.majority, by_rows=True)
        more = [beyond.low is not None and float(beyond.low[control]) > 0 for control in range(2)]
        than = ["more" if one else "no more" for one in more]
        text = (
            f"With “{self.label}” erased at {short(self.name)} a probe there gets {float(after.value):.1%} right "
            f"(majority {float(most.value):.1%}), and the model's loss rises by {float(cost.value):.3f} nats a token: "
            f"{than[0]} than for random directions ({other.value[0]:.3f}), {than[1]} than for random ones with as much "
            f"variance ({other.value[1]:.3f})."
        )
        weight = 0.2 + 0.1 * sum(more)
        if not all(more):
            return [Finding(text, "erased-loss", weight, float(cost.value), "nats", *cost.ends(), kind="negative")]
        p = float(weighted_t_p_value((self.loss_erased - self.loss_random.mean(1)).T, self.positions).max())
        return [Finding(
            text, "erased-loss", weight, float(cost.value), "nats", *cost.ends(), kind="effect",
            null="random directions, also as loud", p=p,
        )]  # fmt: skip
