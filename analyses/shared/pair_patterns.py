"""Attention patterns that are not causal: encoders, and the three attentions of a translation model.

Measures are means over all queries of a text: `entropy` in nats, and the mass on the first key, on the last one (the
end token of a source), and, where queries and keys are the same tokens, on the token before, itself and the next one.
The decoder's self-attention is causal, and so has neither the last key nor the next one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.shared.panels import AttentionGrid, Finding, Matrix, Panel, Result, Table, Tokens
from analyses.shared.translations import pair_labels, translations
from interp.errors import InputError
from interp.hooks import HookedModule, HookPoint
from interp.models.encoder import HookedEncoder
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.parts import Attention

TITLES = {
    "entropy": "entropy of the pattern",
    "first": "first token",
    "last": "last token",
    "previous": "previous token",
    "own": "own position",
    "next": "next token",
}
WORDS = {"encoder": "the encoder", "decoder": "the decoder's self-attention", "cross": "cross-attention"}
PHRASES = {"previous": "the token before", "next": "the token after", "last": "the last token"}


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The patterns of one kind of attention on every text."""

    name: str
    """encoder, decoder or cross."""
    patterns: tuple[np.ndarray, ...]
    """One [layer head query key] a text."""
    value_norms: tuple[np.ndarray, ...]
    """One [layer head key] a text: how long each value vector is after W_O."""
    keys: tuple[Tokens, ...]
    queries: tuple[Tokens, ...]
    measures: Mapping[str, np.ndarray]
    """Measure -> [text layer head]."""

    def grid(self) -> AttentionGrid:
        causal = self.name == "decoder"
        how = "Every row sums to one. "
        if self.name == "cross":
            how += "A query is a token the decoder has read; it is used to write the next one."
        return AttentionGrid(
            key=f"{self.name}-patterns",
            title=f"Patterns of {WORDS[self.name]}",
            caption=f"Each square is a head; rows are queries, columns keys. {how}",
            patterns=self.patterns,
            tokens=self.keys,
            value_norms=self.value_norms,
            measures={TITLES[name]: values.mean(0) for name, values in self.measures.items()},
            queries=() if causal else self.queries,
        )

    def matrices(self) -> list[Matrix]:
        chosen = [name for name in ("entropy", "last", "previous", "next") if name in self.measures]
        return [
            Matrix(
                key=f"{self.name}-{name}",
                title=f"{TITLES[name][0].upper()}{TITLES[name][1:]} in {WORDS[self.name]}",
                caption="Mean over queries and texts.",
                values=self.measures[name].mean(0),
                rows=tuple(map(str, range(self.measures[name].shape[1]))),
                columns=tuple(map(str, range(self.measures[name].shape[2]))),
                row_axis="layer",
                column_axis="head",
                unit="nats" if name == "entropy" else "share of attention",
            )
            for name in chosen
        ]


@dataclass(frozen=True, kw_only=True)
class StackPatternsResult(Result):
    """Patterns and measures of every head of every stack."""

    stacks: tuple[Stack, ...]
    alignment: pd.DataFrame
    """Columns text, written, source, share, head, head_share: for each token written the source token that all
    cross-attention heads together attend to most (the end token left out), and the head that attends to it most."""
    grid: tuple[int, int] | None = None
    """Rows and columns of patches, for images."""

    def to_dataframe(self) -> pd.DataFrame:
        """One row per text, stack, layer and head: text stack layer head, and the measures."""
        frames = []
        for stack in self.stacks:
            text, layer, head = (axis.ravel() for axis in np.indices(stack.measures["entropy"].shape))
            columns = {"text": text, "stack": stack.name, "layer": layer, "head": head}
            frames.append(pd.DataFrame(columns | {name: x.ravel() for name, x in stack.measures.items()}))
        return pd.concat(frames, ignore_index=True)

    def panels(self) -> list[Panel]:
        panels: list[Panel] = [self._alignment_table()] if len(self.alignment) else []
        panels += [stack.grid() for stack in reversed(self.stacks)]
        panels += [panel for stack in self.stacks for panel in stack.matrices()]
        if self.grid is not None:
            panels += self._image_panels(self.grid)
        return panels

    def _alignment_table(self) -> Table:
        return Table(
            key="alignment",
            title="What the decoder reads when it writes each token",
            caption="Source token with the most attention of all cross-attention heads together, its share of what "
            "does not go to the end token, and the head that attends to it most. Attention is where it looks, which "
            "need not be what it uses.",
            frame=self.alignment.drop(columns="text" if self.alignment["text"].nunique() == 1 else []),
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
        found = []
        for stack in self.stacks:
            for name, phrase in PHRASES.items():
                if name not in stack.measures or np.isnan(stack.measures[name]).all():
                    continue
                values = stack.measures[name].mean(0)
                layer, head = divmod(int(np.nanargmax(values)), values.shape[1])
                value = float(values[layer, head])
                if value >= 0.4:
                    found.append(
                        Finding(
                            text=f"Head L{layer}H{head} of {WORDS[stack.name]} gives {value:.0%} of its attention to "
                            f"{phrase}.",
                            key=f"{stack.name}-{name}",
                            weight=(0.35 if name == "last" else 0.6) * value,
                            value=value,
                            unit="share",
                        )
                    )
        if len(self.alignment):
            inner = self.alignment[self.alignment["written"] != "</s>"]
            best = (inner if len(inner) else self.alignment).sort_values("share").iloc[-1]
            value = float(best["share"])
            text = (
                f"When it writes “{best['written'].strip()}”, {value:.0%} of all cross-attention that does not go to "
                f"the end token goes to “{best['source'].strip()}”; head {best['head']} gives it "
                f"{best['head_share']:.0%}."
            )
            found.append(Finding(text=text, key="alignment", weight=0.8 * value, value=value, unit="share"))
        return found


def translation_patterns(model: HookedEncoderDecoder, tokens: object, *, keep: int = 4) -> StackPatternsResult:
    """Patterns of encoder, decoder and cross-attention on each text and its translation; `keep` texts at most."""
    found = translations(model, tokens)[:keep]
    sources = tuple(pair_labels(model, one.source) for one in found)
    targets = tuple(pair_labels(model, one.target) for one in found)
    places: dict[str, list[tuple[str, Attention]]] = {
        "encoder": [(f"encoder.{n}.attn", block.attn) for n, block in enumerate(model.encoder)],
        "decoder": [(f"decoder.{n}.attn", block.attn) for n, block in enumerate(model.decoder)],
        "cross": [(f"decoder.{n}.cross_attn", block.cross_attn) for n, block in enumerate(model.decoder)],
    }
    runs = [lambda one=one: model(one.source, one.target) for one in found]
    labels = {"encoder": (sources, sources), "decoder": (targets, targets), "cross": (sources, targets)}
    stacks = tuple(_stack(model, name, where, runs, *labels[name]) for name, where in places.items())
    written = [pair_labels(model, one.following) for one in found]
    return StackPatternsResult(stacks=stacks, alignment=_alignment(stacks[2], written))


def encoder_patterns(model: HookedEncoder, tokens: object, *, keep: int = 4) -> StackPatternsResult:
    """Patterns of an encoder on texts, or on images [batch channel height width]; `keep` of them at most."""
    if model.config.over_patches:
        if not isinstance(tokens, Tensor):
            raise InputError("an encoder over patches was given no images", "expected [batch channel height width]")
        inputs = [image[None] for image in tokens[:keep]]
        rows, columns = model.config.grid
        names = Tokens(["[class]", *(f"r{r}c{c}" for r in range(rows) for c in range(columns))])
        labels = (names,) * len(inputs)
    else:
        texts = [tokens] if isinstance(tokens, str) else list(tokens)  # type: ignore[call-overload]
        inputs = [model.to_tokens(text) if isinstance(text, str) else text[None] for text in texts[:keep]]
        labels = tuple(Tokens(model.to_str_tokens(row)) for row in inputs)
    where = [(f"blocks.{n}.attn", block.attn) for n, block in enumerate(model.blocks)]
    runs = [lambda x=x: model(x) for x in inputs]
    stack = _stack(model, "encoder", where, runs, labels, labels)
    return StackPatternsResult(
        stacks=(stack,), alignment=pd.DataFrame(), grid=model.config.grid if model.config.over_patches else None
    )


def _stack(
    model: HookedModule,
    name: str,
    where: Sequence[tuple[str, Attention]],
    runs: Sequence[Callable[[], object]],
    keys: tuple[Tokens, ...],
    queries: tuple[Tokens, ...],
) -> Stack:
    read = [_read(model, where, run) for run in runs]
    measured = [_measure(pattern, name) for pattern, _ in read]
    return Stack(
        name=name,
        patterns=tuple(pattern.numpy() for pattern, _ in read),
        value_norms=tuple(norm.numpy() for _, norm in read),
        keys=keys,
        queries=queries,
        measures={each: np.stack([one[each] for one in measured]) for each in measured[0]},
    )


def _read(
    model: HookedModule, where: Sequence[tuple[str, Attention]], run: Callable[[], object]
) -> tuple[Tensor, Tensor]:
    """Patterns [layer head query key] and value norms [layer head key] of one run, float32 on the CPU."""
    patterns: list[Tensor] = []
    norms: list[Tensor] = []
    modules = {f"{path}.hook_v": attention for path, attention in where}

    def keep_norm(v: Tensor, hook: HookPoint) -> None:
        moved = torch.einsum("phd,hdm->hpm", v[0].float(), modules[hook.name].W_O.float())
        norms.append(moved.norm(dim=-1).cpu())

    hooks = [
        ([f"{path}.hook_pattern" for path, _ in where], lambda x, hook: patterns.append(x[0].float().cpu())),
        (list(modules), keep_norm),
    ]
    with torch.no_grad(), model.hooks(hooks, reads_only=True):
        run()
    return torch.stack(patterns), torch.stack(norms)


def _measure(pattern: Tensor, stack: str) -> dict[str, np.ndarray]:
    """Measure -> [layer head]. A causal pattern never reaches the last token or the next one."""
    found = {"entropy": torch.special.entr(pattern).sum(-1), "first": pattern[..., 0]}
    if stack != "decoder":
        found["last"] = pattern[..., -1]
    if stack != "cross":
        found["previous"] = pattern.diagonal(-1, dim1=-2, dim2=-1)
        found["own"] = pattern.diagonal(dim1=-2, dim2=-1)
    if stack == "encoder":
        found["next"] = pattern.diagonal(1, dim1=-2, dim2=-1)
    return {
        name: x.mean(-1).double().numpy() if x.shape[-1] else np.full(x.shape[:2], np.nan) for name, x in found.items()
    }


def _alignment(cross: Stack, written: Sequence[Tokens]) -> pd.DataFrame:
    rows = []
    for text, (pattern, keys, words) in enumerate(zip(cross.patterns, cross.keys, written, strict=True)):
        inner = pattern[..., : len(keys) - 1] if len(keys) > 1 else pattern  # all but the end token
        together = inner.mean((0, 1))
        for query, word in enumerate(words):
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
                }
            )
    return pd.DataFrame(rows)
