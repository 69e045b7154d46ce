"""Where every head looks: patterns, entropy, and the mass on the first, previous and repeated tokens.

Question: for each head, how is the attention of a query spread over the keys, and does it follow one of the patterns
that are easy to name?

Method. Measures are means over the queries of a text for which they are defined; query 0 of a decoder, which can only
look at itself, is not counted:

- `entropy`: of the pattern, in nats; 0 is one key, ln(keys) is all keys alike.
- `first`: mass on the first token (the beginning-of-text token, when the analysis was given text).
- `previous`: mass on the token just before the query.
- `own`: mass on the query's own position.
- `last` and `next`, where queries see what comes later: mass on the last token (the end token of a source), and on the
  one just after the query. `previous`, `own` and `next` need queries and keys to be the same tokens.
- `same`, where attention is causal: mass on all earlier occurrences of the query's token; queries whose token occurred
  before.
- `after_same`: mass on all tokens that come right after an earlier occurrence of the query's token; the same queries.
  This is where an induction head looks (Olsson et al., "In-context Learning and Induction Heads", 2022).
- `surprise`: Kullback-Leibler divergence, in nats, from the average pattern of all heads to this head's pattern: high
  for heads that look where the others do not.

Value-weighted measures replace the mass a[i, j] by a[i, j] |v[j] W_O|, each row scaled to sum to one again (Kobayashi
et al., "Attention is Not Only a Weight", 2020): a key whose value vector is nearly zero moves nothing, however much
attention it gets. Where a norm follows attention its gain counts too; its scale is one number a query and cancels.
Heads are clustered by the Hellinger distance between patterns, its root mean square over queries (average linkage).
Rollout (Abnar and Zuidema, "Quantifying Attention Flow in Transformers", 2020) multiplies the layers' mean patterns,
each mixed half and half with the identity for the residual stream.

The summary names the head with the largest mass where this is at least .4 and cannot be chance: with each query's keys
in random order a mass is a mean of independent numbers between 0 and 1, whose chance of being so high is bounded (equal
queries counted once, and the choice of one head paid for). Heads that rest on the first token are held against heads
that each rest on a random key.

What the numbers do not show: that a head is used. Attention says from where information could be moved, not what is
moved nor whether later layers read it; rollout besides ignores values, MLPs and the differences between heads. On
ordinary text the classes overlap (the previous token may be the first one); `head_roles` separates them on random
tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from scipy import special
from torch import Tensor

from analyses.shared.by_stack import StacksResult
from analyses.shared.capabilities import analysis
from analyses.shared.claims import SURE
from analyses.shared.inputs import TextOrTokens
from analyses.shared.panels import AttentionGrid, Finding, Matrix, Note, Panel, Result, Table, Tokens
from analyses.shared.patterns import (
    chernoff,
    cluster_heads,
    expected_mass,
    key_masks,
    measure,
    overlap,
    read_stacks,
    rollout,
)
from analyses.shared.patterns import read_patterns as read_patterns
from analyses.shared.stacks import Reading, Stack, attentions, labels_of, readings
from analyses.shared.statistics import Interval, bootstrap, held_out, methods
from interp.errors import InputError
from interp.models.encoder import HookedEncoder
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.gpt import HookedGPT

MASSES = ("first", "last", "previous", "own", "next", "same", "after_same")
TITLES = {
    "entropy": "entropy of the pattern",
    "surprise": "surprise",
    "first": "first token",
    "last": "last token",
    "previous": "previous token",
    "own": "own position",
    "next": "next token",
    "same": "same token earlier",
    "after_same": "token after the same token earlier",
}
PHRASES = {
    "previous": ("to the previous token", 0.7),
    "next": ("to the next token", 0.7),
    "after_same": ("to tokens that follow an earlier copy of its own token, the induction pattern", 0.95),
    "same": ("to earlier copies of its own token", 0.6),
}
"""Masses that the summary names, in words, with what a head that gives all of its attention weighs there."""
NOTABLE = 0.4
"""Share of a head's attention from which the summary names it after a pattern."""
SHUFFLED_KEYS = "each query's keys in random order"


@dataclass(frozen=True, kw_only=True)
class AttentionPatternsResult(Result):
    """Patterns of the texts kept, and measures of every head in every text, of one attention."""

    tokens: tuple[Tokens, ...]
    """[text][key]"""
    queries: tuple[Tokens, ...] = ()
    """[text][query], where a pattern is not causal: it may have more keys than queries."""
    patterns: tuple[np.ndarray, ...]
    """One [layer head query key] for each of the first texts (option `keep`); rows sum to one."""
    value_norms: tuple[np.ndarray, ...]
    """One [layer head key] for each of these texts: how long each value vector is after W_O, its bias included (and
    after the gain of a norm that follows, where there is one)."""
    rollout: tuple[np.ndarray, ...]
    """One [layer query key] for each of these texts: share of each token in the residual stream after the layer; none
    for cross-attention, whose keys are no positions of its stream."""
    plain: Mapping[str, np.ndarray]
    """Measure -> [text layer head]; entropy and surprise in nats, masses 0 to 1; NaN where no query has it."""
    weighted: Mapping[str, np.ndarray]
    """Mass -> [text layer head], value-weighted."""
    chance: Mapping[str, np.ndarray]
    """Mass -> [text] what it is when each query's keys are in random order: the share of the keys that count."""
    counted: Mapping[str, np.ndarray]
    """Mass -> [text] different tokens among the queries that it is a mean over: equal ones look alike."""
    distance: np.ndarray
    """[head head], heads of all layers in order: Hellinger distance of their patterns, 0 to 1, over all texts."""
    cluster: np.ndarray
    """[layer head] number of the cluster, from 1, the largest first."""
    seed: int
    """Of the bootstrap intervals."""

    def interval(self, measure: str, *, weighted: bool = False, chosen: bool = False) -> Interval:
        """The mean over texts, [layer head], and its interval (none for one text).

        With `chosen` wide enough for the head that is told because it has the largest mean.
        """
        values = (self.weighted if weighted else self.plain)[measure]
        chosen_of = values[0].size if chosen else 1
        return bootstrap(values, share=measure in MASSES, chosen_of=chosen_of, least=0.0, seed=self.seed)

    def p_value(self, mass: str) -> np.ndarray:
        """[layer head] chance that the mean over texts is so high with each query's keys in random order, the choice of
        one head paid for: at most this."""
        known = self.counted[mass] > 0
        if not known.any():
            return np.ones(self.plain[mass].shape[1:])
        queries = int(known.sum() * self.counted[mass][known].min())
        value = self.plain[mass][known].mean(0)
        bound = chernoff(value, float(self.chance[mass][known].mean()), queries)
        return np.asarray(np.minimum(value.size * bound, 1.0))

    def to_dataframe(self) -> pd.DataFrame:
        """One row per text, layer and head: text layer head cluster, the measures, `weighted_...` for the masses."""
        n_texts, n_layers, n_heads = self.plain["entropy"].shape
        text, layer, head = (axis.ravel() for axis in np.indices((n_texts, n_layers, n_heads)))
        columns = {"text": text, "layer": layer, "head": head, "cluster": np.tile(self.cluster.ravel(), n_texts)}
        columns |= {name: values.ravel() for name, values in self.plain.items()}
        columns |= {f"weighted_{name}": values.ravel() for name, values in self.weighted.items()}
        return pd.DataFrame(columns)

    def heads(self) -> pd.DataFrame:
        """One row per head, means over texts, the most surprising first."""
        frame = self.to_dataframe().groupby(["layer", "head"], as_index=False).mean().drop(columns="text")
        frame["cluster"] = frame["cluster"].astype(int)
        return frame.sort_values("surprise", ascending=False, ignore_index=True)

    def panels(self) -> list[Panel]:
        return [self._grid(), *self._numbers(), *self._methods()]

    @cached_property
    def _shown(self) -> list[str]:
        return [name for name in self.plain if not np.isnan(self.plain[name]).all()]

    def _grid(self) -> AttentionGrid:
        return AttentionGrid(
            key="patterns",
            title="Attention patterns",
            caption="Each square is a head; rows are queries, columns keys. Every row sums to one. Value weighting "
            "scales each key by the length of the value vector it would move.",
            patterns=self.patterns,
            tokens=self.tokens[: len(self.patterns)],
            value_norms=self.value_norms,
            measures={TITLES[name]: self.interval(name).value for name in ("surprise", *self._shown)},
            queries=self.queries[: len(self.patterns)],
        )

    def _numbers(self) -> list[Panel]:
        """Panels of the measures, the groups of heads and the rollout."""
        spread = _spread(len(self.tokens))
        panels: list[Panel] = [self._table()]
        panels += [self._matrix(name, spread) for name in self._shown if name not in ("surprise", "own")]
        panels.append(self._matrix("first", spread, weighted=True))
        if "same" in self.plain and "same" not in self._shown:
            text = "No token of the text occurs twice, so the two measures of repeated tokens are not defined here."
            panels.append(Note(key="no-repeats", title="No repeated tokens", text=text))
        return [*panels, *self._cluster_panels(), *([self._rollout_panel()] if self.rollout else [])]

    def _methods(self) -> list[Note]:
        more = "Intervals of entropy are not of shares: Student's t below 8 texts, else by the bootstrap."
        return methods(len(self.tokens), share=True, chosen_of=self.cluster.size, more=more, seed=self.seed)

    def _matrix(self, name: str, spread: str, *, weighted: bool = False) -> Matrix:
        found = self.interval(name, weighted=weighted)
        nats = name == "entropy"
        return Matrix(
            key=name.replace("_", "-") + "-weighted" * weighted,
            title=("Entropy" if nats else "Attention to the " + TITLES[name]) + ", value-weighted" * weighted,
            caption=("Mean over queries, in nats: 0 is one key; " if nats else "Mean over queries; 1 is all of it; ")
            + spread,
            values=found.value,
            rows=tuple(str(layer) for layer in range(found.value.shape[0])),
            columns=tuple(str(head) for head in range(found.value.shape[1])),
            row_axis="layer",
            column_axis="head",
            unit="nats" if nats else "share of attention",
            low=found.low,
            high=found.high,
            family="" if nats else "mass",
        )

    def _table(self) -> Table:
        frame = self.heads()
        order = ["layer", "head", "surprise", "entropy", *self.weighted]
        order += [*(f"weighted_{name}" for name in self.weighted), "cluster"]
        return Table(
            key="heads",
            title="All heads, the most surprising first",
            caption="Surprise: how far the head's pattern is from the average pattern of all heads. Masses are "
            "shares of attention, weighted ones count each key by the length of its value vector.",
            frame=frame[order].dropna(axis="columns", how="all"),
            units={"surprise": "nats", "entropy": "nats"},
        )

    def _cluster_panels(self) -> list[Panel]:
        n_heads = self.cluster.shape[1]
        order = np.lexsort((np.arange(self.cluster.size), self.cluster.ravel()))
        names = tuple(f"L{i // n_heads}H{i % n_heads}" for i in order)
        frame = self.heads()
        rows = []
        for number, members in frame.groupby("cluster"):
            heads = sorted(zip(members["layer"], members["head"], strict=True))
            means = members[["entropy", *self.weighted]].mean()
            rows.append(
                {"cluster": number, "heads": len(heads), **means, "members": " ".join(f"L{i}H{j}" for i, j in heads)}
            )
        return [
            Table(
                key="clusters",
                title="Heads that look alike",
                caption="Heads grouped by their patterns, with the mean of their measures. Groups depend on the text.",
                frame=pd.DataFrame(rows).dropna(axis="columns", how="all"),
                units={"entropy": "nats"},
            ),
            Matrix(
                key="distance",
                title="Distance between heads",
                caption="Hellinger distance of two heads' patterns, its root mean square over queries: 0 is the same "
                "pattern, 1 no key in common. Heads are in the order of their groups.",
                values=self.distance[np.ix_(order, order)],
                rows=names,
                columns=names,
                row_axis="head",
                column_axis="head",
                unit="Hellinger distance",
                image=True,
            ),
        ]

    def _rollout_panel(self) -> Matrix:
        return Matrix(
            key="rollout",
            title="Attention rollout",
            caption="Share of each token (column) in the residual stream of each position (row) after the last "
            "block, if attention were all that moves information. It ignores values and MLPs: a rough upper "
            "picture, not a cause.",
            values=self.rollout[0][-1],
            rows=self.tokens[0],
            columns=self.tokens[0],
            row_axis="position",
            column_axis="token mixed in",
            unit="share",
            image=True,
        )

    def findings(self) -> list[Finding]:
        found = []
        for name, (phrase, weight) in PHRASES.items():
            if name not in self.plain:
                continue
            estimate = self.interval(name, chosen=True)
            if np.isnan(estimate.value).all() or np.nanmax(estimate.value) < NOTABLE:
                continue
            layer, head = divmod(int(np.nanargmax(estimate.value)), estimate.value.shape[1])
            value, p = float(estimate.value[layer, head]), float(self.p_value(name)[layer, head])
            if p > SURE:
                continue
            low, high = estimate.ends(layer, head)
            of = f"of its attention on {'this text' if len(self.tokens) == 1 else 'these texts'}"
            found.append(
                Finding(
                    text=f"Head L{layer}H{head} gives {value:.0%}{_range(low, high)} {of} {phrase}.",
                    key=name.replace("_", "-"),
                    weight=weight * value,
                    value=value,
                    unit="share",
                    low=low,
                    high=high,
                    kind="effect",
                    null=SHUFFLED_KEYS,
                    p=p,
                    held=held_out(
                        self.plain[name],
                        (layer, head),
                        highest=True,
                        share=True,
                        called="L{}H{}".format,
                        seed=self.seed,
                    ),
                    about=f"L{layer}H{head}",
                    short=f"gives {value:.0%} {of} {phrase.split(',')[0]}",
                )
            )
        return [*found, *self._sink_finding()]

    def _sink_finding(self) -> list[Finding]:
        plain, weighted = self.interval("first").value, self.interval("first", weighted=True).value
        count, total, keys = int((plain > 0.5).sum()), plain.size, min(map(len, self.tokens))
        p = float(special.bdtrc(count - 1, total, min(2 / keys, 1.0)))  # twice: early queries see few keys
        if p > SURE:
            return []
        moved = int((weighted > 0.5).sum())
        text = (
            f"{count} of {total} heads give more than half of their attention to the first token; "
            f"weighted by the values moved, {moved} {'does' if moved == 1 else 'do'}."
        )
        weight, null = 0.3 + 0.3 * count / total, "heads that each rest on a key of their own, drawn at random"
        return [Finding(text, "first", weight, count, "heads", kind="effect", null=null, p=p)]


@dataclass(frozen=True, kw_only=True)
class StackPatternsResult(StacksResult):
    """Patterns and measures of every head of every attention of a model that names them."""

    stacks: tuple[AttentionPatternsResult, ...]
    alignment: pd.DataFrame
    """Columns text, written, source, share, head, head_share, p: for each token written the source token that all
    cross-attention heads together attend to most (the end token left out), and the head that attends to it most; p as
    that of `AttentionPatternsResult.p_value`, for the choice of a source token."""
    grid: tuple[int, int] | None = None
    """Rows and columns of patches, for images."""

    def panels(self) -> list[Panel]:
        panels = super().panels()
        patterns = [panel for panel in panels if isinstance(panel, AttentionGrid)]
        others = [panel for panel in panels if not isinstance(panel, AttentionGrid)]
        aligned = [self._alignment_table()] if len(self.alignment) else []
        return [*aligned, *reversed(patterns), *others, *(self._image_panels(self.grid) if self.grid else [])]

    def _alignment_table(self) -> Table:
        return Table(
            key="alignment",
            title="What the decoder reads when it writes each token",
            caption="Source token with the most attention of all cross-attention heads together, its share of what "
            "does not go to the end token, and the head that attends to it most. Attention is where it looks, which "
            "need not be what it uses. A query of cross-attention is a token that the decoder has read, and is used to "
            "write the next one.",
            frame=self.alignment.drop(columns=["p", *(["text"] if self.alignment["text"].nunique() == 1 else [])]),
            tokens=frozenset({"written", "source"}),
        )

    def _image_panels(self, grid: tuple[int, int]) -> list[Panel]:
        pattern = self.stacks[0].patterns[0][:, :, 0, 1:]  # [layer head patch]: what the class token looks at
        rows, columns = (tuple(map(str, range(size))) for size in grid)
        panels: list[Panel] = []
        for name, values in (("last", pattern[-1].mean(0)), ("all", pattern.mean((0, 1)))):
            panels.append(
                Matrix(
                    key=f"image-{name}",
                    title=f"Where the class token looks, {'last layer' if name == 'last' else 'all layers'}",
                    caption="Mean over heads of its attention to each patch, laid out as in the image. First image.",
                    values=values.reshape(grid),
                    rows=rows,
                    columns=columns,
                    row_axis="row of patches",
                    column_axis="column of patches",
                    unit="share of attention",
                )
            )
        return panels

    def findings(self) -> list[Finding]:
        found = super().findings()
        if len(self.alignment):
            inner = self.alignment[self.alignment["written"] != "</s>"]
            inner = inner if len(inner) else self.alignment
            best = inner.sort_values("p", kind="stable").iloc[0]
            value, p = float(best["share"]), float(best["p"]) * len(inner)
            text = (
                f"When it writes “{best['written'].strip()}”, the decoder looks at “{best['source'].strip()}” most: "
                f"{value:.0%} of all cross-attention that does not go to the end token."
            )
            if p <= SURE:
                found.append(Finding(
                    text, "alignment", 0.8 * value, value, "share", kind="effect", null=SHUFFLED_KEYS, p=p
                ))  # fmt: skip
        return found


@dataclass(kw_only=True)
class _Gathered:
    """What is known of one attention, text by text."""

    stack: Stack
    tokens: list[Tokens] = field(default_factory=list)
    queries: list[Tokens] = field(default_factory=list)
    patterns: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    plain: list[Mapping[str, np.ndarray]] = field(default_factory=list)
    weighted: list[Mapping[str, np.ndarray]] = field(default_factory=list)
    closeness: np.ndarray = field(default_factory=lambda: np.zeros(()))
    seen: int = 0
    chance: dict[str, list[float]] = field(default_factory=dict)
    counted: dict[str, list[int]] = field(default_factory=dict)

    def add(self, text: Reading, pattern: Tensor, norms: Tensor, *, kept: bool) -> None:
        stack, length, keys = self.stack, *pattern.shape[2:]
        first = stack.first_query
        ids = text.ids[stack.queries].cpu() if text.ids else np.arange(length)
        masks = key_masks(torch.as_tensor(ids), causal=stack.causal, keys=keys if stack.crosses else None)
        plain, weighted = measure(pattern, norms, masks, stack.first_query)
        for name, mask in masks.items():
            defined = mask[first:].any(-1)
            self.chance.setdefault(name, []).append(expected_mass(mask[first:], (pattern[:, 0, first:] != 0).all(0)))
            self.counted.setdefault(name, []).append(len(np.unique(np.asarray(ids)[first:][defined.numpy()])))
        self.plain.append(plain)
        self.weighted.append(weighted)
        self.closeness = self.closeness + overlap(pattern, stack.first_query, causal=stack.causal)
        self.seen += length - stack.first_query
        self.tokens.append(text.labels[stack.keys])
        self.queries.append(text.labels[stack.queries])
        if kept:
            self.patterns.append(pattern)
            self.norms.append(norms)

    def result(self, clusters: int, seed: int) -> AttentionPatternsResult:
        distance = np.sqrt(np.clip(1 - self.closeness / self.seen, 0, 1))
        np.fill_diagonal(distance, 0)
        plain, weighted = (
            {name: np.stack([one[name] for one in texts]) for name in texts[0]} for texts in (self.plain, self.weighted)
        )
        return AttentionPatternsResult(
            tokens=tuple(self.tokens),
            queries=() if self.stack.causal else tuple(self.queries),
            patterns=tuple(pattern.numpy() for pattern in self.patterns),
            value_norms=tuple(norms.numpy() for norms in self.norms),
            rollout=() if self.stack.crosses else tuple(rollout(pattern).numpy() for pattern in self.patterns),
            plain=plain,
            weighted=weighted,
            chance={name: np.array(shares) for name, shares in self.chance.items()},
            counted={name: np.array(counts) for name, counts in self.counted.items()},
            distance=distance,
            cluster=cluster_heads(distance, clusters).reshape(self.stack.shape),
            seed=seed,
        )


@analysis(place=20, runs=True)
def attention_patterns(
    model: HookedGPT | HookedEncoderDecoder | HookedEncoder,
    tokens: TextOrTokens,
    *,
    keep: Annotated[int, "texts whose whole patterns are kept for drawing; the others are measured only"] = 4,
    clusters: Annotated[int, "groups into which heads are sorted by their patterns"] = 6,
    seed: Annotated[int, "seed of the bootstrap intervals"] = 0,
) -> Result:
    """Patterns and measures of every head on every text. Texts need at least two tokens, the first one included.

    A translation model gives its encoder, its decoder and its cross-attention; a text is a source, or `source |||
    target`. An encoder over patches takes images.

    Raises InputError for unusable texts, or options below 1.
    """
    if keep < 1 or clusters < 1:
        raise InputError(f"keep = {keep}, clusters = {clusters}", "expected whole numbers of at least 1")
    gathered = [_Gathered(stack=stack) for stack in attentions(model)]
    stacks = [one.stack for one in gathered]
    aligned: list[dict[str, object]] = []
    for number, text in enumerate(readings(model, tokens, at_least=1 + max(stack.first_query for stack in stacks))):
        for one, (pattern, norms) in zip(gathered, read_stacks(model, stacks, text.run), strict=True):
            one.add(text, pattern, norms, kept=number < keep)
            if one.stack.crosses:
                aligned += _alignment(number, pattern.numpy(), one.tokens[-1], labels_of(model, text.following))
    results = tuple(one.result(clusters, seed) for one in gathered)
    if not stacks[0].name:
        return results[0]
    grid = model.config.grid if getattr(model.config, "over_patches", False) else None  # type: ignore[union-attr]
    return StackPatternsResult(kinds=tuple(stacks), stacks=results, alignment=pd.DataFrame(aligned), grid=grid)


def _alignment(text: int, cross: np.ndarray, keys: Tokens, written: Tokens) -> list[dict[str, object]]:
    """A row for each token written, see `StackPatternsResult.alignment`; cross: [layer head query key]."""
    inner = cross[..., : len(keys) - 1] if len(keys) > 1 else cross  # all but the end token
    together, heads = inner.mean((0, 1)), inner.shape[0] * inner.shape[1]
    rows: list[dict[str, object]] = []
    for query, word in enumerate(written):
        key = int(together[query].argmax())
        layer, head = divmod(int(inner[:, :, query, key].argmax()), inner.shape[1])
        rows.append(
            {
                "text": text,
                "written": word,
                "source": keys[key],
                "share": float(together[query, key] / max(together[query].sum(), 1e-12)),
                "head": f"L{layer}H{head}",
                "head_share": float(inner[layer, head, query, key]),
                "p": min(len(keys) * float(chernoff(together[query, key], together[query].mean(), heads)), 1.0),
            }
        )
    return rows


def _spread(n_texts: int) -> str:
    return "one text, so no interval." if n_texts == 1 else f"{n_texts} texts, 95 % intervals over texts."


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({low:.0%} to {high:.0%})"
