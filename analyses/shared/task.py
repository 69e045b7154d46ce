"""What a model is asked for, and so what intervention analyses run and read: the next token, a translation, or a masked
token. Inputs of one shape run together as a batch; nothing is padded.
"""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.shared.inputs import sequences, text_names, token_labels
from analyses.shared.panels import Tokens
from analyses.shared.prompts import TEMPLATES, PromptSet, indirect_object_prompts
from analyses.shared.stacks import Model
from analyses.shared.translations import SEPARATOR, pair_labels, pair_names, translations
from interp.errors import InputError, NotApplicable
from interp.models.encoder import HookedEncoder
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.gpt import HookedGPT
from interp.models.kernels import wide
from interp.sweep import Pair

Row: TypeAlias = Any
"""Token ids [1 pos], or a Pair of such; in batches [batch pos]."""
Shape: TypeAlias = int | tuple[int, ...]
"""Tokens of a text, or of source and target."""


def sides(row: Row) -> tuple[Tensor, ...]:
    """The ids of a text; or of source and target."""
    return tuple(row) if isinstance(row, Pair) else (row,)


def shape(row: Row) -> Shape:
    """How many tokens it has: what has as many runs together."""
    lengths = tuple(ids.shape[1] for ids in sides(row))
    return lengths if len(lengths) > 1 else lengths[0]


def batch(rows: Sequence[Row]) -> Row:
    """Inputs of one shape together."""
    joined = [torch.cat(ids) for ids in zip(*map(sides, rows), strict=True)]
    return Pair(*joined) if len(joined) > 1 else joined[0]


@dataclass(frozen=True, eq=False)
class Task(ABC):
    """Of one model. An input has an answer: a token that is predicted at one place."""

    model: Any
    mask: int | None = field(init=False, default=None)
    """The token that hides another."""
    causal: ClassVar[bool] = False
    """Whether no position sees a later one."""
    direct: ClassVar[bool] = False
    """Whether what a head writes reaches the answer's logit through the final norm and the unembedding alone."""
    metric: ClassVar[str] = "logit_diff"
    """What patching measures unless told otherwise."""
    log_prob: ClassVar[str] = "log-probability of the answer"
    """What the metric of that name is, in words."""
    whole: ClassVar[bool] = False
    """Whether it is of more than the answer."""
    everywhere: ClassVar[bool] = True
    """Whether every position predicts something, so that a divergence is over all of them."""
    fixed: ClassVar[tuple[tuple[int, int], ...]] = ((1, 0),)
    """[side] tokens at the beginning and at the end that stay in place when the others are shuffled or exchanged."""
    text: ClassVar[str] = "text"
    """What is corrupted, in words."""
    own_answer: ClassVar[str] = ""
    """Said where the model chose the answer itself."""
    changed: ClassVar[str] = "lowered the answer's probability most"
    """What the change of one token does that is chosen as corruption."""
    notes: ClassVar[tuple[str, ...]] = ()
    """Said of every result."""

    # Inputs.

    def generated(self, n: int, seed: int, templates: Sequence[str] = TEMPLATES) -> PromptSet | None:
        """Prompts where no text is given, if any can be made."""
        return None

    @abstractmethod
    def read(self, given: Any) -> list[Row]:
        """One row a text. Raises InputError for what the model cannot read."""

    def rows(self, given: Any) -> list[Row]:
        """The same, each with an answer to predict."""
        return self.read(given)

    def corrupted(self, given: Any, clean: Sequence[Row]) -> list[Row]:
        """The inputs to set beside clean ones."""
        return self.rows(given)

    def names(self, rows: Sequence[Row]) -> tuple[str, ...]:
        """A short name for each."""
        return text_names(self.model, rows)

    def labels(self, ids: Tensor, side: int = 0) -> Tokens:
        """Tokens as labels."""
        return token_labels(self.model, ids)

    def fit(self, rows: Sequence[Row], index: int, length: Shape) -> Row:
        """A row with so many tokens: cut, or continued with further ones. What is fixed stays at its end."""
        lengths = (length,) if isinstance(length, int) else length
        columns = zip(zip(*map(sides, rows), strict=True), lengths, self.fixed, strict=True)
        found = [_fitted(ids, index, size, *ends) for ids, size, ends in columns]
        return Pair(*found) if len(found) > 1 else found[0]

    def shuffled(self, row: Row, rng: random.Random) -> Row:
        """Its tokens in another order, but for what is fixed."""
        found = []
        for ids, (lead, trail) in zip(sides(row), self.fixed, strict=True):
            order = list(range(ids.shape[1]))
            places = [place for place in order[lead : len(order) - trail] if int(ids[0, place]) != self.mask]
            for place, drawn in zip(places, rng.sample(places, len(places)), strict=True):
                order[place] = drawn
            found.append(ids[:, order])
        return Pair(*found) if len(found) > 1 else found[0]

    # What is asked.

    def place(self, row: Row) -> int:
        """The position whose logits are those of the answer."""
        return sides(row)[-1].shape[1] - 1

    def answers(self, rows: Sequence[Row]) -> Int[Tensor, " text"] | None:
        """The answers that the inputs themselves give, if they do."""
        return None

    def own(self, given: Any) -> bool:
        """Whether it is the model that chooses the answers."""
        return True

    def following(self, rows: Row, place: int, answer: Tensor) -> Int[Tensor, "batch pos"] | None:
        """The token whose loss counts at each position, -1 for none; None: the text's own next tokens."""
        return None

    # Runs.

    @abstractmethod
    def run(self, rows: Row) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits at all positions."""

    def at_place(self, rows: Row, place: int) -> Float[Tensor, "batch d_vocab"]:
        """Logits at one position, in float32 at least."""
        return wide(self.run(rows)[:, place])

    @abstractmethod
    def kept(self, rows: Row, names: Sequence[str], depth: int | None = None) -> Mapping[str, Tensor]:
        """Activations by hook name; nothing is needed of layers from `depth` on."""

    # One token changed.

    def unchangeable(self, row: Row) -> set[int | None]:
        """Tokens that are neither changed nor put in the place of others."""
        return set()

    def changeable(self, row: Row) -> list[int]:
        """Positions, of the first side, whose token can be changed."""
        ids, (lead, trail) = sides(row)[0][0].tolist(), self.fixed[0]
        inner = [place for place in range(lead, len(ids) - trail) if ids[place] not in self.unchangeable(row)]
        return inner or [len(ids) - 1]

    @abstractmethod
    def embedded(self, tokens: Tensor) -> tuple[str, Float[Tensor, "token d_model"]]:
        """The hook point at which the first side is embedded, and what tokens are there."""


def _fitted(rows: Sequence[Tensor], index: int, length: int, lead: int, trail: int) -> Int[Tensor, "1 pos"]:
    ids = rows[index][0]
    inner = [row[0, lead : row.shape[1] - trail] for row in rows]
    if not sum(map(len, inner)):
        raise InputError("texts of no tokens to take the place of others", "expected at least one")
    found, last, follow = ids[: len(ids) - trail], ids[len(ids) - trail :], 0
    while len(found) < length - trail:
        follow += 1
        found = torch.cat([found, inner[(index + follow) % len(rows)]])
    return torch.cat([found[: length - trail], last])[None]


@dataclass(frozen=True, eq=False)
class NextToken(Task):
    """A decoder (or what classifies at the last position): the answer comes after the last token."""

    model: HookedGPT
    direct: ClassVar[bool] = True
    own_answer: ClassVar[str] = (
        "The answer is the model's own, its most likely next token. A largest logit tends to fall whatever is "
        "changed, so effects on it lean downwards."
    )

    @property
    def causal(self) -> bool:  # type: ignore[override]
        return self.model.config.causal

    def generated(self, n: int, seed: int, templates: Sequence[str] = TEMPLATES) -> PromptSet:
        return indirect_object_prompts(self.model, n, templates=templates, seed=seed)

    def read(self, given: Any) -> list[Row]:
        return list(sequences(self.model, given, at_least=2))

    def run(self, rows: Row) -> Tensor:
        return self.model(rows)  # type: ignore[no-any-return]

    def at_place(self, rows: Row, place: int) -> Tensor:
        end = self.model.run_to(rows)[:, place]  # the rest is never unembedded
        return wide(self.model.unembedded(self.model.ln_final(end)))

    def kept(self, rows: Row, names: Sequence[str], depth: int | None = None) -> Mapping[str, Tensor]:
        return self.model.run_with_cache(rows, names=names, stop_at_layer=depth)[1]

    def unchangeable(self, row: Row) -> set[int | None]:
        return {None if self.model.tokenizer is None else self.model.tokenizer.bos}

    def changeable(self, row: Row) -> list[int]:
        """Neither the beginning-of-text token nor the last one."""
        ids = row[0].tolist()
        return list(range(int(ids[0] in self.unchangeable(row)), len(ids) - 1)) or [len(ids) - 1]

    def embedded(self, tokens: Tensor) -> tuple[str, Tensor]:
        return "hook_embed", self.model.W_E[tokens] * self.model.config.embed_scale


@dataclass(frozen=True, eq=False)
class TranslationTask(Task):
    """Source and target: the answer is the last token that is written before the end."""

    model: HookedEncoderDecoder
    metric: ClassVar[str] = "log_prob"
    log_prob: ClassVar[str] = "log-probability of the whole target"
    whole: ClassVar[bool] = True
    fixed: ClassVar[tuple[tuple[int, int], ...]] = ((0, 1), (1, 0))
    text: ClassVar[str] = "source"
    own_answer: ClassVar[str] = "No target was given: it is the model's own translation, and so is the answer."
    changed: ClassVar[str] = "made the clean target least likely"
    notes: ClassVar[tuple[str, ...]] = (
        "The loss is the mean over all tokens that are written, the end token included. Logit, logit difference, "
        "probability and rank concern the last of them before the end. Positions are those of the source in the "
        "encoder, those of the target in the decoder.",
    )

    def read(self, given: Any) -> list[Row]:
        return [Pair(one.source, one.target) for one in translations(self.model, given)]

    def corrupted(self, given: Any, clean: Sequence[Row]) -> list[Row]:
        """Other sources, each with the target of the clean one."""
        if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Tensor):
            given = given[0]
        texts = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [given]
        if not all(isinstance(one, (str, Tensor)) for one in texts):
            raise InputError("a corrupted source that is no text", "expected text, or token ids [batch source_pos]")
        sources = [
            self.model.to_source(one.partition(SEPARATOR)[0].strip()) if isinstance(one, str) else one[None]
            for one in texts
        ]
        if len(sources) != len(clean):
            return sources  # whoever asked counts them
        return [Pair(source, row.target) for source, row in zip(sources, clean, strict=True)]

    def names(self, rows: Sequence[Row]) -> tuple[str, ...]:
        return pair_names(self.model, rows)

    def labels(self, ids: Tensor, side: int = 0) -> Tokens:
        return pair_labels(self.model, ids)

    def place(self, row: Row) -> int:
        return max(int(row.target.shape[1]) - 2, 0)

    def answers(self, rows: Sequence[Row]) -> Tensor:
        return torch.cat([self.following(row, 0, row.target)[:, self.place(row)] for row in rows])

    def own(self, given: Any) -> bool:
        texts = [given] if isinstance(given, str) else given
        return not all(isinstance(text, Tensor) or SEPARATOR in text for text in texts)

    def following(self, rows: Row, place: int, answer: Tensor) -> Tensor:
        end = torch.full_like(rows.target[:, :1], self.model.config.end_token)
        return torch.cat([rows.target[:, 1:], end], dim=1)

    def run(self, rows: Row) -> Tensor:
        return self.model(*rows)  # type: ignore[no-any-return]

    def kept(self, rows: Row, names: Sequence[str], depth: int | None = None) -> Mapping[str, Tensor]:
        return self.model.run_with_cache(*rows, names=names)[1]

    def unchangeable(self, row: Row) -> set[int | None]:
        return {self.model.config.end_token}

    def embedded(self, tokens: Tensor) -> tuple[str, Tensor]:
        config = self.model.config
        scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        return "hook_source_embed", self.model.W_E[tokens] * scale


@dataclass(frozen=True, eq=False)
class MaskedToken(Task):
    """An encoder with a masked-language head: the answer stands where the text has its [MASK]."""

    model: HookedEncoder
    everywhere: ClassVar[bool] = False
    fixed: ClassVar[tuple[tuple[int, int], ...]] = ((1, 1),)
    own_answer: ClassVar[str] = (
        "The answer is the model's own, the most likely token at the mask. A largest logit tends to fall whatever is "
        "changed, so effects on it lean downwards."
    )
    notes: ClassVar[tuple[str, ...]] = ("The loss is that of the answer; all metrics concern the masked position.",)

    def __post_init__(self) -> None:
        if self.model.config.head != "masked-language":
            raise NotApplicable("this encoder predicts no tokens", "expected one with a masked-language head")
        mask = getattr(self.model.tokenizer, "mask", None)
        if mask is None:
            raise NotApplicable(
                "this model has no tokenizer with a [MASK]", "expected one: the masked token is predicted"
            )
        object.__setattr__(self, "mask", mask)

    def read(self, given: Any) -> list[Row]:
        reader: Any = self.model  # of text, as a decoder is
        return list(sequences(reader, given))

    def rows(self, given: Any) -> list[Row]:
        if given is None:
            raise InputError(
                "an encoder was given no text", "expected one with [MASK] in it", 'such as "the [MASK] sat"'
            )
        rows = self.read(given)
        for row in rows:
            if (count := int((row == self.mask).sum())) != 1:  # a report leaves the section out then
                raise NotApplicable(
                    f"a text with {count} [MASK]: {' '.join(self.labels(row))}"[:120],
                    "expected one: the token there is predicted",
                    'for example "the [MASK] sat"',
                )
        return rows

    def place(self, row: Row) -> int:
        return int((row[0] == self.mask).int().argmax())

    def following(self, rows: Row, place: int, answer: Tensor) -> Tensor:
        spots = torch.full_like(rows, -1)
        spots[:, place] = answer
        return spots

    def run(self, rows: Row) -> Tensor:
        return self.model(rows)  # type: ignore[no-any-return]

    def kept(self, rows: Row, names: Sequence[str], depth: int | None = None) -> Mapping[str, Tensor]:
        return self.model.run_with_cache(rows, names=names)[1]

    def unchangeable(self, row: Row) -> set[int | None]:
        return {self.mask, *row[0, [0, -1]].tolist()}

    def embedded(self, tokens: Tensor) -> tuple[str, Tensor]:
        return "embed.hook_embed", self.model.W_E[tokens]


@singledispatch
def task_of(model: Model) -> Task:
    """What this model is asked for. Raises NotApplicable, or InputError, for one that predicts no tokens."""
    raise InputError(f"a model of type {type(model).__name__}", "expected one that predicts tokens")


task_of.register(HookedGPT)(NextToken)
task_of.register(HookedEncoderDecoder)(TranslationTask)
task_of.register(HookedEncoder)(MaskedToken)
