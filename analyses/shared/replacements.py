"""What an ablated component is replaced by: zero, means, or its output on other texts."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from analyses.shared.components import Component
from analyses.shared.stacks import Model
from analyses.shared.task import Row, Shape, batch, shape, sides, task_of
from interp.errors import InputError, nearest
from interp.models.kernels import wide

KindName = Literal["zero", "mean", "mean_by_position", "mean_over_texts", "resample"]
KINDS: Mapping[str, str] = {
    "zero": "set to zero",
    "mean": "set to its mean",
    "mean_by_position": "set to the other texts' mean at each position",
    "mean_over_texts": "set to all texts' mean at each position",
    "resample": "taken from another text",
}
SHUFFLES = 16
"""Shuffles of a single text that replacements are made from."""
AT_ONCE = 4096
"""Most tokens in one forward pass (one text at least)."""

Values: TypeAlias = Mapping[str, float | Tensor]
"""Hook name -> what to put there: a number, or a tensor that broadcasts to [batch pos ...]."""


def check_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds, each once. Raises InputError for an empty list or an unknown kind."""
    if not kinds:
        raise InputError("no kinds given", f"expected some of {', '.join(KINDS)}")
    for kind in kinds:
        if kind not in KINDS:
            close = nearest(str(kind), list(KINDS), 1)
            raise InputError(
                f"unknown kind {kind!r}", f"expected {', '.join(KINDS)}", f"did you mean {close[0]!r}?" if close else ""
            )
    return tuple(dict.fromkeys(kinds))


class Replacements:
    """Replacement values for a list of texts, from these texts themselves or from reference texts.

    A text here is what the model reads: of a translation model source and target, and both lengths count. Means by
    position are over all other texts of the same length (a text that is alone with its length: over all other
    texts, cut to it or continued with further ones); means over texts count the text itself too, as is common in the
    field. A resampled output comes from any other text, cut or continued. Reference texts, where there are any, are
    the other texts, all of them. A single text has SHUFFLES shuffles of its own tokens instead. Only draws and shuffles
    depend on the seed.

    Each text is run a fixed number of times for a kind, in passes of at most AT_ONCE tokens.
    """

    def __init__(
        self,
        model: Model,
        rows: Sequence[Row],
        reference: Sequence[str] | None,
        kinds: Sequence[str],
        parts: Sequence[Component],
        *,
        draws: int,
        seed: int,
    ) -> None:
        if draws < 1:
            raise InputError(f"{draws} draws", "expected at least 1")
        self.task, self.kinds, self.draws = task_of(model), kinds, draws
        self.dtype = model.dtype
        self.names = list(dict.fromkeys(name for part in parts for name in part.names))
        self.depth = 1 + max((part.layer or 0 for part in parts), default=0)
        self.rng = random.Random(seed)
        self.own = reference is None
        self.rows = list(rows) if reference is None else self.task.read(reference)
        self.lengths = list(map(shape, self.rows))
        self.asked = list(map(shape, rows))
        self.shuffled = len(self.rows) == 1 and self.own
        self.sums: dict[tuple[Shape, bool], tuple[dict[str, Tensor], int]] = {}
        self.notes = tuple(self._notes())

    def _notes(self) -> list[str]:
        """A sentence a kind: whose mean it is."""
        n = len(self.rows)
        whose = others = every = f"the {n} reference texts" if n > 1 else "the reference text"
        if self.shuffled:
            whose, others = "this text", f"{SHUFFLES} shuffles of this text's own tokens, the first left in place"
            every = others
        elif self.own:
            whose, others, every = "the texts themselves", "all other texts", "all texts, the text itself among them"
        lengths = Counter(self.lengths)
        among = ""
        if self.own and len(lengths) > 1:
            among = " that have as many tokens" + (
                " (for a text that is alone with its length: cut to it or continued)" if 1 in lengths.values() else ""
            )
        sentences = {
            "mean": f"Means are over all positions of {whose}.",
            "mean_by_position": f"Means by position are over {others}{among}.",
            "mean_over_texts": f"Means over texts are, at each position, over {every}{among}.",
            "resample": f"Resampled outputs come from {others}; each effect is the mean of {self.draws} draws.",
        }
        return [sentence for kind, sentence in sentences.items() if kind in self.kinds]

    def values(self, indices: list[int], length: Shape, kind: str) -> list[Values]:
        """Replacement values for texts of one length: one mapping, or one a draw.

        Tensors are [text pos ...], or [1 pos ...] and [1 1 ...] where all texts get the same.
        """
        if kind == "zero":
            return [dict.fromkeys(self.names, 0.0)]
        if kind == "mean":
            return [self._mean]
        if kind == "resample":
            return self._resampled(indices, length)
        if self.shuffled:
            return [{name: x.mean(0, keepdim=True) for name, x in self._shuffles(length).items()}]
        if kind == "mean_over_texts" or not self.own:
            total, count = self._sum(length)
            return [{name: (x / count).to(self.dtype) for name, x in total.items()}]
        return [self._mean_of_others(indices, length)]

    def _mean_of_others(self, indices: list[int], length: Shape) -> Values:
        """[text pos ...] the mean over all other texts: their sum, less the text's own."""
        own = self._run([self.rows[i] for i in indices])
        if indices == self._same(length) and len(indices) > 1:
            total, count = {name: wide(x).sum(0, keepdim=True) for name, x in own.items()}, len(indices)
        else:
            total, count = self._sum(length)
        return {name: ((total[name] - x) / (count - 1)).to(x.dtype) for name, x in own.items()}

    def _same(self, length: Shape) -> list[int]:
        return [i for i, one in enumerate(self.lengths) if one == length]

    def _sum(self, length: Shape) -> tuple[dict[str, Tensor], int]:
        """[1 pos ...] sums over the texts of this length, and how many they are.

        Reference texts, and all texts where there are not two of this length, are cut to it or continued. Where no
        position sees a later one this is done once, to the longest length that can be asked for.
        """
        same = self._same(length)
        fitted = not self.own or len(same) < 2
        cut = fitted and self.task.causal
        reach = max(self.asked) if cut else length
        if (reach, fitted) not in self.sums:
            texts = [self._fit(i, reach) for i in range(len(self.rows))] if fitted else [self.rows[i] for i in same]
            total: dict[str, Tensor] = {}
            for kept in self._passes(texts):
                for name, x in kept.items():
                    summed = wide(x).sum(0, keepdim=True)
                    total[name] = total[name] + summed if name in total else summed
            self.sums[reach, fitted] = total, len(texts)
        total, count = self.sums[reach, fitted]
        return {name: x[:, :length] if cut else x for name, x in total.items()}, count

    def _resampled(self, indices: list[int], length: Shape) -> list[Values]:
        """[text pos ...] a draw: the outputs of another text each."""
        if self.shuffled:
            kept = self._shuffles(length)
            return [{name: x[[self.rng.randrange(SHUFFLES)]] for name, x in kept.items()} for _ in range(self.draws)]
        picks = [[self._another(index) for index in indices] for _ in range(self.draws)]
        used = sorted({i for pick in picks for i in pick})
        place = {i: number for number, i in enumerate(used)}
        kept = self._run([self._fit(i, length) for i in used])
        return [{name: x[[place[i] for i in pick]] for name, x in kept.items()} for pick in picks]

    def _another(self, index: int) -> int:
        """A text drawn from all others."""
        if not self.own:
            return self.rng.randrange(len(self.rows))
        drawn = self.rng.randrange(len(self.rows) - 1)
        return drawn + (drawn >= index)

    def _shuffles(self, length: Shape) -> dict[str, Tensor]:
        return self._run([self._fit(0, length) for _ in range(SHUFFLES)])

    def _fit(self, index: int, length: Shape) -> Row:
        """A text with this many tokens: cut, or continued with further ones; shuffled for a single text."""
        if self.shuffled:
            return self.task.shuffled(self.rows[index], self.rng)
        return self.task.fit(self.rows, index, length)

    def _passes(self, texts: Sequence[Row]) -> Iterator[Mapping[str, Tensor]]:
        """Hook name -> [text pos ...], some texts of one length at a time, in their order."""
        step = max(1, AT_ONCE // sum(ids.shape[1] for ids in sides(texts[0])))
        for start in range(0, len(texts), step):
            yield self.task.kept(batch(texts[start : start + step]), self.names, self.depth)

    def _run(self, texts: Sequence[Tensor]) -> dict[str, Tensor]:
        """Hook name -> [text pos ...] for texts of one length."""
        kept = list(self._passes(texts))
        return {name: torch.cat([some[name] for some in kept]) for name in self.names}

    @cached_property
    def _mean(self) -> Values:
        """Means over all positions of all texts, shaped [1 1 ...]."""
        total: dict[str, Tensor] = {}
        counts = Counter[str]()
        for length in dict.fromkeys(self.lengths):
            for kept in self._passes([self.rows[i] for i in self._same(length)]):
                for name, x in kept.items():
                    summed = wide(x).sum((0, 1), keepdim=True)
                    total[name] = total[name] + summed if name in total else summed
                    counts[name] += x.shape[0] * x.shape[1]
        return {name: (x / counts[name]).to(self.dtype) for name, x in total.items()}
