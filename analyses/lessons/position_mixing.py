"""Which operations of the model let positions meet: change the input at one position, see which outputs move.

Question: through which operations can one token of a text influence what is computed at another, before or after it?

Method: the model reads the text once. Then, for each operation of each block by itself (norms, the products that make
q, k and v, their norm and rotation, scores, softmax, weighted sum, output projection, the sums of the residual stream,
the MLP's steps: those that the model has) and for the embedding, the final norm and the unembedding, a random vector as
long as the average input is added to the operation's input at one position, and the operation's outputs are compared
with the clean ones at every position. All positions are taken in turn. An output has moved when it differs by more than
the square root of the dtype's precision, relative to the average length of the outputs. Heads are treated alike: the
queries, keys and values of one head (where queries share keys and values: of all heads that share them) are changed at
all positions, and the other heads' scores, weights and outputs are compared. (One norm over all heads' queries, as in
OLMo 2, lets heads meet.)

- `own`: median relative change at the changed position itself.
- `later`, `earlier`: largest relative change at positions after it and before it; zero means that they do not meet.
- `pairs`: pairs of different positions, output and input, that meet.

What the numbers do not show: how much is moved on a given text in practice (`attention_patterns`, `activation_patching`
show that). The perturbation is random and large; zero is exact, other sizes are only orders of magnitude.
"""

from dataclasses import dataclass
from typing import Annotated, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.shared.axes import Axes
from analyses.shared.capabilities import analysis
from analyses.shared.inputs import TextOrTokens, sequences, token_labels
from analyses.shared.panels import Finding, Matrix, Panel, Result, Table, Tokens
from interp.errors import InputError, check_seed
from interp.hooks import HookPair, HookPoint
from interp.models.gpt import HookedGPT
from interp.models.positions import Frame
from interp.progress import track

Operation: TypeAlias = tuple[str, tuple[str, ...], str]
"""Name, the hook points of its inputs, the hook point of its output; within a block."""
EMBEDDING, FINAL_NORM, UNEMBEDDING = "embedding", "final norm", "unembedding"
MEETING = ("scores q·k", "weighted sum of values")
"""Where a Transformer lets positions meet."""


@dataclass(frozen=True, kw_only=True)
class PositionMixingResult(Result):
    """Relative changes for every operation, block, changed position and output position."""

    tokens: Tokens
    """[pos]"""
    changed: np.ndarray
    """[change] the positions whose input was changed."""
    operations: tuple[str, ...]
    """In the order of computation; those outside the blocks are "embedding", "final norm", "unembedding"."""
    moved: dict[str, np.ndarray]
    """Operation -> [layer change pos] relative change of the output at pos; one layer for those outside the blocks."""
    heads: dict[str, np.ndarray]
    """Operation -> [layer kv_head head] relative change of a head when a kv head's k, v and queries are changed."""
    threshold: float
    """Relative change from which an output has moved."""
    seed: int

    def part(self, operation: str, which: str) -> np.ndarray:
        """[layer] the median change at the changed position ("own"), or the largest "later", "earlier" or "other"."""
        change = self.moved[operation]
        offset = np.arange(len(self.tokens)) - self.changed[:, None]  # [change pos]
        masks = {"own": offset == 0, "later": offset > 0, "earlier": offset < 0, "other": offset != 0}
        chosen = np.where(masks[which], change, np.nan)
        if which == "own":
            return np.asarray(np.nanmedian(chosen, axis=(1, 2)))
        return np.asarray(np.nan_to_num(chosen, nan=0.0, posinf=np.inf).max(axis=(1, 2)))

    def mixes(self, operation: str) -> bool:
        """Whether any output of the operation, in any block, moves at another position than the one changed."""
        return bool(self.part(operation, "other").max() > self.threshold)

    @property
    def mixing(self) -> tuple[str, ...]:
        """The operations in which positions meet."""
        return tuple(name for name in self.operations if self.mixes(name))

    @property
    def leak(self) -> float:
        """Largest relative change, over all operations and blocks, at a position before the changed one."""
        return max(float(self.part(name, "earlier").max()) for name in self.operations)

    @property
    def head_leak(self) -> float:
        """Largest relative change of a head when another one's queries, keys and values are changed."""
        others = ~self.own_heads
        return max(
            (float(np.nan_to_num(x[:, others], nan=np.inf).max(initial=0)) for x in self.heads.values()), default=0.0
        )

    @property
    def own_heads(self) -> np.ndarray:
        """[changed head] whether it is the head that was changed, or shares its keys and values."""
        changed, heads = next(iter(self.heads.values())).shape[1:]
        return np.repeat(np.eye(changed, dtype=bool), heads // changed, axis=1)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per operation and layer (-1: in no block): operation layer own later earlier pairs positions_meet."""
        rows = []
        for name in self.operations:
            own, later, earlier = (self.part(name, which) for which in ("own", "later", "earlier"))
            inside = name not in (EMBEDDING, FINAL_NORM, UNEMBEDDING)
            for layer in range(len(own)):
                change = self.moved[name][layer] > self.threshold
                pairs = int(change.sum() - change[np.arange(len(self.changed)), self.changed].sum())
                row = {"operation": name, "layer": layer if inside else -1, "own": own[layer]}
                row |= {"later": later[layer], "earlier": earlier[layer], "pairs": pairs, "positions_meet": pairs > 0}
                rows.append(row)
        return pd.DataFrame(rows)

    def facts(self) -> dict[str, object]:
        return {
            "mixing": list(self.mixing),
            "leak": self.leak,
            "head_leak": self.head_leak,
            "threshold": self.threshold,
        }

    def panels(self) -> list[Panel]:
        return [self._table(), *self._pictures(), self._head_table()]

    def _table(self) -> Table:
        names = {"change there": ("own", "median"), "at later positions": ("later", "max"),
                 "at earlier positions": ("earlier", "max"), "positions meet": ("positions_meet", "max")}  # fmt: skip
        frame = self.to_dataframe().groupby("operation", sort=False).agg(**names).reset_index()
        return Table(
            "operations", "Every operation, changed at one position", "Relative change of the operation's output where "
            "its input was changed (median), and at the other positions (largest over blocks). Below "
            f"{self.threshold:.0e} counts as none.", frame=frame,
        )  # fmt: skip

    def _pictures(self) -> list[Matrix]:
        shown = [name for name in (*MEETING, "MLP out") if name in self.moved]
        axes = {"output at": self.tokens, "input changed at": Tokens(self.tokens[i] for i in self.changed)}
        caption = (
            "Share of blocks in which the output at a position (row) moves when the input at a position (column) is "
            "changed."
        )
        return [
            Axes.of((self.moved[name] > self.threshold).mean(0).T, **axes).matrix(
                f"map-{number}", f"What moves: {name}", caption, unit="share of blocks", image=True
            )
            for number, name in enumerate(shown)
        ]

    def _head_table(self) -> Table:
        own, others = self.own_heads, ~self.own_heads
        frame = pd.DataFrame({"operation": list(self.heads)})
        frame["change in that head"] = [float(np.median(x[:, own])) for x in self.heads.values()]
        frame["largest change in another"] = [float(x[:, others].max(initial=0)) for x in self.heads.values()]
        return Table(
            "heads", "Every head, changed alone", "Queries, keys and values of one head (or of those that share keys "
            "and values) are changed at all positions. Relative change of its own scores, weights and output (median "
            "over heads), and the largest in any other head.", frame=frame,
        )  # fmt: skip

    def findings(self) -> list[Finding]:
        text = (
            f"Positions meet in {len(self.mixing)} of {len(self.operations)} operations: "
            f"{', '.join(self.mixing) or 'none'}."
        )
        return [Finding(text, "operations", 0.2, len(self.mixing), "operations", kind="size")]


@analysis(place=23, in_report=None, runs=True)
@torch.no_grad()
def position_mixing(
    model: HookedGPT,
    tokens: TextOrTokens,
    *,
    most: Annotated[int, "positions changed; of longer texts this many, evenly spread"] = 16,
    seed: Annotated[int, "of the random changes"] = 0,
) -> PositionMixingResult:
    """Every operation of the model on the first text, its input changed at one position after the other.

    Raises InputError for a text of fewer than two tokens, `most` below 2, or a seed out of range.
    """
    check_seed(seed)
    if most < 2:
        raise InputError(f"most = {most}", "expected at least 2 positions")
    row = sequences(model, tokens, at_least=2)[0]
    length = row.shape[1]
    changed = np.unique(np.linspace(0, length - 1, min(most, length)).round().astype(int))
    change = Change(changed, torch.Generator().manual_seed(seed), by_head=False)
    head_change = Change(np.arange(model.config.n_kv_heads), change.generator, by_head=True)
    moved: dict[str, list[Tensor]] = {EMBEDDING: [_embedding(model, row, changed)]}
    heads: dict[str, list[Tensor]] = {}
    inside = operations(model)
    residual, frame = model.embed(row)
    for layer in track(range(model.config.n_layers)):
        for operation in inside:
            moved.setdefault(operation[0], []).append(_moved(model, layer, residual, frame, operation, change))
        for operation in BY_HEAD:
            heads.setdefault(operation[0], []).append(_moved(model, layer, residual, frame, operation, head_change))
        residual = model.run_blocks(residual, frame, first=layer, last=layer)
    moved |= _ending(model, residual, change)
    return PositionMixingResult(
        tokens=token_labels(model, row),
        changed=changed,
        operations=tuple(moved),
        moved={name: torch.stack(layers).numpy() for name, layers in moved.items()},
        heads={name: torch.stack(layers).numpy() for name, layers in heads.items()},
        threshold=float(torch.finfo(model.dtype).eps ** 0.5),
        seed=seed,
    )


def operations(model: HookedGPT) -> tuple[Operation, ...]:
    """The operations of a block of this model, in the order of computation."""
    there = {name.removeprefix("blocks.0.") for name in model.hook_points}

    def first(*names: str) -> str:
        return next(name for name in names if name in there)

    stream = first("hook_resid_mid", "hook_resid_pre")  # what the MLP's half of the block reads
    normed = first("ln1.hook_normalized", "hook_resid_pre")
    mlp_reads = first("ln2.hook_normalized", normed if model.config.shared_norm else stream)
    q, k = first("attn.hook_rot_q", "attn.hook_q"), first("attn.hook_rot_k", "attn.hook_k")
    hidden = tuple(name for name in ("mlp.hook_pre", "mlp.hook_pre_linear") if name in there)
    written = ("hook_attn_out", "hook_mlp_out") if model.config.parallel else ("hook_mlp_out",)
    known: tuple[Operation, ...] = (
        ("norm before attention", ("hook_resid_pre",), "ln1.hook_normalized"),
        ("queries", (normed,), "attn.hook_q"),
        ("keys", (normed,), "attn.hook_k"),
        ("values", (normed,), "attn.hook_v"),
        ("queries normed or turned", ("attn.hook_q",), "attn.hook_rot_q"),
        ("keys normed or turned", ("attn.hook_k",), "attn.hook_rot_k"),
        ("scores q·k", (q, k), "attn.hook_attn_scores"),
        ("softmax", ("attn.hook_attn_scores",), "attn.hook_pattern"),
        ("weighted sum of values", ("attn.hook_v",), "attn.hook_z"),
        ("output projection", ("attn.hook_z",), "hook_attn_out"),
        ("sum after attention", ("hook_attn_out",), "hook_resid_post" if model.config.attn_only else "hook_resid_mid"),
        ("norm before MLP", (stream,), "ln2.hook_normalized"),
        ("MLP in", (mlp_reads,), "mlp.hook_pre"),
        ("MLP in, ungated half", (mlp_reads,), "mlp.hook_pre_linear"),
        ("MLP activation", hidden, "mlp.hook_post"),
        ("MLP out", ("mlp.hook_post",), "hook_mlp_out"),
        ("sum after MLP", written, "hook_resid_post"),
    )
    return tuple(one for one in known if {*one[1], one[2]} <= there)


BY_HEAD: tuple[Operation, ...] = (
    ("scores q·k", ("attn.hook_q", "attn.hook_k"), "attn.hook_attn_scores"),
    ("softmax", ("attn.hook_q", "attn.hook_k"), "attn.hook_pattern"),
    ("weighted sum of values", ("attn.hook_q", "attn.hook_k", "attn.hook_v"), "attn.hook_z"),
)
"""Up to the output projection, where the heads' outputs lie side by side."""


@dataclass(frozen=True)
class Change:
    """Row 0 of the batch stays as it is; row i + 1 gets noise at the i-th position, or in the i-th group of heads."""

    places: np.ndarray
    generator: torch.Generator
    by_head: bool

    def __call__(self, x: Tensor, hook: HookPoint) -> Tensor:
        """`x` [batch pos ...], [batch pos head d_head], or scores [batch head query key]."""
        x = x.clone()
        on_scores = hook.name.endswith(("attn_scores", "pattern"))
        axis = 2 if on_scores or self.by_head else 1  # of positions (queries for scores), or of heads
        finite = torch.where(x.isfinite(), x, 0)
        size = finite[0].double().pow(2).mean().sqrt().clamp(min=1e-6)
        width = x.shape[2] // len(self.places) if self.by_head else 1
        for number, place in enumerate(self.places.tolist(), start=1):
            part = x[number].narrow(axis - 1, place * width, width)
            noise = torch.randn(part.shape, generator=self.generator, dtype=torch.float64).to(x.device)
            part += (size * noise).to(x.dtype)
        return x


def _moved(
    model: HookedGPT, layer: int, residual: Tensor, frame: Frame, operation: Operation, change: Change
) -> Tensor:
    """[change pos] or [changed head] relative change of one operation's output in one block."""
    seen: list[Tensor] = []
    _, inputs, output = operation

    def keep(x: Tensor, hook: HookPoint) -> None:
        seen.append(by_place(x, hook.name, change.by_head))

    hooks: list[HookPair] = [(f"blocks.{layer}.{name}", change) for name in inputs]
    with model.hooks([*hooks, (f"blocks.{layer}.{output}", keep)]):
        model.run_blocks(residual.expand(len(change.places) + 1, -1, -1), frame, first=layer, last=layer)
    return compare(seen[0])


def _embedding(model: HookedGPT, row: Tensor, changed: np.ndarray) -> Tensor:
    """[1 change pos] of the first block's input when one token is replaced by another."""
    many = row.repeat(len(changed) + 1, 1)
    for number, position in enumerate(changed.tolist(), start=1):
        many[number, position] = (many[number, position] + 1) % model.config.d_vocab
    return compare(model.embed(many)[0])


def _ending(model: HookedGPT, residual: Tensor, change: Change) -> dict[str, list[Tensor]]:
    """Final norm, if there is one, and unembedding, each [1 change pos]."""
    many = residual.expand(len(change.places) + 1, -1, -1)
    noisy = change(many, model.blocks[-1].hook_resid_post)
    if not model.ln_final.hooked:
        return {UNEMBEDDING: [compare(model.unembedded(noisy))]}
    seen: list[Tensor] = []
    with model.hooks([("ln_final.hook_normalized", lambda x, hook: seen.append(x))]):
        model.ln_final(noisy)
    with model.hooks([("ln_final.hook_normalized", change)]):
        logits = model.unembedded(model.ln_final(many))
    return {FINAL_NORM: [compare(seen[0])], UNEMBEDDING: [compare(logits)]}


def by_place(x: Tensor, name: str, by_head: bool) -> Tensor:
    """An activation of the hook point `name` as [batch pos ...] or [batch head ...], queries being the positions."""
    on_scores = name.endswith(("attn_scores", "pattern"))  # [batch head query key]; others [batch pos (head) d]
    return x.transpose(1, 2) if on_scores != by_head else x


def compare(x: Tensor) -> Tensor:
    """[change place] relative change of rows 1.. of a batch [change+1 place ...] against row 0.

    Entries that are equal, masked scores (minus infinity) among them, have not changed; NaN counts as infinite change.
    """
    x = x.double().cpu().flatten(2)
    difference = torch.where(x[1:] == x[:1], 0.0, x[1:] - x[:1])
    clean = torch.where(x[:1].isfinite(), x[:1], 0.0)
    usual = clean.norm(dim=2).pow(2).mean().sqrt().clamp(min=1e-30)
    return torch.nan_to_num(difference.norm(dim=2) / usual, nan=torch.inf)
