"""What a sweep of probes over layers found: one table, one figure, and what is needed to judge them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from analyses.probes.base import Probe
from analyses.probes.moments import Array
from analyses.probes.passes import BINS
from analyses.shared.axes import lines
from analyses.shared.panels import Finding, Lines, Note, Panel, Result, Table
from analyses.shared.statistics import Interval, bootstrap, methods, weighted_t_p_value

NAMES = {
    "probe": "probe",
    "random": "random model",
    "control": "control task",
    "shuffled": "shuffled labels",
    "majority": "majority class",
    "token": "token alone",
    "embedding": "embedding",
}


@dataclass(frozen=True, kw_only=True)
class ProbeLayersResult(Result):
    """One probe at each hook point, with its controls, all measured on texts that no probe has seen."""

    label: str
    classes: tuple[str, ...]
    kind: str
    """Of probe."""
    names: tuple[str, ...]
    """[layer] hook points."""
    options: tuple[Mapping[str, Any], ...]
    """[layer] what was chosen on the validation texts."""
    rows: Array
    """[text] labelled rows of each test text."""
    accuracy: Mapping[str, Array]
    """probe, control, shuffled, random -> [layer text]; majority, token, embedding -> [text]; NaN without rows. That on
    the control task is the mean over draws of its labels."""
    loss: Mapping[str, Array]
    """The same in nats a row."""
    validation_loss: Array
    """[layer] nats, of the probe, on the texts that choose."""
    calibration: Array
    """[layer 3 bin] rows, summed probability of the predicted class, rows predicted rightly."""
    curve_rows: Array
    """[size] training rows."""
    curve: Array
    """[size layer] test accuracy of probes fitted to so many rows; empty without description length."""
    code_bits: Array
    """[layer] online code length of the training labels, bits; NaN where not measured."""
    coded_rows: int
    """Rows that the code covers."""
    control_draws: Array
    """[draw layer] accuracy over all rows in each draw of the control task's labels."""
    train_rows: int
    random_rows: int
    """Rows the random model's probes were fitted to; 0: not measured."""
    seed: int
    probes: Mapping[str, Probe] = field(default_factory=dict, repr=False)
    """Hook point -> the fitted probe; its classes are numbers into `classes`."""

    @property
    def best(self) -> int:
        """The layer with the least validation loss: chosen without looking at the test texts."""
        return int(self.validation_loss.argmin())

    @property
    def labels(self) -> tuple[str, ...]:
        """[layer] short names."""
        return tuple(short(name) for name in self.names)

    def interval(self, series: str, measure: str = "accuracy") -> Interval:
        """[layer] (or []) the mean over rows with its interval over texts."""
        values = getattr(self, measure)[series]
        return bootstrap(values.T, weights=self.rows, share=measure == "accuracy", seed=self.seed)

    def difference(self, series: str, other: str) -> Interval:
        """[layer] accuracy of one less that of another, paired by text.

        Against the control task the interval is wider, by how far the draws of its labels lie apart: the squares of
        both half-widths are added (Zou and Donner 2008), Student's over draws and that over texts.
        """
        one, two = self.accuracy[series], self.accuracy[other]
        found = bootstrap((one - two).T, weights=self.rows, seed=self.seed)
        if other != "control" or found.low is None or found.high is None:
            return found
        draws = bootstrap(self.control_draws)
        assert draws.low is not None
        assert draws.high is not None
        low = found.value - np.hypot(found.value - found.low, draws.high - draws.value)
        high = found.value + np.hypot(found.high - found.value, draws.value - draws.low)
        return replace(found, low=low, high=high)

    @property
    def beyond_controls(self) -> tuple[float, str]:
        """p that the best probe is no better than what it must beat, and the control that it is least sure to beat.

        By Student's t over held-out texts; the largest p of majority, token, embedding, and a random model at its own
        best layer. The choice of the layer costs nothing: other texts made it.
        """
        own = self.accuracy["probe"][self.best]
        others = {name: self.accuracy[name] for name in ("majority", "token", "embedding") if name in self.accuracy}
        if "random" in self.accuracy:
            layer = int(np.nanargmax(self.interval("random").value))
            others["random"] = self.accuracy["random"][layer]
        chances = {name: float(weighted_t_p_value(own - other, self.rows)) for name, other in others.items()}
        worst = max(chances, key=lambda name: np.nan_to_num(chances[name], nan=1.0))
        return float(np.nan_to_num(chances[worst], nan=1.0)), NAMES[worst]

    @property
    def compression(self) -> Array:
        """[layer] uniform code length over online code length (Voita and Titov 2020)."""
        return np.asarray(self.coded_rows * np.log2(len(self.classes)) / self.code_bits)

    @property
    def calibration_error(self) -> Array:
        """[layer] expected calibration error."""
        return np.asarray(
            np.abs(self.calibration[:, 1] - self.calibration[:, 2]).sum(1) / self.calibration[:, 0].sum(1)
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a hook point: accuracies (shares of test rows), intervals, losses (nats), baselines, code length."""
        frame = pd.DataFrame({"hook_point": self.names, "layer": self.labels})
        against = {"above_majority": "majority", "selectivity": "control"}
        measured = {"accuracy": self.interval("probe")}
        measured |= {name: self.difference("probe", other) for name, other in against.items()}
        for name, found in measured.items():
            frame[name] = found.value
            frame[f"{name}_low"] = np.nan if found.low is None else found.low
            frame[f"{name}_high"] = np.nan if found.high is None else found.high
        frame["loss"] = self.interval("probe", "loss").value
        for series in NAMES:
            if series != "probe":
                frame[series] = self.interval(series).value if series in self.accuracy else np.nan
        frame["code_bits_per_label"] = self.code_bits / max(self.coded_rows, 1)
        frame["compression"] = self.compression
        frame["calibration_error"] = self.calibration_error
        frame["options"] = [", ".join(f"{k} {v:g}" for k, v in one.items()) for one in self.options]
        return frame

    def facts(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "classes": list(self.classes),
            "probe": self.kind,
            "train_rows": self.train_rows,
            "test_rows": int(self.rows.sum()),
            "test_texts": int((self.rows > 0).sum()),
            "random_model_rows": self.random_rows,
            "control_draws": len(self.control_draws),
            "best": self.names[self.best],
            "seed": self.seed,
        }

    def panels(self) -> list[Panel]:
        reading = Note(
            "reading", "What this does not show",
            text="A probe finds what can be read off linearly (or by a small network), not what the model uses: for "
            "that, erase it and see what the predictions lose. High selectivity says that the probe did not merely "
            "memorise tokens; a random model that does as well says that the probe needs no training of the model, "
            "only its wiring.",
        )  # fmt: skip
        curve = [self._learning_curve()] if len(self.curve) else []
        return [self._figure(), self._table(), *curve, self._calibration(), reading, *self.methods()]

    def methods(self) -> list[Note]:
        """How intervals were made, as a note."""
        return methods(
            int((self.rows > 0).sum()), unit="held-out texts", weighted=True, share=True,
            more="Differences of accuracies have Student's t intervals below 8 texts, else bootstrapped ones; that of "
            f"the selectivity holds the spread of {len(self.control_draws)} draws of the control task's labels too. "
            "The best layer was chosen on texts of its own.",
            seed=self.seed,
        )  # fmt: skip

    def _figure(self) -> Lines:
        series: dict[str, np.ndarray | Interval] = {NAMES["probe"]: self.interval("probe")}
        for name, shown in NAMES.items():
            if name in self.accuracy and name != "probe":
                series[shown] = np.broadcast_to(self.interval(name).value, len(self.names)).copy()
        caption = (
            f"Share of {int(self.rows.sum()):,} positions in {int((self.rows > 0).sum())} held-out texts that a probe "
            f"({self.kind}) gets right, and what to compare it with; the band is the 95 % interval over texts. The "
            f"control task gives every token type a random label (mean of {len(self.control_draws)} draws); the random "
            "model has the same shape and no training."
        )
        return lines(
            "layers", f"Where “{self.label}” can be read", caption, series, x=self.labels,
            x_axis="where in the model", y_axis="accuracy on held-out texts",
        )  # fmt: skip

    def _table(self) -> Table:
        left_out = ["hook_point", "options", "above_majority", "above_majority_low", "above_majority_high"]
        frame = self.to_dataframe().drop(columns=left_out)
        ends = {"accuracy_low": "low", "accuracy_high": "high"}
        ends |= {f"selectivity_{end}": f"selectivity, {end}" for end in ends.values()}
        frame = frame.rename(columns=NAMES | ends)
        frame = frame.drop(columns=[c for c in frame if c != "layer" and frame[c].isna().all()])
        return Table(
            "table", "Every layer, every control",
            "Accuracy is the share of held-out positions; selectivity is accuracy less that on the control task; low "
            "and high are 95 % intervals over texts. Loss in nats. The code length is what it takes to send the "
            "training labels to someone who has the activations, in bits a label; compression is how many times "
            "shorter that is than a code that knows nothing.", frame=frame.round(4),
        )  # fmt: skip

    def _learning_curve(self) -> Lines:
        caption = (
            "Accuracy on the held-out texts of probes fitted to a part of the training texts, at the best layer (by "
            "validation loss) and the first."
        )
        return lines(
            "learning-curve", "Learning curve", caption,
            {short(self.names[i]): self.curve[:, i] for i in dict.fromkeys((self.best, 0))},
            x=self.curve_rows.astype(float), x_axis="training positions", y_axis="accuracy on held-out texts",
            log_x=True,
        )  # fmt: skip

    def _calibration(self) -> Lines:
        rows, sure, right = self.calibration[self.best]
        seen, middle = rows > 0, (np.arange(BINS) + 0.5) / BINS
        caption = (
            "Of the positions to which the probe gives its class such a probability, the share it gets right. Their "
            f"mean distance, weighted by positions, is {self.calibration_error[self.best]:.3f}."
        )
        return lines(
            "calibration", f"Calibration at {self.labels[self.best]}", caption,
            {"share right": right[seen] / rows[seen], "mean probability": sure[seen] / rows[seen]}, x=middle[seen],
            x_axis="probability of the predicted class", y_axis="share of positions",
        )  # fmt: skip

    def findings(self) -> list[Finding]:
        best = self.best
        found, gain = self.interval("probe"), self.difference("probe", "majority").ends(best)[0]
        value, most, where = float(found.value[best]), float(self.interval("majority").value), self.labels[best]
        if gain is not None and gain <= 0:
            text = f"No layer gives “{self.label}” away: the best probe ({where}) gets {value:.1%} of held-out "
            text += f"positions right, the majority class {most:.1%}."
            return [Finding(text, "layers", 0.3, value, "", *found.ends(best), kind="negative")]
        others = f"the token alone {float(self.interval('token').value):.1%}"
        if "random" in self.accuracy:
            others += f", a random model {np.nanmax(self.interval('random').value):.1%} at its best layer"
        text = f"“{self.label}” is read best at {where}: {value:.1%} of held-out positions, against {most:.1%} for the "
        text += f"majority class; {others}."
        p, worst = self.beyond_controls
        if p > 0.05:
            text = f"{text[:-1]}. That is not clearly better than the control “{worst}”."
            return [Finding(text, "layers", 0.3, value, "", *found.ends(best), kind="negative")]
        weight = min(0.6, 0.2 + (value - most))
        return [Finding(
            text, "layers", weight, value, "", *found.ends(best), kind="effect", null="majority class, token alone, "
            "embedding and random model, over held-out texts", p=p,
        )]  # fmt: skip


def short(name: str) -> str:
    """A hook point in a few letters: embed, L0 in, L0 mid, L0 out, L2 attn.z."""
    parts = name.split(".")
    last = parts[-1].removeprefix("hook_")
    if parts[0] != "blocks":
        return last
    place = {"resid_pre": "in", "resid_mid": "mid", "resid_post": "out"}.get(last, ".".join([*parts[2:-1], last]))
    return f"L{parts[1]} {place}"
