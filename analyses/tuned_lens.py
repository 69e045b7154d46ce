"""The logit lens, tuned: each layer read through an affine map of its own, beside the plain lens, on held-out text.

Question: what does the residual stream at each depth say about the next token, once a change of basis on the way to the
end is allowed for?

Method: Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens". One translator per
layer, h -> h + h A + b, leads to the model's own final norm and unembedding. Translators given are used as they are
(`interp.lens_maps.train` makes them from a long text). Otherwise they are fitted here, on the first part of the given
tokens, by ridge regression on the final residual stream (the paper descends the divergence itself, which needs more
text and time); all figures are from the rest, which the fit does not see. With several texts whole texts are held out.

Two measures per layer, for both lenses, in nats: the divergence KL(final || lens), zero for the model's own output, and
the cross-entropy with the actual next token.

What the numbers do not show: that the model uses what a translator finds. A map fitted on few tokens finds little, and
one fitted on other text may do worse than none: look at the held-out figures, which can say so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.shared.axes import Axes, lines, said_mean
from analyses.shared.capabilities import analysis
from analyses.shared.claims import FLOORS, SURE, largest_p_value, testable
from analyses.shared.inputs import sequences, token_labels
from analyses.shared.panels import Finding, Lines, Note, Panel, Result, TokenGrid, Tokens
from analyses.shared.statistics import Interval, bootstrap, methods
from interp.errors import InputError
from interp.lens_maps import Translators, divergence, fingerprint, fit, read, streams
from interp.models.gpt import HookedGPT

SHOWN = 48
"""Most positions in the grid of words."""
FEWEST = 8
"""Fewest held-out positions."""
LENSES = ("logit lens", "tuned lens")
MEASURES = ("kl", "loss")


@dataclass(frozen=True, kw_only=True)
class TunedLensResult(Result):
    """Both lenses at every layer of the held-out text; everything is empty when there was too little text."""

    places: tuple[str, ...]
    """[place] where the residual stream is read: before each block."""
    kl: np.ndarray
    """[text place lens] KL(final || lens), mean over held-out positions, nats."""
    loss: np.ndarray
    """[text place lens] cross-entropy with the next token, mean over held-out positions, nats."""
    final_loss: np.ndarray
    """[text] cross-entropy of the model's own output on the same positions, nats."""
    tokens: Tokens
    """[pos] held-out positions of the first held-out text."""
    words: tuple[Tokens, ...]
    """[place + 1][pos] most likely token by the tuned lens; the last row is the model's own output."""
    probability: np.ndarray
    """[place + 1 pos] its probability."""
    kl_by_position: np.ndarray
    """[lens place + 1 pos] nats."""
    trained: int
    """Tokens the translators were trained on."""
    held_out: int
    """Positions measured."""
    given: bool
    """Whether translators were given."""
    remark: str
    """Why nothing was measured, or what to keep in mind; may be empty."""
    translators: Translators | None
    """Those used."""
    seed: int

    def to_dataframe(self) -> pd.DataFrame:
        """Columns text, place, lens, kl, loss (nats, means over the held-out positions of the text)."""
        return Axes.of(self.kl, text=None, place=self.places, lens=LENSES).frame("kl", loss=self.loss)

    def mean(self, measure: str) -> Interval:
        """[place lens] mean over held-out texts with its interval (none for one text)."""
        return bootstrap(getattr(self, measure), least=0.0, seed=self.seed)

    def panels(self) -> list[Panel]:
        if not self.held_out:
            return [Note("remark", "Too little text", text=self.remark)]
        source = "given translators" if self.given else "translators fitted on the rest of the text"
        trained = f"{self.trained:,} tokens" if self.trained else "an unknown number of tokens"
        measured = "positions of this text" if self.given else "held-out positions"
        about = f"{self.held_out:,} {measured}; {source} ({trained}). {said_mean(len(self.kl))}"
        remark = [Note("remark", "Keep in mind", text=self.remark)] if self.remark else []
        return [
            self._curves("kl", "Distance to the final prediction", "KL(final || lens), nats", about),
            self._curves("loss", "Loss of the lenses", "cross-entropy with the next token, nats", about),
            self._grid(), *remark, *methods(len(self.kl), chosen_of=len(self.places), halved=False, seed=self.seed),
        ]  # fmt: skip

    def _curves(self, measure: str, title: str, axis: str, about: str) -> Lines:
        values, found = getattr(self, measure), dict[str, np.ndarray | Interval]()
        for i, name in enumerate(LENSES):
            found[name] = bootstrap(values[:, :, i], least=0.0, seed=self.seed)
        if measure == "loss":
            found["the model itself"] = np.full(len(self.places), self.final_loss.mean())
        caption = f"Lower is closer to what the model ends with. {about}"
        return lines(measure, title, caption, found, x=self.places, x_axis="residual stream before", y_axis=axis)

    def _grid(self) -> TokenGrid:
        shown, cut = slice(max(0, len(self.tokens) - SHOWN), None), f" The last {SHOWN} positions."
        kl = {f"KL, {name}": self.kl_by_position[LENSES.index(name)][:, shown] for name in reversed(LENSES)}
        return TokenGrid(
            "words", "What each layer would say, tuned", "The most likely next token by the tuned lens at each depth "
            "(row) and held-out position (column); the last row is the model's own output."
            f"{cut * (len(self.tokens) > SHOWN)}", tokens=Tokens(self.tokens[shown]), rows=(*self.places, "output"),
            row_axis="residual stream before", cells=tuple(Tokens(row[shown]) for row in self.words),
            measures={"probability": self.probability[:, shown]} | kl,
            units={"probability": ""} | dict.fromkeys(kl, "nats"),
        )  # fmt: skip

    def findings(self) -> list[Finding]:
        if not self.held_out:
            return []
        kl = self.mean("kl").value
        gain, better = kl[:, 0] - kl[:, 1], int((kl[:, 1] < kl[:, 0]).sum())
        best = int(gain.argmax())
        low, high = bootstrap(self.kl[:, best, 0] - self.kl[:, best, 1], chosen_of=len(kl)).ends()
        if not better:
            text = "The translators do not help on this text: at every layer the plain logit lens is closer to the "
            return [Finding(f"{text}output.", "kl", 0.2, float(gain[best]), "nats", kind="negative")]
        sure = "" if low is None or high is None else f" (less by {low:.2f} to {high:.2f})"
        text = (
            f"Read through the tuned lens, {better} of {len(kl)} layers are closer to the final prediction than the "
            f"plain lens shows; {self.places[best]} falls from {kl[best, 0]:.2f} to {kl[best, 1]:.2f} nats{sure} on "
            f"{'this' if self.given else 'held-out'} text."
        )
        gains = self.kl[:, :, 0] - self.kl[:, :, 1]
        p = float(largest_p_value(gains, seed=self.seed)[best]) if testable(len(gains)) else None
        if gain[best] < FLOORS["nats"] or (p is not None and p > SURE) or (low is not None and low <= 0):
            return []
        null = "the plain lens on text that was not fitted on" if p is None else "flipped signs of held-out texts"
        value = float(gain[best])
        return [Finding(text, "kl", 0.35, value, "nats", low, high, null=f"{null}, the best layer of {len(kl)}", p=p)]


@analysis(place=31, needs=("next token",))
@torch.no_grad()
def tuned_lens(
    model: HookedGPT,
    tokens: str | Sequence[str] | Tensor,
    *,
    translators: Annotated[Translators | None, "a file of trained translators; by default fitted on this text"] = None,
    held_out: Annotated[float, "share of the text kept for measuring, when fitting"] = 0.25,
    seed: Annotated[int, "of the bootstrap intervals"] = 0,
) -> TunedLensResult:
    """The tuned lens beside the plain one, on text that the translators have not seen.

    A text too short to fit on is no error: the result says so and holds nothing else.

    Raises InputError for a share outside 0 to 1, or translators of another shape than the model.
    """
    if not 0 < held_out < 1:
        raise InputError(f"held_out = {held_out}", "expected a share between 0 and 1")
    rows = sequences(model, tokens)
    remark = ""
    if translators is not None:
        translators.check(model)
        if translators.model not in ("", fingerprint(model)):
            remark = "The translators were made for other weights than these; what they find is a lower bound."
        made, parts = translators, [(row, 0) for row in rows]
    else:
        seen, parts = split(rows, held_out)
        n_seen, n_held = sum(row.shape[1] for row in seen), sum(row.shape[1] - 1 - at for row, at in parts)
        width = model.config.d_model
        if n_seen < width or n_held < FEWEST:
            return _nothing(
                f"A translator for a residual stream {width} wide has {width * (width + 1):,} numbers, and this text "
                f"leaves {n_seen} tokens to fit it on and {max(n_held, 0)} to measure it. Nothing was fitted: give at "
                f"least {int(np.ceil(width / (1 - held_out))) + FEWEST} tokens, or translators trained on a longer "
                "text.",
                seed,
            )
        made = fit(model, seen)
    parts = [(row, at) for row, at in parts if row.shape[1] - 1 - at >= 1]
    if not parts:
        return _nothing("Every text is a single token: there is no next token to compare with.", seed)
    return _measured(model, made, parts, translators is not None, remark, seed)


def split(rows: list[Tensor], share: float) -> tuple[list[Tensor], list[tuple[Tensor, int]]]:
    """What to fit on, and what is held out as (row, first position measured).

    One text: its last part is held out, read in its context. Several: the last of them, until they hold the share.
    """
    total = sum(row.shape[1] for row in rows)
    if len(rows) == 1:
        cut = total - max(1, round(total * share))
        return [rows[0][:, :cut]], [(rows[0], cut)]
    kept, held = list(rows), list[Tensor]()
    while len(kept) > 1 and sum(row.shape[1] for row in held) < share * total:
        held.insert(0, kept.pop())
    return kept, [(row, 0) for row in held]


def _nothing(remark: str, seed: int) -> TunedLensResult:
    empty = np.zeros((0, 0, 2))
    return TunedLensResult(
        places=(),
        kl=empty,
        loss=empty,
        final_loss=np.zeros(0),
        tokens=Tokens(),
        words=(),
        probability=np.zeros((0, 0)),
        kl_by_position=np.zeros((2, 0, 0)),
        trained=0,
        held_out=0,
        given=False,
        remark=remark,
        translators=None,
        seed=seed,
    )


def _measured(
    model: HookedGPT, made: Translators, parts: list[tuple[Tensor, int]], given: bool, remark: str, seed: int
) -> TunedLensResult:
    measured = [_measure(model, made, row, at) for row, at in parts]
    first = measured[0]
    labels = {token: token_labels(model, [token])[0] for token in first["words"].unique().tolist()}
    stacked = {
        name: np.array([one[name][:, :-1].mean(-1).T.numpy() for one in measured]) for name in MEASURES
    }  # [text place lens]
    row, at = parts[0]
    return TunedLensResult(
        places=tuple(f"L{layer}" for layer in range(model.config.n_layers)),
        final_loss=np.array([float(one["loss"][0, -1].mean()) for one in measured]),
        tokens=Tokens(token_labels(model, row[0])[at:-1]),
        words=tuple(Tokens(labels[token] for token in line) for line in first["words"].tolist()),
        probability=first["probability"].numpy(),
        kl_by_position=first["kl"].numpy(),
        trained=made.tokens,
        held_out=sum(one["kl"].shape[-1] for one in measured),
        given=given,
        remark=remark,
        translators=made,
        seed=seed,
        **stacked,
    )


def _measure(model: HookedGPT, made: Translators, row: Tensor, at: int) -> dict[str, Tensor]:
    """kl, loss [lens place+1 pos]; the tuned lens' words and their probability [place+1 pos]; positions from `at`."""
    places = streams(model, row)[:, 0, at:-1]
    final, targets = read(model, places[-1]), row[0, at + 1 :, None]
    kl, loss = (torch.zeros(2, len(places), len(targets), dtype=torch.float64) for _ in range(2))
    words, probability = torch.zeros(len(places), len(targets), dtype=torch.long), torch.zeros(kl.shape[1:])
    for place, residual in enumerate(places):
        tuned = made(residual, place) if place < len(places) - 1 else residual
        for lens, x in enumerate((residual, tuned)):
            log_q = read(model, x)
            kl[lens, place] = divergence(final, log_q)
            loss[lens, place] = -log_q.gather(-1, targets)[:, 0]
        best = log_q.max(-1)
        words[place], probability[place] = best.indices, best.values.exp()
    return {"kl": kl, "loss": loss, "words": words, "probability": probability}
