"""What stacks of blocks and which attentions a model has, and how it reads an input: as data, to loop over.

A decoder or an encoder has one attention in each block; a translation model has three kinds: that of its encoder, that
of its decoder, and the decoder's cross-attention, whose keys are the source.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, singledispatch
from typing import Any, TypeAlias

import torch
from torch import Tensor

from analyses.shared.inputs import run_blocks, sequences, text_names, token_labels
from analyses.shared.panels import Tokens
from analyses.shared.translations import pair_labels, pair_names, translations
from interp.errors import InputError, NotApplicable
from interp.models.encoder import HookedEncoder
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.gpt import HookedGPT
from interp.models.parts import Attention

Model: TypeAlias = HookedGPT | HookedEncoder | HookedEncoderDecoder


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """One kind of attention, with the blocks that have it."""

    name: str
    """`encoder`, `decoder` or `cross`: what its panels and rows of tables are named after; "" for that of a decoder
    alone, which needs no name."""
    short: str
    """Before labels of heads and matrices: `enc`, `dec` or `cross`; "" where the model has no other attention."""
    words: str
    """In a sentence: "the encoder"."""
    path: str
    """Where the blocks lie in the model: `blocks`, `encoder` or `decoder`."""
    part: str
    """The attention in a block: `attn` or `cross_attn`."""
    blocks: Sequence[Any]
    queries: str
    """The side of an input (`Reading.ids`) whose positions look: `text`, `source` or `target`."""
    keys: str
    """The side whose positions are looked at."""
    first_query: int = 0
    """The first query that measures of its pattern count."""

    @property
    def attentions(self) -> list[Attention]:
        """[layer]"""
        return [getattr(block, self.part) for block in self.blocks]

    @property
    def causal(self) -> bool:
        """Whether no query sees a later key."""
        return all(attention.causal for attention in self.attentions)

    @property
    def crosses(self) -> bool:
        """Whether queries and keys are other tokens."""
        return self.queries != self.keys

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, heads)"""
        return len(self.blocks), self.attentions[0].n_heads

    def hooks(self, site: str) -> dict[str, int]:
        """Name of the attention's hook point of this site (`hook_v`) in each block -> layer."""
        return {f"{self.path}.{layer}.{self.part}.{site}": layer for layer in range(len(self.blocks))}


@singledispatch
def attentions(model: object) -> tuple[Stack, ...]:
    """Every kind of attention of a model, in the order of computation."""
    raise InputError(f"a model of type {type(model).__name__}", "expected one that has attention")


@attentions.register
def _(model: HookedGPT) -> tuple[Stack, ...]:
    first = int(model.config.causal)  # the first position can only look at itself
    return (
        Stack(
            name="", short="", words="the model", path="blocks", part="attn", blocks=model.blocks, first_query=first,
            queries="text", keys="text",
        ),
    )  # fmt: skip


@attentions.register
def _(model: HookedEncoder) -> tuple[Stack, ...]:
    return (
        Stack(
            name="encoder", short="", words="the encoder", path="blocks", part="attn", blocks=model.blocks,
            queries="text", keys="text",
        ),
    )  # fmt: skip


@attentions.register
def _(model: HookedEncoderDecoder) -> tuple[Stack, ...]:
    def stack(name: str, short: str, words: str, path: str, part: str, queries: str, keys: str) -> Stack:
        return Stack(
            name=name, short=short, words=words, path=path, part=part, blocks=getattr(model, path), queries=queries,
            keys=keys,
        )  # fmt: skip

    return (
        stack("encoder", "enc", "the encoder", "encoder", "attn", "source", "source"),
        stack("decoder", "dec", "the decoder's self-attention", "decoder", "attn", "target", "target"),
        stack("cross", "cross", "cross-attention", "decoder", "cross_attn", "target", "source"),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """One text, pair of texts or image as a model reads it."""

    name: str
    """A short name: its number and its beginning."""
    inputs: tuple[Tensor, ...]
    """What the model's own call takes, a batch of one."""
    run: Callable[[], object]
    """Sends it through every block; logits may be left out."""
    ids: Mapping[str, Tensor]
    """Side -> [pos] token ids: `text`, or `source` and `target`; nothing for an image."""
    labels: Mapping[str, Tokens]
    """Side -> [pos] what each position is called."""
    after: Tensor | None = None
    """[pos] the token that comes after each position of the last side, -1 for none; None where none is predicted."""
    last: int = 0
    """The position of the last side that is meant by -1."""
    given: bool = False
    """Whether `after` is what the model is to write, and not just what comes next."""

    @property
    def side(self) -> str:
        """The side whose next tokens are predicted."""
        return list(self.labels)[-1]

    @property
    def following(self) -> Tensor:
        """`after`. Raises NotApplicable where the model predicts no next token."""
        if self.after is None:
            raise NotApplicable("a model that predicts no next token", "expected a decoder or a translation model")
        return self.after

    def place(self, pos: int) -> int:
        """A position of the last side, from 0; negative ones count from `last`. Raises InputError for another."""
        place = self.last + 1 + pos if pos < 0 else pos
        length = len(self.labels[self.side])
        if not 0 <= place < length:
            raise InputError(
                f"pos = {pos}", f"expected {-self.last - 1} to {length - 1}, a position of the {self.side}"
            )
        return place


@singledispatch
def readings(model: object, tokens: Any, *, at_least: int = 1) -> list[Reading]:
    """Each text, pair or image that an analysis is given, as the model reads it.

    Args:
        tokens: for a decoder or a BERT what `sequences` takes, for a translation model what `translations` takes, for
            an encoder over patches images [batch channel height width].
        at_least: fewest tokens of a text that can be used.

    Raises InputError for what the model cannot read.
    """
    raise InputError(f"a model of type {type(model).__name__}", "expected one that reads text or images")


@readings.register
def _(model: HookedGPT, tokens: Any, *, at_least: int = 1) -> list[Reading]:
    rows = sequences(model, tokens, at_least=at_least)
    return [
        Reading(
            name=name, inputs=(row,), run=partial(run_blocks, model, row), ids={"text": row[0]},
            labels={"text": token_labels(model, row)}, after=torch.cat([row[0, 1:], row.new_tensor([-1])]),
            last=row.shape[1] - 1,
        )
        for row, name in zip(rows, text_names(model, rows), strict=True)
    ]  # fmt: skip


@readings.register
def _(model: HookedEncoder, tokens: Any, *, at_least: int = 1) -> list[Reading]:
    if model.config.over_patches:
        return _images(model, tokens)
    reader: Any = model  # of text, as a decoder is
    rows = sequences(reader, tokens, at_least=at_least)
    return [
        Reading(
            name=name, inputs=(row,), run=partial(model, row), ids={"text": row[0]}, last=row.shape[1] - 1,
            labels={"text": token_labels(reader, row)},
        )
        for row, name in zip(rows, text_names(reader, rows), strict=True)
    ]  # fmt: skip


def _images(model: HookedEncoder, images: Any) -> list[Reading]:
    if not isinstance(images, Tensor):
        raise InputError("an encoder over patches was given no images", "expected [batch channel height width]")
    rows, columns = model.config.grid
    names = Tokens(["[class]", *(f"r{r}c{c}" for r in range(rows) for c in range(columns))])
    return [
        Reading(
            name=f"image {number}", inputs=(image[None],), run=partial(model, image[None]), ids={},
            labels={"text": names}, last=len(names) - 1,
        )
        for number, image in enumerate(images, start=1)
    ]  # fmt: skip


@readings.register
def _(model: HookedEncoderDecoder, tokens: Any, *, at_least: int = 1) -> list[Reading]:
    found = translations(model, tokens)
    return [
        Reading(
            name=name, inputs=(one.source, one.target), run=partial(model, one.source, one.target),
            ids={"source": one.source[0], "target": one.target[0]},
            labels={"source": pair_labels(model, one.source), "target": pair_labels(model, one.target)},
            after=one.following[0], given=True,
            last=one.target.shape[1] - 1 - (one.target.shape[1] > 1),  # the very last position writes the end token
        )
        for one, name in zip(found, pair_names(model, found), strict=True)
    ]  # fmt: skip


def labels_of(model: Model, ids: Tensor | Sequence[int]) -> Tokens:
    """Token ids that a model predicts as labels."""
    if "decoder" in model.stack_sizes:
        return pair_labels(model, torch.as_tensor(ids))  # type: ignore[arg-type]
    return token_labels(model, ids)  # type: ignore[arg-type]
