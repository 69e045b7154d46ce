"""Remove heads, MLPs, layers or neurons in turn: how much worse does the prediction get?

Question: what does this text's prediction need? Each chosen component is replaced, one at a time, and the change of a
metric is measured.

Method: heads are replaced at z, before the output projection, where they are still apart (their share of the output
bias stays); MLPs and attention layers at their output; neurons after the non-linearity. Replacements: `zero`; `mean`,
the component's mean over all positions of all texts; `mean_by_position`, its mean over all other texts at each position
(leave-one-out); `mean_over_texts`, the same with the text itself among them, the field's "mean over the batch, each
position its own"; `resample`, its output on another text (Chan et al. 2022, "Causal Scrubbing"), averaged over several
draws. "Other texts" are the reference texts where given, else the other texts of this run: for means by position those
of the same length, or, for a text that is alone with its length, all, cut to it or continued with further ones; for
`resample` any, cut or continued. All of them count, so no mean depends on the seed. A single text has no others, so the
same tokens in shuffled order serve (the first stays in place). Metrics: `loss` is the mean over the text's tokens and
`kl` the mean over its positions; `logit_diff`, `logit`, `prob`, `prob_diff` and `rank` concern the answer at the last
position, which may be a class of a model that does not predict tokens (such a model has no `loss`). Effect = value -
clean.

The self-repair gap (McGrath et al. 2023, "The Hydra Effect"; Rushing and Nanda 2024) compares two numbers for a head:
what the replaced part of its output adds to the logit difference directly, with the final layer norm's scale held
fixed, and what the logit difference really loses. The gap is the first minus the second: positive where later parts
make up for the loss, negative where the head mattered also through others.

The test of a finding flips the signs of the changes of single tokens at random (of whole texts, where there are enough
of them), many times, and asks how often the largest mean of all components then reaches the one found: "flipped signs,
the largest of 20". "Heads apart": heads compete with heads, and the rest with the rest. It says that the change is not
zero on average; not that other damage of that size would have done less.

What it does not show: parts that back each other up look unimportant one at a time; and a replacement takes the model
off its usual paths (zero most, resample least), so an effect mixes "was needed" with "was disturbed". Intervals and
q-values speak of texts like these, and of nothing else.

Of a translation model (`source ||| target`, or a source and the model's own translation of it) parts of the encoder, of
the decoder and of its cross-attention are replaced; the loss is the mean over all tokens that are written, the end
token included, and the answer the last of them before the end. Of an encoder with a masked-language head the text has
one [MASK], and all metrics concern it. In both, what a head writes passes through norms before it reaches the logits:
there is no direct contribution, and no self-repair gap.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.shared.answered_texts import Texts, own_answers, resolve_texts, said_answers
from analyses.shared.axes import largest_first, related
from analyses.shared.capabilities import analysis, lacking
from analyses.shared.claims import FLOORS, LOSS_FLOOR, SURE, clear_of_zero, largest_p_value, signed, testable
from analyses.shared.components import Component, choose, component_panels
from analyses.shared.metrics import TITLES, UNITS, MetricName, TokenChoice, check_metrics
from analyses.shared.panels import Finding, Marks, Matrix, Note, Panel, Result, Table, Tokens
from analyses.shared.prompts import TextsOrPrompts
from analyses.shared.replacements import KINDS, KindName, Replacements, Values, check_kinds
from analyses.shared.stacks import Model
from analyses.shared.statistics import bootstrap, held_out, independent, methods, q_values, sign_flip_p_value
from analyses.shared.task import Row, shape, sides, task_of
from interp import scale
from interp.errors import NotApplicable
from interp.models.encoder import HookedEncoder
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.gpt import HookedGPT
from interp.progress import tell
from interp.residual import attn_share, logit_direction
from interp.sweep import Variant, sweep

TOLD = 3
"""Most parts that findings name."""
CAPPED = (
    "This model soft-caps its logits: what a head adds directly is counted before the cap, what is lost after it, so "
    "the self-repair gap holds what the cap takes away too."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class AblationResult(Result):
    """What replacing each component does to each metric on each text."""

    texts: tuple[str, ...]
    components: tuple[Component, ...]
    kinds: tuple[str, ...]
    metrics: tuple[str, ...]
    clean: np.ndarray
    """[text metric] without any change, in the metric's unit."""
    values: np.ndarray
    """[text component kind metric] with the component replaced."""
    direct: np.ndarray
    """[text component kind] what the replaced part adds directly to the logit difference, in logits; heads only."""
    logit_effects: np.ndarray
    """[text component kind] measured change of the logit difference, in logits; NaN for other components."""
    answers: Tokens
    """[text]"""
    wrongs: Tokens
    """[text]"""
    clusters: tuple[str, ...] | None
    """[text] template of each text, where there are several."""
    positions: tuple[int, ...] | None
    """Where components were replaced; None means everywhere."""
    notes: tuple[str, ...]
    """How answers and replacement values were chosen."""
    own: tuple[str, ...]
    """Which of answer and wrong answer the model chose itself."""
    token_effects: np.ndarray
    """[token component kind] each token's share of the change of its text's loss, in nats, of texts too few for a test;
    empty where not measured."""
    predicted: tuple[int, ...]
    """[token] what each of these tokens is: what a part does for one, it does for the next that is the same."""
    seed: int

    @property
    def effects(self) -> np.ndarray:
        """[text component kind metric] value minus clean."""
        return np.asarray(self.values - self.clean[:, None, None, :])

    @property
    def self_repair(self) -> np.ndarray:
        """[text component kind] direct contribution minus measured loss of the logit difference, in logits."""
        return np.asarray(self.direct + self.logit_effects)

    def marks(self) -> Marks | None:
        """The mean loss without each component; None where the loss was not measured."""
        if "loss" not in self.metrics:
            return None
        values = self.effects[:, :, 0, self.metrics.index("loss")].mean(0)
        sizes = {component.label: float(value) for component, value in zip(self.components, values, strict=True)}
        return Marks(key="table", sizes=sizes, unit="nats of loss without it")

    def to_dataframe(self) -> pd.DataFrame:
        """One row per text, component, kind and metric.

        `neuron` only where neurons were replaced, `stack` (enc, dec, cross) only of a translation model.
        """
        text, part, kind, metric = (axis.ravel() for axis in np.indices(self.values.shape))
        frame = pd.DataFrame({"text": text, **self._labels(part)})
        frame["kind"], frame["metric"] = np.array(self.kinds)[kind], np.array(self.metrics)[metric]
        clean = np.broadcast_to(self.clean[:, None, None, :], self.values.shape)
        return frame.assign(clean=clean.ravel(), value=self.values.ravel(), effect=self.effects.ravel())

    def _labels(self, part: np.ndarray) -> dict[str, object]:
        """Columns component, (stack,) layer, head (and neuron) for component numbers."""
        chosen = [self.components[i] for i in part]
        columns: dict[str, object] = {
            "component": [c.label for c in chosen],
            "layer": pd.array([c.layer for c in chosen], dtype="Int64"),
            "head": pd.array([c.index if c.kind == "head" else None for c in chosen], dtype="Int64"),
        }
        if any(c.short for c in self.components):
            columns = {"component": columns.pop("component"), "stack": [c.short for c in chosen], **columns}
        if any(c.kind == "neuron" for c in self.components):
            columns["neuron"] = pd.array([c.index if c.kind == "neuron" else None for c in chosen], dtype="Int64")
        return columns

    def _least(self) -> np.ndarray:
        """[metric] what no effect is below: a divergence is never negative."""
        return np.where([metric == "kl" for metric in self.metrics], 0.0, -np.inf)

    def summary(self) -> pd.DataFrame:
        """One row per component, kind and metric: means over texts; with several texts also interval, p and q.

        Intervals are 95 %, each for itself, over texts (over templates where there are several); p by flipping signs
        (not for `kl`, which cannot be negative), q by Benjamini and Hochberg over all rows.
        """
        effects = self.effects
        spread = bootstrap(effects, clusters=self.clusters, least=self._least(), seed=self.seed)
        part, kind, metric = (axis.ravel() for axis in np.indices(effects.shape[1:]))
        frame = pd.DataFrame({**self._labels(part), "kind": np.array(self.kinds)[kind]})
        frame["metric"] = np.array(self.metrics)[metric]
        frame["clean"], frame["value"] = self.clean.mean(0)[metric], self.values.mean(0).ravel()
        frame["effect"] = spread.value.ravel()
        if spread.low is not None and spread.high is not None:
            p = sign_flip_p_value(effects, clusters=self.clusters, seed=self.seed)
            p[..., [name == "kl" for name in self.metrics]] = np.nan  # never negative, so its sign tells nothing
            p = p.ravel()
            frame = frame.assign(low=spread.low.ravel(), high=spread.high.ravel(), p=p, q=q_values(p))
        return frame

    def panels(self) -> list[Panel]:
        pictures: list[Panel] = []
        for m, metric in enumerate(self.metrics):
            for k, kind in enumerate(self.kinds):
                title = f"Effect on {TITLES[metric]}, {{}} {KINDS[kind]}"
                least = self._least()[m]
                spread = bootstrap(self.effects[:, :, k, m], clusters=self.clusters, least=least, seed=self.seed)
                caption, unit = self._caption(metric), UNITS[metric]
                found = component_panels(f"{metric}-{kind}", title, self.components, spread, caption=caption, unit=unit)
                signed_metric = metric != "kl"
                pictures += [
                    replace(one, diverging=signed_metric) if isinstance(one, Matrix) else one
                    for one in related(found, metric)
                ]
        return [*pictures, self._table(), *self._repair_panels(), self._note(), *self._methods()]

    def _methods(self) -> list[Note]:
        tested = len(self.components) * len(self.kinds) * sum(metric != "kl" for metric in self.metrics)
        return methods(
            len(self.texts), clusters=self.clusters, chosen_of=len(self.components), seed=self.seed, tests=tested,
            test="sign flips" if tested else None,
            more="KL divergence has no test: it cannot be negative." * ("kl" in self.metrics),
        )  # fmt: skip

    def _caption(self, metric: str = "loss") -> str:
        where = "at every position" if self.positions is None else f"at positions {', '.join(map(str, self.positions))}"
        where += own_answers(self.own, metric)
        if len(self.texts) == 1:
            return f"With the component replaced minus without, {where}. One text."
        n, unit = independent(len(self.texts), self.clusters)
        return (
            f"With the component replaced minus without, {where}. Mean of {len(self.texts)} texts; 95 % intervals, "
            f"each for itself, over {n} {unit}."
        )

    def _table(self) -> Table:
        apart = [largest_first(some, "effect", 2000) for _, some in self.summary().groupby("metric", sort=False)]
        frame, cut = pd.concat([some for some, _ in apart], ignore_index=True), apart[0][1]
        cut += " Metrics apart, each in its own unit." if len(self.metrics) > 1 else ""
        frame = frame.drop(columns=["stack", "layer", "head", "neuron"], errors="ignore")
        _, unit = independent(len(self.texts), self.clusters)
        tests = f" p by flipping the signs of {unit}, q corrected for all rows of the table (Benjamini-Hochberg)."
        return Table(
            key="table",
            title="Every effect, largest first",
            caption=self._caption() + (tests if "q" in frame else "") + cut,
            frame=frame,
            diverging=frozenset({"effect"} if len(self.metrics) == 1 else ()),
        )

    def _repair_frame(self) -> pd.DataFrame:
        """Heads and kinds with direct contribution, measured loss and gap, in logits, largest gap first."""
        heads = np.array([i for i, c in enumerate(self.components) if c.kind == "head"], dtype=int)
        part, kind = np.repeat(heads, len(self.kinds)), np.tile(np.arange(len(self.kinds)), len(heads))
        frame = pd.DataFrame({**self._labels(part), "kind": np.array(self.kinds)[kind]})
        frame["direct"] = self.direct.mean(0)[part, kind]
        frame["lost"] = -self.logit_effects.mean(0)[part, kind]
        spread = bootstrap(self.self_repair, clusters=self.clusters, seed=self.seed)
        frame["gap"] = spread.value[part, kind]
        if spread.low is not None and spread.high is not None:
            frame["low"], frame["high"] = spread.low[part, kind], spread.high[part, kind]
        return largest_first(frame, "gap", len(frame))[0]

    def _repair_panels(self) -> list[Panel]:
        if np.isnan(self.direct).all():
            return []
        frame = self._repair_frame().drop(columns=["layer", "head"])
        ratio = frame["lost"] / frame["direct"].where(frame["direct"] != 0)
        made_up = ratio.between(0, 1)
        caption = (
            "direct: what the replaced part of the head's output adds to the logit difference by itself. lost: what "
            "the logit difference really loses. gap: direct minus lost, what later parts make up for. All in logits. "
            f"Shown are {made_up.sum()} of {len(frame)} rows, in which the loss lies between 0 and the direct part; in "
            "the others nothing was made up: the head also mattered through others, or was in the way."
        )
        columns = ("direct", "lost", "gap")
        return [
            Table(
                key="self-repair", title="Self-repair gap of each head", caption=caption,
                frame=frame[made_up].reset_index(drop=True),
                units=dict.fromkeys(columns, "logits"), diverging=frozenset(columns),
            )
        ]  # fmt: skip

    def _note(self) -> Note:
        return Note(
            key="choices",
            title="How texts, answers and replacements were chosen",
            text=" ".join([*self.notes, said_answers(self.answers, self.wrongs)]),
        )

    def findings(self) -> list[Finding]:
        """The parts with the largest effects on the loss (else on the first metric), replaced in the first way.

        Heads stand apart from all else: beside what an MLP does, no head would be large.
        """
        is_head = np.array([part.kind == "head" for part in self.components])
        families = [family for family in map(np.flatnonzero, (is_head, ~is_head)) if len(family)]
        return [one for family in families for one in self._told(family, TOLD if len(families) == 1 else 2)]

    def _told(self, family: np.ndarray, most: int) -> list[Finding]:
        """Of the largest effects of these components, so many at most."""
        m = self.metrics.index("loss") if "loss" in self.metrics else 0
        effects = self.effects[:, family, 0, m]
        mean, floor = effects.mean(0), LOSS_FLOOR if self.metrics[m] == "loss" else FLOORS[UNITS[self.metrics[m]]]
        p, null = self._chances(family, m)
        if p is None:
            sure = clear_of_zero(effects, clusters=self.clusters, chosen_of=len(self.components))
        else:
            sure = p <= SURE
        told = np.flatnonzero(sure & (np.abs(mean) >= floor))
        told = told[np.argsort(-np.abs(mean[told]), kind="stable")][:most]
        found = [
            self._finding(int(family[i]), m, None if p is None else float(p[i]), null or f"a floor of {floor:g}")
            for i in told
        ]
        if not found:
            return []
        held = held_out(
            effects, int(told[0]), clusters=self.clusters, least=self._least()[m], seed=self.seed,
            called=lambda one: self.components[family[one]].label,
        )  # fmt: skip
        return [replace(found[0], held=held), *found[1:]]

    def _chances(self, family: np.ndarray, m: int) -> tuple[np.ndarray | None, str]:
        """[component] p-values of a family's effects, the choice of component and family paid for, and their null; None
        without test."""
        n, unit = independent(len(self.texts), self.clusters)
        whole = len(family) == len(self.components)
        of = f", the largest of {len(self.components)}" + " (heads and other parts each for themselves)" * (not whole)
        effects, metric = self.effects[:, family, 0, m], self.metrics[m]
        if metric == "loss" and len(self.token_effects) > 1:
            p = largest_p_value(self.token_effects[:, family, 0], clusters=self.predicted, seed=self.seed)
            p = np.where((np.sign(effects) == np.sign(effects[0])).all(0), p, 1.0)
            unit = "different tokens" + ", all texts of one sign" * (len(self.texts) > 1)
        elif metric != "kl" and testable(n):
            p = largest_p_value(effects, clusters=self.clusters, seed=self.seed)
        else:
            return None, ""
        return np.minimum(p * (1 if whole else 2), 1), f"flipped signs of {unit}{of}"

    def _finding(self, number: int, m: int, p: float | None, null: str) -> Finding:
        part, metric, kind = self.components[number], self.metrics[m], self.kinds[0]
        means = self.effects[:, number, 0].mean(0)
        found = bootstrap(
            self.effects[:, number, 0, m], clusters=self.clusters, chosen_of=len(self.components),
            least=self._least()[m],
        )  # fmt: skip
        effect, (low, high) = float(means[m]), found.ends()
        unit = "nats a token" if metric == "loss" else UNITS[metric]
        beside = [
            f"{TITLES[other]} by {signed(means[i])}{own_answers(self.own, other, ', {}')}"
            for i, other in enumerate(self.metrics) if i != m
        ]  # fmt: skip
        over = f" over {len(self.texts)} texts" if len(self.texts) > 1 else " on this text"
        chance = f"; p = {p:.2g} as the largest of {len(self.components)}" if p is not None else ""
        if p is None and len(self.texts) > 1:
            n, what = independent(len(self.texts), self.clusters)
            chance = f"; {n} {what} are too few for a test" if metric != "kl" else ""
        name, shown = part.label, "heads" if part.kind == "head" else "others"
        change = f"{'rises' if effect > 0 else 'falls'} by {abs(effect):.3g} {unit}, from {self.clean[:, m].mean():.3g}"
        more = f" ({'; '.join(beside)})" if beside else ""
        return Finding(
            f"With {name} {KINDS[kind]}, the {TITLES[metric]}{own_answers(self.own, metric)} {change}{over}{more}"
            f"{chance}.",
            "-".join(filter(None, (metric, kind, part.short * (part.kind == "head"), shown))).replace("_", "-"),
            0.3 + 0.5 * float(np.tanh(abs(effect))), effect, unit, low, high, null=null, p=p, about=name,
            short=f"without it {TITLES[metric]} {signed(effect, '+.2f')}",
        )  # fmt: skip


@analysis(
    place=44,
    needs_in_report=("next token",),
    in_report={"components": "heads,mlps", "metrics": ("loss", "prob", "kl")},
    sweeps=True,
    scales=True,
)
@torch.no_grad()
def ablation(
    model: HookedGPT | HookedEncoder | HookedEncoderDecoder,
    tokens: TextsOrPrompts = None,
    *,
    components: Annotated[
        str,
        "heads, mlps, attention, layers, neurons, or single ones (L0H1, mlp 0, L1N17; cross L0H1 of a translation "
        "model), separated by commas",
    ] = "heads",
    layers: Annotated[tuple[int, ...] | None, "take components from these layers only"] = None,
    kinds: Annotated[tuple[KindName, ...], "what replaces the component's output"] = ("zero",),
    metrics: Annotated[tuple[MetricName, ...], "what is measured"] = ("loss",),
    positions: Annotated[tuple[int, ...] | None, "replace at these positions only; negative ones from the end"] = None,
    answer: Annotated[TokenChoice | None, "right next token; by default the model's most likely one"] = None,
    wrong: Annotated[TokenChoice | None, "token to compare it with; by default the most likely other one"] = None,
    reference: Annotated[tuple[str, ...] | None, "texts that means and resampled outputs are taken from"] = None,
    draws: Annotated[int, "draws that a resampled effect is averaged over"] = 4,
    memory: Annotated[int | None, "bytes to use beyond the model; by default half of what is free"] = None,
    seed: Annotated[int, "of draws, shuffles and intervals"] = 0,
) -> AblationResult:
    """The effect of replacing each component, one at a time, on each metric and text.

    Args:
        tokens: a text, several, ids [batch pos], a prompt set, or None: 12 generated indirect object prompts. For a
            translation model `source ||| target`, a source alone, or both as ids; for an encoder text with a [MASK].
        positions: of the source in a translation model's encoder, of the target in its decoder.
        answer, wrong: a token as text or id, for all texts or one for each.

    Raises InputError for names that mean nothing, texts shorter than two tokens, or positions that a text lacks;
    NotApplicable for the loss of a model that does not predict next tokens, or an encoder that predicts none.
    """
    chosen, names = check_kinds(kinds), check_metrics(metrics)
    if "loss" in names and (missing := lacking(model, ("next token",))):
        raise NotApplicable(
            f"this model has no {missing}, and so no loss",
            "expected metrics of the answer, such as metrics=('logit_diff',) or --metrics logit_diff",
        )
    parts = choose(model, components, layers=layers)
    texts = resolve_texts(model, tokens, answer=answer, wrong=wrong, seed=seed)
    source = Replacements(model, texts.rows, reference, chosen, parts, draws=draws, seed=seed)
    task = task_of(model)
    heads = task.direct and any(part.kind == "head" for part in parts)
    asked = tuple(dict.fromkeys([*names, *(["logit_diff"] if heads else [])]))
    size = (len(texts.rows), len(parts), len(chosen))
    values = {name: np.zeros(size) for name in asked}
    clean = {name: np.zeros(len(texts.rows)) for name in asked}
    direct = np.full(size, np.nan)
    groups = ((at, batch, [source.values(at, shape(batch), kind) for kind in chosen]) for at, batch in texts.groups())
    one = partial(_group, model, texts, parts, asked, positions, memory)
    by_text: dict[int, np.ndarray] = {}
    for indices, cleans, replaced, own, by_token in scale.map_items(one, groups):
        direct[indices] = own
        by_text |= dict(zip(indices, by_token, strict=False))
        for name in asked:
            clean[name][indices], values[name][indices] = cleans[name], replaced[name]
    logit_effects = np.full(size, np.nan)
    if heads:
        is_head = [i for i, part in enumerate(parts) if part.kind == "head"]
        logit_effects[:, is_head] = (values["logit_diff"] - clean["logit_diff"][:, None, None])[:, is_head]
    changes = [by_text[text] for text in sorted(by_text)]
    answers, wrongs = texts.answers(model)
    capped = heads and getattr(model.config, "logit_softcap", None) is not None
    return AblationResult(
        texts=texts.names,
        components=parts,
        kinds=chosen,
        metrics=names,
        clean=np.stack([clean[name] for name in names], axis=-1),
        values=np.stack([values[name] for name in names], axis=-1),
        direct=direct,
        logit_effects=logit_effects,
        answers=answers,
        wrongs=wrongs,
        clusters=texts.clusters,
        positions=None if positions is None else tuple(positions),
        notes=(*texts.notes, *source.notes, *([CAPPED] if capped else [])),
        own=texts.own,
        token_effects=np.concatenate([np.zeros((0, len(parts), len(chosen))), *(x / len(x) for x in changes)]),
        predicted=tuple(
            i for row, x in zip(texts.rows, changes, strict=False) for i in sides(row)[-1].flatten()[-len(x) :].tolist()
        ),
        seed=seed,
    )


@torch.no_grad()
def _group(
    model: Model,
    texts: Texts,
    parts: Sequence[Component],
    asked: tuple[str, ...],
    positions: Sequence[int] | None,
    memory: int | None,
    group: tuple[list[int], Row, Sequence[Sequence[Values]]],
) -> tuple[list[int], dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Texts of one length, with the values that replace: metric -> [text] clean, metric -> [text component kind].

    Before these the texts' numbers, after them the direct contributions [text component kind], and the change of each
    token's loss [text token component kind], without a text where there are enough of them for a test.
    """
    indices, batch, fills = group
    task = task_of(model)
    tokens = "loss" in asked and not testable(independent(len(texts.rows), texts.clusters)[0])
    readout = texts.readout(task, indices, (*asked, *(["losses"] if tokens else [])))
    plan = [(k, p, fill) for k, draws_of in enumerate(fills) for p in range(len(parts)) for fill in draws_of]
    variants: list[Variant] = [(), *(parts[p].replace(fill.__getitem__, positions) for _, p, fill in plan)]
    found = sweep(model, batch, variants, readout, read=readout.read, vocab=readout.vocab, memory=memory, progress=tell)
    losses = found.pop("losses").double().cpu().numpy() if tokens else np.zeros((1 + len(plan), 0, 0))
    token_effects = np.zeros((*losses.shape[1:], len(parts), len(fills)))
    for (k, p, _), row in zip(plan, losses[1:] - losses[0], strict=True):
        token_effects[:, :, p, k] += row / len(fills[k])
    values = {name: np.zeros((len(indices), len(parts), len(fills))) for name in asked}
    for name, value in found.items():
        for (k, p, _), row in zip(plan, value[1:].double().cpu().numpy(), strict=True):
            values[name][:, p, k] += row / len(fills[k])
    clean = {name: value[0].double().cpu().numpy() for name, value in found.items()}
    direct = np.full((len(indices), len(parts), len(fills)), np.nan)
    if task.direct:
        direct = _direct(task.model, texts, indices, batch, parts, fills, positions)
    return indices, clean, values, direct, token_effects


def _direct(
    model: HookedGPT,
    texts: Texts,
    indices: list[int],
    batch: Tensor,
    parts: Sequence[Component],
    fills: Sequence[Sequence[Values]],
    positions: Sequence[int] | None,
) -> np.ndarray:
    """[text component kind] what the replaced part of each head adds to the logit difference (before a soft-cap), the
    scales of the norms that follow fixed."""
    length = batch.shape[1]
    out = np.full((len(indices), len(parts), len(fills)), np.nan)
    if not any(part.kind == "head" for part in parts):
        return out
    last = positions is None or any(position % length == length - 1 for position in positions)
    ends = ("attn.hook_z", "ln1_post.hook_scale")
    names = [name for name in model.hook_points if name.endswith(ends) or name == "ln_final.hook_scale"]
    _, cache = model.run_with_cache(batch, names=names, pos=-1)
    final = cache.get("ln_final.hook_scale", torch.ones(()))  # a model without norms has no scale
    towards = logit_direction(model, texts.answer[indices], texts.wrong[indices])  # [text d_model]
    for p, part in enumerate(parts):
        if part.kind != "head":
            continue
        name = part.names[0]
        for k, draws in enumerate(fills):
            before = torch.zeros(len(indices), model.config.d_head, dtype=model.dtype, device=model.device)
            for fill in draws:
                value = fill[name]
                after = value[:, -1, part.index] if isinstance(value, Tensor) else value
                before += (cache[name][:, -1, part.index] - after) / len(draws)
            layer = part.layer or 0
            written = attn_share(model, cache, layer, (before @ model.blocks[layer].attn.W_O[part.index])[:, None])
            share = model.ln_final.share(written, final)[:, 0]
            out[:, p, k] = (share * towards).sum(-1).double().cpu() if last else 0.0
    return out
