"""A sweep made ready: interventions resolved, the clean run done, and how much fits into memory at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from interp.errors import InputError, MemoryLimitError
from interp.hooks import APART, NameSpec
from interp.interventions import PATTERN, Intervention, axes, whole
from interp.models.gpt import HookedGPT
from interp.models.kernels import wide
from interp.sweep.clean import CleanRun, Edits, clean_names
from interp.sweep.edits import Edit, Positions, places, resolve, take
from interp.sweep.engine import Chunk

Metric: TypeAlias = Callable[[Tensor], Mapping[str, Tensor]]
"""Logits [batch read d_vocab] of one variant -> name -> [batch ...]."""

BLOCK_ROWS = {"cpu": 2048, "cuda": 1 << 17}
"""Rows that go through a layer at a time: enough for matrix products at full speed, few enough for the CPU's caches."""
CHUNK_ROWS = {"cpu": 8192, "cuda": 1 << 19}
"""Rows of all variants of a chunk: the grain of progress and checkpoints."""
LOGIT_BYTES = {"cpu": 32 << 20, "cuda": 1 << 40}
"""Of logits at a time: what is larger, glibc gets from the system and gives back each time, and new pages cost time."""


@dataclass(frozen=True)
class Limits:
    """How much is run at a time."""

    variants: int
    """In one chunk, of those that change from the first token on; of others as many as have that many rows."""
    rows: int
    """Rows that go through a layer."""
    logit_rows: int
    """Rows that are unembedded."""


class Plan:
    """One sweep: what to run, and what the clean run gave."""

    def __init__(
        self,
        model: HookedGPT,
        tokens: Tensor,
        sources: Sequence[Sequence[Intervention]],
        metric: Metric | None,
        *,
        read: Sequence[int] | None,
        vocab: Sequence[int] | None,
        collect: NameSpec | None,
        attention_mask: Tensor | None,
    ) -> None:
        """Arguments as in `sweep`."""
        check_asked(sources, metric, collect)
        if tokens.ndim != 2 or tokens.shape[1] == 0:
            raise InputError(f"tokens of shape {tuple(tokens.shape)}", "expected whole numbers [batch pos], pos >= 1")
        batch, length = tokens.shape
        self.model, self.metric = model, metric
        self.order = indices_of(range(length) if read is None else read, length, "read")
        self.read: Positions = tuple(sorted(set(self.order)))
        self.vocab = None if vocab is None else indices_of(vocab, model.config.d_vocab_out, "vocab")
        self.names = [] if collect is None else model.match(collect)
        self.final = metric is not None or any(name.startswith("ln_final") for name in self.names)
        layers = [int(name.split(".")[1]) for name in self.names if name.startswith("blocks.")]
        self.last = model.config.n_layers - 1 if self.final else max(layers, default=-1)
        edited = {edit.name for edits in sources for edit in edits}
        if apart := [name for name in (*sorted(edited), *self.names) if name.endswith(APART)]:
            raise InputError(f"{apart[0]} in a sweep", "expected another hook point", "use slow_sweep, or model.hooks")
        self.sees_patterns = any(name.endswith(PATTERN) for name in (*edited, *self.names))
        self.ahead = self.sees_patterns or not model.config.causal  # an edited pattern may look ahead
        kept = length if self.ahead else self.read[-1] + 1
        resolved = [[resolve(edit, model, batch, length, kept) for edit in edits] for edits in sources]
        mask = None if attention_mask is None else attention_mask[:, :kept]
        names = clean_names(model, edited, self.names, self.last)
        self.clean = CleanRun(model, tokens[:, :kept], mask, names, self.last)
        self.place = {name: place for place, name in enumerate(model.hook_points)}
        self._differs: dict[tuple[int, str], np.ndarray] = {}
        self.variants: list[Edits] = [self._by_name(edits) for edits in resolved]
        where = places(self.read, self.clean.all, model.device)
        self.clean_final = take(self.clean.normalized, where, 1)
        self.clean_logits = self._unembed(self.clean_final) if metric is not None else self.clean_final
        self.clean_row = self._row(self.clean_logits, {name: self._clean_at_read(name) for name in self.names})

    def _by_name(self, edits: Sequence[Edit]) -> Edits:
        """A variant's edits by hook point, in the order given; where they put back clean values they touch nothing."""
        found: dict[str, list[Edit]] = {}
        for edit in edits:
            found.setdefault(edit.source.name, []).append(replace(edit, touches=self._touched(edit)))
        return found

    def _touched(self, edit: Edit) -> Positions:
        """Where an edit puts in anything but what the clean run has there."""
        name, value = edit.source.name, edit.source.value
        clean = self.clean.kept.get(name)
        if clean is None or edit.source.reads_old or not isinstance(value, Tensor) or value.shape != clean.shape:
            return edit.touches
        if (id(value), name) not in self._differs:
            pos_axis, head_axis = axes(name)
            rest = [axis for axis in range(clean.ndim) if axis not in (pos_axis, head_axis)]
            apart = (value.to(clean) != clean).sum(rest)
            apart = apart if head_axis is None or head_axis > pos_axis else apart.T
            self._differs[id(value), name] = apart.cpu().numpy() > 0
        differs = self._differs[id(value), name]  # [pos] or [pos head]
        if edit.heads is not None:
            differs = differs[:, list(edit.heads)]
        return tuple(p for p in edit.touches if differs[p].any())

    def first_change(self, variant: int) -> tuple[int, Positions]:
        """Where in the model and the text a variant first differs: variants alike in this are run together."""
        order, edits = self.place, self.variants[variant]
        changes = [(order[name], edit.touches) for name in edits for edit in edits[name] if edit.touches]
        return min(changes, default=(len(order), ()))

    # Running.

    def chunks(self, waiting: Sequence[int], limits: Limits) -> list[list[int]]:
        """Variants in order, as many at a time as have the rows of `limits.variants` whole texts.

        What is collected is of a whole text, wherever a variant begins.
        """
        chunks: list[list[int]] = [[]]
        left = most = limits.variants * self.clean.length
        for variant in waiting:
            touched = [place for edits in self.variants[variant].values() for e in edits for place in e.touches]
            rows = self.clean.length - (0 if self.ahead or self.names else min(touched, default=0))
            if chunks[-1] and rows > left:
                chunks.append([])
                left = most
            chunks[-1].append(variant)
            left -= rows
        return chunks if chunks[-1] else []

    def run(self, chosen: Sequence[int], limits: Limits) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Some variants, each with its results, in no particular order."""
        collected = {
            name: self._clean_at_read(name).expand(len(chosen), *[-1] * self._ndim(name)).clone() for name in self.names
        }
        chunk = Chunk(
            self.clean,
            [self.variants[variant] for variant in chosen],
            read=self.read,
            last=self.last,
            collected=collected,
            block_rows=limits.rows,
        )
        chunk.run()
        if not self.final:
            for place, variant in enumerate(chosen):
                yield variant, self._row(None, {name: x[place] for name, x in collected.items()})
            return
        unembed = self._unembed if self.metric is not None else lambda x: x
        for place, logits in chunk.logits(self.clean_logits, unembed, limits.logit_rows):
            yield chosen[place], self._row(logits, {name: x[place] for name, x in collected.items()})

    def _ndim(self, name: str) -> int:
        return len(self.model.hook_shape(name, 1, 1))

    def _unembed(self, normalized: Tensor) -> Tensor:
        if self.vocab is None:
            return self.model.unembedded(normalized)
        return self.model.unembedded(normalized, torch.tensor(self.vocab, device=self.model.device))

    def _clean_at_read(self, name: str) -> Tensor:
        return self.clean.at(name, self.read)

    def _row(self, logits: Tensor | None, collected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One variant's results, with the read axis in the order asked for."""
        where = places(self.order, self.read, self.model.device)
        row = {name: take(x, where, axes(name)[0]) for name, x in collected.items()}
        if self.metric is not None and logits is not None:
            row.update(self.metric(wide(take(logits, where, 1))))
        return row

    # Memory.

    def limits(self, memory: int | None) -> Limits:
        """How much to run at a time within these bytes (None: half of what is free).

        Raises InputError for less than a byte, MemoryLimitError when not even one variant fits.
        """
        if memory is not None and memory < 1:
            raise InputError(f"memory: {memory}", "expected bytes, at least 1", "500_000_000 is 500 MB")
        config, item = self.model.config, self.model.dtype.itemsize
        budget = free_memory(self.model.device) // 2 if memory is None else memory
        batch, length = self.clean.batch, self.clean.length
        held = sum(_nbytes(x) for x in (*self.clean.kept.values(), self.clean_logits))
        held += max(sum(_nbytes(weight) for weight in block.parameters()) for block in self.model.blocks)  # packed
        results = sum(_nbytes(x) for x in self.clean_row.values())
        seen = self.sees_patterns or config.attn_softcap is not None
        width = 12 * config.d_model + 3 * config.n_heads * config.d_head + (3 if config.gated else 2) * config.d_mlp
        width += 3 * config.n_heads * length if seen else 0
        row, state = width * item, batch * length * config.d_model * item * 2
        logit_row = 4 * max(item, 4) * (self.clean_logits.shape[-1] + config.d_model)
        one_variant = batch * length * row + state + batch * len(self.read) * logit_row
        left = budget - held - results * len(self.variants)
        if left < one_variant:
            raise MemoryLimitError(
                f"a sweep within {budget / 1e6:,.1f} MB",
                f"expected at least {(budget - left + one_variant) / 1e6:,.1f} MB for these tokens",
                "shorten or split the batch, read fewer positions, or give more memory",
            )
        kind = "cpu" if self.model.device.type == "cpu" else "cuda"
        rows = min(BLOCK_ROWS[kind], max(left // 4 // row, batch * length))
        variants = min(CHUNK_ROWS[kind] // (batch * length), left // 2 // (state + results))
        logit_rows = LOGIT_BYTES[kind] // (self.clean_logits.shape[-1] * item)
        return Limits(max(1, variants), rows, max(1, min(left // 4 // logit_row, BLOCK_ROWS[kind], logit_rows)))


def _nbytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def check_asked(sources: Sequence[object], metric: Metric | None, collect: NameSpec | None) -> None:
    """Raises InputError for a sweep that runs nothing, or measures nothing."""
    if not sources:
        raise InputError("a sweep of no variants", "expected at least one")
    if metric is None and collect is None:
        raise InputError("a sweep with neither metric nor collect", "expected something to measure")


def indices_of(chosen: Sequence[int], size: int, what: str) -> Positions:
    """Places on an axis, none negative, in the order given. Raises InputError outside the axis, or for none at all."""
    asked = whole(chosen, what)
    places = (asked,) if isinstance(asked, int) else asked or ()
    for place in places:
        if not -size <= place < size:
            raise InputError(f"{what}: {place}", f"expected {-size} to {size - 1}")
    if not places:
        raise InputError(f"{what} is empty", "expected at least one")
    return tuple(place % size for place in places)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; where the system does not say, 4 GiB."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as lines:
            available = next(line for line in lines if line.startswith("MemAvailable"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):
        return 4 << 30
