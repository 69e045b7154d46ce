"""Variants of a sweep: the rows each holds, its edits as an activation passes their hook point, and what one of them
makes of a half of a block by itself, from the clean run and the change that its edits make.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from interp.models.parts import Attention, NoNorm, Norm, Visit
from interp.sweep.clean import QKV, ROTATED, CleanRun, Edits, Rows
from interp.sweep.edits import Edit, Positions, common, places, put, take, union
from interp.sweep.layout import Layout

PATTERNS = ("attn.hook_attn_scores", "attn.hook_pattern")
MIXED = ("attn.hook_z", "attn.hook_result")
HIDDEN = ("mlp.hook_pre", "mlp.hook_pre_linear")
POST = "mlp.hook_post"


class Variants:
    """Some variants of one clean run."""

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
        self.bases = [set(map(base_of, edits)) for edits in variants]
        none = torch.empty(self.batch, 0, self.model.config.d_model, dtype=self.model.dtype, device=self.model.device)
        self.rows = [Rows((), none) for _ in variants]

    # Edits: where they are, and applying them as an activation passes their hook point.

    def _edits(self, variant: int, base: str, sites: Iterable[str]) -> list[Edit]:
        """A variant's edits at sites of a block, `base` as `base_of` gives it."""
        if base not in self.bases[variant]:
            return []  # of thousands of variants most have nothing in this block
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

    def _from_first(self, positions: Positions) -> Positions:
        """Where attention carries a change: every position from the first of these on; all, where it is not causal."""
        first = positions[0] if positions and self.model.config.causal else 0
        return self.clean.all[first:] if positions else ()

    def _norm(self, norm: Norm | NoNorm, base: str, x: Tensor, layout: Layout) -> Tensor:
        """A norm of rows [rows d_model]; step by step only where a variant's scale or result is edited or seen."""
        out: Tensor = norm(x)
        names = (f"{base}hook_scale", f"{base}hook_normalized")
        seen = any(name in self.collected for name in names)
        if not seen and self.edited.isdisjoint(names):
            return out
        for (variant, positions, part), (_, _, target) in zip(layout.views(x), layout.views(out), strict=True):
            if seen or not self.variants[variant].keys().isdisjoint(names):
                one = Layout(((variant, positions),), self.batch)
                target.copy_(norm.observed(part.flatten(0, 1), self._passing(base, one)).view_as(target))
        return out

    def _passing(self, base: str, layout: Layout) -> Visit:
        """Rows [rows ...] of a layout pass their hook points."""

        def visit(site: str, x: Tensor) -> Tensor:
            self._visit(base + site, layout.views(x))
            return x

        return visit

    def _prepared(self, attn: Attention, letter: str, x: Tensor, layout: Layout) -> Tensor:
        """Queries ("q") or keys of a layout [rows head d_head] as they enter the scores."""
        first, tables = layout.parts[0][1], None
        alike = all(positions == first for _, positions in layout.parts)
        if attn.rotary is not None:
            index = torch.cat([self.clean.rows_of(p) for _, p in (layout.parts[:1] if alike else layout.parts)])
            cos, sin = (table.flatten(0, 1)[index] for table in self.clean.frame.rotations[attn.rotary])
            tables = cos, sin
        rows = x.unflatten(0, (len(layout.parts), -1)) if alike else x
        return (attn.prepare_q if letter == "q" else attn.prepare_k)(rows, tables).view_as(x)

    # Alone: a half of a block from the clean run and the change that one variant's edits make.

    def _add(self, variant: int, stream: str, output: str, out: Rows, needed: Positions) -> None:
        """Residual stream plus a half's output, at every position where either differs from the clean run."""
        rows = self.rows[variant]
        positions = common(union(rows.positions, out.positions), needed)
        total = self.clean.completed(rows, positions, stream) + self.clean.completed(out, positions, output)
        self.rows[variant] = Rows(positions, total)

    def _attention_alone(self, variant: int, layer: int, base: str, needed: Positions) -> Rows:
        """The attention output of a variant whose queries, keys and values are the clean ones but for edits of them."""
        name = f"{base}hook_attn_out"
        remixed = self._from_first(self._touched(variant, base, (*QKV[1:], ROTATED[1])))
        mixed = common(union(remixed, self._touched(variant, base, (QKV[0], ROTATED[0], *PATTERNS, *MIXED))), needed)
        positions = common(
            union(mixed, self._touched(variant, base, (*norm_sites("ln1_post"), "hook_attn_out"))), needed
        )
        out = self.clean.at(name, positions).clone()
        if not any(edit.whole for edit in self.variants[variant].get(name, ())):
            change = self._head_change(variant, layer, base, mixed) if mixed else None
            out = self._changed(variant, layer, "attn", positions, out, mixed, change)
        self._visit(name, [(variant, positions, out)])
        return Rows(positions, out)

    def _changed(
        self,
        variant: int,
        layer: int,
        part: str,
        positions: Positions,
        out: Tensor,
        where: Positions,
        change: Tensor | None,
    ) -> Tensor:
        """A half's output at `positions` [batch pos d_model] with the change of what was written at `where` put in."""
        base, inside = f"blocks.{layer}.", places(where, positions, out.device)
        after = "ln1_post" if part == "attn" else "ln2_post"
        norm = getattr(self.model.blocks[layer], after)
        normed = norm.hooked and (change is not None or bool(self._touched(variant, base, norm_sites(after))))
        if normed:
            raw = self.clean.raw(layer, part)
            out = take(raw, places(positions, self.clean.all, raw.device), 1).clone()
        if change is not None:
            put(out, inside, 1, take(out, inside, 1) + change)
        if not normed:
            return out
        layout = Layout(((variant, positions),), self.batch)
        return self._norm(norm, f"{base}{after}.", out.flatten(0, 1), layout).view_as(out)

    def _head_change(self, variant: int, layer: int, base: str, queries: Positions) -> Tensor:
        """The change of the heads' sum [batch query d_model] that edits of heads make; no other head runs."""
        attn, edits = self.model.blocks[layer].attn, self.variants[variant]
        heads = self._heads(variant, base, attn)
        where = places(heads, tuple(range(attn.n_heads)), self.model.device)
        clean_z = take(self.clean.at(f"{base}attn.hook_z", queries), where, 2)
        z = clean_z
        if self._edits(variant, base, (*QKV, *ROTATED, *PATTERNS)):
            z = self._remixed(variant, base, attn, queries, heads)
        for edit in edits.get(f"{base}attn.hook_z", ()):
            z = edit.apply(z, queries, heads)
        matrix = take(attn.W_O, where, 0)
        if f"{base}attn.hook_result" not in edits:
            return (z - clean_z).flatten(-2) @ matrix.flatten(0, 1)
        result = torch.einsum("bphd,hdm->bphm", z, matrix)
        for edit in edits[f"{base}attn.hook_result"]:
            result = edit.apply(result, queries, heads)
        return (result - torch.einsum("bphd,hdm->bphm", clean_z, matrix)).sum(-2)

    def _heads(self, variant: int, base: str, attn: Attention) -> Positions:
        """The query heads of a layer whose result a variant's edits change."""
        everything = tuple(range(attn.n_heads))
        found: list[Positions] = []
        for site in (*QKV, *ROTATED, *PATTERNS, *MIXED):
            shared = site in (*QKV[1:], ROTATED[1])
            for edit in self.variants[variant].get(base + site, ()):
                if edit.heads is None or (attn.flat_norm and site in QKV[:2]):
                    return everything
                chosen = edit.heads
                found.append(tuple(h for h in everything if attn.kv_head(h) in chosen) if shared else chosen)
        return union(*found)

    def _remixed(self, variant: int, base: str, attn: Attention, queries: Positions, heads: Positions) -> Tensor:
        """z [batch query head d_head] of some heads, with the variant's edits of what enters it."""
        edits = self.variants[variant]
        shared = tuple(sorted({attn.kv_head(head) for head in heads}))
        q = self._entering(variant, base, attn, 0, queries, heads)
        k, v = (self._entering(variant, base, attn, part, self.clean.all, shared) for part in (1, 2))
        if shared != heads:
            own = torch.tensor([shared.index(attn.kv_head(head)) for head in heads], device=q.device)
            k, v = k.index_select(2, own), v.index_select(2, own)

        def visit(site: str, x: Tensor) -> Tensor:
            for edit in edits.get(f"{base}attn.{site}", ()):
                x = edit.apply(x, queries, heads)
            return x

        seen = visit if self._edits(variant, base, PATTERNS) else None
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return attn.mix(q, k, v, self.clean.allowed(attn, queries), seen).transpose(1, 2)

    def _entering(
        self, variant: int, base: str, attn: Attention, part: int, positions: Positions, heads: Positions
    ) -> Tensor:
        """Queries, keys or values (part 0, 1, 2) of some heads as they enter the scores, with the variant's edits."""
        edits = self.variants[variant]
        names = [base + QKV[part], *([base + ROTATED[part]] if attn.prepares and part < 2 else [])]
        total = attn.n_kv_heads if part else attn.n_heads
        first = 0 if names[0] in edits else len(names) - 1
        x = take(self.clean.at(names[first], positions), places(heads, tuple(range(total)), self.model.device), 2)
        for place, name in enumerate(names[first:], start=first):
            for edit in edits.get(name, ()):
                x = edit.apply(x, positions, heads)
            if place == 0 and len(names) > 1:
                layout = Layout(((variant, positions),), self.batch)
                x = self._prepared(attn, "qk"[part], x.flatten(0, 1), layout).view_as(x)
        return x

    def _mlp_alone(self, variant: int, layer: int, base: str, needed: Positions) -> Rows:
        """The MLP output of a variant whose hidden activations are the clean ones but for edits of them."""
        name, hidden = f"{base}hook_mlp_out", (*HIDDEN, POST)
        touched = self._touched(variant, base, hidden)
        positions = common(
            union(touched, self._touched(variant, base, (*norm_sites("ln2_post"), "hook_mlp_out"))), needed
        )
        out = self.clean.at(name, positions).clone()
        if not any(edit.whole for edit in self.variants[variant].get(name, ())):
            change = self._neuron_change(variant, layer, base, positions) if touched else None
            out = self._changed(variant, layer, "mlp", positions, out, positions, change)
        self._visit(name, [(variant, positions, out)])
        return Rows(positions, out)

    def _neuron_change(self, variant: int, layer: int, base: str, positions: Positions) -> Tensor:
        """The change of what the MLP writes [batch pos d_model] that edits of its hidden layer make."""
        mlp, edits = self.model.blocks[layer].mlp, self.variants[variant]
        assert mlp is not None
        post = before = self.clean.at(base + POST, positions)
        if self._edits(variant, base, HIDDEN):
            halves = []
            for name in (base + site for site in HIDDEN if base + site in self.model.hook_points):
                x = self.clean.at(name, positions)
                for edit in edits.get(name, ()):
                    x = edit.apply(x, positions)
                halves.append(x)
            post = mlp.act(halves[0]) * halves[1] if mlp.gated else mlp.act(halves[0])
        for edit in edits.get(base + POST, ()):
            post = edit.apply(post, positions)
        chosen = [edit.units for edit in self._edits(variant, base, (*HIDDEN, POST))]
        if any(units is None for units in chosen):
            return (post - before) @ mlp.W_out
        where = places(union(*chosen), tuple(range(post.shape[-1])), post.device)  # type: ignore[arg-type]
        return (take(post, where, 2) - take(before, where, 2)) @ take(mlp.W_out, where, 0)


def base_of(name: str) -> str:
    """The block of a hook point, as `blocks.3.`; "" outside the blocks."""
    return f"blocks.{name.split('.')[1]}." if name.startswith("blocks.") else ""


def norm_sites(norm: str) -> tuple[str, str]:
    """The hook points of a norm, relative to its block."""
    prefix = f"{norm}." if norm else ""
    return f"{prefix}hook_scale", f"{prefix}hook_normalized"
