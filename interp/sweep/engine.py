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

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from interp.models.parts import Attention, ParallelBlock, Visit
from interp.sweep.clean import BETWEEN, EMBEDDING, QKV, ROTATED, Rows, ready
from interp.sweep.edits import Positions, common, places, put, take, union
from interp.sweep.layout import Ask, Layout, Matrices
from interp.sweep.variants import HIDDEN, MIXED, PATTERNS, POST, Variants, base_of, norm_sites

NORM_FINAL = ("ln_final.hook_scale", "ln_final.hook_normalized")

Item = TypeVar("Item")

PACKED_FROM = 4096
"""Rows of a layer from which on laying its weights out anew costs less than it saves."""


class Chunk(Variants):
    """Some variants of a sweep, run together, once."""

    def run(self) -> None:
        """From the embedding to the residual stream after the last layer that matters."""
        self._embedding()
        for layer, block in enumerate(self.model.blocks[: self.last + 1]):
            base, needed = f"blocks.{layer}.", self.read if layer == self.last else self.clean.all
            self._residual(f"{base}hook_resid_pre", self.clean.all)
            entering = list(self.rows)
            self._attention(layer, base, needed)
            self._residual(f"{base}hook_resid_mid", needed)
            if isinstance(block, ParallelBlock):
                self._mlp(layer, base, needed, entering, "hook_resid_pre", BETWEEN)
            elif block.mlp is not None:
                self._mlp(layer, base, needed, self.rows, "hook_resid_mid", "hook_resid_mid")
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

    def _with_matrices(self, items: list[Item], size: Callable[[Item], int]) -> Iterator[tuple[Matrices, list[Item]]]:
        """`_blocks` of rows that go through a layer, each with the weights it shares with the others."""
        matrices = Matrices(many=sum(map(size, items)) * self.batch >= PACKED_FROM)
        return ((matrices, block) for block in self._blocks(items, size, self.block_rows))

    # The parts of the model.

    def _embedding(self) -> None:
        names = [name for name in EMBEDDING if name in self.model.hook_points]
        for variant in range(len(self.variants)):
            positions = self._touched(variant, "", names)
            if positions:
                parts = [self.clean.at(name, positions).clone() for name in names]
                for name, x in zip(names, parts, strict=True):
                    self._visit(name, [(variant, positions, x)])
                self.rows[variant] = Rows(positions, parts[0] if len(parts) == 1 else parts[0] + parts[1])

    def _residual(self, name: str, needed: Positions) -> None:
        """A place in the residual stream: variants edited here start, or hold more rows."""
        if name not in self.edited and name not in self.collected:
            return
        base = base_of(name)
        site = [name.removeprefix(base)]
        for variant, rows in enumerate(self.rows):
            if name not in self.collected and base not in self.bases[variant]:
                continue
            positions = common(union(rows.positions, self._touched(variant, base, site)), needed)
            if positions:
                x = self.clean.completed(rows, positions, name)
                x = x if positions == rows.positions else x.clone()
                self._visit(name, [(variant, positions, x)])
                self.rows[variant] = Rows(positions, x)

    def _route(
        self, variant: int, held: bool, base: str, norm: Sequence[str], inside: Sequence[str], cuts: Sequence[str]
    ) -> str:
        """How a variant takes a half of a block: "skip" it, "alone" from the clean run, or "together" with the others.

        `held`: whether what the half reads may differ from the clean run. `cuts`, the half's last sites, are where a
        whole replacement makes everything before it irrelevant.
        """
        if base not in self.bases[variant]:
            return "together" if held else "skip"
        if not held and not self._touched(variant, base, (*norm, *inside, *cuts)):
            return "skip"
        if any(base + site in self.collected for site in (*norm, *inside, *cuts[:-1])):
            return "together"
        if any(edit.whole for edit in self._edits(variant, base, cuts)):
            return "alone"
        return "together" if held or self._touched(variant, base, norm) else "alone"

    def _attention(self, layer: int, base: str, needed: Positions) -> None:
        asks = []
        inside, cuts = (
            (*QKV, *ROTATED, *PATTERNS, "ln1_post.hook_scale"),
            (*MIXED, "ln1_post.hook_normalized", "hook_attn_out"),
        )
        for variant, rows in enumerate(self.rows):
            route = self._route(variant, bool(rows.positions), base, norm_sites("ln1"), inside, cuts)
            if route == "alone":
                out = self._attention_alone(variant, layer, base, needed)
                self._add(variant, base + "hook_resid_pre", base + "hook_attn_out", out, needed)
            elif route == "together":
                touched = self._touched(variant, base, (*norm_sites("ln1"), *QKV, *ROTATED))
                before = union(rows.positions, touched)
                later = self._touched(variant, base, (*PATTERNS, "ln1_post.hook_scale", *cuts))
                after = common(union(self._from_first(before), later), needed)
                seen = any(base + s in self.collected for s in PATTERNS) or bool(self._edits(variant, base, PATTERNS))
                asks.append(Ask(before, after, seen, variant))
        asks.sort()
        for matrices, block in self._with_matrices(asks, lambda ask: max(len(ask.before), len(ask.after))):
            self._attend(layer, base, block, matrices)

    def _mlp(self, layer: int, base: str, needed: Positions, reading: Sequence[Rows], stream: str, total: str) -> None:
        """The MLP half: it reads the rows `reading` of the stream; its output is added to the rows held at `total`."""
        parts, norm = [], "ln1" if self.model.config.shared_norm else "ln2"
        inside, cuts = (*HIDDEN, "ln2_post.hook_scale"), (POST, "ln2_post.hook_normalized", "hook_mlp_out")
        for variant, rows in enumerate(reading):
            route = self._route(variant, bool(rows.positions), base, norm_sites(norm), inside, cuts)
            if route == "together":
                touched = self._touched(variant, base, (*norm_sites(norm), *inside, *cuts))
                parts.append((variant, common(union(rows.positions, touched), needed)))
            elif route == "alone" or self.rows[variant].positions:
                out = self._mlp_alone(variant, layer, base, needed)
                self._add(variant, base + total, base + "hook_mlp_out", out, needed)
        for matrices, chosen in self._with_matrices(parts, lambda part: len(part[1])):
            layout = Layout(tuple(chosen), self.batch)
            residual = self._completed(layout, base + stream, reading)
            written = self._transform(layer, base, f"{base}{norm}.", residual, layout, matrices)
            if stream == total:
                written += residual
            for variant, positions, part in layout.views(written):
                if stream == total:
                    self.rows[variant] = Rows(positions, part)
                else:
                    self._add(variant, base + total, base + "hook_mlp_out", Rows(positions, part), needed)

    def _completed(self, layout: Layout, name: str, rows: Sequence[Rows]) -> Tensor:
        """The stream at a layout's positions [rows d_model]: each variant's own rows, clean ones elsewhere."""
        return torch.cat(
            [self.clean.completed(rows[v], positions, name).flatten(0, 1) for v, positions in layout.parts]
        )

    # Together: many variants as one matrix.

    def _attend(self, layer: int, base: str, block: Sequence[Ask], matrices: Matrices) -> None:
        """The attention half for a block of variants: their rows become those of the residual stream after it."""
        parts, resid_pre = self.model.blocks[layer], base + "hook_resid_pre"
        before, after, asking = (
            Layout(tuple((ask.variant, positions) for ask, positions in zip(block, chosen, strict=True)), self.batch)
            for chosen in ([a.before for a in block], [a.after for a in block], [a.asking for a in block])
        )
        residual = self._completed(before, resid_pre, self.rows)
        x = self._norm(parts.ln1, f"{base}ln1.", residual, before)
        q, k, v = self._project(parts.attn, base, x, before, asking, matrices)
        z = torch.cat(list(self._mix(parts.attn, base, block, q, k, v)))
        self._visit(f"{base}attn.hook_z", after.views(z))
        out = parts.attn.write(z, matrices)
        self._results(parts.attn, base, after, z, out)
        if parts.ln1_post.hooked:
            out = self._norm(parts.ln1_post, f"{base}ln1_post.", out, after)
        self._visit(f"{base}hook_attn_out", after.views(out))
        if before == after:
            out += residual
        for (variant, have, old), (_, positions, new) in zip(before.views(residual), after.views(out), strict=True):
            if before != after:
                new += self.clean.complete(old[None], have, positions, resid_pre)[0]
            self.rows[variant] = Rows(positions, new)

    def _project(
        self, attn: Attention, base: str, x: Tensor, before: Layout, asking: Layout, matrices: Matrices
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the rows that ask, keys and values of all rows, as they enter the scores [rows head d_head]."""
        asked = x
        if before != asking:
            chosen = [
                take(view, places(wanted, have, x.device), 1).flatten(0, 1)
                for (_, have, view), (_, wanted) in zip(before.views(x), asking.parts, strict=True)
            ]
            asked = torch.cat(chosen)
        if asked is x and matrices.many:
            q, k, v = attn.project(x, matrices.joined)
        else:
            q, k, v = attn.project_q(asked, matrices), attn.project_k(x, matrices), attn.project_v(x, matrices)
        for name, projected, layout in zip(QKV, (q, k, v), (asking, before, before), strict=True):
            self._visit(base + name, layout.views(projected))
        if attn.prepares:
            q, k = self._prepared(attn, "q", q, asking), self._prepared(attn, "k", k, before)
            for name, prepared, layout in zip(ROTATED, (q, k), (asking, before), strict=True):
                self._visit(base + name, layout.views(prepared))
        return q, k, v

    def _mix(
        self, attn: Attention, base: str, block: Sequence[Ask], q: Tensor, k: Tensor, v: Tensor
    ) -> Iterator[Tensor]:
        """Values mixed by each query's pattern: [rows head d_head] for one group of like variants after the other."""
        clean, size = self.clean, max(1, self.block_rows // (self.batch * self.clean.length))
        names = ready(attn)
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
                    clean.complete(group_q, asking, after, base + names[0]),
                    clean.complete(group_k, before, clean.all, base + names[1]),
                    clean.complete(group_v, before, clean.all, base + names[2]),
                )
                query, key, value = (x.flatten(0, 1).transpose(1, 2) for x in group)
                mask = None
                if after != clean.all or clean.frame.masks[attn.window] is not None:
                    mask = clean.allowed(attn, after)
                    mask = mask if len(mask) == 1 else mask.repeat(len(part), 1, 1, 1)
                visit = self._seen(base + "attn.", part, after) if explicit else None
                yield attn.mix(query, key, value, mask, visit).transpose(1, 2).flatten(0, 1)

    def _seen(self, base: str, variants: Sequence[int], queries: Positions) -> Visit:
        """Scores and pattern [variant*batch ...] pass their hook points."""

        def visit(site: str, x: Tensor) -> Tensor:
            self._visit(base + site, self._per_variant(x, variants, queries))
            return x

        return visit

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
                result = attn.results(part)
                self._visit(name, [(variant, positions, result)])
                target.copy_(attn.summed(result))

    def _transform(
        self, layer: int, base: str, norm: str, residual: Tensor, layout: Layout, matrices: Matrices
    ) -> Tensor:
        """What the MLP half adds for a block of variants, from what it reads [rows d_model]."""
        block = self.model.blocks[layer]
        mlp = block.mlp
        assert mlp is not None
        x = self._norm(block.ln2, norm, residual, layout)
        names = [base + site for site in HIDDEN]
        seen = any(name in self.edited or name in self.collected for name in names)
        post = mlp.hidden(x, self._passing(base + "mlp.", layout) if seen else None, matrices)
        self._visit(base + POST, layout.views(post))
        out = mlp.write(post, matrices)
        if block.ln2_post.hooked:
            out = self._norm(block.ln2_post, f"{base}ln2_post.", out, layout)
        self._visit(f"{base}hook_mlp_out", layout.views(out))
        return out
