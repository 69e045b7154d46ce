"""The engine under `interp.sweep`: many variants of one run, layer by layer, and of each only what is not clean.

A variant holds *rows*: the positions at which its residual stream may differ from the clean run, and the residual
there. It holds none until its first edit. Then, for each half of a block (attention, MLP):

* A variant without rows whose edits lie inside the half has the half's output computed from the clean run: the clean
  output plus the change that the edited heads or neurons make. So has one whose edits overwrite the half's output.
* All other variants that hold rows go through the half together, as one matrix. Keys, values and residuals at positions
  without rows are those of the clean run. In the last layer only the positions that are read ask for anything.

Attention spreads a change to all later positions, so after it the rows run from the first changed position on. Having
more rows than needed is never wrong, only slower.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.linear import linear
from interp.model import Attention, LayerNorm
from interp.sweep_clean import EMBEDDING, QKV, CleanRun, Edits, Rows
from interp.sweep_edits import Edit, Positions, common, places, put, take, union
from interp.sweep_layout import Ask, Layout, Matrices

NORM1 = ("ln1.hook_scale", "ln1.hook_normalized")
PATTERNS = ("attn.hook_attn_scores", "attn.hook_pattern")
MIXED = ("attn.hook_z", "attn.hook_result")
NORM2 = ("ln2.hook_scale", "ln2.hook_normalized")
HIDDEN = ("mlp.hook_pre", "mlp.hook_post")
NORM_FINAL = ("ln_final.hook_scale", "ln_final.hook_normalized")

Item = TypeVar("Item")


class Chunk:
    """Some variants of a sweep, run together, once."""

    def __init__(
        self,
        clean: CleanRun,
        variants: Sequence[Edits],
        *,
        read: Positions,
        last: int,
        collected: Mapping[str, Tensor],
        block_rows: int,
    ) -> None:
        """
        Args:
            clean: the clean run of the same tokens.
            variants: the edits of each.
            read: positions whose logits and activations are wanted.
            last: the last layer that matters.
            collected: hook name -> [variant batch read ...], filled with the clean activation; what differs is written.
            block_rows: about how many rows go through a layer at a time.
        """
        self.clean, self.model, self.batch = clean, clean.model, clean.batch
        self.variants, self.read, self.last = variants, read, last
        self.collected, self.block_rows = collected, block_rows
        self.edited = {name for variant in variants for name in variant}
        none = torch.empty(self.batch, 0, self.model.config.d_model, dtype=self.model.dtype, device=self.model.device)
        self.rows = [Rows((), none) for _ in variants]

    def run(self) -> None:
        """From the embedding to the residual stream after the last layer that matters."""
        self._embedding()
        for layer in range(self.last + 1):
            base, needed = f"blocks.{layer}.", self.read if layer == self.last else self.clean.all
            self._residual(f"{base}hook_resid_pre", self.clean.all)
            self._attention(layer, base, needed)
            self._residual(f"{base}hook_resid_mid", needed)
            self._mlp(layer, base, needed)
            self._residual(f"{base}hook_resid_post", needed)

    def logits(
        self, clean_logits: Tensor, unembed: Callable[[Tensor], Tensor], rows: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Each variant with its logits [batch read d_vocab], after `run`; at most about `rows` rows at a time."""
        name = f"blocks.{self.last}.hook_resid_post"
        parts = []
        for variant, held in enumerate(self.rows):
            positions = common(union(held.positions, self._touched(variant, "", NORM_FINAL)), self.read)
            if positions:
                parts.append((variant, positions))
            else:
                yield variant, clean_logits
        for block in self._blocks(parts, lambda part: len(part[1]), rows):
            layout = Layout(tuple(block), self.batch)
            flat = torch.cat(
                [self.clean.completed(self.rows[v], positions, name).flatten(0, 1) for v, positions in block]
            )
            changed = unembed(self._norm(self.model.ln_final, "ln_final.", flat, layout))
            for variant, positions, logits in layout.views(changed):
                full = logits
                if positions != self.read:
                    full = clean_logits.clone()
                    put(full, places(positions, self.read, full.device), 1, logits)
                yield variant, full

    # Edits: where they are, and applying them as an activation passes their hook point.

    def _edits(self, variant: int, base: str, sites: Iterable[str]) -> list[Edit]:
        edits = self.variants[variant]
        return [edit for site in sites for edit in edits.get(base + site, ())]

    def _touched(self, variant: int, base: str, sites: Iterable[str]) -> Positions:
        return union(*(edit.touches for edit in self._edits(variant, base, sites)))

    def _visit(self, name: str, parts: Iterable[tuple[int, Positions, Tensor]]) -> None:
        """Apply the edits at a hook point, in place, to each variant's part, and store what is collected there."""
        if name not in self.edited and name not in self.collected:
            return
        for variant, positions, x in parts:
            for edit in self.variants[variant].get(name, ()):
                x.copy_(edit.apply(x, positions))
            if name in self.collected:
                axis = 2 if name.endswith(PATTERNS) else 1
                both = common(positions, self.read)
                there, here = places(both, self.read, x.device), places(both, positions, x.device)
                put(self.collected[name][variant], there, axis, take(x, here, axis))

    def _blocks(self, items: list[Item], size: Callable[[Item], int], limit: int) -> Iterator[list[Item]]:
        """Items in order, in lists of at most `limit` rows (or one item); `size` counts an item's positions."""
        block: list[Item] = []
        rows = 0
        for item in items:
            added = size(item) * self.batch
            if block and rows + added > limit:
                yield block
                block, rows = [], 0
            block.append(item)
            rows += added
        if block:
            yield block

    @staticmethod
    def _with_matrices(blocks: list[list[Item]]) -> Iterator[tuple[Matrices, list[Item]]]:
        """Each block with the weights it shares with the others."""
        matrices = Matrices(many=len(blocks) > 2)
        return ((matrices, block) for block in blocks)

    # The parts of the model.

    def _embedding(self) -> None:
        for variant in range(len(self.variants)):
            positions = self._touched(variant, "", EMBEDDING)
            if positions:
                parts = [self.clean.at(name, positions).clone() for name in EMBEDDING]
                for name, x in zip(EMBEDDING, parts, strict=True):
                    self._visit(name, [(variant, positions, x)])
                self.rows[variant] = Rows(positions, parts[0] + parts[1])

    def _residual(self, name: str, needed: Positions) -> None:
        """A place in the residual stream: variants edited here start, or hold more rows."""
        if name not in self.edited and name not in self.collected:
            return
        for variant, rows in enumerate(self.rows):
            positions = common(union(rows.positions, self._touched(variant, "", [name])), needed)
            if positions:
                x = self.clean.completed(rows, positions, name)
                x = x if positions == rows.positions else x.clone()
                self._visit(name, [(variant, positions, x)])
                self.rows[variant] = Rows(positions, x)

    def _route(self, variant: int, base: str, norm: Sequence[str], inside: Sequence[str], cuts: Sequence[str]) -> str:
        """How a variant takes a half of a block: "skip" it, "alone" from the clean run, or "together" with the others.

        `cuts`, the half's last sites, are where a whole replacement makes everything before it irrelevant.
        """
        held = bool(self.rows[variant].positions)
        if not held and not self._touched(variant, base, (*norm, *inside, *cuts)):
            return "skip"
        if any(base + site in self.collected for site in (*norm, *inside, *cuts[:-1])):
            return "together"
        if any(edit.whole for edit in self._edits(variant, base, cuts)):
            return "alone"
        return "together" if held or self._touched(variant, base, norm) else "alone"

    def _attention(self, layer: int, base: str, needed: Positions) -> None:
        asks = []
        for variant, rows in enumerate(self.rows):
            route = self._route(variant, base, NORM1, (*QKV, *PATTERNS), (*MIXED, "hook_attn_out"))
            if route == "alone":
                out = self._attention_alone(variant, layer, base, needed)
                self._add(variant, base + "hook_resid_pre", base + "hook_attn_out", out, needed)
            elif route == "together":
                before = union(rows.positions, self._touched(variant, base, (*NORM1, *QKV)))
                later = self._touched(variant, base, (*PATTERNS, *MIXED, "hook_attn_out"))
                after = common(union(self._from_first(before), later), needed)
                seen = any(base + s in self.collected for s in PATTERNS) or bool(self._edits(variant, base, PATTERNS))
                asks.append(Ask(before, after, seen, variant))
        asks.sort()
        blocks = list(self._blocks(asks, lambda ask: max(len(ask.before), len(ask.after)), self.block_rows))
        for matrices, block in self._with_matrices(blocks):
            self._attend(layer, base, block, matrices)

    def _mlp(self, layer: int, base: str, needed: Positions) -> None:
        parts = []
        for variant, rows in enumerate(self.rows):
            route = self._route(variant, base, NORM2, HIDDEN[:1], (HIDDEN[1], "hook_mlp_out"))
            if route == "alone":
                out = self._mlp_alone(variant, layer, base, needed)
                self._add(variant, base + "hook_resid_mid", base + "hook_mlp_out", out, needed)
            elif route == "together":
                touched = self._touched(variant, base, (*NORM2, *HIDDEN, "hook_mlp_out"))
                parts.append((variant, common(union(rows.positions, touched), needed)))
        blocks = list(self._blocks(parts, lambda part: len(part[1]), self.block_rows))
        for matrices, block in self._with_matrices(blocks):
            self._transform(layer, base, Layout(tuple(block), self.batch), matrices)

    def _from_first(self, positions: Positions) -> Positions:
        """Every position from the first of these on: where attention carries a change."""
        return self.clean.all[positions[0] :] if positions else ()

    # Together: many variants as one matrix.

    def _attend(self, layer: int, base: str, block: Sequence[Ask], matrices: Matrices) -> None:
        """The attention half for a block of variants: their rows become those of the residual stream after it."""
        attn, resid_pre = self.model.blocks[layer].attn, base + "hook_resid_pre"
        before, after, asking = (
            Layout(tuple((ask.variant, positions) for ask, positions in zip(block, chosen, strict=True)), self.batch)
            for chosen in ([a.before for a in block], [a.after for a in block], [a.asking for a in block])
        )
        residual = torch.cat([self.clean.completed(self.rows[v], p, resid_pre).flatten(0, 1) for v, p in before.parts])
        x = self._norm(self.model.blocks[layer].ln1, f"{base}ln1.", residual, before)
        q, k, v = self._project(attn, x, before, asking, matrices)
        for name, projected, layout in zip(QKV, (q, k, v), (asking, before, before), strict=True):
            self._visit(base + name, layout.views(projected))
        z = torch.cat(list(self._mix(attn, base, block, q, k, v)))
        self._visit(f"{base}attn.hook_z", after.views(z))
        out = linear(z.flatten(-2), matrices(attn.W_O_flat), attn.b_O)
        self._results(attn, base, after, z, out)
        self._visit(f"{base}hook_attn_out", after.views(out))
        if before == after:
            out += residual
        for (variant, have, old), (_, positions, new) in zip(before.views(residual), after.views(out), strict=True):
            if before != after:
                new += self.clean.complete(old[None], have, positions, resid_pre)[0]
            self.rows[variant] = Rows(positions, new)

    def _project(
        self, attn: Attention, x: Tensor, before: Layout, asking: Layout, matrices: Matrices
    ) -> tuple[Tensor, ...]:
        """Queries of the rows that ask, keys and values of all rows, each [rows head d_head]."""
        heads = (attn.n_heads, attn.d_head)
        if before == asking:
            q, k, v = linear(x, matrices(attn.W_QKV), attn.b_QKV).unflatten(-1, (3, *heads)).unbind(-3)
            return q, k, v
        width = attn.n_heads * attn.d_head
        bias_q, bias_kv = (None, None) if attn.b_QKV is None else (attn.b_QKV[:width], attn.b_QKV[width:])
        k, v = linear(x, matrices(attn.W_QKV, slice(width, None)), bias_kv).unflatten(-1, (2, *heads)).unbind(-3)
        asked = [
            take(view, places(wanted, have, x.device), 1).flatten(0, 1)
            for (_, have, view), (_, wanted) in zip(before.views(x), asking.parts, strict=True)
        ]
        return linear(torch.cat(asked), matrices(attn.W_QKV, slice(width)), bias_q).unflatten(-1, heads), k, v

    def _mix(
        self, attn: Attention, base: str, block: Sequence[Ask], q: Tensor, k: Tensor, v: Tensor
    ) -> Iterator[Tensor]:
        """Values mixed by each query's pattern: [rows head d_head] for one group of like variants after the other."""
        clean, size = self.clean, max(1, self.block_rows // (self.batch * self.clean.length))
        asked = answered = 0
        for (before, after, explicit), like in groupby(block, key=lambda ask: ask[:3]):
            variants = [ask.variant for ask in like]
            asking = common(before, after)
            for start in range(0, len(variants), size):
                part = variants[start : start + size]
                shape = (len(part), self.batch)
                rows, queries = len(part) * self.batch * len(before), len(part) * self.batch * len(asking)
                group_q = q[asked : asked + queries].unflatten(0, (*shape, len(asking)))
                group_k, group_v = (x[answered : answered + rows].unflatten(0, (*shape, len(before))) for x in (k, v))
                asked, answered = asked + queries, answered + rows
                group = (
                    clean.complete(group_q, asking, after, base + QKV[0]),
                    clean.complete(group_k, before, clean.all, base + QKV[1]),
                    clean.complete(group_v, before, clean.all, base + QKV[2]),
                )
                query, key, value = (x.flatten(0, 1).transpose(1, 2) for x in group)
                if explicit:
                    z = self._mix_seen(base, part, after, query, key, value)
                elif after == clean.all and clean.mask is None and attn.window is None:
                    z = F.scaled_dot_product_attention(query, key, value, is_causal=True)
                else:
                    mask = self._allowed(base, after, len(part))
                    z = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
                yield z.transpose(1, 2).flatten(0, 1)

    def _allowed(self, base: str, queries: Positions, variants: int) -> Tensor:
        """Where a layer's attention is allowed, [variant*batch or 1, 1, query, key]."""
        allowed = self.clean.allowed[int(base.split(".")[1])]
        allowed = take(allowed, places(queries, self.clean.all, allowed.device), 2)
        return allowed if len(allowed) == 1 else allowed.repeat(variants, 1, 1, 1)

    def _mix_seen(
        self, base: str, variants: Sequence[int], queries: Positions, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        """Attention step by step, so that scores and pattern pass their hook points."""
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~self._allowed(base, queries, len(variants)), -torch.inf)
        self._visit(base + PATTERNS[0], self._per_variant(scores, variants, queries))
        pattern = scores.softmax(-1)
        self._visit(base + PATTERNS[1], self._per_variant(pattern, variants, queries))
        return pattern @ v

    def _per_variant(
        self, x: Tensor, variants: Sequence[int], positions: Positions
    ) -> Iterator[tuple[int, Positions, Tensor]]:
        """Each variant's part of x [variant*batch ...]."""
        for variant, part in zip(variants, x.unflatten(0, (len(variants), self.batch)), strict=True):
            yield variant, positions, part

    def _results(self, attn: Attention, base: str, layout: Layout, z: Tensor, out: Tensor) -> None:
        """Where single heads' results are edited or collected, the output becomes their sum."""
        name = f"{base}attn.hook_result"
        if name not in self.edited and name not in self.collected:
            return
        for (variant, positions, part), (_, _, target) in zip(layout.views(z), layout.views(out), strict=True):
            if name in self.collected or name in self.variants[variant]:
                result = torch.einsum("bphd,hdm->bphm", part, attn.W_O)
                self._visit(name, [(variant, positions, result)])
                target.copy_(result.sum(-2) if attn.b_O is None else result.sum(-2) + attn.b_O)

    def _transform(self, layer: int, base: str, layout: Layout, matrices: Matrices) -> None:
        """The MLP half for a block of variants."""
        block, resid_mid = self.model.blocks[layer], base + "hook_resid_mid"
        residual = torch.cat([self.clean.completed(self.rows[v], p, resid_mid).flatten(0, 1) for v, p in layout.parts])
        x = self._norm(block.ln2, f"{base}ln2.", residual, layout)
        if base + HIDDEN[0] in self.edited or base + HIDDEN[0] in self.collected:
            pre = linear(x, matrices(block.mlp.W_in), block.mlp.b_in)
            self._visit(base + HIDDEN[0], layout.views(pre))
            post = block.mlp.act(pre)
        else:
            post = linear(x, matrices(block.mlp.W_in), block.mlp.b_in, act=self.model.config.act_fn)
        self._visit(base + HIDDEN[1], layout.views(post))
        out = linear(post, matrices(block.mlp.W_out), block.mlp.b_out)
        self._visit(f"{base}hook_mlp_out", layout.views(out))
        out += residual
        for variant, positions, rows in layout.views(out):
            self.rows[variant] = Rows(positions, rows)

    def _norm(self, norm: LayerNorm, base: str, x: Tensor, layout: Layout) -> Tensor:
        """Layer norm of rows [rows d_model]; step by step only where a variant's scale or result is edited or seen."""
        out = F.layer_norm(x, norm.w.shape, norm.w, norm.b, norm.eps)
        names = (f"{base}hook_scale", f"{base}hook_normalized")
        seen = any(name in self.collected for name in names)
        if not seen and self.edited.isdisjoint(names):
            return out
        for (variant, positions, part), (_, _, target) in zip(layout.views(x), layout.views(out), strict=True):
            if seen or not self.variants[variant].keys().isdisjoint(names):
                wide = part.to(torch.promote_types(part.dtype, torch.float32))
                centred = wide - wide.mean(-1, keepdim=True)
                scale = (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt().to(x.dtype)
                self._visit(names[0], [(variant, positions, scale)])
                normalized = (centred / scale).to(x.dtype)
                self._visit(names[1], [(variant, positions, normalized)])
                target.copy_(normalized * norm.w + norm.b)
        return out

    # Alone: a half of a block from the clean run and the change that one variant's edits make.

    def _add(self, variant: int, stream: str, output: str, out: Rows, needed: Positions) -> None:
        """Residual stream plus a half's output, at every position where either differs from the clean run."""
        rows = self.rows[variant]
        positions = common(union(rows.positions, out.positions), needed)
        total = self.clean.completed(rows, positions, stream) + self.clean.completed(out, positions, output)
        self.rows[variant] = Rows(positions, total)

    def _attention_alone(self, variant: int, layer: int, base: str, needed: Positions) -> Rows:
        """The attention output of a variant whose queries, keys and values are the clean ones but for edits of them."""
        edits, name = self.variants[variant], f"{base}hook_attn_out"
        remixed = self._from_first(self._touched(variant, base, QKV[1:]))
        mixed = union(remixed, self._touched(variant, base, (QKV[0], *PATTERNS, *MIXED)))
        mixed = common(mixed, needed)
        positions = common(union(mixed, self._touched(variant, base, ["hook_attn_out"])), needed)
        out = self.clean.at(name, positions).clone()
        if mixed and not any(edit.whole for edit in edits.get(name, ())):
            change = self._head_change(variant, layer, base, mixed)
            where = places(mixed, positions, out.device)
            put(out, where, 1, take(out, where, 1) + change)
        self._visit(name, [(variant, positions, out)])
        return Rows(positions, out)

    def _head_change(self, variant: int, layer: int, base: str, queries: Positions) -> Tensor:
        """The change of the attention output [batch query d_model] that edits of heads make; no other head runs."""
        attn, edits = self.model.blocks[layer].attn, self.variants[variant]
        heads = self._heads(variant, base)
        where = places(heads, tuple(range(attn.n_heads)), self.model.device)
        clean_z = take(self.clean.at(f"{base}attn.hook_z", queries), where, 2)
        z = clean_z
        if self._edits(variant, base, (*QKV, *PATTERNS)):
            parts = []
            for name, positions in zip(QKV, (queries, self.clean.all, self.clean.all), strict=True):
                x = take(self.clean.at(base + name, positions), where, 2)
                for edit in edits.get(base + name, ()):
                    x = edit.apply(x, positions, heads)
                parts.append(x.transpose(1, 2))
            z = self._mix_heads(variant, base, queries, heads, *parts)
        for edit in edits.get(f"{base}attn.hook_z", ()):
            z = edit.apply(z, queries, heads)
        matrix = take(attn.W_O, where, 0)
        if f"{base}attn.hook_result" not in edits:
            return (z - clean_z).flatten(-2) @ matrix.flatten(0, 1)
        result = torch.einsum("bphd,hdm->bphm", z, matrix)
        for edit in edits[f"{base}attn.hook_result"]:
            result = edit.apply(result, queries, heads)
        return (result - torch.einsum("bphd,hdm->bphm", clean_z, matrix)).sum(-2)

    def _heads(self, variant: int, base: str) -> Positions:
        """The heads of a layer that a variant edits."""
        chosen = [edit.heads for edit in self._edits(variant, base, (*QKV, *PATTERNS, *MIXED))]
        everything = tuple(range(self.model.config.n_heads))
        return union(*(everything if heads is None else heads for heads in chosen))

    def _mix_heads(
        self, variant: int, base: str, queries: Positions, heads: Positions, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        """z [batch query head d_head] of some heads, with the variant's edits of scores and pattern."""
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~self._allowed(base, queries, 1), -torch.inf)
        for edit in self.variants[variant].get(base + PATTERNS[0], ()):
            scores = edit.apply(scores, queries, heads)
        pattern = scores.softmax(-1)
        for edit in self.variants[variant].get(base + PATTERNS[1], ()):
            pattern = edit.apply(pattern, queries, heads)
        return (pattern @ v).transpose(1, 2)

    def _mlp_alone(self, variant: int, layer: int, base: str, needed: Positions) -> Rows:
        """The MLP output of a variant whose hidden activations are the clean ones but for edits of them."""
        mlp, edits = self.model.blocks[layer].mlp, self.variants[variant]
        pre_name, post_name, out_name = (base + site for site in (*HIDDEN, "hook_mlp_out"))
        positions = common(self._touched(variant, base, (*HIDDEN, "hook_mlp_out")), needed)
        out = self.clean.at(out_name, positions).clone()
        if self._touched(variant, base, HIDDEN) and not any(edit.whole for edit in edits.get(out_name, ())):
            pre, before = self.clean.at(pre_name, positions), self.clean.at(post_name, positions)
            for edit in edits.get(pre_name, ()):
                pre = edit.apply(pre, positions)
            post = mlp.act(pre) if pre_name in edits else before
            for edit in edits.get(post_name, ()):
                post = edit.apply(post, positions)
            chosen = [edit.units for edit in self._edits(variant, base, HIDDEN)]
            if all(units is not None for units in chosen):
                where = places(union(*chosen), tuple(range(pre.shape[-1])), pre.device)  # type: ignore[arg-type]
                out += (take(post, where, 2) - take(before, where, 2)) @ take(mlp.W_out, where, 0)
            else:
                out += (post - before) @ mlp.W_out
        self._visit(out_name, [(variant, positions, out)])
        return Rows(positions, out)
