"""Where every head looks: patterns, entropy, and the mass on the first, previous and repeated tokens.

Question: for each head, how is the attention of a query spread over the keys, and does it follow one of the patterns
that are easy to name?

Method. Measures are means over the queries of a text for which they are defined; query 0, which can only look at
itself, is never counted:

- `entropy`: of the pattern, in nats; 0 is one key, ln(keys) is all keys alike.
- `first`: mass on the first token (the beginning-of-text token, when the analysis was given text).
- `previous`: mass on the token just before the query.
- `own`: mass on the query's own position.
- `same`: mass on all earlier occurrences of the query's token; queries whose token occurred before.
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

What the numbers do not show: that a head is used. Attention says from where information could be moved, not what is
moved nor whether later layers read it; rollout besides ignores values, MLPs and the differences between heads. On
ordinary text the classes overlap (the previous token may be the first one); `head_roles` separates them on random
tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from torch import Tensor

from analyses.shared.capabilities import analysis
from analyses.shared.inputs import TextOrTokens, run_blocks, sequences, token_labels
from analyses.shared.pair_patterns import encoder_patterns, translation_patterns
from analyses.shared.panels import AttentionGrid, Finding, Matrix, Note, Panel, Result, Table, Tokens
from analyses.shared.statistics import Interval, bootstrap, methods
from interp.errors import InputError
from interp.hooks import HookPoint
from interp.models.encoder import HookedEncoder
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.gpt import HookedGPT

MASSES = ("first", "previous", "own", "same", "after_same")
TITLES = {
    "entropy": "entropy of the pattern",
    "surprise": "surprise",
    "first": "first token",
    "previous": "previous token",
    "own": "own position",
    "same": "same token earlier",
    "after_same": "token after the same token earlier",
}
NOTABLE = 0.4
"""Share of a head's attention from which the summary names it after a pattern."""


@dataclass(frozen=True, kw_only=True)
class AttentionPatternsResult(Result):
    """Patterns of the texts kept, and measures of every head in every text."""

    tokens: tuple[Tokens, ...]
    """[text][pos]"""
    patterns: tuple[np.ndarray, ...]
    """One [layer head query key] for each of the first texts (option `keep`); rows sum to one."""
    value_norms: tuple[np.ndarray, ...]
    """One [layer head key] for each of these texts: how long each value vector is after W_O, its bias included (and
    after the gain of a norm that follows, where there is one)."""
    rollout: tuple[np.ndarray, ...]
    """One [layer query key] for each of these texts: share of each token in the residual stream after the layer."""
    plain: Mapping[str, np.ndarray]
    """Measure -> [text layer head]; entropy and surprise in nats, masses 0 to 1; NaN where no query has it."""
    weighted: Mapping[str, np.ndarray]
    """Mass -> [text layer head], value-weighted."""
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
        spread = _spread(len(self.tokens))
        shown = [name for name in self.plain if not np.isnan(self.plain[name]).all()]
        panels: list[Panel] = [
            AttentionGrid(
                key="patterns",
                title="Attention patterns",
                caption="Each square is a head; rows are queries, columns keys. Every row sums to one. Value weighting "
                "scales each key by the length of the value vector it would move.",
                patterns=self.patterns,
                tokens=self.tokens[: len(self.patterns)],
                value_norms=self.value_norms,
                measures={TITLES[name]: self.interval(name).value for name in ("surprise", *shown)},
            ),
            self._table(),
        ]
        panels += [self._matrix(name, spread) for name in shown if name not in ("surprise", "own")]
        panels.append(self._matrix("first", spread, weighted=True))
        if "same" not in shown:
            text = "No token of the text occurs twice, so the two measures of repeated tokens are not defined here."
            panels.append(Note(key="no-repeats", title="No repeated tokens", text=text))
        return [
            *panels,
            *self._cluster_panels(),
            self._rollout_panel(),
            *methods(
                len(self.tokens),
                share=True,
                chosen_of=self.cluster.size,
                more="Intervals of entropy are not of shares: Student's t below 8 texts, else by the bootstrap.",
                seed=self.seed,
            ),
        ]

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
        )

    def _table(self) -> Table:
        frame = self.heads()
        order = ["layer", "head", "surprise", "entropy", *MASSES, *(f"weighted_{name}" for name in MASSES), "cluster"]
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
            means = members[["entropy", *MASSES]].mean()
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
        words = {
            "previous": ("to the previous token", 0.7),
            "after_same": ("to tokens that follow an earlier copy of its own token, the induction pattern,", 0.95),
            "same": ("to earlier copies of its own token", 0.6),
        }
        for name, (phrase, weight) in words.items():
            estimate = self.interval(name, chosen=True)
            if np.isnan(estimate.value).all() or np.nanmax(estimate.value) < NOTABLE:
                continue
            layer, head = divmod(int(np.nanargmax(estimate.value)), estimate.value.shape[1])
            value = float(estimate.value[layer, head])
            low, high = estimate.ends(layer, head)
            text = f"Head L{layer}H{head} gives {value:.0%}{_range(low, high)} of its attention {phrase}"
            text = text.rstrip(",") + "."
            found.append(
                Finding(
                    text=text,
                    key=name.replace("_", "-"),
                    weight=weight * value,
                    value=value,
                    unit="share",
                    low=low,
                    high=high,
                )
            )
        return [*found, *self._sink_finding()]

    def _sink_finding(self) -> list[Finding]:
        plain, weighted = self.interval("first").value, self.interval("first", weighted=True).value
        count, total = int((plain > 0.5).sum()), plain.size
        if not count:
            return []
        text = (
            f"{count} of {total} heads give more than half of their attention to the first token; "
            f"weighted by the values moved, {int((weighted > 0.5).sum())} do."
        )
        return [Finding(text=text, key="first", weight=0.3 + 0.3 * count / total, value=count, unit="heads")]


@analysis(place=20, needs=("causal",), runs=True, translation=("keep",), encoder=("keep",))
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
    target`. An encoder over patches takes images. For both, options other than `keep` say nothing.

    Raises InputError for unusable texts, or options below 1.
    """
    if keep < 1 or clusters < 1:
        raise InputError(f"keep = {keep}, clusters = {clusters}", "expected whole numbers of at least 1")
    if isinstance(model, HookedEncoderDecoder):
        return translation_patterns(model, tokens, keep=keep)
    if isinstance(model, HookedEncoder):
        return encoder_patterns(model, tokens, keep=keep)
    rows = sequences(model, tokens, at_least=2)
    measured: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []
    patterns, norms, rollouts = [], [], []
    closeness, queries = np.zeros(()), 0
    for number, row in enumerate(rows):
        pattern, value_norm = read_patterns(model, row)
        measured.append(measure(pattern, value_norm, row[0].cpu()))
        closeness, queries = closeness + overlap(pattern), queries + row.shape[1] - 1
        if number < keep:
            patterns.append(pattern.numpy())
            norms.append(value_norm.numpy())
            rollouts.append(rollout(pattern).numpy())
    distance = np.sqrt(np.clip(1 - closeness / queries, 0, 1))
    np.fill_diagonal(distance, 0)
    shape = (model.config.n_layers, model.config.n_heads)
    return AttentionPatternsResult(
        tokens=tuple(token_labels(model, row) for row in rows),
        patterns=tuple(patterns),
        value_norms=tuple(norms),
        rollout=tuple(rollouts),
        plain={name: np.stack([plain[name] for plain, _ in measured]) for name in measured[0][0]},
        weighted={name: np.stack([weighted[name] for _, weighted in measured]) for name in MASSES},
        distance=distance,
        cluster=cluster_heads(distance, clusters).reshape(shape),
        seed=seed,
    )


def read_patterns(model: HookedGPT, row: Tensor) -> tuple[Tensor, Tensor]:
    """Pattern [layer head query key] and value norms [layer head key] of one text, float32 on the CPU."""
    config, length = model.config, row.shape[1]
    pattern = torch.empty(config.n_layers, config.n_heads, length, length)
    norms = torch.empty(config.n_layers, config.n_heads, length)

    def keep_pattern(x: Tensor, hook: HookPoint) -> None:
        pattern[hook.layer] = x[0].float().cpu()

    def keep_norm(v: Tensor, hook: HookPoint) -> None:
        block = model.blocks[hook.layer]
        own = v[0].float()[:, [block.attn.kv_head(head) for head in range(block.attn.n_heads)]]
        moved = torch.einsum("phd,hdm->hpm", own, block.attn.W_O.float())
        norms[hook.layer] = block.ln1_post.share(moved, moved.new_ones(())).norm(dim=-1).cpu()

    with torch.inference_mode(), model.hooks([("pattern", keep_pattern), ("v", keep_norm)], reads_only=True):
        run_blocks(model, row)
    return pattern, norms


def measure(pattern: Tensor, norms: Tensor, ids: Tensor) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Plain and value-weighted measures, each name -> [layer head], of one text.

    Args:
        pattern: [layer head query key].
        norms: [layer head key].
        ids: [pos].
    """
    masks = key_masks(ids)
    plain: dict[str, list[Tensor]] = {name: [] for name in ("entropy", "surprise", *MASSES)}
    weighted: dict[str, list[Tensor]] = {name: [] for name in MASSES}
    log_average = pattern[:, :, 1:].mean((0, 1)).clamp(min=torch.finfo(torch.float32).tiny).log()
    for layer, norm in zip(pattern[:, :, 1:], norms, strict=True):  # layer by layer: copies of one layer only
        entropy = torch.special.entr(layer).sum(-1)
        plain["entropy"].append(entropy.mean(-1))
        plain["surprise"].append((-entropy - (layer * log_average).sum(-1)).mean(-1).clamp(min=0))
        moved = layer * norm[:, None]
        moved = moved / moved.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        for name, mask in masks.items():
            plain[name].append(mass(layer, mask[1:]))
            weighted[name].append(mass(moved, mask[1:]))
    return _stacked(plain), _stacked(weighted)


def _stacked(lists: dict[str, list[Tensor]]) -> dict[str, np.ndarray]:
    return {name: torch.stack(parts).double().numpy() for name, parts in lists.items()}


def key_masks(ids: Tensor) -> dict[str, Tensor]:
    """For each mass the keys that count, [query key] of booleans; queries without any are not measured."""
    length = len(ids)
    position = torch.arange(length)
    same = (ids[:, None] == ids).tril(-1)
    after_same = torch.nn.functional.pad(same, (1, 0))[:, :length]
    return {
        "first": (position == 0).expand(length, -1),
        "previous": position == position[:, None] - 1,
        "own": position == position[:, None],
        "same": same,
        "after_same": after_same,
    }


def mass(pattern: Tensor, mask: Tensor) -> Tensor:
    """Mean over the queries that have such keys of the attention on them: [head query key], [query key] -> [head]."""
    defined = mask.any(-1)
    if not defined.any():
        return torch.full(pattern.shape[:1], torch.nan)
    return (pattern * mask).sum(-1)[:, defined].mean(-1)


def rollout(pattern: Tensor) -> Tensor:
    """Attention rollout [layer query key] of a pattern [layer head query key]."""
    identity = torch.eye(pattern.shape[-1])
    mixed, layers = identity, []
    for layer in pattern:
        mixed = (0.5 * layer.mean(0) + 0.5 * identity) @ mixed
        layers.append(mixed)
    return torch.stack(layers)


def overlap(pattern: Tensor, chunk: int = 128) -> np.ndarray:
    """Sum over queries, the first excepted, of the Bhattacharyya coefficients of all pairs of heads: [head head].

    The squared Hellinger distance is one minus this coefficient.
    """
    total = np.zeros(())
    for start in range(1, pattern.shape[2], chunk):
        stop = min(start + chunk, pattern.shape[2])
        roots = pattern[:, :, start:stop, :stop].sqrt().flatten(0, 1).flatten(1)  # [head query*key]
        total = total + (roots @ roots.T).double().numpy()
    return total


def cluster_heads(distance: np.ndarray, clusters: int) -> np.ndarray:
    """[head] number of each head's cluster from a distance [head head], from 1, the largest cluster first."""
    if len(distance) == 1:
        return np.ones(1, dtype=int)
    tree = hierarchy.linkage(squareform(distance, checks=False), method="average")
    raw = hierarchy.fcluster(tree, clusters, criterion="maxclust")
    names, sizes = np.unique(raw, return_counts=True)
    place = {name: number for number, name in enumerate(names[np.argsort(-sizes, kind="stable")], start=1)}
    return np.array([place[name] for name in raw])


def _spread(n_texts: int) -> str:
    return "one text, so no interval." if n_texts == 1 else f"{n_texts} texts, 95 % intervals over texts."


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({low:.0%} to {high:.0%})"
