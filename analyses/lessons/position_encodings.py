"""Sinusoidal position encodings beside the model's learned ones.

Question: how does a model tell positions apart, and do the vectors that it learned resemble the sines and cosines of
the original Transformer?

Method: the sinusoidal encoding of position p has sin(p / base^(2i/d)) and cos(p / base^(2i/d)) for i = 0 .. d/2 - 1
(Vaswani et al. 2017, section 3.5, base 10000). The paper puts each sine beside its cosine; many pictures put all sines
on the left and all cosines on the right, which only reorders the coordinates. The learned encodings are the model's
`W_pos`; a model that turns queries and keys instead, or has no positions, is refused. Compared are cosines between
positions: for sinusoids they depend on the distance alone, so `distance_share`, the share of their variance over pairs
of positions that the distance explains, is one; for vectors in shuffled order it is near zero. `shift_error` tests the
other property of sinusoids: the encoding of p + k is a rotation of the encoding of p that depends on k alone.

What the numbers do not show: which of the two a model could use better. The text plays no part.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
from jaxtyping import Float

from analyses.shared.axes import Axes, lines, similarity
from analyses.shared.capabilities import analysis
from analyses.shared.inputs import TextOrTokens
from analyses.shared.matrices import numpy_of
from analyses.shared.panels import Finding, Matrix, Panel, Result
from interp.errors import InputError, check_seed
from interp.models.gpt import HookedGPT

SIDE = 128
"""Rows and columns of the pictures of similarity."""


@dataclass(frozen=True, kw_only=True)
class PositionEncodingsResult(Result):
    """Two sets of position vectors and how similar their positions are."""

    sinusoidal: np.ndarray
    """[pos d_model] each sine beside its cosine."""
    learned: np.ndarray
    """[pos d_model] the model's W_pos."""
    shown: int
    """Positions drawn in the two pictures."""
    by_distance: dict[str, np.ndarray]
    """"sinusoidal", "learned", "learned, shuffled" -> [distance] mean cosine of positions that far apart."""
    distance_share: dict[str, float]
    """The same names -> share of the cosines' variance that the distance explains."""
    shift_error: float
    """Largest difference between a sinusoidal encoding and the rotated encoding of an earlier position."""
    base: float
    seed: int

    def to_dataframe(self) -> pd.DataFrame:
        """One row per kind and distance: kind distance cosine."""
        values = np.stack(list(self.by_distance.values()))
        return Axes.of(values, kind=list(self.by_distance), distance=None).frame("cosine")

    def facts(self) -> dict[str, object]:
        return {"distance_share": self.distance_share, "shift_error": self.shift_error}

    def panels(self) -> list[Panel]:
        halves = np.concatenate([self.sinusoidal[:, 0::2], self.sinusoidal[:, 1::2]], axis=1)
        shares = ", ".join(f"{value:.0%} of the variance for {kind}" for kind, value in self.distance_share.items())
        return [
            self._picture("sinusoidal", "Sinusoidal encodings, sines left and cosines right", halves),
            self._picture("learned", "The model's learned encodings", self.learned),
            self._similarity("sinusoidal", self.sinusoidal),
            self._similarity("learned", self.learned),
            lines(
                "by-distance", "Similarity of two positions by their distance",
                f"Mean cosine. Distance explains {shares}.", self.by_distance, x=np.arange(len(self.learned)),
                x_axis="distance (tokens)", y_axis="cosine",
            ),
        ]  # fmt: skip

    def _picture(self, kind: str, title: str, values: np.ndarray) -> Matrix:
        shown = values[: self.shown]
        caption = f"One row a position, the first {len(shown)} of {len(values)}; one column a coordinate."
        return Axes.of(shown, position=None, coordinate=None).matrix(
            kind, title, caption, unit="value", diverging=True, image=True
        )

    def _similarity(self, kind: str, values: np.ndarray) -> Matrix:
        step = -(-len(values) // SIDE)
        cut = f" One position in {step} is drawn." if step > 1 else ""
        caption, names = f"Cosine of two positions' vectors.{cut}", range(0, len(values), step)
        title = f"Similarity of positions: {kind}"
        return similarity(f"{kind}-similarity", title, caption, cosines(values[::step]), "position", names)

    def findings(self) -> list[Finding]:
        value = self.distance_share["learned"]
        text = (
            f"Distance explains {value:.0%} of how similar two learned positions are (sinusoids 100%, the same "
            f"vectors shuffled {self.distance_share['learned, shuffled']:.0%})."
        )
        if value < 2 * self.distance_share["learned, shuffled"]:
            return [Finding(text, "by-distance", 0.2, value, "share of variance", kind="negative")]
        null = "the same vectors shuffled"
        return [Finding(text, "by-distance", 0.2, value, "share of variance", kind="effect", null=null)]


@analysis(place=25, needs=("learned positions",), in_report=None, runs=True)
def position_encodings(
    model: HookedGPT,
    tokens: TextOrTokens | None = None,
    *,
    positions: Annotated[int, "positions drawn"] = 50,
    base: Annotated[float, "of the sinusoids' wavelengths"] = 10000.0,
    seed: Annotated[int, "of the shuffled control"] = 0,
) -> PositionEncodingsResult:
    """Sinusoids of the model's own size beside its learned encodings. `tokens` are not used.

    Raises NotApplicable for a model without learned positions, InputError for fewer than two positions drawn, a base of
    1 or below, or a seed out of range.
    """
    check_seed(seed)
    if positions < 2 or base <= 1:
        raise InputError(f"positions = {positions}, base = {base}", "expected positions >= 2 and base > 1")
    learned = numpy_of(model.W_pos).astype(np.float64)
    n_ctx, width = learned.shape
    sines = sinusoids(n_ctx, width, base)
    kinds = {
        "sinusoidal": sines,
        "learned": learned,
        "learned, shuffled": np.random.default_rng(seed).permutation(learned),
    }
    found = {kind: _by_distance(cosines(values)) for kind, values in kinds.items()}
    return PositionEncodingsResult(
        sinusoidal=sines,
        learned=learned,
        shown=positions,
        by_distance={kind: means for kind, (means, _) in found.items()},
        distance_share={kind: share for kind, (_, share) in found.items()},
        shift_error=shift_error(sines, base),
        base=base,
        seed=seed,
    )


def sinusoids(n_positions: int, width: int, base: float = 10000.0) -> Float[np.ndarray, "pos d_model"]:
    """The sinusoidal encodings: coordinate 2i is sin(p / base^(2i/width)), coordinate 2i + 1 its cosine."""
    angle = np.arange(n_positions)[:, None] / base ** (np.arange(0, width, 2) / width)
    out = np.zeros((n_positions, width))
    out[:, 0::2] = np.sin(angle)
    out[:, 1::2] = np.cos(angle)[:, : width // 2]
    return out


def shift_error(encodings: Float[np.ndarray, "pos d_model"], base: float, shift: int = 1) -> float:
    """Largest difference between position p + shift and the encoding of p, each pair of coordinates rotated."""
    pairs = encodings.shape[1] // 2
    turn = shift / base ** (np.arange(pairs) * 2 / encodings.shape[1])
    sine, cosine = encodings[:-shift, 0 : 2 * pairs : 2], encodings[:-shift, 1::2]
    turned = np.stack([sine * np.cos(turn) + cosine * np.sin(turn), cosine * np.cos(turn) - sine * np.sin(turn)], -1)
    later = encodings[shift:, : 2 * pairs].reshape(turned.shape)
    return float(np.abs(later - turned).max(initial=0))


def cosines(values: Float[np.ndarray, "pos d"]) -> Float[np.ndarray, "pos pos"]:
    """Cosine of every pair of rows; zero rows are similar to nothing."""
    unit = values / np.linalg.norm(values, axis=1, keepdims=True).clip(min=1e-30)
    return np.asarray(unit @ unit.T)


def _by_distance(similarity: Float[np.ndarray, "pos pos"]) -> tuple[np.ndarray, float]:
    """Mean of each diagonal, and the share of the variance off the main diagonal that these means explain."""
    n = len(similarity)
    diagonals = [np.diagonal(similarity, k) for k in range(n)]
    means = np.array([d.mean() for d in diagonals])
    apart = np.concatenate(diagonals[1:]) if n > 1 else np.zeros(0)
    left = np.concatenate([d - d.mean() for d in diagonals[1:]]) if n > 1 else np.zeros(0)
    total = float(((apart - apart.mean()) ** 2).sum()) if n > 1 else 0.0
    return means, 1 - float((left**2).sum()) / total if total > 1e-20 else 1.0
