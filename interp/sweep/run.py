"""Sweeps: the same tokens run many times, each time with other interventions.

A variant is one intervention, or several that are applied together; an empty sequence is the clean run. `sweep` gives
what `slow_sweep`, the definition, gives: one forward pass with hooks for each variant.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from interp.errors import InputError
from interp.hooks import NameSpec, select_positions
from interp.interventions import Intervention
from interp.models.gpt import HookedGPT
from interp.models.kernels import wide
from interp.models.positions import check_rows
from interp.progress import track
from interp.sweep.hooked import HookedPlan, positions_of
from interp.sweep.inputs import Inputs, Model, Pair, call, listed, read_length
from interp.sweep.plan import Metric, Plan
from interp.sweep.results import Results, SweepInterrupted, identity

Variant: TypeAlias = Intervention | Sequence[Intervention]
Progress: TypeAlias = Callable[[int, int], None]
"""Called with (variants finished, variants in all)."""


CHECKED = 6
"""Variants of each sweep in another dtype that are run in the model's own too, to measure the difference."""


@dataclass
class Rounding:
    """What sweeps in another dtype gave away."""

    dtype: torch.dtype
    difference: dict[str, float] = field(default_factory=dict)
    """Metric or hook name -> largest difference from the model's own dtype, among the variants run in both."""
    checked: int = 0
    """How many were."""
    copies: dict[int, tuple[Model, Model]] = field(default_factory=dict)

    def sweep(self, model: Model, tokens: Inputs, variants: Sequence[Variant], **options: Any) -> dict[str, Tensor]:
        """A sweep in `dtype`; and a few of its variants, evenly spread, in the model's own."""
        if id(model) not in self.copies:
            self.copies[id(model)] = model, deepcopy(model).to(self.dtype)
        found = sweep(self.copies[id(model)][1], tokens, variants, **options)
        chosen = sorted({len(variants) * place // CHECKED for place in range(CHECKED)})
        options |= {"progress": None, "checkpoint": None, "dtype": model.dtype}
        exact = sweep(model, tokens, [variants[v] for v in chosen], **options)
        for name, value in exact.items():
            apart = (found[name][chosen].double() - value.double()).abs().max()
            self.difference[name] = max(self.difference.get(name, 0.0), float(apart))
        self.checked += len(chosen)
        return found


_rounding: ContextVar[Rounding | None] = ContextVar("rounding", default=None)


@contextmanager
def lowered(dtype: torch.dtype) -> Iterator[Rounding]:
    """Sweeps inside the block run in this dtype, on a copy of the model; what is yielded says how far off they are.

    The copy is made at a model's first sweep: change no weights inside the block.
    """
    rounding = Rounding(dtype)
    token = _rounding.set(rounding)
    try:
        yield rounding
    finally:
        _rounding.reset(token)


@torch.no_grad()
def sweep(
    model: Model,
    tokens: Inputs,
    variants: Sequence[Variant],
    metric: Metric | None = None,
    *,
    read: Sequence[int] | None = None,
    vocab: Sequence[int] | None = None,
    collect: NameSpec | None = None,
    attention_mask: Inputs | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """What a metric, or chosen activations, become under each variant.

    A decoder's variants share all that they do not change; those of a translation model that leave its encoder alone
    share what that gives; an encoder's each run by themselves.

    Args:
        tokens: ids [batch pos]; of a translation model `Pair(source, target)`, and positions below are the target's.
        variants: interventions, or sequences of interventions that are applied together in one run. `()` is the clean
            run, so `[(), *edits]` gives the clean value as row 0. Values may differ by batch entry.
        metric: gets the logits of one variant [batch read d_vocab] and returns name -> [batch ...]. It must not
            depend on anything else that changes. Logits of a model below float32 are handed over in float32.
        read: positions (negative ones count from the end) whose logits the metric gets, in this order, and at which
            activations are collected; None means all. Give as few as the metric needs: the rest is not computed.
        vocab: token ids whose logits the metric gets, in this order: then [batch read len(vocab)]. None means all.
        collect: hook points, as in `model.match`, whose activations are returned; with a metric, or instead of it.
            Where positions are a source's, all are.
        attention_mask: [batch pos], 1 for tokens and 0 for padding; of a translation model a pair of such.
        memory: bytes the sweep may use beyond the model; None means half of what is free. Variants are run in chunks
            that fit; results do not depend on it.
        progress: called with (variants finished, variants in all) after every chunk. Listeners of `interp.progress`
            hear of every chunk too.
        checkpoint: a file to keep finished variants in, and to continue from if it is there. It is left in place.
            Inside `with resumable(folder)` every sweep has one.
        dtype: run in this dtype instead of the model's own, on a copy of the model. Inside `with lowered(dtype)` all
            sweeps do, and the difference is measured.

    Returns:
        metric name -> [variant batch ...], and hook name -> [variant batch read ...] (of scores and pattern, the query
        axis is the one read).

    Raises InputError when there is neither metric nor collect, an intervention does not fit the model and tokens, or
    the model has hooks placed; MemoryLimitError when not even one variant fits; SweepInterrupted, with what is
    finished, on Ctrl-C.
    """
    model.refuse_changes("a sweep")
    rounding = _rounding.get()
    if dtype is None and rounding is not None and model.dtype != rounding.dtype:
        return rounding.sweep(
            model, tokens, variants, metric=metric, read=read, vocab=vocab, collect=collect,
            attention_mask=attention_mask, memory=memory, progress=progress, checkpoint=checkpoint,
        )  # fmt: skip
    model = model if dtype in (None, model.dtype) else deepcopy(model).to(dtype)
    if isinstance(model, HookedGPT) and not isinstance(tokens, Pair) and not isinstance(attention_mask, Pair):
        tokens, attention_mask = model.as_batch(tokens, attention_mask)
        check_rows(attention_mask)
    sources = [edits_of(variant) for variant in variants]
    asked: dict[str, Any] = {"read": read, "vocab": vocab, "collect": collect, "attention_mask": attention_mask}
    planned: Any = Plan if isinstance(model, HookedGPT) else HookedPlan
    plan: Plan | HookedPlan = planned(model, tokens, sources, metric, **asked)
    limits = plan.limits(memory)
    options = (plan.order, plan.vocab, plan.names, listed(attention_mask), str(model.dtype))
    kept = checkpoint and Path(checkpoint)
    results = Results(plan.clean_row, len(sources), kept, lambda: identity(model, tokens, options, sources))
    waiting = sorted((v for v in range(len(sources)) if not results.finished[v]), key=plan.first_change)
    try:
        for chosen in track(plan.chunks(waiting, limits)):
            for variant, row in plan.run(chosen, limits):
                results.put(variant, row)
            results.finish(chosen)
            if progress is not None:
                progress(int(results.finished.sum()), len(sources))
    except KeyboardInterrupt:
        results.save()
        for x in results.values.values():
            x[(~results.finished).to(x.device)] = 0
        raise SweepInterrupted(results.values, results.finished) from None
    results.save()
    return results.values


@torch.no_grad()
def slow_sweep(
    model: Model,
    tokens: Inputs,
    variants: Sequence[Variant],
    metric: Metric | None = None,
    *,
    read: Sequence[int] | None = None,
    vocab: Sequence[int] | None = None,
    collect: NameSpec | None = None,
    attention_mask: Inputs | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """The definition of a sweep: hooks, and one forward pass for each variant. Arguments and result as in `sweep`.

    `memory` and `checkpoint` are accepted and make no difference.
    """
    model = model if dtype is None else deepcopy(model).to(dtype)
    names = [] if collect is None else model.match(collect)
    inputs, masks = call(model, tokens, attention_mask)
    found: list[dict[str, Tensor]] = []
    for variant in variants:
        with model.hooks(edits_of(variant)):
            logits, cache = model.run_with_cache(*inputs, **masks, names=names)
        positions = list(range(read_length(tokens))) if read is None else list(read)
        row = {name: select_positions(cache[name], name, positions_of(model, name, positions)) for name in names}
        if metric is not None:
            logits = logits[:, positions] if vocab is None else logits[:, positions][..., list(vocab)]
            row.update(metric(wide(logits)))
        found.append(row)
        if progress is not None:
            progress(len(found), len(variants))
    if not found:
        raise InputError("a sweep of no variants", "expected at least one")
    return {name: torch.stack([row[name] for row in found]) for name in found[0]}


def edits_of(variant: Variant) -> list[Intervention]:
    """The interventions of one variant."""
    return list(variant) if isinstance(variant, Sequence) else [variant]
