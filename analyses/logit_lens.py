"""What the model would predict if it stopped early: the unembedding read after every half-block.

Question: at which depth does the prediction of each position form?

Method: the residual stream after the embedding, after each attention and after each MLP is passed through the final
layer norm and the unembedding, as if the rest of the model were not there (nostalgebraist, "interpreting GPT: the
logit lens", 2020). For every place and position:

- the `top_k` most likely tokens and their probabilities;
- rank (1 is the most likely) and probability of the target: the actual next token, or one given token everywhere;
- `kl`: KL(final prediction || prediction here), in nats; zero at the last place, which is the model's own output;
- `entropy` of the prediction here, in nats.

The vocabulary is taken in chunks, with running maxima, sums and best tokens, and positions in groups: logits of all
positions, places and tokens never lie in memory together, and the numbers are those of the whole softmax.

What the numbers do not show: that a prediction which cannot be read here is absent. Early layers may hold it in
another basis, and a high KL early is normal; the tuned lens (`tuned_lens`) corrects for a basis that drifts. A token
that is readable early need not be why it is predicted at the end.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.shared.capabilities import analysis
from analyses.shared.claims import SURE, UNIFORM
from analyses.shared.inputs import TextOrTokens
from analyses.shared.metrics import token_ids
from analyses.shared.panels import Finding, Lines, Note, Panel, Result, TokenGrid, Tokens, TokenStrip
from analyses.shared.stacks import labels_of, readings
from analyses.shared.statistics import Interval, bootstrap, methods
from interp.errors import InputError
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.gpt import HookedGPT
from interp.models.kernels import wide
from interp.residual import Reader, stream_places, streams

ROWS = 1024
"""Most rows (places times positions) read at once."""
COLUMNS_SHOWN = 64
"""Most positions drawn in the grid of words; all are in the data."""
CANDIDATES = 12
"""Tokens that the reader of the grid can choose to follow, beside the next token."""
SHUFFLES = 199
"""Random assignments of final choices that the settled share is compared with."""
LEAST = 0.005
"""Least mean probability, and least change of it, that is told: less rounds to 0 %."""
MEASURES = ("log_probability", "rank", "kl", "entropy")


class Lens(NamedTuple):
    """The lens on one text: [place pos], for the top tokens [place pos k], for others followed [place pos other].

    NaN where there is no target.
    """

    log_probability: Tensor
    rank: Tensor
    kl: Tensor
    entropy: Tensor
    top_ids: Tensor
    top_log_probability: Tensor
    other_log_probability: Tensor
    other_rank: Tensor


@dataclass(frozen=True, kw_only=True)
class LogitLensResult(Result):
    """The lens on every text. Places: `embed`, `L0 attn` (hook resid_mid 0), `L0 mlp` (resid_post 0), `L1 attn`, ...;
    `L0 block` where attention and MLP run side by side."""

    places: tuple[str, ...]
    """[place]"""
    tokens: tuple[Tokens, ...]
    """[text][pos]"""
    targets: tuple[Tokens, ...]
    """[text][pos] the token whose rank and probability are given; empty where the text has no next token."""
    target: str | None
    """The token asked for at every position; None: the actual next token."""
    log_probability: tuple[np.ndarray, ...]
    """One [place pos] a text: log-probability of the target, in nats; NaN where there is none."""
    rank: tuple[np.ndarray, ...]
    """One [place pos] a text: rank of the target, from 1; NaN where there is none."""
    kl: tuple[np.ndarray, ...]
    """One [place pos] a text: KL(final || here), in nats."""
    entropy: tuple[np.ndarray, ...]
    """One [place pos] a text: entropy of the prediction, in nats."""
    top_ids: tuple[np.ndarray, ...]
    """One [place pos k] a text: ids of the most likely tokens, best first."""
    top_probability: tuple[np.ndarray, ...]
    """One [place pos k] a text: their probabilities."""
    candidates: Tokens
    """[candidate] what the model ends on, or what comes next, most often in the shown part of the first text."""
    candidate_log_probability: np.ndarray
    """[candidate place pos] of the first text, in nats."""
    candidate_rank: np.ndarray
    """[candidate place pos] of the first text, from 1."""
    labels: Mapping[int, str]
    """The token of every id in `top_ids`."""
    d_vocab: int
    seed: int
    """Of the bootstrap intervals."""

    def mean(self, measure: str, chosen_of: int = 1) -> Interval:
        """Mean over positions, then over texts, [place], with its interval over texts (none for one text).

        `measure` is log_probability, probability, rank, kl or entropy; `chosen_of` is that of `bootstrap`.
        """
        values = [np.exp(x) for x in self.log_probability] if measure == "probability" else getattr(self, measure)
        per_text = [x[:, ~np.isnan(x).all(0)] for x in values]
        means = [x.mean(1) if x.shape[1] else np.full(len(x), np.nan) for x in per_text]
        least = -np.inf if measure == "log_probability" else float(measure == "rank")
        share = measure == "probability"
        return bootstrap(np.stack(means), share=share, chosen_of=chosen_of, least=least, seed=self.seed)

    def settled(self, text: int = 0) -> np.ndarray:
        """[pos] index of the first place from which on the most likely token is the final one."""
        agrees = self.top_ids[text][:, :, 0] == self.top_ids[text][-1, :, 0]
        held: np.ndarray = np.minimum.accumulate(agrees[::-1], axis=0).sum(0)
        return len(agrees) - held

    def to_dataframe(self) -> pd.DataFrame:
        """One row per text, place and position.

        Columns: text place layer position token target rank probability log_probability kl entropy, and top_1,
        top_1_probability and so on. `layer` is -1 for the embedding.
        """
        frames = []
        for text, tokens in enumerate(self.tokens):
            place, position = (axis.ravel() for axis in np.indices(self.kl[text].shape))
            columns: dict[str, Any] = {
                "text": np.full(len(place), text),
                "place": [self.places[i] for i in place],
                "layer": [_layer(self.places[i]) for i in place],
                "position": position,
                "token": [tokens[i] for i in position],
                "target": [self.targets[text][i] for i in position],
                "rank": self.rank[text].ravel(),
                "probability": np.exp(self.log_probability[text]).ravel(),
                **{name: getattr(self, name)[text].ravel() for name in ("log_probability", "kl", "entropy")},
            }
            for k in range(self.top_ids[text].shape[-1]):
                columns[f"top_{k + 1}"] = [self.labels[i] for i in self.top_ids[text][:, :, k].ravel().tolist()]
                columns[f"top_{k + 1}_probability"] = self.top_probability[text][:, :, k].ravel()
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)

    def panels(self) -> list[Panel]:
        n = len(self.tokens)
        spread = "One text, so no interval." if n == 1 else f"{n} texts, 95 % intervals over texts."
        what = "the actual next token" if self.target is None else f"the token {self.target!r}"
        panels: list[Panel] = [self._grid(), self._settled_panel()]
        for measure, title, axis, caption in (
            ("kl", "Distance to the final prediction", "KL(final || here), nats", "Zero: the final prediction itself."),
            ("probability", f"Probability of {what}", "mean probability", f"How much of the prediction is {what}."),
            ("log_probability", f"Log-probability of {what}", "mean log-probability, nats", "Minus the loss here."),
            ("entropy", "Entropy of the prediction", "nats", "High is undecided, zero is certain."),
        ):
            found = self.mean(measure)
            if np.isnan(found.value).all():
                continue
            panels.append(
                Lines(
                    key=measure.replace("_", "-"),
                    title=title,
                    caption=f"Mean over positions. {caption} {spread}",
                    x=self.places,
                    series={"mean": found.value},
                    x_axis="residual stream after",
                    y_axis=axis,
                    low={} if found.low is None else {"mean": found.low},
                    high={} if found.high is None else {"mean": found.high},
                )
            )
        text = (
            "A token that cannot be read early may be there in another basis; one that can be read early need not "
            "be the reason for the final prediction."
        )
        said = methods(
            n,
            chosen_of=len(self.places),
            halved=False,
            more="Means of probabilities have Clopper-Pearson intervals (Korn and Graubard 1998).",
            seed=self.seed,
        )
        return [*panels, Note(key="caution", title="Reading the lens", text=text), *said]

    def _grid(self) -> TokenGrid:
        length = len(self.tokens[0])
        shown = slice(max(0, length - COLUMNS_SHOWN), length)
        ids = self.top_ids[0][:, shown]
        cut = f" The last {COLUMNS_SHOWN} of {length} positions are drawn." if length > COLUMNS_SHOWN else ""
        which = " The first text." if len(self.tokens) > 1 else ""
        followed = ("probability of the target", "rank of the target")
        return TokenGrid(
            key="lens",
            title="What would be predicted here",
            caption="Each cell holds the most likely next token, read at that depth and position. "
            f"The last depth is the model's own prediction.{which}{cut}",
            tokens=Tokens(self.tokens[0][shown]),
            rows=self.places,
            row_axis="residual stream after",
            cells=tuple(Tokens(self.labels[i] for i in row) for row in ids[:, :, 0].tolist()),
            measures={
                "probability of the token shown": self.top_probability[0][:, shown, 0],
                followed[0]: np.exp(self.log_probability[0][:, shown]),
                followed[1]: self.rank[0][:, shown],
                "KL to the final prediction": self.kl[0][:, shown],
                "entropy": self.entropy[0][:, shown],
            },
            units={"KL to the final prediction": "nats", "entropy": "nats"},
            top=tuple(tuple(Tokens(self.labels[i] for i in cell) for cell in row) for row in ids.tolist()),
            top_values=self.top_probability[0][:, shown],
            targets=Tokens(self.targets[0][shown]),
            target_measures=followed,
            target_name="the next token" if self.target is None else repr(self.target),
            first=shown.start,
            candidates=self.candidates,
            candidate_values=np.stack(
                [np.exp(self.candidate_log_probability[:, :, shown]), self.candidate_rank[:, :, shown]]
            ),
        )

    @property
    def _steps(self) -> str:
        """What lies between two places."""
        last = self.places[-1].split()[-1]
        if last != "mlp":
            return "blocks"
        return "thirds of blocks" if any(place.endswith("cross") for place in self.places) else "half-blocks"

    @property
    def _last(self) -> str:
        return "MLP" if self.places[-1].endswith("mlp") else "block"

    def _settled_panel(self) -> TokenStrip:
        return TokenStrip(
            key="settled",
            title="Where the prediction settles",
            caption=f"For each position, the number of {self._steps} after which the most likely next token is the "
            f"final one and stays so: 0 is the embedding, {len(self.places) - 1} the last {self._last}.",
            tokens=self.tokens[0],
            values=self.settled().astype(float),
            unit=self._steps,
        )

    def findings(self) -> list[Finding]:
        """Nothing of a final prediction that is all but uniform: then nothing forms."""
        if self.mean("entropy").value[-1] > UNIFORM * np.log(self.d_vocab):
            return []
        return [*self._half(), *self._settled_finding(), *self._target_finding()]

    def _half(self) -> list[Finding]:
        """From where on the lens is nearer to the final prediction than half the way of the embedding, or of a uniform
        guess where that is nearer: an early lens may be sure of what is wrong."""
        kl = self.mean("kl", chosen_of=len(self.places))
        uniform = float(np.log(self.d_vocab) - self.mean("entropy").value[-1])
        start, of = min((float(kl.value[0]), "after the embedding"), (uniform, "a uniform guess"))
        if not np.isfinite(start) or f"{start:.1f}" == "0.0":
            return []
        half = int(np.flatnonzero(np.append(np.inf, kl.value[:-1]) > start / 2)[-1])
        low, high = kl.ends(half)
        text = (
            f"The prediction is half formed after {self.places[half]}: the mean KL divergence to the final prediction "
            f"is {kl.value[half]:.1f}{_range(low, high)} nats there ({of}: {start:.1f})."
        )
        return [Finding(text, "kl", 0.45, float(kl.value[half]), "nats", low, high, kind="size")]

    def _settled_finding(self) -> list[Finding]:
        """From which place on the final choice stands, at more positions than if those were given to others."""
        texts = range(len(self.tokens))
        settled = np.concatenate([self.settled(text) for text in texts])
        middle = int(np.quantile(settled, 0.5, method="inverted_cdf"))
        stands = int((settled <= middle).sum())
        rng = np.random.default_rng(self.seed)
        chance = [sum(int((self._shuffled(text, rng) <= middle).sum()) for text in texts) for _ in range(SHUFFLES)]
        p = (1 + sum(count >= stands for count in chance)) / (1 + SHUFFLES)
        if p > SURE or middle == len(self.places) - 1:
            return []
        share, usual = stands / len(settled), float(np.mean(chance)) / len(settled)
        text = (
            f"At {share:.0%} of the positions the final choice of next token stands from {self.places[middle]} on "
            f"(shuffled over positions: {usual:.0%})."
        )
        null = f"{SHUFFLES} shuffles of the final choices over positions"
        short = f"at {share:.0%} of the positions the final choice stands from {self.places[middle]} on"
        return [Finding(text, "settled", 0.4, share, "share of positions", kind="effect", null=null, p=p, short=short)]

    def _shuffled(self, text: int, rng: np.random.Generator) -> np.ndarray:
        """[pos] as `settled`, where the final choice of each position is that of another."""
        top = self.top_ids[text][:, :, 0]
        agrees = top == rng.permutation(top[-1])
        held: np.ndarray = np.minimum.accumulate(agrees[-2::-1], axis=0).sum(0)
        return len(top) - 1 - held

    def _target_finding(self) -> list[Finding]:
        """How the target's probability rises, and falls again where it does."""
        found = self.mean("probability")
        values = found.value
        if len(self.places) < 2 or np.isnan(values).any() or values.max() < LEAST:
            return []
        peak = int(values.argmax())
        low, high = found.ends(-1)
        what = "the actual next token" if self.target is None else repr(self.target)
        end = f"{values[-1]:.1%}{_range(low, high, '.1%')}"
        if values[peak] - values[-1] < max(LEAST, 0.1 * values[peak]):
            step = int(np.argmax(np.diff(values)))
            if values[-1] - values[0] < LEAST:
                return []
            text = (
                f"The mean probability of {what} rises from {values[0]:.1%} after the embedding to {end} at the end, "
                f"most of all at {self.places[step + 1]} (+{np.diff(values)[step]:.1%})."
            )
            short = f"the probability of {what} rises to {values[-1]:.1%}, most of all at {self.places[step + 1]}"
        else:
            rose = f"rose from {values[0]:.1%} to {values[peak]:.1%}" if peak else f"was {values[0]:.1%}"
            text = f"The mean probability of {what} {rose} at {self.places[peak]} and fell to {end} at the end."
            short = f"the probability of {what} {rose} at {self.places[peak]} and fell to {values[-1]:.1%}"
        return [Finding(
            text, "probability", 0.45, float(values[-1]), "probability", low, high, kind="size", short=short,
        )]  # fmt: skip


@analysis(place=30, needs=("next token",), runs=True)
def logit_lens(
    model: HookedGPT | HookedEncoderDecoder,
    tokens: TextOrTokens,
    *,
    top_k: Annotated[int, "most likely tokens kept for each place and position"] = 5,
    target: Annotated[str | None, "token whose rank and probability are followed; default: the next token"] = None,
    chunk: Annotated[int, "vocabulary entries read at once"] = 8192,
    seed: Annotated[int, "seed of the bootstrap intervals"] = 0,
) -> LogitLensResult:
    """The logit lens on every text, after the embedding and every half-block.

    A translation model's decoder is read after every layer norm, as its next part reads it; a text is a source, or
    `source ||| target`.

    Raises InputError for unusable texts, a target that is not one token, or options below 1.
    """
    if top_k < 1 or chunk < 1:
        raise InputError(f"top_k = {top_k}, chunk = {chunk}", "expected whole numbers of at least 1")
    wanted = None if target is None else int(token_ids(model, target, 1)[0])
    lenses: list[Lens] = []
    target_ids: list[list[int]] = []
    others: list[int] = []
    texts = readings(model, tokens)
    for text in texts:
        after = text.following
        following = after if wanted is None else torch.full_like(after, wanted)
        with torch.inference_mode():
            stream = streams(model, text.run)[:, 0]
            if not lenses:
                others = _candidates(model, stream, after[after >= 0])
            also = torch.tensor(others if not lenses else [], dtype=torch.long, device=after.device)
            lenses.append(read_lens(model, stream, following, top_k=top_k, chunk=chunk, others=also))
        target_ids.append(following.tolist())
    seen = {i for lens in lenses for i in lens.top_ids.unique().tolist()}
    ids = sorted((seen | {i for t in target_ids for i in t} | set(others)) - {-1})
    labels = dict(zip(ids, labels_of(model, ids), strict=True))
    numbers = {name: tuple(getattr(lens, name).cpu().double().numpy() for lens in lenses) for name in MEASURES}
    return LogitLensResult(
        places=tuple(stream_places(model)),
        tokens=tuple(text.labels[text.side] for text in texts),
        targets=tuple(Tokens(labels[i] if i >= 0 else "" for i in one) for one in target_ids),
        target=None if wanted is None else labels[wanted],
        top_ids=tuple(lens.top_ids.cpu().numpy() for lens in lenses),
        top_probability=tuple(lens.top_log_probability.exp().cpu().double().numpy() for lens in lenses),
        candidates=Tokens(labels[i] for i in others),
        candidate_log_probability=lenses[0].other_log_probability.movedim(-1, 0).cpu().double().numpy(),
        candidate_rank=lenses[0].other_rank.movedim(-1, 0).cpu().double().numpy(),
        labels=labels,
        d_vocab=model.config.d_vocab,
        seed=seed,
        **numbers,
    )


def _candidates(model: Reader, stream: Float[Tensor, "place pos d_model"], nexts: Int[Tensor, " pos"]) -> list[int]:
    """Ids worth following, most frequent first: final predictions and next tokens of the positions that are shown."""
    final = model.unembedded(model.ln_final(stream[-1:, -COLUMNS_SHOWN:]))[0].argmax(-1).tolist()
    counted = Counter(final[::-1] + nexts[-COLUMNS_SHOWN:].tolist()[::-1])
    return [i for i, _ in counted.most_common(CANDIDATES)]


def read_lens(
    model: Reader,
    residual: Float[Tensor, "place pos d_model"],
    targets: Int[Tensor, " pos"],
    *,
    top_k: int,
    chunk: int,
    rows: int = ROWS,
    others: Int[Tensor, " other"] | None = None,
) -> Lens:
    """The lens on residual streams; the last place is taken as the final prediction. Targets of -1 mean none.

    `others` are tokens followed at every position. Computed in float32 at least. At most `rows` x `chunk` logits are
    in memory at once.
    """
    step = max(1, rows // len(residual))
    others = targets[:0] if others is None else others
    parts = [
        _read_positions(model, residual[:, start : start + step], targets[start : start + step], others, top_k, chunk)
        for start in range(0, residual.shape[1], step)
    ]
    return Lens(*(torch.cat(one, dim=1) for one in zip(*parts, strict=True)))


def _read_positions(model: Reader, residual: Tensor, targets: Tensor, others: Tensor, top_k: int, chunk: int) -> Lens:
    x = model.ln_final(residual)
    x = wide(x)
    shape, d_vocab = x.shape[:2], model.config.d_vocab
    cap = getattr(model.config, "logit_softcap", None)

    def read(tokens: slice | Tensor) -> Tensor:
        logits = x @ model.W_U[:, tokens].to(x.dtype) + bias[tokens]
        return logits if cap is None else cap * torch.tanh(logits / cap)

    bias = x.new_zeros(d_vocab) if model.b_U is None else model.b_U.to(x.dtype)
    has_target, safe = targets >= 0, targets.clamp(min=0)
    wanted = torch.einsum("lpd,dp->lp", x, model.W_U[:, safe].to(x.dtype)) + bias[safe]
    wanted = wanted if cap is None else cap * torch.tanh(wanted / cap)
    followed = read(others)

    highest = x.new_full(shape, torch.finfo(x.dtype).min / 2)  # running maximum m
    total = x.new_zeros(shape)  # sum of exp(logit - m)
    moment = x.new_zeros(shape)  # sum of exp(logit - m) (logit - m)
    cross = x.new_zeros(shape)  # sum of exp(final - m_final) (final - logit)
    higher = torch.zeros(shape, dtype=torch.long, device=x.device)
    above = torch.zeros_like(followed, dtype=torch.long)
    best, best_ids = x.new_zeros((*shape, 0)), higher.new_zeros((*shape, 0))
    room = x.new_empty(x[..., 0].numel() * min(chunk, d_vocab))
    for start in range(0, d_vocab, chunk):
        stop = min(start + chunk, d_vocab)
        logits = read(slice(start, stop))
        inside = ((safe >= start) & (safe < stop)).nonzero()[:, 0]
        logits[:, inside, safe[inside] - start] = wanted[:, inside]  # rounding must not let it outrank itself
        higher += _above(logits, wanted, room)
        for i, token in enumerate(others.tolist()):
            above[..., i] += _above(logits, followed[..., i], room)
            if start <= token < stop:  # nor here
                above[..., i] -= (logits[..., token - start] > followed[..., i]).long()

        values, ids = logits.topk(min(top_k, stop - start), dim=-1)
        best, order = torch.cat([best, values], -1).topk(min(top_k, best.shape[-1] + values.shape[-1]), dim=-1)
        best_ids = torch.cat([best_ids, ids + start], -1).gather(-1, order)

        now = torch.maximum(highest, values[..., 0])
        shrink = (highest - now).exp()
        below = logits - now[..., None]
        weight = below.exp()
        moment = shrink * (moment + (highest - now) * total) + below.mul_(weight).sum(-1)
        total = shrink * total + weight.sum(-1)
        cross = shrink[-1] * cross + (weight[-1] * (logits[-1] - logits)).sum(-1)
        highest = now
    normaliser = highest + total.log()
    return Lens(
        log_probability=torch.where(has_target, wanted - normaliser, torch.nan),
        rank=torch.where(has_target, (higher + 1).to(x.dtype), torch.nan),
        kl=(cross / total[-1] - normaliser[-1] + normaliser).clamp(min=0),
        entropy=(total.log() - moment / total).clamp(min=0),
        top_ids=best_ids,
        top_log_probability=best - normaliser[..., None],
        other_log_probability=followed - normaliser[..., None],
        other_rank=above + 1,
    )


def _above(logits: Tensor, bound: Tensor, room: Tensor) -> Tensor:
    """How many logits of each row are above its bound; `room` is memory to write ones and zeros to.

    As numbers, for PyTorch adds these up six times as fast as booleans; exact below 2**24 columns.
    """
    ones = torch.gt(logits, bound[..., None], out=room[: logits.numel()].view_as(logits))
    return ones.sum(-1).long()


def _layer(place: str) -> int:
    """-1 for the embedding."""
    return -1 if place == "embed" else int(place[1:].split()[0])


def _range(low: float | None, high: float | None, form: str = ".1f") -> str:
    return "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"
