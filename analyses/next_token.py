"""What comes next: the distribution after a text under temperature, top-k and top-p, and generation step by step.

Question: what does the model expect after this text, how sure is it, and how does a continuation come about?

Method: only the last position's final vector is decoded, into one probability for every token of the vocabulary. The
entropy says how undecided the model is, in nats; its exponential is the number of equally likely tokens that would be
as undecided. Temperature divides the logits; top-k keeps the k most likely tokens; top-p keeps the smallest set of most
likely tokens that holds the mass p (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration"). The loop
then draws a token, appends it and runs the model again: there is no other memory, and no loop inside the model.

What the numbers do not show: whether the prediction is true. A sure model can be wrong; another seed draws other words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.shared.axes import Axes, lines
from analyses.shared.capabilities import analysis
from analyses.shared.claims import UNIFORM
from analyses.shared.inputs import sequences, text_names, token_labels
from analyses.shared.panels import WHOLE, Finding, Note, Panel, Result, Table, TokenGrid, Tokens, TokenStrip
from analyses.shared.statistics import bootstrap
from interp.errors import InputError
from interp.generation import sampling_distribution
from interp.generation import steps as generation_steps
from interp.models.gpt import HookedGPT

TEMPERATURES = (0.5, 0.7, 1.0, 1.5, 2.0)
COMMON_K, COMMON_P = 50, 0.9
"""Settings shown beside the chosen ones."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One turn of the loop."""

    chosen: int
    """Token id."""
    probability: float
    """Of the chosen token, as the model gave it."""
    sampling_probability: float
    """Of the chosen token, after temperature, top-k and top-p."""
    rank: int
    """Of the chosen token; 1 is the most likely."""
    entropy: float
    """Nats, of the model's own distribution."""
    kept: int
    """Tokens that could have been drawn."""
    ids: np.ndarray
    """[shown] the most likely tokens, best first."""
    probabilities: np.ndarray
    """[shown] the model's own."""
    sampling_probabilities: np.ndarray
    """[shown] after temperature, top-k and top-p."""


@dataclass(frozen=True, kw_only=True)
class NextTokenResult(Result):
    """The distribution after each text, and the continuation of the first."""

    tokens: Tokens
    """[pos] the first text."""
    names: tuple[str, ...]
    """[text] a short name of each."""
    after: tuple[Step, ...]
    """[text] the distribution after each text; `chosen` is its most likely token."""
    entropies: np.ndarray
    """[pos] nats, after each token of the first text."""
    loop: tuple[Step, ...]
    """The continuation of the first text, one entry a new token."""
    left_out: int
    """Steps asked for that did not fit into the context."""
    settings: pd.DataFrame
    """Temperature, top-k, top-p; entropy (nats), equally likely, tokens kept, top probability; after the first text."""
    cumulative: dict[float, np.ndarray]
    """Temperature -> [rank] probability of the most likely tokens together, at the ranks of `ranks`."""
    ranks: np.ndarray
    """[rank] 1, 2, 3, 5, ... up to the vocabulary."""
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    vocabulary: dict[int, str]
    """The name of every token id that occurs above."""

    def to_dataframe(self) -> pd.DataFrame:
        """One row a candidate: text, step (0: the prediction after the text; then each turn of the loop), rank, token,
        probability, sampling_probability, entropy (nats), chosen (in the loop)."""
        after = [self._rows(text, 0, first) for text, first in enumerate(self.after)]
        return pd.concat([*after, *(self._rows(0, i, step) for i, step in enumerate(self.loop, 1))], ignore_index=True)

    def _rows(self, text: int, number: int, step: Step) -> pd.DataFrame:
        ids, ranks = [int(token) for token in step.ids], list(range(1, len(step.ids) + 1))
        columns = {"probability": step.probabilities, "sampling_probability": step.sampling_probabilities}
        if step.rank > len(ids):
            ids, ranks = [*ids, step.chosen], [*ranks, step.rank]
            drawn = (step.probability, step.sampling_probability)
            columns = {name: np.append(x, one) for (name, x), one in zip(columns.items(), drawn, strict=True)}
        labels = {"text": text, "step": number, "rank": ranks, "token": [self.vocabulary[token] for token in ids]}
        chosen = [number > 0 and token == step.chosen for token in ids]
        return pd.DataFrame(labels | columns | {"entropy": step.entropy, "chosen": chosen})

    @property
    def continuation(self) -> Tokens:
        """[step] the tokens of the loop."""
        return Tokens(self.vocabulary[step.chosen] for step in self.loop)

    def panels(self) -> list[Panel]:
        first, several = self.after[0], len(self.after) > 1
        caption = (
            f"The {len(first.ids)} most likely of the vocabulary's tokens{' after the first text' * several}: together "
            f"{first.probabilities.sum():.0%}. Entropy {first.entropy:.2f} nats, as undecided as among "
            f"{np.exp(first.entropy):,.1f} equally likely tokens."
        )
        labels = Tokens(self.vocabulary[int(token)] for token in first.ids)
        bars = Axes.of(first.probabilities, token=labels).bars(
            "distribution", "After the text", caption, unit="probability"
        )
        texts = [self._text_table()] if several else []
        return [bars, *texts, *self._settings_panels(), self._entropy_strip(), *self._loop_panels()]

    def _text_table(self) -> Table:
        entropy = bootstrap(np.array([step.entropy for step in self.after]), seed=self.seed)
        frame = pd.DataFrame({"text": self.names, "most likely": [self.vocabulary[step.chosen] for step in self.after]})
        for name in ("probability", "entropy"):
            frame[name] = [getattr(step, name) for step in self.after]
        return Table(
            "texts", "After each text", f"Mean entropy {entropy.value:.2f} nats (95 % interval {entropy.low:.2f} to "
            f"{entropy.high:.2f}, bootstrap by text).", frame=frame, tokens=frozenset({"most likely"}),
            units={"entropy": "nats"},
        )  # fmt: skip

    def _settings_panels(self) -> list[Panel]:
        caption = "What may be drawn after the text under usual settings; the first row is the one used below."
        return [
            Table(
                "settings", "Temperature, top-k and top-p", caption, frame=self.settings, units={"entropy": "nats"}
            ),
            lines(
                "cumulative", "How many tokens hold how much", "Probability of the most likely tokens together, by "
                "temperature. Top-k cuts at a number of tokens (across), top-p at a probability (up).",
                {f"temperature {t:g}": values for t, values in self.cumulative.items()}, x=self.ranks,
                x_axis="most likely tokens", y_axis="probability together", log_x=True,
            ),
        ]  # fmt: skip

    def _entropy_strip(self) -> TokenStrip:
        return TokenStrip(
            "entropy", "How undecided the model is after each token", "Entropy of the prediction made at that token: "
            "the model predicts at every position, only the last one is used to go on. One text.", tokens=self.tokens,
            values=self.entropies, unit="nats",
        )  # fmt: skip

    def _loop_panels(self) -> list[Panel]:
        if not self.loop:
            full = "The text fills the whole context: no room for more."
            return [Note("loop", "The loop", text=full if self.left_out else "No steps were asked for.")]
        shown = min(len(step.ids) for step in self.loop)
        drawn = "greedy: the most likely token" if self.temperature == 0 else f"drawn with seed {self.seed}"
        cut = f" {self.left_out} more would not fit into the context." if self.left_out else ""
        frame = pd.DataFrame({"step": range(1, len(self.loop) + 1), "chosen": self.continuation})
        columns = {"probability": "probability", "when drawn": "sampling_probability", "rank": "rank",
                   "entropy": "entropy", "tokens kept": "kept"}  # fmt: skip
        for name, attribute in columns.items():
            frame[name] = [getattr(step, attribute) for step in self.loop]
        return [
            TokenGrid(
                "loop", "The loop, step by step", f"Columns are the new tokens ({drawn}); below each, what the model "
                f"held most likely at that step.{cut}", tokens=self.continuation,
                rows=tuple(str(rank + 1) for rank in range(shown)), row_axis="rank",
                cells=tuple(Tokens(self.vocabulary[int(step.ids[r])] for step in self.loop) for r in range(shown)),
                measures={"probability": np.stack([step.probabilities[:shown] for step in self.loop], axis=1)},
                units={"probability": ""}, targets=self.continuation,
            ),
            Table(
                "steps", "The tokens chosen", "Probability as the model gave it, and when drawn, after temperature, "
                "top-k and top-p. Each step reads the whole text so far, the model's own words included.", frame=frame,
                tokens=frozenset({"chosen"}), units={"entropy": "nats"},
            ),
        ]  # fmt: skip

    def findings(self) -> list[Finding]:
        first, most = self.after[0], float(np.log(self.ranks[-1]))
        which = "first text" if len(self.after) > 1 else "text"
        if first.entropy > UNIFORM * most:
            text = (
                f"After the {which} the model has no expectation: its entropy is {first.entropy:.2f} of at most "
                f"{most:.2f} nats, as if it were untrained."
            )
            said = f"expects nothing after the {which} (entropy {first.entropy:.2f} of at most {most:.2f} nats)"
            return [Finding(text, "distribution", 0.6, first.entropy, "nats", kind="warning", about=WHOLE, short=said)]
        like = f"{np.exp(first.entropy):,.1f}"
        text = (
            f"After the {which} the model expects {self.vocabulary[first.chosen]!r} ({first.probability:.0%}); it is "
            f"as undecided as among {like} equally likely tokens (entropy {first.entropy:.2f} nats)."
        )
        return [Finding(text, "distribution", 0.4, first.probability, "probability", kind="size")]


@analysis(place=10, needs=("next token",), runs=True)
@torch.no_grad()
def next_token(
    model: HookedGPT,
    tokens: str | Sequence[str] | Tensor,
    *,
    steps: Annotated[int, "tokens to generate after the first text"] = 8,
    temperature: Annotated[float, "divides the logits; 0 takes the most likely token"] = 1.0,
    top_k: Annotated[int | None, "draw among the k most likely tokens only"] = None,
    top_p: Annotated[float | None, "draw among the most likely tokens that hold this mass"] = None,
    show: Annotated[int, "candidates shown at each step"] = 10,
    seed: Annotated[int, "of the draws"] = 0,
) -> NextTokenResult:
    """The distribution after each text, and the first text continued step by step.

    Raises InputError for negative steps, no candidates to show, or settings outside their meaning.
    """
    if steps < 0 or show < 1:
        raise InputError(f"steps = {steps}, show = {show}", "expected steps >= 0 and show >= 1")
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    rows = sequences(model, tokens)
    logits = [model(row)[0].float() for row in rows]
    show = min(show, model.config.d_vocab)
    after = tuple(_step(each[-1], int(each[-1].argmax()), show, settings) for each in logits)
    room = model.config.n_ctx - rows[0].shape[1]
    turns = generation_steps(model, rows[0], max_new_tokens=min(steps, room), seed=seed, **settings)  # type: ignore[arg-type]
    loop = tuple(_step(at[0].float(), int(chosen[0]), show, settings) for chosen, at in turns)
    ids = {int(token) for step in (*after, *loop) for token in (*step.ids, step.chosen)}
    last = logits[0][-1]
    ranks = _ranks(model.config.d_vocab)
    return NextTokenResult(
        tokens=token_labels(model, rows[0]),
        names=text_names(model, rows),
        after=after,
        entropies=entropy(logits[0].softmax(-1)).cpu().numpy(),
        loop=loop,
        left_out=max(steps - room, 0),
        settings=_settings_table(last, settings),
        cumulative={t: _cumulative(last, t)[ranks - 1] for t in TEMPERATURES},
        ranks=ranks,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        vocabulary={token: token_labels(model, [token])[0] for token in sorted(ids)},
    )


def entropy(probabilities: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch"]:
    """Shannon entropy in nats; probabilities of zero count as zero."""
    terms: Tensor = torch.special.xlogy(probabilities, probabilities)
    return -terms.sum(-1)


def _step(logits: Tensor, chosen: int, show: int, settings: dict[str, float | int | None]) -> Step:
    own, sampling = logits.softmax(-1), sampling_distribution(logits, **settings)  # type: ignore[arg-type]
    best = own.topk(show)
    return Step(
        chosen=chosen,
        probability=float(own[chosen]),
        sampling_probability=float(sampling[chosen]),
        rank=int((logits > logits[chosen]).sum()) + 1,
        entropy=float(entropy(own)),
        kept=int((sampling > 0).sum()),
        ids=best.indices.cpu().numpy(),
        probabilities=best.values.double().cpu().numpy(),
        sampling_probabilities=sampling[best.indices].double().cpu().numpy(),
    )


def _settings_table(logits: Tensor, chosen: dict[str, float | int | None]) -> pd.DataFrame:
    usual: list[dict[str, float | int | None]] = [
        {"temperature": t, "top_k": k, "top_p": p}
        for t in (0.7, 1.0, 1.5)
        for k, p in ((None, None), (COMMON_K, None), (None, COMMON_P))
    ]
    rows = []
    for setting in [chosen, *(row for row in usual if row != chosen)]:
        drawn = sampling_distribution(logits, **setting)  # type: ignore[arg-type]
        amount = float(entropy(drawn))
        rows.append(
            {
                "temperature": float(setting["temperature"] or 0),
                "top-k": "all" if setting["top_k"] is None else str(setting["top_k"]),
                "top-p": "all" if setting["top_p"] is None else f"{setting['top_p']:g}",
                "entropy": amount,
                "equally likely": float(np.exp(amount)),
                "tokens kept": int((drawn > 0).sum()),
                "top probability": float(drawn.max()),
            }
        )
    return pd.DataFrame(rows)


def _cumulative(logits: Tensor, temperature: float) -> np.ndarray:
    """[token] probability of the most likely tokens together."""
    ordered = sampling_distribution(logits, temperature=temperature).sort(descending=True).values
    out: np.ndarray = ordered.double().cumsum(0).cpu().numpy()
    return out


def _ranks(d_vocab: int) -> np.ndarray:
    """About 40 whole numbers from 1 to the size of the vocabulary, evenly spread on a log scale."""
    return np.unique(np.geomspace(1, d_vocab, 40).round().astype(int))
