"""What the model reads before its first block: token and position embeddings, their sum, and the order in positions.

Question: what do a text's token and position embeddings look like, which tokens lie near each other, and are the
learned position embeddings in any order?

Method: the embeddings are read off the weights. Nearness is the cosine. Order in the position embeddings is measured as
the power spectrum of each coordinate over positions (discrete Fourier transform, the mean taken out), summed over
coordinates, and compared with the same vectors in shuffled order: a shuffle keeps every vector and every correlation
between coordinates, and destroys only the order. A period counts as found when its power exceeds the highest power that
any period reaches in 95 % of the shuffles, which allows for having looked at all of them. The variance by direction is
compared with each coordinate shuffled on its own, which keeps the coordinates' distributions and destroys what they
share. Sinusoids of fixed periods (Vaswani et al. 2017) would show as peaks; a slow drift shows at the longest periods.

A model whose positions are not learned has no position embeddings: then only tokens are described.

What the numbers do not show: what the model does with this. A direction may be large and never be read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.shared.axes import Axes, lines, similarity
from analyses.shared.capabilities import analysis
from analyses.shared.claims import SURE
from analyses.shared.inputs import sequences, token_labels
from analyses.shared.panels import Finding, Panel, Result, Table, Tokens, TokenStrip
from analyses.shared.statistics import Interval, null_p_value
from interp.errors import InputError
from interp.models.gpt import HookedGPT

SHOWN_POSITIONS = 128
"""Rows and columns of the picture of all positions' similarity."""
SHOWN_TOKENS = 128
"""Positions of the text that are drawn; the rest is in the data."""
PAIRS = 4096
"""Random pairs of tokens from which the ordinary cosine is estimated."""


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """The order in the model's position embeddings, beside that of shuffled ones."""

    n_positions: int
    """Positions whose spectrum is taken: the model's context."""
    periods: np.ndarray
    """[frequency] length of one period in tokens, longest first."""
    power: np.ndarray
    """[frequency] share of the position embeddings' variance over positions."""
    null_low: np.ndarray
    """[frequency] 2.5 % quantile of the shuffles."""
    null_high: np.ndarray
    """[frequency] 97.5 % quantile of the shuffles."""
    null_max: float
    """95 % quantile, over shuffles, of the highest power of any period."""
    p_value: float
    """That some period is as strong as the strongest one by chance (one-sided, from the shuffles)."""
    neighbour_cosine: float
    """Mean cosine of neighbouring positions, the mean vector taken out."""
    neighbour_cosine_null: float
    """The same for shuffled positions, mean over shuffles."""
    shuffles: int

    @property
    def found(self) -> np.ndarray:
        """[found] indices of the periods above the null, strongest first."""
        order = np.argsort(-self.power, kind="stable")
        above: np.ndarray = order[self.power[order] > self.null_max]
        return above

    @property
    def null_middle(self) -> np.ndarray:
        """[frequency] the middle of the shuffles' interval."""
        middle: np.ndarray = (self.null_low + self.null_high) / 2
        return middle


@dataclass(frozen=True, kw_only=True)
class Positions:
    """The model's position embeddings."""

    embedding: np.ndarray
    """[pos d_model] those of the text."""
    shown: np.ndarray
    """[shown] which of the model's positions `similarity` holds."""
    similarity: np.ndarray
    """[shown shown] cosines between the model's position embeddings."""
    spectrum: Spectrum
    variance: np.ndarray
    """[component] share of their variance by principal direction, largest first."""
    variance_null: np.ndarray
    """[component] the same with each coordinate shuffled on its own."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingsResult(Result):
    """Embeddings of the first text, the spectrum of the model's position embeddings, and the nearest tokens."""

    tokens: Tokens
    """[pos] the first text."""
    n_texts: int
    """Texts given; the pictures show the first, nearest tokens are given for all."""
    token_embedding: np.ndarray
    """[pos d_model] as it enters the stream, scaled where the model scales it."""
    similarity: dict[str, np.ndarray]
    """"token", and with learned positions "position" and "sum" -> [pos pos] cosines between positions of the text."""
    positions: Positions | None
    """What is learned of positions; None where nothing is."""
    nearest: pd.DataFrame
    """Columns text, pos, token, rank, neighbour, cosine; each different token once, where it first occurs."""
    random_cosine: tuple[float, float]
    """Mean and standard deviation of the cosine of random pairs of the vocabulary."""
    seed: int

    @property
    def spectrum(self) -> Spectrum:
        """Of the position embeddings, where there are any."""
        assert self.positions is not None
        return self.positions.spectrum

    def to_dataframe(self) -> pd.DataFrame:
        """Nearest tokens: text, pos, token, rank, neighbour, cosine."""
        return self.nearest

    def panels(self) -> list[Panel]:
        learned = [] if self.positions is None else self._spectra(self.positions)
        return [*self._images(), *self._similarities(), *learned, *self._neighbours()]

    def _images(self) -> list[Panel]:
        cut = min(len(self.tokens), SHOWN_TOKENS)
        more = f" The first of {self.n_texts} texts." if self.n_texts > 1 else ""
        more += f" The first {cut} of {len(self.tokens)} tokens." if cut < len(self.tokens) else ""
        words = "One column a token: equal tokens have equal columns."
        token: dict[str, Sequence[object]] = {"token": Tokens(self.tokens[:cut])}
        parts = [("token", "Token embeddings", self.token_embedding, words, token)]
        if self.positions is not None:
            at = self.positions.embedding
            words = "The sum of the two, from which everything else is computed."
            total = ("sum", "What the first block reads", self.token_embedding + at, words, token)
            of_positions = "One column a position, whatever the token."
            parts += [("position", "Position embeddings", at, of_positions, {"position": range(cut)}), total]
        return [
            Axes.of(values[:cut].T, coordinate=None, **axis).matrix(
                f"{key}-embedding", title, f"{caption} One row a coordinate.{more}", unit="activation", diverging=True,
                image=True,
            )
            for key, title, values, caption, axis in parts
        ]  # fmt: skip

    @property
    def _chance(self) -> str:
        """Mean and standard deviation of the cosine of random pairs."""
        mean, spread = self.random_cosine
        return f"{_plain(mean)} ± {spread:.2f}"

    def _similarities(self) -> list[Panel]:
        tokens = Tokens(self.tokens[:SHOWN_TOKENS])
        titles = {"token": "token embeddings", "position": "position embeddings", "sum": "their sums"}
        chance = {"token": f" Random pairs of the vocabulary's tokens have {self._chance}."}
        return [
            similarity(
                f"{kind}-similarity", f"Similarity of {title} in the text", f"Cosine.{chance.get(kind, '')}",
                self.similarity[kind][: len(tokens), : len(tokens)],
                *(("position", range(len(tokens))) if kind == "position" else ("token", tokens)),
            )
            for kind, title in titles.items()
            if kind in self.similarity
        ]  # fmt: skip

    def _spectra(self, learned: Positions) -> list[Panel]:
        found, shown = learned.spectrum, learned.shown
        cut = f" One position in {shown[1]}." if found.n_positions > len(shown) else ""
        null = Interval(
            value=found.null_middle[::-1], low=found.null_low[::-1], high=found.null_high[::-1], n=found.shuffles
        )
        return [
            similarity(
                "position-similarity-all", "Similarity of all the model's positions",
                f"Cosine of the position embeddings. Vectors in random order would show no bands.{cut}",
                learned.similarity, "position", shown.tolist(),
            ),
            lines(
                "spectrum", "Order in the position embeddings", "Share of the variance over positions by length of "
                f"period, beside the same vectors in shuffled order (95 % of {found.shuffles} shuffles). Neighbouring "
                f"positions have cosine {_plain(found.neighbour_cosine)}, shuffled ones "
                f"{_plain(found.neighbour_cosine_null)}.", {"position embeddings": found.power[::-1], "shuffled": null},
                x=found.periods[::-1], x_axis="period (tokens)", y_axis="share of variance", log_x=True, log_y=True,
            ),
            Table(
                "periods", "Strongest periods", "Above the null: stronger than every period in 95 % of the shuffles "
                f"({found.null_max:.2%}). Times the null: against the middle of the shuffles' 95 % at that period, "
                "half way between the ends. A period as long as the context or half of it is a slow drift rather than "
                "a repetition.", frame=self._period_table(), units={"period": "tokens"},
            ),
            lines(
                "variance", "Directions used by the position embeddings", "Share of the variance by principal "
                "direction, and with each coordinate shuffled on its own: a few directions carry most of it when "
                "positions lie on a curve rather than scattered.",
                {"position embeddings": learned.variance, "shuffled coordinates": learned.variance_null},
                x=np.arange(1, len(learned.variance) + 1), x_axis="direction", y_axis="share of variance", log_x=True,
                log_y=True,
            ),
        ]  # fmt: skip

    def _period_table(self, count: int = 10) -> pd.DataFrame:
        found = self.spectrum
        order = np.argsort(-found.power, kind="stable")[:count]
        power = found.power[order]
        return pd.DataFrame({
            "period": found.periods[order], "share of variance": power,
            "times the null": power / np.maximum(found.null_middle[order], 1e-30),
            "above the null": power > found.null_max,
        })  # fmt: skip

    def _neighbours(self) -> list[Panel]:
        caption = "Common tokens often have shorter embeddings; it is read off the weights and says nothing of use."
        return [
            TokenStrip(
                "norms", "Length of each token's embedding", caption, tokens=self.tokens,
                values=np.linalg.norm(self.token_embedding, axis=1), unit="length",
            ),
            Table(
                "nearest", "Nearest tokens",
                f"Cosine of token embeddings. Random pairs have {self._chance} (standard deviation).",
                frame=self.nearest, tokens=frozenset({"token", "neighbour"}),
            ),
        ]  # fmt: skip

    def findings(self) -> list[Finding]:
        if self.positions is None:
            return []
        order, found = self.spectrum, self.spectrum.found
        if not len(found) or order.p_value > SURE:
            text = (
                f"The position embeddings show no clear order: no period stands out (p = {order.p_value:.2g}), and "
                f"neighbours have cosine {_plain(order.neighbour_cosine)}."
            )
            return [Finding(text, "spectrum", 0.2, order.neighbour_cosine, "cosine", kind="negative")]
        share = float(order.power[found].sum())
        text = (
            f"The position embeddings have an order: {len(found)} of {len(order.power)} periods hold {share:.0%} of "
            f"their variance, where shuffled positions would put {order.null_middle[found].sum():.1%}; the strongest "
            f"is {order.periods[found[0]]:,.0f} tokens long."
        )
        null = f"{order.shuffles} shuffled orders, the strongest period of each"
        return [Finding(
            text, "spectrum", 0.45, share, "share of variance", kind="effect", null=null, p=order.p_value
        )]  # fmt: skip


@analysis(place=74, runs=True)
@torch.no_grad()
def embeddings(
    model: HookedGPT,
    tokens: str | Sequence[str] | Tensor,
    *,
    neighbours: Annotated[int, "nearest tokens shown for each token"] = 6,
    shuffles: Annotated[int, "shuffled copies of the position embeddings, for the null"] = 100,
    seed: Annotated[int, "of the shuffles and of the random pairs"] = 0,
) -> EmbeddingsResult:
    """Token and position embeddings of a text, order in the position embeddings, and nearest tokens.

    Raises InputError for fewer than 1 neighbour or 20 shuffles.
    """
    if neighbours < 1 or shuffles < 20:
        raise InputError(
            f"neighbours = {neighbours}, shuffles = {shuffles}", "expected at least 1 neighbour and 20 shuffles"
        )
    texts = sequences(model, tokens)
    rows, first = [ids[0] for ids in texts], texts[0][0]
    rng = np.random.default_rng(seed)
    token = model.W_E[first].float() * model.config.embed_scale
    similar, learned = {"token": cosines(token)}, None
    if model.config.positions == "learned":
        position = model.W_pos[: len(first)].float()
        learned = learned_positions(model, position, shuffles, rng)
        similar |= {"position": cosines(position), "sum": cosines(token + position)}
    return EmbeddingsResult(
        tokens=token_labels(model, first),
        n_texts=len(texts),
        token_embedding=token.cpu().numpy(),
        similarity=similar,
        positions=learned,
        nearest=nearest_tokens(model, rows, neighbours),
        random_cosine=random_pairs(model, rng),
        seed=seed,
    )


def learned_positions(model: HookedGPT, position: Tensor, shuffles: int, rng: np.random.Generator) -> Positions:
    """The model's position embeddings; `position` [pos d_model] are those of a text."""
    table = model.W_pos.detach().float().cpu().numpy()
    shown = np.arange(0, len(table), max(1, -(-len(table) // SHOWN_POSITIONS)))
    spectrum = position_spectrum(table, shuffles, rng)
    mixed = np.stack([rng.permutation(column) for column in table.T], axis=1)
    return Positions(
        embedding=position.cpu().numpy(),
        shown=shown,
        similarity=cosines(torch.from_numpy(table[shown])),
        spectrum=spectrum,
        variance=principal_variance(table),
        variance_null=principal_variance(mixed),
    )


def _plain(value: float) -> str:
    """Two decimals, without a minus before zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def cosines(x: Tensor) -> np.ndarray:
    """[row row] cosine of every pair of rows."""
    unit = torch.nn.functional.normalize(x, dim=-1)
    out: np.ndarray = (unit @ unit.T).cpu().numpy()
    return out


def power_spectrum(table: np.ndarray) -> np.ndarray:
    """[frequency] share of the variance over positions of each frequency 1 ... n/2, summed over coordinates.

    table [pos d_model]. By Parseval's theorem the shares sum to one.
    """
    power = np.abs(np.fft.rfft(table - table.mean(0), axis=0)) ** 2
    power[1 : (len(table) + 1) // 2] *= 2  # every frequency but 0 and n/2 stands for two
    out: np.ndarray = power[1:].sum(1)
    total = out.sum()
    return out / total if total > 0 else out


def position_spectrum(table: np.ndarray, shuffles: int, rng: np.random.Generator) -> Spectrum:
    """The spectrum of position embeddings [pos d_model] beside that of shuffled ones."""
    n = len(table)
    if n < 4:
        raise InputError(f"a context of {n} positions", "expected at least 4 to look for order in")
    power = power_spectrum(table)
    null, null_smooth = np.empty((shuffles, len(power))), np.empty(shuffles)
    for i in range(shuffles):
        shuffled = table[rng.permutation(n)]
        null[i], null_smooth[i] = power_spectrum(shuffled), neighbour_cosine(shuffled)
    low, high = np.quantile(null, [0.025, 0.975], axis=0)
    return Spectrum(
        n_positions=n,
        periods=n / np.arange(1, len(power) + 1),
        power=power,
        null_low=low,
        null_high=high,
        null_max=float(np.quantile(null.max(1), 0.95, method="higher")),  # of 100 shuffles exceeded in 5 of 101
        p_value=float(null_p_value(power.max(), null.max(1))),
        neighbour_cosine=neighbour_cosine(table),
        neighbour_cosine_null=float(null_smooth.mean()),
        shuffles=shuffles,
    )


def neighbour_cosine(table: np.ndarray) -> float:
    """Mean cosine of neighbouring rows, the mean row taken out."""
    centred = table - table.mean(0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-30)
    return float((unit[1:] * unit[:-1]).sum(1).mean())


def principal_variance(table: np.ndarray) -> np.ndarray:
    """[component] share of the variance of rows [pos d_model] by principal direction, largest first."""
    centred = table - table.mean(0)
    gram = centred.T @ centred if centred.shape[1] <= centred.shape[0] else centred @ centred.T
    values = np.linalg.eigvalsh(gram)[::-1].clip(0)
    total = values.sum()
    out: np.ndarray = values / total if total > 0 else values
    return out


def nearest_tokens(model: HookedGPT, rows: Sequence[Tensor], count: int, limit: int = 64) -> pd.DataFrame:
    """The nearest other tokens of each different token of the texts, the first `limit` of them."""
    where: dict[int, tuple[int, int]] = {}
    for text, row in enumerate(rows):
        for pos, token in enumerate(row.tolist()):
            where.setdefault(token, (text, pos))
    ids = list(where)[:limit]
    count = min(count, model.config.d_vocab - 1)
    every = model.W_E.detach().float()
    unit = torch.nn.functional.normalize(every[ids], dim=-1)
    similar = unit @ every.T / every.norm(dim=-1).clamp(min=1e-12)
    similar[torch.arange(len(ids)), ids] = -torch.inf  # not itself
    values, indices = similar.topk(count, dim=-1)
    names = {token: token_labels(model, [token])[0] for token in {*ids, *indices.flatten().tolist()}}
    return pd.DataFrame(
        {
            "text": where[token][0],
            "pos": where[token][1],
            "token": names[token],
            "rank": rank + 1,
            "neighbour": names[int(indices[i, rank])],
            "cosine": float(values[i, rank]),
        }
        for i, token in enumerate(ids)
        for rank in range(count)
    )


def random_pairs(model: HookedGPT, rng: np.random.Generator) -> tuple[float, float]:
    """Mean and standard deviation of the cosine of random pairs of different tokens."""
    first = rng.integers(0, model.config.d_vocab, PAIRS)
    second = (first + rng.integers(1, max(model.config.d_vocab, 2), PAIRS)) % model.config.d_vocab
    a, b = (model.W_E[torch.from_numpy(part).to(model.device)].float() for part in (first, second))
    pairs = torch.cosine_similarity(a, b, dim=-1)
    return float(pairs.mean()), float(pairs.std())
