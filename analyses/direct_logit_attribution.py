"""Which parts of the model push the prediction towards an answer, directly, and from where in the text.

Question: the residual stream is a sum, and logits are linear in it once the final layer norm's scale is known. So the
answer's logit (or its difference to a wrong answer's) is a sum too: one part for the token embedding, the position
embedding, every head, every output bias and every MLP (or every neuron), and one for the final layer norm's bias.

Method: each component, centred and divided by the final layer norm's scale of the whole run, times the norm's gain and
the unembedding column of the answer (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; used this
way by Wang et al. 2022, "Interpretability in the Wild"). A head's part is further split by the position it reads from:
its pattern times the part of each value vector.

Where a layer norm follows every sum (a translation model's decoder), a part goes through all later norms in the same
way, each at the scale it had in the run.

What it shows: direct effects, exactly; the parts sum to the logit. What it does not: anything a component does by way
of later components, nor what would happen without it (later layers often compensate; see `ablation`). A plain logit
has no natural zero, as softmax ignores what all logits share; the figures therefore show a plain logit relative to the
mean logit over the vocabulary, and a difference of two logits is the better question.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from scipy import special

from analyses.shared.axes import numbered
from analyses.shared.capabilities import analysis
from analyses.shared.claims import FLOORS, SURE, signed
from analyses.shared.grids import GridsResult, NumberGrid, head_grid, list_grid
from analyses.shared.inputs import TextOrTokens
from analyses.shared.logit_parts import Run, Target
from analyses.shared.metrics import TokenChoice, token_ids
from analyses.shared.panels import Bars, Finding, Matrix, Note, Panel, Result, Table, Tokens, TokenStrip
from analyses.shared.prompts import PromptSet
from analyses.shared.stacks import Stack, attentions, labels_of, readings
from analyses.shared.statistics import Interval, bootstrap, held_out, methods
from interp.errors import InputError
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.gpt import HookedGPT
from interp.models.parts import Norm
from interp.residual import Reader, stream_of

TOP = 30
"""Rows of the table of the strongest components."""


@dataclass(frozen=True, kw_only=True)
class DirectLogitAttributionResult(Result):
    """The logit, or logit difference, of each text at one position, split by component."""

    components: tuple[str, ...]
    """[component] names as in `interp.residual.decompose` (`embed`, `pos_embed`, `L0H0`, `bias 0`, `mlp 0`; with
    neurons `L0N0` and `mlp bias 0` in place of `mlp 0`), then `ln_final bias` (of a layer norm) and
    `unembed bias`."""
    contributions: np.ndarray
    """[text component], logits; their sum over components is `total`."""
    common: np.ndarray
    """[text component], logits: each component's part of the mean logit over the vocabulary; zero for a difference."""
    total: np.ndarray
    """[text], logits: what the model itself computed, before a soft-cap."""
    softcap: float | None = None
    """c, where the model's logits are c tanh(total / c)."""
    by_source: tuple[np.ndarray, ...]
    """One per text, [layer head source position], logits: each head's contribution by the position it reads, relative
    to the mean over the vocabulary like the figures."""
    tokens: tuple[Tokens, ...]
    """The texts' tokens."""
    texts: tuple[str, ...]
    """[text] short names."""
    answers: Tokens
    """[text] the answer's token."""
    wrongs: Tokens
    """[text] the wrong answer's token; empty for a plain logit."""
    pos: int
    """The position whose prediction is explained, as given."""
    chosen_by_model: bool
    """Whether the answer is the model's own top prediction, because none was given."""
    by_chance: np.ndarray
    """[text component], logits: standard deviation of the contribution if what the component writes had a random
    direction; NaN for parts that write nothing of their own."""
    choices: int
    """How many answers there were to choose from: the vocabulary where the model chose, else one."""
    weights: str
    """`folded` when every layer norm of the model has gain one and bias zero, else `raw`."""
    shape: tuple[int, int]
    """(layers, heads)."""
    clusters: list[str] | None = None
    """[text] the template of each text, where there are several templates."""
    seed: int = 0
    """Of the bootstrap."""

    def to_dataframe(self) -> pd.DataFrame:
        """Columns text (from 0), component, layer, head, contribution (logits); layer and head are empty where none."""
        layers, heads = zip(*map(_place, self.components), strict=True)
        n_texts, n_components = self.contributions.shape
        return pd.DataFrame({
            "text": np.repeat(np.arange(n_texts), n_components),
            "component": np.tile(np.array(self.components, dtype=object), n_texts),
            "layer": pd.array(list(layers) * n_texts, dtype="Int64"),
            "head": pd.array(list(heads) * n_texts, dtype="Int64"),
            "contribution": self.contributions.ravel(),
        })  # fmt: skip

    @property
    def quantity(self) -> str:
        """What is explained, in words."""
        pairs = set(zip(self.answers, self.wrongs or self.answers, strict=True))
        if self.wrongs:
            named = f" of {self.answers[0]!r} over {self.wrongs[0]!r}" if len(pairs) == 1 else " of the answers"
            return f"logit difference{named}"
        return f"logit of {self.answers[0]!r}" if len(pairs) == 1 else "logit of the answers"

    @property
    def relative(self) -> np.ndarray:
        """[text component], logits: what the figures show, the contributions less the common part."""
        return np.asarray(self.contributions - self.common)

    def _spread(self, values: np.ndarray) -> Interval:
        return bootstrap(values, clusters=self.clusters, seed=self.seed)

    @property
    def _parts(self) -> np.ndarray:
        """[component] whether it is a head or an MLP, which a finding may name."""
        return np.array([re.match(r"L\d+H|mlp \d", name) is not None for name in self.components])

    @property
    def _unit(self) -> str:
        return "logits" if self.wrongs else "logits above the vocabulary's mean"

    @property
    def _over(self) -> str:
        n = len(self.texts)
        return "One text, so no interval." if n == 1 else f"Mean of {n} texts with 95 % intervals."

    def panels(self) -> list[Panel]:
        interval = self._spread(self.relative)
        return [
            self._note(),
            self._by_layer(),
            self._by_head(interval),
            *self._by_position(),
            self._table(interval),
            *methods(len(self.texts), clusters=self.clusters, chosen_of=int(self._parts.sum()), seed=self.seed),
        ]

    def _note(self) -> Note:
        chosen = " (the model's own top prediction, as no answer was given)" if self.chosen_by_model else ""
        total = f"{self.total.mean():.2f} on average" if len(self.texts) > 1 else f"{self.total[0]:.2f}"
        text = (
            f"Explained: the {self.quantity}{chosen} at position {self.pos}; its value is {total}. "
            f"Weights: {self.weights}. {self._fold_note()} "
            f"The parts sum to the model's own number within {self.error:.1e} logits."
        )
        if not self.wrongs:
            text += (
                " Softmax ignores what all logits share, so the figures show each part less its part of the mean logit "
                f"over the vocabulary; there the sum is {self.relative.sum(1).mean():.2f}."
            )
        return Note(key="what", title="What is explained", text=text)

    def _fold_note(self) -> str:
        if self.weights == "folded":
            return f"Gains and biases of norms are part of the weights.{self._cap_note()}"
        own = " The final norm's bias is a part of its own." if "ln_final bias" in self.components else ""
        return f"A head's part includes its value bias, where it has one.{own}{self._cap_note()}"

    def _cap_note(self) -> str:
        if self.softcap is None:
            return ""
        cap = f"{self.softcap:g}"
        return (
            f" This model soft-caps its logits, {cap} tanh(x / {cap}): the parts sum to x, the number before the cap; "
            "after it, shares of a large logit count for less."
        )

    @property
    def error(self) -> float:
        """Largest distance, in logits, between the sum of the parts and the model's own number."""
        return float(np.abs(self.contributions.sum(1) - self.total).max())

    def _by_layer(self) -> Bars:
        groups = [_group(name) for name in self.components]
        labels = tuple(dict.fromkeys(groups))
        sums = np.stack([self.relative[:, [group == label for group in groups]].sum(1) for label in labels], 1)
        spread = self._spread(sums)
        return Bars(
            key="by-layer", title="By layer", labels=labels, values=spread.value, unit=self._unit,
            low=spread.low, high=spread.high,
            caption=f"The {self.quantity}, split by part of the model; attn is all heads of a layer and its bias. "
            f"{self._over}",
        )  # fmt: skip

    def _by_head(self, interval: Interval) -> Matrix:
        n_layers, n_heads = self.shape
        first = [self.components.index(f"L{layer}H0") for layer in range(n_layers)]
        index = np.array(first)[:, None] + np.arange(n_heads)
        ends = (None if end is None else end[index] for end in (interval.low, interval.high))
        low, high = ends
        return Matrix(
            key="by-head", title="By head", values=interval.value[index], low=low, high=high, diverging=True,
            rows=tuple(map(str, range(n_layers))), columns=tuple(map(str, range(n_heads))),
            row_axis="layer", column_axis="head", unit=self._unit,
            caption=f"Direct contribution of each head to the {self.quantity}. {self._over}",
        )  # fmt: skip

    def _by_position(self) -> list[Panel]:
        """From where the heads of the first text read what they write."""
        source, n_heads = self.by_source[0], self.shape[1]
        flat = source.reshape(-1, source.shape[-1])
        top = np.argsort(-np.abs(flat).sum(1), kind="stable")[:12]
        which = "" if len(self.texts) == 1 else f" Text {self.texts[0]}."
        return [
            TokenStrip(
                key="by-position", title="By position read", tokens=self.tokens[0], values=flat.sum(0), diverging=True,
                unit=self._unit,
                caption=f"All heads' direct contributions, summed by the position the heads read from.{which}",
            ),
            Matrix(
                key="head-by-position", title="By head and position read", values=flat[top].round(6), diverging=True,
                rows=tuple(f"L{row // n_heads}H{row % n_heads}" for row in top), columns=numbered(self.tokens[0]),
                row_axis="head", column_axis="position read", unit=self._unit,
                caption=f"The heads with the largest direct contributions, split by the position they read.{which}",
            ),
        ]  # fmt: skip

    def _table(self, interval: Interval) -> Table:
        order = np.argsort(-np.abs(interval.value), kind="stable")[:TOP]
        columns: dict[str, object] = {
            "component": [self.components[i] for i in order],
            "contribution": interval.value[order],
        }
        if interval.low is not None and interval.high is not None:
            columns |= {"low": interval.low[order], "high": interval.high[order]}
        return Table(
            key="strongest", title="Strongest components", frame=pd.DataFrame(columns),
            units=dict.fromkeys(["contribution", "low", "high"], self._unit), diverging=frozenset({"contribution"}),
            caption=f"The {len(order)} largest of {len(self.components)} parts. {self._over}",
        )  # fmt: skip

    @property
    def p_values(self) -> np.ndarray:
        """[component] chance that one of all components, of random directions, contributes as much to some answer.

        A random direction of the length of what the component writes is all but normal along any other, with standard
        deviation length / sqrt(d_model); for several texts as if all had the same direction. Bonferroni over components
        and over the answers to choose from.
        """
        z = np.abs(self.relative.mean(0)) / self.by_chance.mean(0)
        return np.asarray(np.minimum(1.0, 2 * special.ndtr(-z) * np.isfinite(z).sum() * self.choices))

    @property
    def null(self) -> str:
        """What `p_values` compare with, in words."""
        answers = f" and {self.choices:,} answers" if self.choices > 1 else ""
        return f"random directions of the same length, {np.isfinite(self.by_chance[0]).sum()} parts{answers}"

    def findings(self) -> list[Finding]:
        p = self.p_values
        names = [i for i in np.flatnonzero(self._parts) if p[i] <= SURE]
        values = self._spread(self.relative).value
        total = float((self.total - self.common.sum(1)).mean())
        sign = 1 if total >= 0 else -1
        best = max(names, key=lambda i: sign * float(values[i]), default=None)
        if best is None or abs(values[best]) < max(FLOORS["logits"], abs(total) / 20):
            return []
        of = int(self._parts.sum())
        low, high = bootstrap(self.relative[:, best], clusters=self.clusters, chosen_of=of).ends()
        held = held_out(
            self.relative, int(best), by=np.where(self._parts, sign * self.relative, -np.inf), highest=True,
            clusters=self.clusters, called=self.components.__getitem__, seed=self.seed,
        )  # fmt: skip
        above = "" if self.wrongs else ", counted from the vocabulary's mean"
        above += "" if self.softcap is None else ", before the soft-cap"
        name, amount = self.components[best], f"{signed(values[best], '+.2f')} of {signed(total, '+.2f')}"
        return [
            Finding(
                f"{name} adds {amount} logits directly to the {self.quantity}{above}, more than random directions of "
                "its length would.",
                "strongest", 0.5,
                float(values[best]), "logits", low, high, null=self.null, p=float(p[best]), held=held,
                about=name, short=f"adds {amount} to the {self.quantity}",
            )
        ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ContributionsResult(GridsResult):
    """Contributions grid by grid: of a model whose blocks have more than one attention."""

    def _panel(self, grid: NumberGrid) -> Panel:
        if grid.key != "neurons":
            return super()._panel(grid)
        order = np.argsort(-np.abs(grid.values.mean(0)[:, 0]), kind="stable")[:TOP]
        names = tuple(grid.names[i] for i in order)
        return super()._panel(replace(grid, values=grid.values[:, order], names=names))


@analysis(place=40, needs=("next token",))
@torch.no_grad()
def direct_logit_attribution(
    model: HookedGPT | HookedEncoderDecoder,
    tokens: TextOrTokens | PromptSet,
    *,
    answer: Annotated[TokenChoice | None, "the answer's token, one or one a text; default: the model's own"] = None,
    wrong: Annotated[TokenChoice | None, "a wrong answer's token: then the logit difference is split"] = None,
    pos: Annotated[int, "position whose prediction is explained; negative counts from the end"] = -1,
    neurons: Annotated[bool, "split MLPs into neurons"] = False,
    seed: Annotated[int, "seed of the bootstrap intervals"] = 0,
) -> Result:
    """Split the answer's logit, or its difference to a wrong answer's, over the parts of the model.

    A translation model's decoder is explained; a text is a source, or `source ||| target`, the answer by default what
    is written there, and -1 the last position before the end token's. A BERT's logits are no sum of parts: a layer with
    a non-linearity lies between its stream and them.

    Args:
        tokens: text, texts, ids [batch pos], or a prompt set, whose answers are then used.
        answer, wrong: a single token as text or id, or one for each text.

    Raises InputError for text that is no single token, a position outside a text, or unusable tokens.
    """
    stacks = [stack for stack in attentions(model) if stack.path == stream_of(model)[0]]
    clusters: list[str] | None = None
    if isinstance(tokens, PromptSet):
        if len(stacks) > 1:
            raise InputError("a prompt set for a translation model", "expected texts: source, or source ||| target")
        if answer is None:
            answer = [prompt.answer for prompt in tokens if prompt.answer] or None
            wrong = [prompt.wrong for prompt in tokens if prompt.wrong] or None if wrong is None else wrong
        clusters = [prompt.template for prompt in tokens]
        clusters = clusters if len(set(clusters)) > 1 else None
        tokens = [prompt.clean for prompt in tokens]
    texts = readings(model, tokens)
    places = [text.place(pos) for text in texts]
    runs = [Run(model, stacks[-1], text, place) for text, place in zip(texts, places, strict=True)]
    answers = [run.written for run in runs] if answer is None else token_ids(model, answer, len(texts)).tolist()
    wrongs = None if wrong is None else token_ids(model, wrong, len(texts)).tolist()
    mean = Target.mean(model)
    names: tuple[str, ...] = ()
    contributions, common, total, by_source, by_chance = [], [], [], [], []
    for number, run in enumerate(runs):
        target, value = Target.logit(model, answers[number]), run.logits[answers[number]]
        if wrongs is not None:
            target, value = target - Target.logit(model, wrongs[number]), value - run.logits[wrongs[number]]
        names, parts = run.split(target, neurons)
        shared = run.split(mean, neurons)[1] if wrongs is None else np.zeros_like(parts)
        contributions.append(parts)
        common.append(shared)
        total.append(float(value))
        shown = target - mean if wrongs is None else target
        by_source.append(run.by_source(shown))
        by_chance.append(run.by_chance(shown, names))
    result = DirectLogitAttributionResult(
        components=names, contributions=np.stack(contributions), common=np.stack(common), total=np.array(total),
        by_source=tuple(by_source), by_chance=np.stack(by_chance),
        choices=model.W_U.shape[1] if answer is None else 1, texts=tuple(text.name for text in texts),
        tokens=tuple(text.labels[stacks[-1].keys] for text in texts),
        answers=labels_of(model, answers), wrongs=Tokens() if wrongs is None else labels_of(model, wrongs),
        pos=pos, chosen_by_model=answer is None, weights=weights_kind(model), shape=stacks[-1].shape,
        clusters=clusters, seed=seed, softcap=getattr(model.config, "logit_softcap", None),
    )  # fmt: skip
    return result if len(stacks) == 1 else _by_attention(result, stacks, places[0])


def _by_attention(result: DirectLogitAttributionResult, stacks: Sequence[Stack], place: int) -> ContributionsResult:
    """The same numbers with a grid for each kind of head, for neurons and for the rest; `place` is the first text's."""
    names = [name.replace("unembed bias", "logits' bias") for name in result.components]
    values, grids, used = result.relative, [], set[int]()
    for stack in stacks:
        index = [i for i, name in enumerate(names) if name.startswith(f"{stack.short} L")]
        used.update(index)
        heads, kind = (
            values[:, index].reshape(-1, *stack.shape),
            "cross-attention" if stack.crosses else "self-attention",
        )
        caption = "Direct contribution of each head."
        grids.append(head_grid(f"{stack.short}-heads", f"By {kind} head", caption, heads, stack.short))
    split = [i for i, name in enumerate(names) if re.match(r"L\d+N", name)]
    rest = [i for i in range(len(names)) if i not in used.union(split)]
    caption = "Direct contribution of every other part; norm bias is what the biases of all layer norms came to."
    grids.append(list_grid("others", "By other part", caption, values[:, rest], [names[i] for i in rest]))
    if split:
        caption = f"Direct contribution of the {min(TOP, len(split))} of {len(split)} neurons with the largest."
        grids.append(list_grid("neurons", "By neuron", caption, values[:, split], [names[i] for i in split]))
    over = "the wrong answer" if result.wrongs else "the vocabulary's mean"
    what = f"logit of {result.answers[0]!r}"
    what += f" over {result.wrongs[0]!r}" if result.wrongs else ""
    note = (
        f"The {what}, written at target position {place}, counted from {over}. The parts sum to the model's own number "
        f"within {result.error:.1e} logits. Layer norms are held at the scale they had in the run."
    )
    strip = TokenStrip(
        key="by-source", title="By source token", tokens=result.tokens[0], values=result.by_source[0].sum((0, 1)),
        unit="logits", diverging=True,
        caption="What all cross-attention heads contribute directly, summed by the source token they read. First text.",
    )  # fmt: skip
    return ContributionsResult(
        what=f"contribution to the {what if len(result.texts) == 1 else 'answers logits'}", unit="logits",
        texts=result.texts, p_values=dict(zip(names, result.p_values, strict=True)), null=result.null,
        grids=tuple(grids), notes=(Note(key="what", title="What is explained", text=note),),
        strips=(strip,), seed=result.seed,
    )  # fmt: skip


def weights_kind(model: Reader) -> str:
    """`folded` when every norm has gain one and bias zero (its work is in the weights), else `raw`."""
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    neutral = all(bool((norm.gain == 1).all()) and (norm.b is None or not bool(norm.b.any())) for norm in norms)
    return "folded" if neutral else "raw"


def _place(component: str) -> tuple[int | None, int | None]:
    """Layer and head of a component's name, None where it has none."""
    head = re.fullmatch(r"L(\d+)H(\d+)", component)
    if head:
        return int(head[1]), int(head[2])
    layer = re.search(r"(\d+)(?:N\d+)?$", component)
    return (int(layer[1]) if layer else None), None


def _group(component: str) -> str:
    """The bar of the figure by layer that a component belongs to."""
    layer, head = _place(component)
    if layer is None:
        return component
    return f"attn {layer}" if head is not None or component.startswith("bias") else f"mlp {layer}"
