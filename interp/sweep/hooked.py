"""Sweeps of models that the engine does not take apart: each variant runs under hooks.

Has the face of `interp.sweep.plan.Plan`. Of a translation model, variants that leave the encoder alone begin with its
clean output.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from interp.errors import InputError, MemoryLimitError
from interp.hooks import HookPoint, NameSpec, select_positions
from interp.interventions import Intervention
from interp.models.encoder import HookedEncoder
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.kernels import wide
from interp.sweep.inputs import Inputs, Pair, call, of_encoder, of_source, read_length
from interp.sweep.plan import Limits, Metric, check_asked, free_memory, indices_of


class HookedPlan:
    """One sweep: what to run, and what the clean run gave."""

    def __init__(
        self,
        model: HookedEncoder | HookedEncoderDecoder,
        tokens: Inputs,
        sources: Sequence[Sequence[Intervention]],
        metric: Metric | None,
        *,
        read: Sequence[int] | None,
        vocab: Sequence[int] | None,
        collect: NameSpec | None,
        attention_mask: Inputs | None,
    ) -> None:
        """Arguments as in `sweep`."""
        check_asked(sources, metric, collect)
        self.model, self.sources, self.metric = model, sources, metric
        self.inputs, self.options = call(model, tokens, attention_mask)
        length = read_length(tokens)
        self.order = indices_of(range(length) if read is None else read, length, "read")
        self.vocab = None if vocab is None else indices_of(vocab, model.config.d_vocab, "vocab")
        self.names = [] if collect is None else model.match(collect)
        for name in sorted({edit.name for edits in sources for edit in edits}):
            if name not in model.hook_points:
                model.match(name)
                raise InputError(f"an intervention at {name!r}", "expected the full name of one hook point")
        self._memory: Tensor | None = None
        self._before: dict[str, Tensor] = {}
        self.clean_row = self._row(())
        self._before = {name: x for name, x in self.clean_row.items() if name in self.names and of_encoder(name)}

    def first_change(self, variant: int) -> int:
        """Variants are run in the order given."""
        return variant

    def run(self, chosen: Sequence[int], limits: Limits) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Some variants, each with its results."""
        for variant in chosen:
            yield variant, self._row(self.sources[variant])

    def _row(self, edits: Sequence[Intervention]) -> dict[str, Tensor]:
        """One variant's results."""
        kept: dict[str, Tensor] = dict(self._before)

        def keep(x: Tensor, hook: HookPoint) -> None:
            kept[hook.name] = select_positions(x, hook.name, positions_of(self.model, hook.name, self.order))

        with self.model.hooks(edits), self.model.hooks([(self.names, keep)] if self.names else [], reads_only=True):
            logits = self._logits(edits)
        row = {name: kept[name] for name in self.names}
        if self.metric is not None:
            logits = logits[:, list(self.order)]
            row.update(self.metric(wide(logits if self.vocab is None else logits[..., list(self.vocab)])))
        return row

    def _logits(self, edits: Sequence[Intervention]) -> Tensor:
        if isinstance(self.model, HookedEncoder):
            return self.model(*self.inputs, **self.options)  # type: ignore[no-any-return]
        inputs = Pair(*self.inputs)
        memory = self._memory
        if memory is None or any(of_encoder(edit.name) for edit in edits):
            memory = self.model.encode(inputs.source, self.options["source_mask"])
        if self._memory is None:  # the clean run comes first
            self._memory = memory
        return self.model.decode(inputs.target, memory, **self.options)

    def chunks(self, waiting: Sequence[int], limits: Limits) -> list[list[int]]:
        """One variant after the other."""
        return [[variant] for variant in waiting]

    def limits(self, memory: int | None) -> Limits:
        """One variant at a time. Raises as `Plan.limits` does; needed are its logits twice, its results and a layer."""
        if memory is not None and memory < 1:
            raise InputError(f"memory: {memory}", "expected bytes, at least 1", "500_000_000 is 500 MB")
        config, item = self.model.config, self.model.dtype.itemsize
        budget = free_memory(self.model.device) // 2 if memory is None else memory
        rows = sum(x.numel() for x in self.inputs)
        seen = max(x.shape[1] for x in self.inputs)
        width = 12 * config.d_model + 3 * config.d_mlp + 3 * config.n_heads * (config.d_head + seen)
        logits = self.inputs[-1].numel() * config.d_vocab * (item + max(item, 4))
        results = sum(x.numel() * x.element_size() for x in self.clean_row.values())
        needed = rows * width * item + logits + results * len(self.sources)
        if needed > budget:
            raise MemoryLimitError(
                f"a sweep within {budget / 1e6:,.1f} MB",
                f"expected at least {needed / 1e6:,.1f} MB for these tokens",
                "shorten or split the batch, read fewer positions, or give more memory",
            )
        return Limits(1, 1, 1)


def positions_of(model: object, name: str, read: Sequence[int] | None) -> list[int] | None:
    """At which positions an activation is collected: those read; of a translation model's source all."""
    source = isinstance(model, HookedEncoderDecoder) and of_source(name)
    return None if source or read is None else list(read)
